"""Normalisations as blocks, and what one carries over to another."""

from __future__ import annotations

import torch
from torch import nn
from torchvision.models.convnext import LayerNorm2d
from torchvision.ops import FrozenBatchNorm2d

from torchgraft.blocks.described import block
from torchgraft.blocks.options import Positive
from torchgraft.spec import TensorSpec

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, FrozenBatchNorm2d)


def carry(old: nn.Module, new: nn.Module) -> None:
    """Copy the tensors that have the same name and shape."""
    held = old.state_dict()
    with torch.no_grad():
        for name, tensor in new.state_dict().items():
            if name in held and held[name].shape == tensor.shape:
                tensor.copy_(held[name])


def both_normalise(old: nn.Module, new: nn.Module) -> bool:
    """Return True if two modules are normalisations, whose affine values mean the same."""
    return isinstance(old, _NORMS) and isinstance(new, _NORMS)


def exchangeable(old: nn.Module, new: nn.Module) -> bool:
    """Return True if a normalisation of maps can take the place of another, whatever the input."""
    maps = isinstance(old, (nn.BatchNorm2d, FrozenBatchNorm2d)) and isinstance(
        new, (nn.BatchNorm2d, nn.SyncBatchNorm, nn.GroupNorm, FrozenBatchNorm2d)
    )
    one, other = (getattr(norm, "weight", None) for norm in (old, new))
    return maps and one is not None and other is not None and one.shape == other.shape


def _eps(site: TensorSpec) -> float:
    """Return the eps of the normalisation whose place it is, else the usual one."""
    eps = getattr(site.layer, "eps", None)
    return eps if isinstance(site.layer, _NORMS) and isinstance(eps, float) else 1e-5


@block()
def group_norm(site: TensorSpec, groups: Positive = 32) -> nn.Module:
    """Describe group normalisation; it takes over eps and affine values of what it replaces.

    Args:
        site: the place.
        groups: number of groups at most; there are as many as divide the channels.

    Returns:
        The block.

    Raises:
        OptionError: the number is out of range.

    Example:
        >>> group_norm(16)
        group_norm(16)

    Source:
        Wu and He, Group Normalization, arXiv 1803.08494.
    """
    fits = next(g for g in range(min(groups, site.channels), 0, -1) if site.channels % g == 0)
    return nn.GroupNorm(fits, site.channels, eps=_eps(site))


@block(maps=True)
def layer_norm2d(site: TensorSpec) -> nn.Module:
    """Describe layer normalisation over the channels of a map.

    Args:
        site: the place.

    Returns:
        The block; it takes over eps and affine values of what it replaces.

    Example:
        >>> layer_norm2d()
        layer_norm2d()

    Source:
        Ba et al., Layer Normalization, arXiv 1607.06450, as in ConvNeXt, arXiv 2201.03545.
    """
    made: nn.Module = LayerNorm2d(site.channels, eps=_eps(site))
    return made


@block(maps=True)
def batch_norm(site: TensorSpec) -> nn.Module:
    """Describe batch normalisation of a map.

    Args:
        site: the place.

    Returns:
        The block; it takes over eps, affine values and statistics of what it replaces.

    Example:
        >>> batch_norm()
        batch_norm()

    Source:
        Ioffe and Szegedy, Batch Normalization, arXiv 1502.03167.
    """
    return nn.BatchNorm2d(site.channels, eps=_eps(site))


@block(maps=True)
def frozen_batch_norm(site: TensorSpec) -> nn.Module:
    """Describe batch normalisation with fixed statistics and affine values.

    Args:
        site: the place.

    Returns:
        The block; it takes over eps, affine values and statistics of what it replaces.

    Example:
        >>> frozen_batch_norm()
        frozen_batch_norm()
    """
    made: nn.Module = FrozenBatchNorm2d(site.channels, eps=_eps(site))
    return made


@block(maps=True)
def sync_batch_norm(site: TensorSpec) -> nn.Module:
    """Describe batch normalisation with statistics over all processes.

    Args:
        site: the place.

    Returns:
        The block; it takes over eps, affine values and statistics of what it replaces.

    Example:
        >>> sync_batch_norm()
        sync_batch_norm()
    """
    momentum = getattr(site.layer, "momentum", 0.1)
    return nn.SyncBatchNorm(site.channels, eps=_eps(site), momentum=momentum)
