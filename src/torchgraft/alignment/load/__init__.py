"""Weights into a model: checkpoints, on which terms they are loaded, and the account of it."""
