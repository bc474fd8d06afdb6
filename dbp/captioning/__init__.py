"""TL;DR's captioner: pictures as codes of a codebook, and captions written from the codes."""
