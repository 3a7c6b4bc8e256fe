"""The allow-list: every name that a step as text may use."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

from torch import nn
from torch.nn import functional as F

from torchgraft.blocks.registry import factory
from torchgraft.blocks.registry import names as block_names
from torchgraft.edits.adapt_input import adapt_input
from torchgraft.edits.dilate import dilate
from torchgraft.edits.drop_path import drop_path
from torchgraft.edits.features import features
from torchgraft.edits.fpn import fpn
from torchgraft.edits.freeze import freeze, unfreeze
from torchgraft.edits.head import drop_head, swap_head
from torchgraft.edits.inject import inject
from torchgraft.edits.load_weights import load_weights
from torchgraft.edits.merge_lora import merge_lora
from torchgraft.edits.remove import remove
from torchgraft.edits.rename import rename
from torchgraft.edits.replace import replace
from torchgraft.edits.resize import resize
from torchgraft.edits.set_adapters import set_adapters
from torchgraft.edits.set_dropout import set_dropout
from torchgraft.edits.wrap import wrap
from torchgraft.select import at, head, node, op, stage, stem
from torchgraft.transform import compose, identity

TRANSFORMS: Mapping[str, Callable[..., object]] = {
    made.__name__: made
    for made in (
        adapt_input,
        compose,
        dilate,
        drop_head,
        drop_path,
        features,
        fpn,
        freeze,
        identity,
        inject,
        load_weights,
        merge_lora,
        remove,
        rename,
        replace,
        resize,
        set_adapters,
        set_dropout,
        swap_head,
        unfreeze,
        wrap,
    )
}
SELECTORS: Mapping[str, Callable[..., object]] = {made.__name__: made for made in (at, node, op, stage)}
TIERS: Mapping[str, object] = {"stem": stem, "head": head}
METHODS = frozenset(("inside", "after", "before", "nth", "one", "exactly", "maybe", "innermost"))
PROPERTIES = frozenset(("first", "last", "calls"))
NEVER_WRITTEN: Mapping[str, str] = {
    "edit": "a function of the draft",
    "where": "a function of a site",
}


def known() -> list[str]:
    """List the names that may stand alone or be called."""
    return [*TRANSFORMS, *SELECTORS, *TIERS, *block_names()]


def named(name: str) -> object:
    """Return what a name stands for; ``None`` if it is not on the list.

    A class or a function that users registered stays a name: only what takes options is called.
    """
    for table in (TRANSFORMS, SELECTORS, TIERS):
        if name in table:
            return table[name]
    return factory(name) or (name if name in block_names() else None)


def dotted(path: str) -> object:
    """Return the module class or the torch function that a dotted name stands for.

    Only what is loaded is looked at: nothing is imported and no attribute is computed.
    """
    home, _, name = path.rpartition(".")
    spaces: Mapping[str, object] = {"nn": nn, "F": F, **sys.modules}
    found = vars(spaces[home]).get(name) if home in spaces else None
    if isinstance(found, type):
        return found if issubclass(found, nn.Module) else None
    within = home in ("F", "torch", "operator") or path.startswith("torch.Tensor.")
    if path.startswith("torch.Tensor."):
        found = getattr(sys.modules["torch"].Tensor, name, None)
    return found if within and callable(found) and not name.startswith("_") else None
