"""Alignments as JSON, and applied to weight files without a model."""
