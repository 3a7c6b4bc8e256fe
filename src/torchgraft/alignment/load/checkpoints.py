"""Checkpoints: the tensors of a file or of a state dict, out of their wrappers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import attrs
import torch

from torchgraft.alignment.alignment import Shape
from torchgraft.alignment.load.prefixes import WRAPPERS, cuts, fit_names
from torchgraft.alignment.load.stored import read_file
from torchgraft.alignment.load.unwrapping import unwrap
from torchgraft.errors import CheckpointError
from torchgraft.graph.cow import cow
from torchgraft.text import kind, literal, near, plural, spelled


@attrs.frozen(eq=False, repr=False)
class Checkpoint:
    """The tensors of a checkpoint, and how they were found in it.

    Args:
        tensors: the tensors by name.
        unwrapped: keys of the wrappers that were entered, the outer one first.
        left: other weights that stand beside them, such as a running average.
        prefix: what was taken off the names.
        added: what was put before the names.
        inside: names of wrappers that were taken off inside of names.
        metadata: what a safetensors file says beside the tensors.
    """

    tensors: Mapping[str, torch.Tensor]
    unwrapped: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    prefix: str = ""
    added: str = ""
    inside: tuple[str, ...] = ()
    metadata: Mapping[str, str] = attrs.field(factory=dict)

    @property
    def shapes(self) -> dict[str, Shape]:
        """The shape of each tensor."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    def for_keys(self, target: Mapping[str, Shape]) -> Checkpoint:
        """Take the prefix off the names, or put one before them, that makes most of them fit.

        Args:
            target: the shapes of a model's tensors, by name.

        Returns:
            A checkpoint with the names of the model; itself where they fit as they are.

        Raises:
            CheckpointError: several prefixes fit equally well.

        Example:
            >>> held = read_checkpoint({"module.weight": torch.zeros(2), "module.bias": torch.zeros(2)})
            >>> held.for_keys({"weight": (2,), "bias": (2,)}).prefix
            'module.'
        """
        names, found = fit_names(self.shapes, target)
        if all(old == new for old, new in names.items()):
            return self
        if len(set(names.values())) < len(names):
            raise CheckpointError(
                f"without {literal(found.removed)} several tensors of the checkpoint have one name",
                found=", ".join(name for name in names if not name.startswith(found.removed))[:160],
                write=f"prefix={literal(found.removed)}",
            )
        tensors = {names[name]: tensor for name, tensor in self.tensors.items()}
        inside = {w for old, new in names.items() for w in WRAPPERS & ({*old.split(".")} - {*new.split(".")})}
        return attrs.evolve(
            self,
            tensors=tensors,
            prefix=self.prefix + found.removed,
            added=found.added,
            inside=tuple(sorted(inside - {*found.removed.split(".")})),
        )

    def part(self, prefix: str) -> Checkpoint:
        """Take the tensors whose names begin with a prefix, under the rest of their names.

        Raises:
            CheckpointError: there are none.
        """
        prefix = f"{prefix.rstrip('.')}."
        cut = {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}
        if not cut or "" in cut:
            known = {before: None for name in self.tensors for before, _ in cuts(name) if before}
            close = near(prefix, known) or tuple(known)
            raise CheckpointError(
                f"no name of the checkpoint begins with {literal(prefix)}",
                found=", ".join(list(self.tensors)[:3]) + ", ..." * (len(self.tensors) > 3),
                near=close[:3],
                write=f"prefix={literal(close[0])}" if close else "no prefix",
            )
        return attrs.evolve(self, tensors=cut, prefix=prefix)

    def __repr__(self) -> str:
        return f"<{plural(len(self.tensors), 'tensor')}>"


@spelled
def read_checkpoint(
    source: str | Path | Mapping[str, object], *, ema: bool = False, key: str = ""
) -> Checkpoint:
    """Read the weights of a file, or of what a training saved, out of their wrappers.

    Pickles are read with torch's ``weights_only`` unpickler always; nothing in a file is ever
    run. Tensors that several processes share (DTensor) are gathered.

    Args:
        source: path of a ``.safetensors`` file, of an index of shards or of a file of
            ``torch.save``, a pickle of arrays of numpy, or a ``.npz`` file; or a mapping.
        ema: take the running average of the weights, and not the weights.
        key: name of the wrapper to enter, where several hold weights.

    Returns:
        The checkpoint; of a mapping, the tensors as they are now.

    Raises:
        CheckpointError: there is no file, it cannot be read as data, or it holds no weights.

    Example:
        >>> weights = {"fc.weight": torch.zeros(2, 3), "fc.bias": torch.zeros(2)}
        >>> read_checkpoint({"epoch": 3, "state_dict": weights}).unwrapped
        ('state_dict',)
    """
    try:
        return opened(source, ema=ema, key=key)
    except CheckpointError as error:
        said = literal(str(source)) if isinstance(source, (str, Path)) else f"<{kind(source)}>"
        options = "".join([", ema=True" * ema, f", key={literal(key)}" * bool(key)])
        error.asked = error.asked or f"read_checkpoint({said}{options})"
        raise


def opened(source: object, *, ema: bool = False, key: str = "") -> Checkpoint:
    """Read a checkpoint, as ``read_checkpoint`` does.

    Raises:
        CheckpointError: there is no file, it cannot be read as data, or it holds no weights.
    """
    if isinstance(source, (str, Path)):
        value, metadata = read_file(Path(source))
    elif isinstance(source, Mapping):
        value, metadata = source, {}
    else:
        raise CheckpointError(
            "weights come from a file or from a mapping of names to tensors",
            found=kind(source),
            write="model.state_dict()" if hasattr(source, "state_dict") else '"weights.safetensors"',
        )
    found = unwrap(value, ema=ema, key=key)
    # Whoever holds the tensors of a mapping may write to them later.
    tensors = {n: _kept(t, copied=value is source) for n, t in found.tensors.items()}
    return Checkpoint(tensors, found.entered, found.left, metadata=metadata)


def _kept(tensor: torch.Tensor, *, copied: bool) -> torch.Tensor:
    whole = getattr(tensor, "full_tensor", None)  # of a DTensor, whose class takes long to import
    if whole is not None:
        return _kept(whole(), copied=False)
    return cow(tensor) if copied and not tensor.is_meta else tensor
