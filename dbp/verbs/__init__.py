"""The verbs of the command line, one file each, and how arguments are read."""
