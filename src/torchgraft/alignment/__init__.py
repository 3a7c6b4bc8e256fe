"""Weight alignment: which tensor of one model is which of another, and moving them."""
