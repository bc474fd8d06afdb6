"""The kinds of tasks: how each is opened and scored."""
