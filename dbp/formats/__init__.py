"""File formats of other tools, read and written: tars, uid lists, metadata tables, sorted clusters."""
