"""Functional, immutable surgery for PyTorch vision models."""

import lazy_loader

# What is public stands in __init__.pyi, and is imported when it is asked for: the command line
# answers before torch is there.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
