"""From a keep list to batches: order, mixtures, captions, decoding, streaming."""
