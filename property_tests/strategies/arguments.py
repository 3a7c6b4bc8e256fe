"""Arguments that a transform could change by mistake: modules, dictionaries, examples, blocks, selectors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from fingerprint import bits, fingerprint
from torch import nn

from strategies.net import CLASSES, inputs
from strategies.parts import WIDTH
from strategies.weights import HEAD
from torchgraft import at, freeze, inject, load_weights, rename, replace, swap_head, wrap
from torchgraft.blocks import se
from torchgraft.transform import Transform

Given = tuple[object, Transform, dict[str, object]]


def _module() -> Given:
    module = nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 1), nn.BatchNorm2d(WIDTH)).double()
    return module, wrap("body", module, name="added"), {}


def _layer() -> Given:
    module = nn.Linear(WIDTH, CLASSES).double().eval().requires_grad_(requires_grad=False)
    return module, replace("head", module), {}


def _head() -> Given:
    module = nn.Linear(WIDTH, 5).double()
    return module, swap_head(module), {}


def _block() -> Given:
    block = se(reduction=2)
    return block, inject("branch", block), {}


def _selector() -> Given:
    selector = at("body.**") | "head"
    return selector, freeze(selector.maybe()), {}


def _tensor() -> Given:
    x = inputs().requires_grad_(requires_grad=True)
    return x, wrap("body", se, name="added"), {"example": x}


def _mapping() -> Given:
    given = {"x": inputs()}
    return given, replace("stem", nn.Conv2d(3, WIDTH, 3, 2, 1).double()), {"example": given}


def _renamed() -> Given:
    given = {"head": "classifier.last", "spare": "other"}
    return given, rename(given), {}


def _state() -> Given:
    given = {key: tensor.clone() for key, tensor in HEAD.items()}
    return given, load_weights(given, min_coverage=0), {}


def _donor() -> Given:
    donor = nn.Sequential(nn.Identity(), nn.Linear(WIDTH, CLASSES)).double()
    return donor, rename({"head": "1"}) >> load_weights(donor, min_coverage=0) >> rename({"1": "head"}), {}


ARGUMENTS: dict[str, Callable[[], Given]] = {
    "a module": _module,
    "a layer": _layer,
    "a head": _head,
    "a block": _block,
    "a selector": _selector,
    "new names": _renamed,
    "a state dict": _state,
    "a model with weights": _donor,
    "an example": _tensor,
    "an example by name": _mapping,
}
"""Makes an argument, the transform that was given it, and options of ``pipe``."""


def summed(value: object) -> object:
    """Sum up all of an argument that could change."""
    if isinstance(value, nn.Module):
        return fingerprint(value)
    if isinstance(value, torch.Tensor):
        return bits(value), value.requires_grad, value.grad is None, value._version
    if isinstance(value, dict):
        return {key: summed(item) for key, item in value.items()}
    return repr(value), hash(value)
