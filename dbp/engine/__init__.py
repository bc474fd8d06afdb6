"""What runs stages: keys, store, parts, processes, schedulers. No science."""
