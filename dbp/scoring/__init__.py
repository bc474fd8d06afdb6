"""One number for each row: how well image and caption agree."""
