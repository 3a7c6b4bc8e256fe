"""Axes: what they say of a value is true of the places that its entries come from."""

from __future__ import annotations

import math

import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from torchgraft.graph.deep.atoms import Atom
from torchgraft.graph.deep.axes import follow, layout_of
from torchgraft.graph.deep.record import record

SHAPE = (2, 4, 8, 16)


class Moves(nn.Module):
    """Move entries about, one step after the other."""

    def __init__(self, steps) -> None:
        super().__init__()
        self.steps = tuple(steps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for step in self.steps:
            x = step(x)
        return x

    def extra_repr(self) -> str:
        return ", ".join(map(repr, self.steps))


class Step:
    """A function that prints as what it does."""

    def __init__(self, text: str, function) -> None:
        self.text, self.function = text, function

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)

    def __repr__(self) -> str:
        return self.text


def permuted(draw, x: torch.Tensor) -> Step:
    order = draw(st.permutations(range(x.ndim)))
    return Step(f"permute{tuple(order)}", lambda x: x.permute(order))


def transposed(draw, x: torch.Tensor) -> Step:
    one, other = draw(st.integers(0, x.ndim - 1)), draw(st.integers(0, x.ndim - 1))
    return Step(f"transpose({one}, {other})", lambda x: x.transpose(one, other))


def flattened(draw, x: torch.Tensor) -> Step:
    first = draw(st.integers(0, x.ndim - 2))
    return Step(f"flatten({first}, {first + 1})", lambda x: x.flatten(first, first + 1))


def divided(draw, x: torch.Tensor) -> Step:
    place = draw(st.integers(0, x.ndim - 1))
    side = x.shape[place]
    outer = draw(st.sampled_from([n for n in range(1, side + 1) if side % n == 0]))
    return Step(f"unflatten({place}, {outer})", lambda x: x.unflatten(place, (outer, side // outer)))


def stepped(draw, x: torch.Tensor) -> Step:
    place = draw(st.integers(0, x.ndim - 1))
    first = draw(st.integers(0, 1)) if x.shape[place] > 1 else 0
    return Step(f"[{first}::2] of {place}", lambda x: x[(*(slice(None),) * place, slice(first, None, 2))])


def selected(draw, x: torch.Tensor) -> Step:
    place = draw(st.integers(0, x.ndim - 1))
    return Step(f"select({place}, 0)", lambda x: x.select(place, 0))


def chunked(draw, x: torch.Tensor) -> Step:
    place = draw(st.integers(0, x.ndim - 1))
    number = draw(st.integers(1, 2))
    return Step(f"chunk({number}, {place})[-1]", lambda x: x.chunk(number, place)[-1])


def stacked(draw, x: torch.Tensor) -> Step:
    place = draw(st.integers(0, x.ndim))
    return Step(f"stack {place}", lambda x: torch.stack([x, x], place))


def expanded(draw, x: torch.Tensor) -> Step:
    place = draw(st.integers(0, x.ndim))

    def expand(x: torch.Tensor) -> torch.Tensor:
        x = x.unsqueeze(place)
        return x.expand(*(3 if i == place else side for i, side in enumerate(x.shape)))

    return Step(f"expand {place}", expand)


def unshuffled(draw, x: torch.Tensor) -> Step:
    return Step("pixel_unshuffle(2)", lambda x: F.pixel_unshuffle(x, 2))


def shuffled(draw, x: torch.Tensor) -> Step:
    return Step("pixel_shuffle(2)", lambda x: F.pixel_shuffle(x.repeat_interleave(4, 1), 2))


def pooled(draw, x: torch.Tensor) -> Step:
    stride = draw(st.integers(1, 4))
    return Step(f"max_pool(1, {stride})", lambda x: F.max_pool2d(x, 1, stride))


def enlarged(draw, x: torch.Tensor) -> Step:
    return Step("nearest", lambda x: F.interpolate(x, scale_factor=2))


def headed(draw, x: torch.Tensor) -> Step:
    ahead, behind, cut = draw(st.integers(0, 2)), draw(st.integers(0, 1)), draw(st.integers(0, 2))

    def head(x: torch.Tensor) -> torch.Tensor:
        tokens = [torch.zeros(len(x), count, x.shape[2]) for count in (ahead, behind)]
        return torch.cat([tokens[0], x, tokens[1]], 1)[:, min(ahead, cut) :]

    return Step(f"{ahead} tokens ahead, {behind} behind, {cut} cut off", head)


ALWAYS = (permuted, transposed, divided, stepped, selected, chunked, stacked, expanded)


@st.composite
def moves(draw) -> Moves:
    """Draw steps, each of which what came before allows."""
    x = torch.zeros(SHAPE)
    steps: list[Step] = []
    for _ in range(draw(st.integers(1, 9))):
        known = [*ALWAYS]
        if x.ndim > 1:
            known += [flattened] * 3
        if x.ndim == 3 and x.shape[1] > 4:
            known += [headed]
        if x.ndim == 4 and min(x.shape[2:]) > 1:
            known += [pooled, *[enlarged, shuffled] * (not steps)]  # later ones blur where entries come from
            known += [unshuffled] * all(side % 2 == 0 for side in x.shape[2:])
        step = draw(st.sampled_from(known))(draw, x)
        after = step(x)
        if 0 < after.numel() < 20_000 and 0 < after.ndim < 8:
            steps, x = [*steps, step], after
    return Moves(steps)


def places(x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Tell where each entry comes from, by the number that it holds."""
    number, held = x.long() - 1, {}
    for kind, side in reversed(list(zip("nchw", SHAPE, strict=True))):
        held[kind], number = number % side, number // side
    return held


def counts(atom: Atom, index: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """Tell for which entries an atom counts what it says."""
    if atom.step.denominator > 1:  # several places for one of the image
        whole = (index * float(atom.step)).floor().long() == place
        return whole if atom.whole is None else torch.ones_like(whole)
    return place // int(atom.step) % atom.size == index


def is_true(axes, x: torch.Tensor) -> None:
    """Compare what axes say with where the entries come from."""
    held, real = places(x), x > 0
    for number, axis in enumerate(axes):
        assert math.prod(a.size for a in axis) == x.shape[number]
        index = torch.arange(x.shape[number]).view([-1 if i == number else 1 for i in range(x.ndim)])
        index = index.expand(x.shape)
        for atom in reversed(axis):
            mine, index = index % atom.size, index // atom.size
            if atom.kind in "nhw":
                assert counts(atom, mine, held[atom.kind])[real].all(), (atom, number)
            if atom.kind == "l":
                mine = mine - atom.before
                inside = (mine >= 0) & (mine < math.prod(a.size for a in atom.parts))
                assert inside[real].all(), "a token of the map that is none"
                for part in reversed(atom.parts):
                    here, mine = mine % part.size, mine // part.size
                    assert counts(part, here, held[part.kind])[real & inside].all(), (part, number)


UNSHUFFLE = Step("pixel_unshuffle(2)", lambda x: F.pixel_unshuffle(x, 2))
SWAP = Step("transpose(1, 2)", lambda x: x.transpose(1, 2))
STACK = Step("stack 2", lambda x: torch.stack([x, x], 2))
GATHER = Step("[:, :, [1, 0]]", lambda x: x[:, :, [1, 0]])
SHRINK = Step("[:, :, :0]", lambda x: x[:, :, :0].flatten(1))


@example(Moves([UNSHUFFLE, SWAP, UNSHUFFLE]))
@example(Moves([STACK]))
@example(Moves([GATHER]))
@example(Moves([SHRINK]))
@given(moves())
def test_axes_are_true(net):
    """Each entry of a value that was only moved comes from where its axes say."""
    told = record(net, ((torch.empty(SHAPE),), {}))
    axes = follow(told)
    value = net(torch.arange(1, math.prod(SHAPE) + 1).view(SHAPE).float())
    held = axes[told.outputs[0]]
    is_true(held, value)
    layout = layout_of(held)
    exact = all(atom.step.denominator == 1 for axis in held for atom in axis)
    if layout is not None and layout.grid is not None and exact:
        map_is_true(layout, value)


def windows(draw, x: torch.Tensor) -> Step:
    """Cut into windows and put together again, shifted and padded meanwhile, as attention in windows does."""
    side, shift, pad = (draw(st.integers(1, 4)) for _ in range(3))

    def there_and_back(x: torch.Tensor) -> torch.Tensor:
        n, high, wide, c = x.shape
        x = torch.roll(x, (-shift, -pad), (1, 2))
        x = F.pad(x, (0, 0, 0, -wide % side, 0, -high % side))
        rows, columns = x.shape[1] // side, x.shape[2] // side
        x = x.view(n, rows, side, columns, side, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, side * side, c)
        x = x.view(n, rows, columns, side, side, c).permute(0, 1, 3, 2, 4, 5)
        x = x.reshape(n, rows * side, columns * side, c)[:, :high, :wide]
        return torch.roll(x, (shift, pad), (1, 2))

    return Step(f"windows of {side} shifted by {shift} and {pad}", there_and_back)


def squares(draw, x: torch.Tensor) -> Step:
    """Bring squares of places into the channels."""

    def merge(x: torch.Tensor) -> torch.Tensor:
        if spelled:
            return torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1)
        n, high, wide, c = x.shape
        x = x.view(n, high // 2, 2, wide // 2, 2, c).permute(0, 1, 3, 2, 4, 5)
        return x.reshape(n, high // 2, wide // 2, 4 * c)

    spelled = (
        draw(st.booleans()) or min(x.shape[1:3]) < 4
    )  # a whole side in the channels is no place any more
    return Step("squares to channels", merge)


def unrolled(draw, x: torch.Tensor) -> Step:
    """Make tokens that do not run row by row: the places of each square stand far apart."""

    def unroll(x: torch.Tensor) -> torch.Tensor:
        n, high, wide, c = x.shape
        x = x.view(n, high // 2, 2, wide // 2, 2, c).permute(0, 2, 4, 1, 3, 5)
        return x.reshape(n, high * wide, c)

    return Step("unroll", unroll)


@st.composite
def usual(draw) -> Moves:
    """Draw what models do with a map: at the end it is a map or tokens."""
    steps = [Step("to nhwc", lambda x: x.permute(0, 2, 3, 1))]
    x = steps[0](torch.zeros(SHAPE))
    for _ in range(draw(st.integers(0, 4))):
        even = all(side % 2 == 0 for side in x.shape[1:3])
        steps.append(draw(st.sampled_from([windows, *[squares] * even]))(draw, x))
        x = steps[-1](x)
    even = all(side % 2 == 0 for side in x.shape[1:3])
    end = draw(st.sampled_from(["nhwc", "nchw", "tokens", "prefix", "ncl", *["order"] * even]))
    if end == "order":
        return Moves([*steps, unrolled(draw, x)])
    if end == "nchw":
        steps.append(Step("to nchw", lambda x: x.permute(0, 3, 1, 2)))
    elif end != "nhwc":
        steps.append(Step("to tokens", lambda x: x.flatten(1, 2)))
    if end == "ncl":
        steps.append(Step("transpose", lambda x: x.transpose(1, 2)))
    if end == "prefix":
        steps.append(headed(draw, x.flatten(1, 2)))
    return Moves(steps)


@given(usual(), st.sampled_from([1, 2]))
def test_the_layout_of_a_map_is_told(net, samples):
    """A map stays known through windows and back, squares into channels, tokens in any order and beside others."""
    told = record(net, ((torch.empty(samples, *SHAPE[1:]),), {}))
    axes = follow(told)[told.outputs[0]]
    value = net(torch.arange(1, math.prod(SHAPE) + 1).view(SHAPE).float()[:samples])
    layout = layout_of(axes)
    assert layout is not None
    assert layout.grid is not None
    shifted = any("shifted" in step.text for step in net.steps)
    assert shifted or is_true(axes, value) is None
    map_is_true(layout, value)


def map_is_true(layout, x: torch.Tensor) -> None:
    """Fold a value by its layout; compare each place with where it comes from."""
    x = x.movedim(1, -1) if layout.name in ("NCHW", "NCL") else x
    if x.ndim == 3:
        x = folded(layout, x)
    assert x.shape[1:3] == torch.Size(layout.grid)
    assert x.shape[-1] == layout.channels
    held = places(x)
    for axis, kind in ((0, "n"), (1, "h"), (2, "w")):
        step = 1 if kind == "n" else layout.stride[axis - 1]
        index = torch.arange(x.shape[axis]).view([-1 if i == axis else 1 for i in range(4)]).expand(x.shape)
        assert (held[kind] // step == index)[x > 0].all(), (kind, step)


def folded(layout, x: torch.Tensor) -> torch.Tensor:
    """Bring tokens to their grid: ``n l c`` to ``n h w c``."""
    x = x[:, layout.prefix : layout.prefix + math.prod(layout.grid)]
    if not layout.order:
        return x.unflatten(1, layout.grid)
    x = x.unflatten(1, [size for _, size, _ in layout.order])
    ranked = sorted(range(len(layout.order)), key=lambda i: (layout.order[i][0], -layout.order[i][2]))
    x = x.permute(0, *(i + 1 for i in ranked), x.ndim - 1)
    return x.reshape(len(x), *layout.grid, x.shape[-1])
