"""Pools: what each kind of source is indexed by, and what a scan of a folder suggests (`dbp init`)."""
