"""Evaluation: from checkpoints to tables."""
