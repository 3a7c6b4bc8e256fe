"""Functional, immutable surgery for PyTorch vision models."""

from torchgraft import blocks as blocks
from torchgraft.align.align import align as align
from torchgraft.align.alignment import Alignment as Alignment
from torchgraft.align.files.rewrite import apply_to_file as apply_to_file
from torchgraft.align.load.accounts import load_report as load_report
from torchgraft.align.load.checkpoints import read_checkpoint as read_checkpoint
from torchgraft.align.verify import verify as verify
from torchgraft.edits.adapt_input import adapt_input as adapt_input
from torchgraft.edits.dilate import dilate as dilate
from torchgraft.edits.drop_path import drop_path as drop_path
from torchgraft.edits.edit import edit as edit
from torchgraft.edits.features import features as features
from torchgraft.edits.fpn import fpn as fpn
from torchgraft.edits.freeze import freeze as freeze
from torchgraft.edits.freeze import unfreeze as unfreeze
from torchgraft.edits.head import drop_head as drop_head
from torchgraft.edits.head import swap_head as swap_head
from torchgraft.edits.inject import inject as inject
from torchgraft.edits.load_weights import load_weights as load_weights
from torchgraft.edits.merge_lora import merge_lora as merge_lora
from torchgraft.edits.remove import remove as remove
from torchgraft.edits.rename import rename as rename
from torchgraft.edits.replace import replace as replace
from torchgraft.edits.set_dropout import set_dropout as set_dropout
from torchgraft.edits.transfer import partial_load as partial_load
from torchgraft.edits.transfer import transfer as transfer
from torchgraft.edits.transfer import transfer_weights as transfer_weights
from torchgraft.edits.wrap import wrap as wrap
from torchgraft.errors import GraftError as GraftError
from torchgraft.select import at as at
from torchgraft.select import head as head
from torchgraft.select import node as node
from torchgraft.select import op as op
from torchgraft.select import stage as stage
from torchgraft.select import stem as stem
from torchgraft.select import where as where
from torchgraft.shapes import output_shape as output_shape
from torchgraft.shapes import shapes as shapes
from torchgraft.show.explain import explain as explain
from torchgraft.show.tiers import feature_info as feature_info
from torchgraft.show.tiers import tiers as tiers
from torchgraft.transform import compose as compose
from torchgraft.transform import identity as identity
from torchgraft.transform import pipe as pipe
from torchgraft.transform import trace as trace

__all__ = [
    "Alignment",
    "GraftError",
    "adapt_input",
    "align",
    "apply_to_file",
    "at",
    "blocks",
    "compose",
    "dilate",
    "drop_head",
    "drop_path",
    "edit",
    "explain",
    "feature_info",
    "features",
    "fpn",
    "freeze",
    "head",
    "identity",
    "inject",
    "load_report",
    "load_weights",
    "merge_lora",
    "node",
    "op",
    "output_shape",
    "partial_load",
    "pipe",
    "read_checkpoint",
    "remove",
    "rename",
    "replace",
    "set_dropout",
    "shapes",
    "stage",
    "stem",
    "swap_head",
    "tiers",
    "trace",
    "transfer",
    "transfer_weights",
    "unfreeze",
    "verify",
    "where",
    "wrap",
]
