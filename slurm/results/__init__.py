"""What a sweep writes when its runs are done."""
