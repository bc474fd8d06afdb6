"""Choosing while training: each batch from a larger super-batch of candidates."""
