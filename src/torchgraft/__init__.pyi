from . import blocks as blocks
from .alignment.align import align as align
from .alignment.alignment import Alignment as Alignment
from .alignment.files.rewrite import apply_to_file as apply_to_file
from .alignment.load.accounts import load_report as load_report
from .alignment.load.checkpoints import read_checkpoint as read_checkpoint
from .alignment.verify import verify as verify
from .edits.adapt_input import adapt_input as adapt_input
from .edits.dilate import dilate as dilate
from .edits.drop_path import drop_path as drop_path
from .edits.edit import edit as edit
from .edits.features import features as features
from .edits.fpn import fpn as fpn
from .edits.freeze import freeze as freeze
from .edits.freeze import unfreeze as unfreeze
from .edits.head import drop_head as drop_head
from .edits.head import swap_head as swap_head
from .edits.inject import inject as inject
from .edits.load_weights import load_weights as load_weights
from .edits.merge_lora import merge_lora as merge_lora
from .edits.remove import remove as remove
from .edits.rename import rename as rename
from .edits.replace import replace as replace
from .edits.resize import resize as resize
from .edits.set_adapters import set_adapters as set_adapters
from .edits.set_dropout import set_dropout as set_dropout
from .edits.transfer import partial_load as partial_load
from .edits.transfer import transfer as transfer
from .edits.transfer import transfer_weights as transfer_weights
from .edits.wrap import wrap as wrap
from .errors import GraftError as GraftError
from .recipe import CheckReport as CheckReport
from .recipe import Recipe as Recipe
from .recipe import build as build
from .recipe import check as check
from .recipe import read_recipe as read_recipe
from .recipe import recipe_of as recipe_of
from .select import at as at
from .select import head as head
from .select import node as node
from .select import op as op
from .select import stage as stage
from .select import stem as stem
from .select import where as where
from .show.diff import Diff as Diff
from .show.diff import diff as diff
from .show.explain import explain as explain
from .show.parts import feature_info as feature_info
from .show.parts import tiers as tiers
from .sizing import output_shape as output_shape
from .sizing import shapes as shapes
from .sources.backbone import BackboneSpec as BackboneSpec
from .sources.backbone import backbone as backbone
from .sources.backbone import feature_backbone as feature_backbone
from .sources.get import get_model as get_model
from .sources.get import list_models as list_models
from .sources.preprocessing import preprocessing as preprocessing
from .sources.registry import register_model as register_model
from .store.load import load as load
from .store.materialize import materialize as materialize
from .store.save import save as save
from .transform import compose as compose
from .transform import identity as identity
from .transform import pipe as pipe
from .transform import trace as trace

__all__ = [
    "Alignment",
    "BackboneSpec",
    "CheckReport",
    "Diff",
    "GraftError",
    "Recipe",
    "adapt_input",
    "align",
    "apply_to_file",
    "at",
    "backbone",
    "blocks",
    "build",
    "check",
    "compose",
    "diff",
    "dilate",
    "drop_head",
    "drop_path",
    "edit",
    "explain",
    "feature_backbone",
    "feature_info",
    "features",
    "fpn",
    "freeze",
    "get_model",
    "head",
    "identity",
    "inject",
    "list_models",
    "load",
    "load_report",
    "load_weights",
    "materialize",
    "merge_lora",
    "node",
    "op",
    "output_shape",
    "partial_load",
    "pipe",
    "preprocessing",
    "read_checkpoint",
    "read_recipe",
    "recipe_of",
    "register_model",
    "remove",
    "rename",
    "replace",
    "resize",
    "save",
    "set_adapters",
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
