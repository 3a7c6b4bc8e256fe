"""Contracts: what a block does to a shape, in words and as a function."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import attrs

Shape = tuple[int, ...]
Options = Mapping[str, object]


@attrs.frozen
class Contract:
    """Say which shape comes out when one goes in, with the channels on axis 1.

    Args:
        says: the contract in a few words.
        shape: gives the output shape from the input shape and the options of the block.
    """

    says: str
    shape: Callable[[Shape, Options], Shape]


def _number(options: Options, name: str, otherwise: int) -> int:
    value = options.get(name)
    return value if isinstance(value, int) else otherwise


def _unit(shape: Shape, options: Options) -> Shape:
    stride = _number(options, "stride", 1)
    return shape[0], _number(options, "channels", shape[1]), *(math.ceil(side / stride) for side in shape[2:])


def _grown(shape: Shape, options: Options) -> Shape:
    grown = _number(options, "growth", 0) * _number(options, "layers", 1)
    return shape[0], shape[1] + grown, *shape[2:]


KEEPS_SHAPE = Contract("keeps the shape", lambda shape, options: shape)
POOLS = Contract(
    "keeps the channels, pools the places", lambda shape, options: (*shape[:2], *(1 for _ in shape[2:]))
)
UNIT = Contract("channels and stride as asked, else those of its place", _unit)
GROWS = Contract("adds channels, keeps the places", _grown)
