"""Entry: the layers that take the input of a model, found through what keeps its channels."""
