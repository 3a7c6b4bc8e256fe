"""A row for every registered block: where it is put in a net, and what may then be said of it."""

from __future__ import annotations

from collections.abc import Callable

from strategies.functions import takes_eight
from strategies.row import ALWAYS, EVALUATION, Row
from torchgraft import at, blocks, compose, inject, replace, wrap
from torchgraft.blocks.block import Block


def _behind_body(block: Block) -> Row:
    """A container takes it inside, a layer beside."""
    return Row(
        lambda: wrap("body", block, name="added"),
        neutral=ALWAYS,
        touches=("body.added", "added"),
        block=block,
    )


def _row(make: Callable[..., object], target: str, block: Block, *touches: str, neutral: str = "") -> Row:
    return Row(lambda: make(target, block), neutral=neutral, touches=touches, block=block)


_ATTENTION = (
    blocks.se(), blocks.eca(), blocks.cbam(kernel=3), blocks.channel_attention(), blocks.spatial_attention(kernel=3),
    blocks.coord_attention(), blocks.global_context(), blocks.simam(), blocks.non_local(),
    blocks.triplet_attention(kernel=3), blocks.gather_excite(), blocks.self_attention(heads=2), blocks.ese(),
    blocks.adapter(2), blocks.layer_scale(),
)  # fmt: skip
_UNITS = (
    blocks.conv_norm_act(), blocks.depthwise_separable(), blocks.coord_conv(), blocks.mbconv(expand=2, kernel=5),
    blocks.fused_mbconv(expand=2), blocks.basic_residual(), blocks.bottleneck_residual(), blocks.inception(),
)  # fmt: skip
_DROPS = (blocks.dropout(0.25), blocks.drop_block(0.25, 3), blocks.stochastic_depth(0.25))

_LISTED = (
    *map(_behind_body, _ATTENTION),
    *(_row(replace, "down", block, "down") for block in _UNITS),
    *(_row(inject, "branch", block, f"branch_{block.label()}", neutral=EVALUATION) for block in _DROPS),
    _row(wrap, "stem", blocks.lora(2), "stem_lora", neutral=ALWAYS),
    _row(wrap, "head", blocks.parallel_adapter(2), "head_parallel_adapter", neutral=ALWAYS),
    _row(wrap, "branch", blocks.residual_gate(), "branch.residual_gate", neutral=ALWAYS),
    _row(replace, "norm", blocks.batch_norm(), "norm", neutral=ALWAYS),
    _row(replace, "norm", blocks.sync_batch_norm(), "norm", neutral=ALWAYS),
    _row(replace, "norm", blocks.frozen_batch_norm(), "norm", neutral=EVALUATION),
    _row(replace, "norm", blocks.group_norm(2), "norm"),
    _row(replace, "norm", blocks.layer_norm2d(), "norm"),
    _row(replace, "pool", blocks.gem(), "pool"),
    Row(
        lambda: compose(
            replace("down", blocks.dense(growth=2, layers=2), keep_shape=False),
            replace(at("head") | at("aux").maybe(), takes_eight, keep_shape=False),
        ),
        touches=("down", "head", "aux"),
        block=blocks.dense(growth=2, layers=2),
    ),
)

BLOCK_ROWS = {row.block.label(): row for row in _LISTED}
