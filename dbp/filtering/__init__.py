"""Masking rows by a score or a rule."""
