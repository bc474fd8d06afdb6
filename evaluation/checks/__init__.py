"""Beside the tasks: linear probes, contamination, and what curation did to injected noise."""
