"""What is held of each paper: its tables, and which run of ours each row asks for."""
