"""Checkpoints, ranks, preemption."""
