"""Exact results at the speed of rounded ones: products, kernels and orders without ties."""
