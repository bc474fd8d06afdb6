"""Choosing the rows to keep, all methods under one budget."""
