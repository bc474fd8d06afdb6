"""The budget, what was seen, what it cost."""
