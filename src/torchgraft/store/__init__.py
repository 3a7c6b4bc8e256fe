"""The store: a model and what was done to it, in one file."""
