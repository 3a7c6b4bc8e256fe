"""Stem, stages and head of a model, read off the way that its values take."""
