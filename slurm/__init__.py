"""Sweeps: grids of runs, here or on SLURM."""
