"""Write the table of blocks: contract, layouts, start, weights at 256 channels, source."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torch
from torch import nn

from torchgraft import blocks
from torchgraft.blocks.described import Described
from torchgraft.spec import TensorSpec

PAGE = Path(__file__).resolve().parent.parent / "docs" / "blocks.md"
HEAD = (
    "# Blocks\n\n"
    "Every block by its name, for `wrap`, `inject` and `replace`.\n"
    "Weights are those that a map of 256 channels gets with default options "
    "(beside a 3x3 convolution of 256 channels for blocks that look at their target).\n"
    "A neutral start leaves the function of the model as it was, to the bit; "
    "with two numbers the second is for `neutral=False`.\n\n"
    "| block | what it does to the shape | works on | start | weights at 256 | source |\n"
    "|---|---|---|---|---|---|\n"
)


def rows() -> list[str]:
    """Write one row for each block of the library."""
    site = TensorSpec(
        256,
        1,
        4,
        torch.float32,
        torch.device("cpu"),
        layer=nn.Conv2d(256, 256, 3, padding=1),
        out_channels=256,
    )
    found = []
    for name in blocks.names():
        make = getattr(blocks, name)
        made = make()
        assert isinstance(made, Described)
        counts = [_count(made, site)]
        neutral = "neutral" in made.kind.signature.parameters
        if neutral and _count(make(neutral=False), site) != counts[0]:
            counts.append(_count(make(neutral=False), site))
        kind = made.kind
        layouts = "maps" if kind.maps else "maps and tokens" if kind.places else "any layout"
        start = "neutral, or the paper's" if neutral else _start(made)
        source = re.search(r"Source:\n(.*?)\n\n|Source:\n(.*)", _doc(make), re.DOTALL)
        said = " ".join((source[1] or source[2]).split()).rstrip(".") if source else "torch"
        weights = " / ".join(f"{count:,}" for count in counts)
        found.append(f"| `{made!r}` | {made.contract} | {layouts} | {start} | {weights} | {said} |")
    return found


def _doc(function: object) -> str:
    return re.sub(r"\n +", "\n", function.__doc__ or "")


def _count(block: Described, site: TensorSpec) -> int:
    return sum(p.numel() for p in block.build(site).parameters())


def _start(block: Described) -> str:
    """Say how a block without a choice starts: by a trial."""
    site = TensorSpec(256, 1, 4, torch.float32, torch.device("cpu"), layer=nn.Conv2d(256, 256, 1))
    module, x = block.build(site).eval(), torch.randn(2, 256, 4, 4)
    given = module(x, x + 1) if block.takes_input else module(x)
    same = given.shape == x.shape and given.equal(x + 1 if block.takes_input else x)
    return "neutral" if same else "ordinary"


if __name__ == "__main__":
    text = HEAD + "\n".join(rows()) + "\n"
    if "--check" in sys.argv:
        stale = not PAGE.exists() or PAGE.read_text() != text
        print(
            "docs/blocks.md is stale: python tools/blocks.py" if stale else "blocks: the page is up to date"
        )
        sys.exit(stale)
    PAGE.write_text(text)
