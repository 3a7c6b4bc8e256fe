"""The case table: every public transform and every registered block has a row."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import strategies as st
from torch import nn

from strategies.block_rows import BLOCK_ROWS
from strategies.functions import nothing, patches, same_head
from strategies.row import ALWAYS, EVALUATION, Row
from strategies.weights import HEAD, head_file
from torchgraft import (
    adapt_input,
    at,
    compose,
    dilate,
    drop_head,
    drop_path,
    edit,
    features,
    fpn,
    freeze,
    identity,
    inject,
    load_weights,
    merge_lora,
    node,
    op,
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
from torchgraft.blocks import cbam, eca, lora, se

_HEAD = ("head", "aux", ":num_classes")
_BEHIND = ("branch", "pool", "spare", "drop", "head", "aux")
_PLAIN = {
    "identity": Row(identity, neutral=ALWAYS, idempotent=True),
    "wrap": Row(lambda: wrap("body", se, name="added"), neutral=ALWAYS, touches=("body.added", "added")),
    "wrap a layer": Row(lambda: wrap("head", eca), neutral=ALWAYS, touches=("head_eca",)),
    "wrap classes": Row(lambda: wrap(at(nn.Conv2d) - "body", "eca"), neutral=ALWAYS, touches=("stem_eca", "down_eca", "branch.0_eca"), wide=True),
    "inject": Row(lambda: inject("body", cbam), neutral=ALWAYS, touches=("body_cbam",)),
    "inject before": Row(lambda: inject("head", se, where="before"), neutral=ALWAYS, touches=("head_se",)),
    "inject at a node": Row(lambda: inject(node("add"), eca), neutral=ALWAYS, touches=("add_eca",)),
    "inject a module": Row(lambda: inject("flatten", nn.Identity()), neutral=ALWAYS, touches=("flatten_identity",)),
    "replace": Row(lambda: replace("head", same_head), touches=("head",)),
    "replace by a function at hand": Row(lambda: replace("head", lambda old: same_head(old).eval()), touches=("head",), written=False),
    "replace by a class": Row(lambda: replace("pool", nn.Identity, keep_shape=False) >> replace("pool", nn.AdaptiveMaxPool2d(1), keep_shape=False), touches=("pool",)),
    "replace an operation": Row(lambda: replace(op("flatten") & node("flatten"), nn.Flatten), neutral=ALWAYS, touches=("flatten",)),
    "remove": Row(lambda: compose(inject("head", nn.Tanh), remove("head_tanh")), neutral=ALWAYS, touches=("head_tanh",)),
    "remove a layer": Row(lambda: remove("norm"), touches=("norm",)),
    "freeze": Row(lambda: freeze("body"), idempotent=True, holds=("body",)),
    "freeze all": Row(lambda: freeze(at("*") | "**"), idempotent=True, holds=("",), wide=True),
    "freeze all but": Row(lambda: freeze(~at("head"), norm_stats=False), idempotent=True, neutral=EVALUATION, holds=("",), wide=True),
    "unfreeze": Row(lambda: unfreeze("body"), neutral=EVALUATION, idempotent=True, holds=("body",)),
    "freeze and unfreeze": Row(lambda: freeze("**") >> unfreeze("**"), neutral=EVALUATION, holds=("",), wide=True),
    "swap_head": Row(lambda: swap_head(4), idempotent=True, touches=_HEAD, wide=True),
    "swap_head with dropout": Row(lambda: swap_head(4, dropout=0.5), idempotent=True, touches=(*_HEAD, "head_dropout", "aux_dropout"), wide=True),
    "drop_head": Row(drop_head, idempotent=True, touches=_HEAD, wide=True),
    "edit": Row(lambda: edit(nothing, name="nothing"), neutral=ALWAYS, idempotent=True),
    "load_weights": Row(lambda: load_weights(head_file(), min_coverage=0), idempotent=True, touches=("head",)),
    "load_weights of a state dict": Row(lambda: load_weights({"state_dict": HEAD}, min_coverage=0), idempotent=True, touches=("head",), written=False),
    "load_weights and start the rest anew": Row(lambda: load_weights(head_file(), min_coverage=0, exclude="body", init="orthogonal"), idempotent=True, touches=("stem", "norm", "branch", "down", "spare", "head", "aux"), wide=True),
    "merge_lora": Row(lambda: wrap("stem", lora(2)) >> merge_lora(), neutral=ALWAYS, idempotent=False, touches=("stem",), wide=True),
    "set_adapters": Row(lambda: wrap("stem", lora(2)) >> set_adapters(enabled=False), neutral=ALWAYS, touches=("stem_lora",), sets=("enabled",), wide=True),
    "dilate": Row(lambda: replace("body", nn.Identity) >> dilate(2), touches=("body", "down"), wide=True),
    "resize": Row(lambda: replace("stem", patches) >> resize(patch_size=4), touches=("stem",), wide=True),
    "adapt_input": Row(lambda: adapt_input(5), idempotent=True, touches=("stem",), takes=5, wide=True),
    "adapt_input to fewer": Row(lambda: adapt_input(1, source="repeat"), idempotent=True, touches=("stem",), takes=1, wide=True),
    "drop_path": Row(lambda: drop_path(0.5), neutral=EVALUATION, idempotent=True, adds=("drop_path",), wide=True),
    "drop_path of nothing": Row(lambda: drop_path(0.0), neutral=ALWAYS, idempotent=True, wide=True),
    "set_dropout": Row(lambda: set_dropout(0.25), neutral=EVALUATION, idempotent=True, sets=("p",), wide=True),
    "rename": Row(lambda: rename({"head": "classifier.last", "spare": "other"}), neutral=ALWAYS, touches=("head", "classifier", "spare", "other")),
    "features": Row(lambda: features("body"), idempotent=True, touches=("down", *_BEHIND), wide=True),
    "features of operations": Row(lambda: features(node("add"), "norm", names=("sum", "stem")), touches=("down", "pool", "spare", "drop", "head", "aux"), wide=True),
    "features beside the output": Row(lambda: features("body", "flatten", keep_output=True), wide=True),
    "fpn": Row(lambda: fpn(4, targets=("body", "down")), touches=("pool", "spare", "drop", "head", "aux", "fpn", ":out_channels"), wide=True),
    "compose": Row(lambda: compose(wrap("body", se, name="added"), swap_head(3)), touches=("body.added", "added", *_HEAD), wide=True),
}  # fmt: skip

ROWS = {**_PLAIN, **{f"block {name}": row for name, row in BLOCK_ROWS.items()}}


def rows(wanted: Callable[[Row], object] = lambda row: True) -> st.SearchStrategy[Row]:
    """Draw a row of the case table, of those for which a function holds."""
    return st.sampled_from([row for row in ROWS.values() if wanted(row)])
