"""Taps: values from anywhere in a model, returned by its forward."""
