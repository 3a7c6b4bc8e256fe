"""Which primitive operations do what, as far as following parameters and signals asks for it."""

from __future__ import annotations

# Results of these hold elements of their inputs and nothing else.
MOVES = frozenset(
    {
        "view",
        "_unsafe_view",
        "reshape",
        "_reshape_alias",
        "permute",
        "transpose",
        "t",
        "expand",
        "unsqueeze",
        "squeeze",
        "slice",
        "select",
        "split",
        "split_with_sizes",
        "unsafe_split",
        "chunk",
        "unbind",
        "clone",
        "contiguous",
        "alias",
        "detach",
        "_to_copy",
        "lift_fresh",
        "lift_fresh_copy",
        "index",
        "index_select",
        "gather",
        "cat",
        "stack",
        "flip",
        "roll",
        "as_strided",
        "movedim",
        "repeat",
        "unfold",
    }
)
# Copies that keep the order of the elements: for where they come from, they are views.
COPIES = frozenset(
    {
        "clone",
        "contiguous",
        "_to_copy",
        "lift_fresh_copy",
        "_unsafe_view",
    }
)
# These take a part of a signal.
PARTS = frozenset(
    {
        "split",
        "split_with_sizes",
        "unsafe_split",
        "chunk",
        "unbind",
        "select",
        "slice",
        "index",
        "index_select",
    }
)
# These take of a signal its shape alone.
FRESH = frozenset(
    {
        "new_zeros",
        "new_ones",
        "new_full",
        "new_empty",
        "zeros_like",
        "ones_like",
        "full_like",
        "empty_like",
    }
)
# Between a layer and its bias nothing may happen but this.
SEEN_ANEW = frozenset(
    {
        "view",
        "_unsafe_view",
        "reshape",
        "_reshape_alias",
        "permute",
        "transpose",
        "t",
        "unsqueeze",
        "squeeze",
        "clone",
        "contiguous",
        "alias",
        "detach",
    }
)
# Scaling by a number, dropping out: nothing that tells a way from another.
NOTHING = frozenset(
    {
        "add",
        "mul",
        "sub",
        "div",
        "native_dropout",
        "dropout",
        "written",
        "copy",
    }
)
# Meetings of two signals, by what they are.
JOINS = {"add": "add", "sub": "sub", "mul": "mul", "div": "div", "cat": "cat", "stack": "cat"}
# Those in which it matters which signal is which.
ORDERED = ("cat", "sub", "div")
PRODUCTS = ("bmm", "baddbmm", "matmul")
