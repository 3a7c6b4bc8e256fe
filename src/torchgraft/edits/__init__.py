"""Edits: one transform a file, independent of each other."""
