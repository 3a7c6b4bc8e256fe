"""One alignment with every operation in it, and tensors for its source."""

from __future__ import annotations

import torch

from torchgraft.alignment.alignment import Alignment, Ambiguity, Entry, Mismatch, Part

Q, K, V = (Part(f"{letter}.weight") for letter in "qkv")
SOURCE = {
    "q.weight": (6, 4),
    "k.weight": (6, 4),
    "v.weight": (6, 4),
    "head.weight": (5, 4, 1, 1),
    "fused": (18, 4),
    "turned": (4, 6),
    "scale": (),
    "wide": (7,),
    "left": (3,),
}
TARGET = {
    "qkv": (18, 4),
    "mixed": (18, 4),
    "fc.weight": (5, 4),
    "key": (6, 4),
    "middle": (6, 4),
    "straight": (6, 4),
    "scale": (),
    "padded": (10, 4),
    "zero": (2, 2),
    "narrow": (5,),
    "twin": (3,),
    "new": (8,),
}
ENTRIES = (
    Entry("qkv", (Q, K, V), rule="same input", evidence="behaviour"),
    Entry("mixed", (Q, K, V), (3, 2, 3, 4), (1, 0, 2, 3)),
    Entry("fc.weight", (Part("head.weight"),)),
    Entry("key", (Part("fused", rows=(6, 12)),)),
    Entry("middle", (Part("fused", (2, 3, 3, 4), (1, 0, 2, 3), (1, 2)),)),
    Entry("straight", (Part("turned", axes=(1, 0)),)),
    Entry("scale", (Part("scale"),)),
    Entry("padded", (Q, Part("", (4, 4)))),
    Entry("zero", (Part("", (2, 2)),)),
)


def every() -> Alignment:
    """Return an alignment with every operation, and tensors in every other place."""
    return Alignment(
        SOURCE,
        TARGET,
        ENTRIES,
        (Mismatch("narrow", "wide", (5,), (7,)),),
        (Ambiguity("twin", ("left",)),),
    )


def state(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Return random tensors of the source."""
    return {key: torch.randn(shape).to(dtype) for key, shape in SOURCE.items()}
