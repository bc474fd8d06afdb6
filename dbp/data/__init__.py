"""The nouns of curation: what each stage makes, with save and load and no algorithms."""
