"""Which parameter of one model is which of another: structure proposes, behaviour confirms."""
