"""Evaluation sets on disk: found, converted, verified, read."""
