"""Load weights: fill a model from a file, a state dict or another model, with an account."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import attrs
from torch import nn

from torchgraft.alignment.load.accounts import keep_report
from torchgraft.alignment.load.added import KEY, check_base
from torchgraft.alignment.load.checkpoints import Checkpoint, opened
from torchgraft.alignment.load.initialise import check_initialiser
from torchgraft.alignment.load.loading import Terms, load
from torchgraft.alignment.load.sources import POLICIES, WAYS, Donor, aligned, hold
from torchgraft.edits.fit_sizes import fit_sizes
from torchgraft.errors import OptionError, TargetError
from torchgraft.graph.draft import Draft
from torchgraft.select import Selector, Target, parse
from torchgraft.text import check_flags, literal, near, spelled, wrong
from torchgraft.transform import Transform

Source = str | Path | Mapping[str, object] | Checkpoint | nn.Module


@attrs.frozen(repr=False)
class LoadWeights(Transform):
    """Fill the tensors of a model."""

    name: ClassVar[str] = "load_weights"
    source: str | Checkpoint | Donor
    by: str = attrs.field(kw_only=True, default="names")
    policy: str = attrs.field(kw_only=True, default="same_function")
    exclude: tuple[Selector, ...] = attrs.field(kw_only=True, default=())
    strict: bool = attrs.field(kw_only=True, default=False)
    min_coverage: float = attrs.field(kw_only=True, default=0.9)
    init: str | None = attrs.field(kw_only=True, default=None)
    ema: bool = attrs.field(kw_only=True, default=False)
    allow_nan: bool = attrs.field(kw_only=True, default=False)
    key: str = attrs.field(kw_only=True, default="")
    prefix: str = attrs.field(kw_only=True, default="")
    into: str = attrs.field(kw_only=True, default="")
    resize: bool = attrs.field(kw_only=True, default=False)
    allow_contradicted: bool = attrs.field(kw_only=True, default=False)

    def _edit(self, draft: Draft) -> None:
        if not draft.values:
            return
        held = (
            opened(self.source, ema=self.ema, key=self.key) if isinstance(self.source, str) else self.source
        )
        added = isinstance(held, Checkpoint) and KEY in held.metadata
        by = "names" if added else self.by
        places = {"prefix": self.prefix, "into": self.into}
        checkpoint, alignment = aligned(held, draft, by=by, policy=self.policy, **places)
        # A model of one's own tells what each tensor does; a state dict may leave it open.
        decided = self.by == "structure" and not isinstance(held, Donor)
        options = self.exclude, self.strict, self.min_coverage, self.init, self.allow_nan
        terms = Terms(*options, decided, self.allow_contradicted)
        kept: frozenset[str] = frozenset()
        try:
            if added:
                kept = check_base(draft.root, checkpoint, literal(self.source), repr(self))
            if self.resize:
                checkpoint, alignment, computed = fit_sizes(draft, checkpoint, alignment)
                kept |= computed
            keep_report(draft.root, load(draft, checkpoint, alignment, terms, kept, self.into))
        except TargetError as error:
            if error.wrong and not near(error.wrong, error.near):
                error.swap = (literal(error.wrong), f"at({literal(error.wrong)}).maybe()")
            raise


@spelled
def load_weights(
    source: Source,
    *,
    by: str = "names",
    policy: str = "same_function",
    exclude: Target | tuple[Target, ...] = (),
    strict: bool = False,
    min_coverage: float = 0.9,
    init: str | None = None,
    ema: bool = False,
    allow_nan: bool = False,
    key: str = "",
    prefix: str = "",
    into: str = "",
    resize: bool = False,
    allow_contradicted: bool = False,
) -> LoadWeights:
    """Fill the tensors of a model from a file, a state dict or another model.

    Wrappers such as ``{"state_dict": ...}`` are entered, and a prefix such as ``module.`` is
    taken off or put before the names where that makes them fit. What is not filled keeps its
    values. ``load_report(model)`` gives the account of every tensor. Of a file that ``save``
    wrote with ``only="new"``, what it holds is filled, and the rest has to be what it was there.

    Args:
        source: path of a file, a state dict or what was saved around it, what
            ``read_checkpoint`` gave, or a model. A recipe can hold a path alone.
        by: ``"names"``, or ``"structure"`` for a model that was written in another way.
        policy: as for ``align``, where it goes by structure.
        exclude: what stays as it is: targets, or paths and globs of tensors.
        strict: every tensor of both sides has to be loaded, but what is excluded.
        min_coverage: share of the tensors that the base had, but those excluded, that has to be
            loaded; those that steps added or reshaped are listed apart.
        init: initialiser of ``torch.nn.init`` for what is not loaded, such as
            ``"kaiming_normal"``; normalisations then start as the identity and biases at zero.
        ema: take the running average of the weights that the checkpoint holds beside them.
        allow_nan: load values that are not finite.
        key: name of the wrapper to enter, where several hold weights.
        prefix: what the names of the tensors that are meant begin with, such as
            ``"module.encoder_q."``, in a file that holds several models.
        into: path of the part of the model that is filled, such as ``"encoder"``.
        resize: resample embeddings of positions, tables of biases and kernels of patches that
            were made for another size, as ``resize`` does.
        allow_contradicted: load from a model what structure says even where the two see other
            values there, as after an operation that takes channels in another order.

    Returns:
        The transform; it reads a file when it is applied.

    Raises:
        CheckpointError: the mapping holds no weights.
        OptionError: an option is unknown or out of range.

    Example:
        >>> from torchvision.models import resnet18
        >>> from torchgraft import load_report, pipe
        >>> ten = pipe(resnet18(num_classes=10), load_weights(resnet18().state_dict()))
        >>> print(load_report(ten))
        loaded 98.4 % of parameters (120 of 122 tensors); 2 differ in shape
          differ      fc.weight 1000 512 -> 10 512, fc.bias 1000 -> 10
        >>> load_weights("weights.safetensors", exclude="fc", init="kaiming_normal")
        load_weights("weights.safetensors", exclude=("fc",), init="kaiming_normal")
    """
    check_flags(
        strict=strict,
        ema=ema,
        allow_nan=allow_nan,
        allow_contradicted=allow_contradicted,
        resize=resize,
    )
    for name, value, known in (("by", by, WAYS), ("policy", policy, POLICIES)):
        if value not in known:
            raise wrong(f"{name} is {' or '.join(map(literal, known))}", value, name=name, known=known)
    number = isinstance(min_coverage, (int, float)) and not isinstance(min_coverage, bool)
    if not number or not 0 <= min_coverage <= 1:
        raise wrong("min_coverage is a share from 0 to 1", min_coverage, "0.9", name="min_coverage")
    for name, text in (("key", key), ("prefix", prefix), ("into", into)):
        if not isinstance(text, str):
            raise wrong(f"{name} is a text", text, '"encoder"', name=name)
    if prefix and isinstance(source, nn.Module):
        write = f"load_weights(<the model>.{prefix.rstrip('.')})"
        raise OptionError(
            "a part of a model is given as it is", found=f"prefix={literal(prefix)}", write=write
        )
    if init is not None:
        check_initialiser(init)
    return LoadWeights(
        hold(source, ema=ema is True, key=key),
        by=by,
        policy=policy,
        exclude=tuple(parse(one) for one in (exclude if isinstance(exclude, (tuple, list)) else (exclude,))),
        strict=strict,
        min_coverage=min_coverage,
        init=init,
        ema=ema,
        allow_nan=allow_nan,
        key=key,
        prefix=prefix,
        into=into,
        resize=resize,
        allow_contradicted=allow_contradicted,
    )
