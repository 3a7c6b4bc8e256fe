"""Runs in which nothing is computed: questions for shapes, and why a shape does not fit."""
