"""Spherical k-means and the geometry of its clusters."""
