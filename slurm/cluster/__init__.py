"""Submission to SLURM and the watching of jobs."""
