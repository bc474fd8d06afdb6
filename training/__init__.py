"""Training: from a subset to a CLIP checkpoint, compute-matched by samples seen."""
