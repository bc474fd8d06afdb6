"""The verbs `evaluate`, `compare` and `report`."""
