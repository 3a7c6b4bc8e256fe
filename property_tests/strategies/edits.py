"""Edits with targets drawn from a net, and what each of them may change."""

from __future__ import annotations

from collections.abc import Callable

import attrs
from hypothesis import strategies as st
from torch import nn

from strategies.printing import as_written
from strategies.row import covered
from strategies.selectors import paths_of
from torchgraft import freeze, inject, remove, replace, unfreeze, wrap
from torchgraft.blocks import eca, layer_scale, residual_gate
from torchgraft.transform import Transform


@attrs.frozen(repr=False)
class Placed:
    """One edit at one module of one net.

    Args:
        transform: the edit.
        path: the module.
        touches: paths that it may change, with what is in them.
        holds: paths of which it may change the modes and what gets a gradient.
        adds: the name of what it puts in; empty where it puts in nothing.
        neutral: it leaves the function of the model as it was, in both modes.
    """

    transform: Transform
    path: str
    touches: tuple[str, ...] = ()
    holds: tuple[str, ...] = ()
    adds: str = ""
    neutral: bool = False

    def touched(self, path: str) -> bool:
        """Tell whether the edit may change what is at a path."""
        return covered(path, self.touches) or (bool(self.adds) and self.adds in path.split("."))

    def held(self, path: str) -> bool:
        """Tell whether the edit may change the mode and the flags at a path."""
        return self.touched(path) or covered(path, self.holds)

    def __repr__(self) -> str:
        return repr(self.transform)

    _repr_pretty_ = as_written


def aliases(net: nn.Module, path: str) -> tuple[str, ...]:
    """Return every name of a module."""
    module = net.get_submodule(path)
    return tuple(name for name, found in net.named_modules(remove_duplicate=False) if found is module)


def tied(net: nn.Module, path: str) -> tuple[str, ...]:
    """Return every name of the parameters and modules under a module."""
    module = net.get_submodule(path)
    held = {id(item) for item in (*module.parameters(), *module.modules())}
    named = [*net.named_modules(remove_duplicate=False), *net.named_parameters(remove_duplicate=False)]
    return tuple(name for name, item in named if id(item) in held)


_KINDS: tuple[Callable[[nn.Module, str, str], Placed], ...] = (
    lambda net, path, name: Placed(wrap(path, layer_scale, name=name), path, adds=name, neutral=True),
    lambda net, path, name: Placed(wrap(path, nn.Tanh, name=name), path, adds=name),
    lambda net, path, name: Placed(inject(path, nn.Hardtanh, name=name), path, adds=name),
    lambda net, path, name: Placed(inject(path, nn.Identity, where="before", name=name), path, adds=name, neutral=True),
    lambda net, path, name: Placed(replace(path, nn.Softsign), path, touches=aliases(net, path)),
    lambda net, path, name: Placed(remove(path), path, touches=aliases(net, path)),
    lambda net, path, name: Placed(freeze(path), path, holds=tied(net, path)),
    lambda net, path, name: Placed(unfreeze(path), path, holds=tied(net, path)),
)  # fmt: skip


@st.composite
def edits(draw: st.DrawFn, net: nn.Module, *, name: str = "added") -> Placed:
    """Draw an edit of any module of a net; some of them cannot be done."""
    path = draw(st.sampled_from(paths_of(net)))
    return draw(st.sampled_from(_KINDS))(net, path, name)


@st.composite
def additions(draw: st.DrawFn, net: nn.Module, *, name: str = "added") -> Placed:
    """Draw an edit that puts something in and leaves the function of the model as it was."""
    path = draw(st.sampled_from(paths_of(net)))
    block = draw(st.sampled_from([layer_scale, eca, residual_gate, nn.Identity]))
    made = draw(st.sampled_from([wrap, inject]))(path, block, name=name)
    return Placed(made, path, adds=name, neutral=True)


@st.composite
def apart(draw: st.DrawFn, net: nn.Module) -> tuple[Placed, Placed]:
    """Draw two edits at modules of which none holds the other, nor anything of the other."""
    one = draw(edits(net, name="added"))
    near = {part for name in tied(net, one.path) for part in _around(name)} | set(tied(net, one.path))
    far = [path for path in paths_of(net) if path not in near and not covered(path, aliases(net, one.path))]
    far = [path for path in far if not set(tied(net, path)) & set(tied(net, one.path))]
    path = draw(st.sampled_from(far))
    return one, draw(st.sampled_from(_KINDS))(net, path, "other")


def _around(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]
