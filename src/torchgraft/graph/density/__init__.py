"""Density: how much finer the maps of a model become when strides turn into dilations."""
