"""Pools: what each kind of source is indexed by."""
