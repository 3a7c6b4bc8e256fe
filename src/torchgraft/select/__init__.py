"""Targets: what an edit points at, as values that exist before any model does."""
