"""Nets drawn from the grammar, each of which prints as the expression that makes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from hypothesis import strategies as st
from torch import nn

from strategies import parts
from strategies.net import Net, built

_RARE = ("Moded", "Twice", "Tied", "Tokens", "ChannelsLast", "Gated", "InPlace")
LEAVES = ("conv", "relu", "norm", "drop", "conv3", "Functional", *_RARE, *_RARE)
OF_MANY = ("nn.Sequential", "Listed")
OF_ONE = ("Skip", "Shared", "Across", "Again", "Unpaired", "Halved", "Named")
OF_TWO = ("Branches", "SkipOfSkip")
_PLACES = st.lists(st.integers(0, 30), max_size=2).map(tuple)


def bodies(*, without: tuple[str, ...] = ()) -> st.SearchStrategy[str]:
    """Draw an expression of the grammar that leaves out some of its words."""

    def nest(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        few = {word: st.lists(inner, min_size=1, max_size=3) for word in OF_MANY}
        one = {word: st.tuples(inner) for word in OF_ONE}
        two = {word: st.tuples(inner, inner) for word in OF_TWO}
        calls = {word: given for word, given in {**few, **one, **two}.items() if word not in without}
        return st.one_of(*(_call(word, given) for word, given in calls.items()))

    leaves = st.sampled_from([f"{word}()" for word in LEAVES if word not in without])
    return st.recursive(leaves, nest, max_leaves=4)


def _call(word: str, given: st.SearchStrategy) -> st.SearchStrategy[str]:
    return given.map(lambda texts: f"{word}({', '.join(texts)})")


@st.composite
def nets(draw: st.DrawFn, *, without: tuple[str, ...] = ()) -> Net:
    """Draw a net with integer weights, its own mode or mixed ones, frozen parts and hooks.

    Args:
        draw: given by hypothesis.
        without: words of the grammar to leave out.
    """
    options = {
        "aux": draw(st.sampled_from([False, False, False, True])),
        "seed": draw(st.integers(0, 99)),
        "train": draw(st.booleans()),
        "flipped": draw(_PLACES),
        "frozen": draw(_PLACES),
        "hooked": draw(st.sampled_from([(), (), (), (0,), (1,), (5,)])),
    }
    said = "".join(f", {name}={value!r}" for name, value in options.items() if value)
    return built(f"Net({draw(bodies(without=without))}{said})")


def _has(*kinds: type) -> Callable[[nn.Module], bool]:
    return lambda net: any(isinstance(module, kinds) for module in net.body.modules())


def _paths(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return net.named_modules(remove_duplicate=False)


def _modes_mixed(net: nn.Module) -> bool:
    return len({module.training for module in net.modules()}) == 2


TRAITS: dict[str, Callable[[nn.Module], bool]] = {
    "sequential": _has(nn.Sequential),
    "residual": _has(parts.Skip),
    "skip of a skip": _has(parts.SkipOfSkip),
    "branch and concat": _has(parts.Branches),
    "a layer called twice": _has(parts.Twice),
    "a part called twice": _has(parts.Again),
    "tied weights": _has(parts.Tied),
    "functional operations": _has(parts.Functional, parts.Halved),
    "buffers": lambda net: any(b is not None for m in net.body.modules() for b in m._buffers.values()),
    "module list": _has(nn.ModuleList),
    "module dictionary": _has(nn.ModuleDict),
    "one module under two paths": _has(parts.Shared),
    "one module in two containers": _has(parts.Across),
    "nested containers": lambda net: any(path.count(".") >= 3 for path, _ in _paths(net)),
    "mixed modes": _modes_mixed,
    "frozen parameters": lambda net: any(not p.requires_grad for p in net.parameters()),
    "hooks": lambda net: any(m._forward_hooks for m in net.modules()),
    "a gate of one channel": _has(parts.Gated),
    "channels last": _has(parts.ChannelsLast),
    "tokens": _has(parts.Tokens),
    "reads its mode": _has(parts.Moded),
    "reads a size": _has(parts.Halved),
    "two values": _has(parts.Pair),
    "in place": _has(parts.InPlace),
    "random numbers": _has(nn.Dropout, parts.Moded),
    "a head in training only": lambda net: net.aux is not None,
    "in training": lambda net: net.training,
    "in evaluation": lambda net: not net.training,
}
"""What occurs in the nets, each of which the meta tests want to see often enough."""
