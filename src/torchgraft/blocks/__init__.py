"""Blocks: descriptions of modules that are built when the channels at their place are known."""

from torchgraft.blocks.adapter import adapter as adapter
from torchgraft.blocks.adapter import parallel_adapter as parallel_adapter
from torchgraft.blocks.branches import dense as dense
from torchgraft.blocks.branches import inception as inception
from torchgraft.blocks.cbam import cbam as cbam
from torchgraft.blocks.channel_attention import channel_attention as channel_attention
from torchgraft.blocks.convolution import conv_norm_act as conv_norm_act
from torchgraft.blocks.convolution import coord_conv as coord_conv
from torchgraft.blocks.convolution import depthwise_separable as depthwise_separable
from torchgraft.blocks.coord_attention import coord_attention as coord_attention
from torchgraft.blocks.described import block as block
from torchgraft.blocks.eca import eca as eca
from torchgraft.blocks.ese import ese as ese
from torchgraft.blocks.gather_excite import gather_excite as gather_excite
from torchgraft.blocks.global_context import global_context as global_context
from torchgraft.blocks.inverted import fused_mbconv as fused_mbconv
from torchgraft.blocks.inverted import mbconv as mbconv
from torchgraft.blocks.lora import lora as lora
from torchgraft.blocks.non_local import non_local as non_local
from torchgraft.blocks.norms import batch_norm as batch_norm
from torchgraft.blocks.norms import frozen_batch_norm as frozen_batch_norm
from torchgraft.blocks.norms import group_norm as group_norm
from torchgraft.blocks.norms import layer_norm2d as layer_norm2d
from torchgraft.blocks.norms import sync_batch_norm as sync_batch_norm
from torchgraft.blocks.pooling import gem as gem
from torchgraft.blocks.registry import names as names
from torchgraft.blocks.registry import register_block as register_block
from torchgraft.blocks.regularise import drop_block as drop_block
from torchgraft.blocks.regularise import dropout as dropout
from torchgraft.blocks.regularise import stochastic_depth as stochastic_depth
from torchgraft.blocks.residual import basic_residual as basic_residual
from torchgraft.blocks.residual import bottleneck_residual as bottleneck_residual
from torchgraft.blocks.scale import layer_scale as layer_scale
from torchgraft.blocks.scale import residual_gate as residual_gate
from torchgraft.blocks.se import se as se
from torchgraft.blocks.self_attention import self_attention as self_attention
from torchgraft.blocks.simam import simam as simam
from torchgraft.blocks.spatial_attention import spatial_attention as spatial_attention
from torchgraft.blocks.triplet_attention import triplet_attention as triplet_attention

__all__ = [
    "adapter",
    "basic_residual",
    "batch_norm",
    "block",
    "bottleneck_residual",
    "cbam",
    "channel_attention",
    "conv_norm_act",
    "coord_attention",
    "coord_conv",
    "dense",
    "depthwise_separable",
    "drop_block",
    "dropout",
    "eca",
    "ese",
    "frozen_batch_norm",
    "fused_mbconv",
    "gather_excite",
    "gem",
    "global_context",
    "group_norm",
    "inception",
    "layer_norm2d",
    "layer_scale",
    "lora",
    "mbconv",
    "names",
    "non_local",
    "parallel_adapter",
    "register_block",
    "residual_gate",
    "se",
    "self_attention",
    "simam",
    "spatial_attention",
    "stochastic_depth",
    "sync_batch_norm",
    "triplet_attention",
]
