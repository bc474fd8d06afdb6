"""Removing exact and semantic duplicates."""
