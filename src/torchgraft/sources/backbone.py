"""Backbones: a model of any source in one call, ready to be built upon."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import attrs
from torch import nn

from torchgraft.calls import ALSO, call_text
from torchgraft.edits.adapt_input import adapt_input
from torchgraft.edits.drop_path import drop_path
from torchgraft.edits.features import features
from torchgraft.edits.head import drop_head, swap_head
from torchgraft.edits.set_dropout import set_dropout
from torchgraft.errors import GraftError, OptionError
from torchgraft.graph.draft import Draft
from torchgraft.graph.entry.search import find_inputs
from torchgraft.sources.advice import CLASSES
from torchgraft.sources.find import resolve
from torchgraft.sources.get import get_model
from torchgraft.text import call, kind, literal, spelled, spelled_class
from torchgraft.transform import Transform, pipe

_CHANNELS = 3
"""Channels that models take where nothing else is said."""


_RATE = "drop_rate"


@spelled_class
@attrs.frozen(repr=False)
class BackboneSpec:
    """Describe a model to build upon, whatever its source calls these things.

    Args:
        name: as for ``get_model``.
        weights: as for ``get_model``.
        num_classes: number of classes; 0 for the pooled features and no classifier.
        drop_rate: of dropout, as the builder means it; of every dropout that the model has, where
            its builder takes none; 0 to leave them.
        drop_path_rate: largest rate of stochastic depth; 0 to leave it.
        in_channels: channels of the images.
        options: further options of the builder, as pairs of name and value. What it calls the
            number of classes or of channels counts as these, where they are not given.

    Raises:
        OptionError: a field is of a wrong kind or out of range.

    Example:
        >>> BackboneSpec("resnet18", in_channels=4)
        BackboneSpec("resnet18", in_channels=4)
    """

    name: str
    weights: str | bool | None = attrs.field(kw_only=True, default=None)
    num_classes: int = attrs.field(kw_only=True, default=0)
    drop_rate: float = attrs.field(kw_only=True, default=0.0)
    drop_path_rate: float = attrs.field(kw_only=True, default=0.0)
    in_channels: int = attrs.field(kw_only=True, default=_CHANNELS)
    options: tuple[tuple[str, object], ...] = attrs.field(kw_only=True, default=())

    def __attrs_post_init__(self) -> None:
        for field, least in (("num_classes", 0), ("in_channels", 1)):
            count = getattr(self, field)
            if type(count) is not int or count < least:
                raise OptionError(
                    f"{field} is a whole number from {least}",
                    asked=repr(self),
                    found=f"{field}={literal(count)}",
                    write=f"{field}={least}",
                )
        pairs = isinstance(self.options, tuple) and all(
            isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) for pair in self.options
        )
        if not pairs:
            raise OptionError(
                "the options of a BackboneSpec are pairs of name and value",
                found=f"options={literal(self.options)}",
                write='options=(("img_size", 128),), or backbone(..., options={"img_size": 128})',
            )

    def __repr__(self) -> str:
        return call(type(self).__name__, self)

    def settled(self) -> BackboneSpec:
        """Return the same with the fields that its options say in the words of a builder.

        Raises:
            OptionError: a field and an option say different things.
        """
        fields = ("num_classes", "in_channels")
        said = {ALSO[name]: value for name, value in self.options if ALSO.get(name) in fields}
        meant = BackboneSpec(**{**attrs.asdict(self, recurse=False), **said})
        for field, value in said.items():
            if getattr(self, field) not in (value, getattr(attrs.fields(BackboneSpec), field).default):
                raise OptionError(
                    f"two different values are given for {field}",
                    asked=repr(self),
                    found=f"{field}={literal(getattr(self, field))} and {literal(value)} in the options",
                    write=repr(meant),
                )
        return meant

    def steps(self, model: nn.Module, told: Collection[str]) -> Iterator[Transform]:
        """Yield what is to be done to the model as it was built.

        Args:
            model: the model; it is only read.
            told: the options that its builder got.
        """
        if self.num_classes == 0:
            yield drop_head()
        elif not {*told} & {*CLASSES}:
            yield swap_head(self.num_classes)
        yield from _taking(model, self.in_channels)
        if self.drop_rate and _RATE not in told:
            yield set_dropout(self.drop_rate)
        if self.drop_path_rate:
            yield drop_path(self.drop_path_rate)


def backbone(spec: BackboneSpec | str, **fields: object) -> nn.Module:
    """Build a model to build upon, from any source in the same words.

    Args:
        spec: what to build, or the name of it.
        fields: those of ``BackboneSpec``, instead of what the spec says; ``options`` may be a
            mapping.

    Returns:
        The model, as ``pipe`` gives it.

    Raises:
        OptionError: there is no such field, or its value is out of range.
        SourceError: there is no such model, or no such weights.
        GraftError: a step cannot be done to it.

    Example:
        >>> import torch
        >>> backbone("resnet18", in_channels=1)(torch.zeros(2, 1, 64, 64)).shape
        torch.Size([2, 512])
    """
    wanted = _spec(spec, fields)
    options = dict(wanted.options)
    found = resolve(wanted.name)
    known = found.source.signature(found.name, options).parameters
    counts = [name for name in CLASSES if name in known and wanted.num_classes][:1]
    options.update(dict.fromkeys(counts, wanted.num_classes))
    if _RATE in known and wanted.drop_rate:
        options.setdefault(_RATE, wanted.drop_rate)
    model = get_model(wanted.name, weights=wanted.weights, **options)
    steps = tuple(wanted.steps(model, options.keys()))
    try:
        return pipe(model, *steps) if steps else model
    except GraftError as error:
        error.asked = call_text("backbone", [literal(spec)], fields)
        raise


@spelled
def feature_backbone(
    name: str,
    strides: Sequence[int] = (8, 16, 32),
    *,
    weights: str | bool | None = None,
    in_channels: int = _CHANNELS,
    **options: object,
) -> nn.Module:
    """Build a model that gives a map for each of some strides, for detection and segmentation.

    Args:
        name: as for ``get_model``.
        strides: places of the image for each place of a map.
        weights: as for ``get_model``.
        in_channels: channels of the images.
        options: of the builder.

    Returns:
        The model; its forward gives an ordered dictionary, ``n c h w`` each, which
        ``feature_info`` describes.

    Raises:
        SourceError: there is no such model, or no such weights.
        GraftError: it has no maps of these strides.

    Example:
        >>> import torch
        >>> maps = feature_backbone("resnet18")(torch.zeros(1, 3, 64, 64))
        >>> [(name, tuple(map_.shape)) for name, map_ in maps.items()]
        [('8', (1, 128, 8, 8)), ('16', (1, 256, 4, 4)), ('32', (1, 512, 2, 2))]
    """
    model = get_model(name, weights=weights, **options)
    wanted = BackboneSpec(name, in_channels=in_channels, options=tuple(options.items())).settled()
    return pipe(model, *_taking(model, wanted.in_channels), features(strides=strides))


def _taking(model: nn.Module, channels: int) -> Iterator[Transform]:
    """Yield what makes a model take images of some channels, if it does not do so already."""
    try:
        taken = {given.channels for given in find_inputs(Draft(model))}
    except GraftError:
        taken = {_CHANNELS}  # where it cannot be told, the step itself will say why
    if taken != {channels}:
        yield adapt_input(channels)


def _spec(spec: object, fields: Mapping[str, object]) -> BackboneSpec:
    asked = call_text("backbone", [literal(spec)], fields)
    if not isinstance(spec, (BackboneSpec, str)):
        raise OptionError(
            "a backbone is described by a BackboneSpec or by a name",
            asked=asked,
            found=kind(spec),
            write='backbone("resnet50", num_classes=0)',
        )
    options = fields.get("options", ())
    pairs = tuple(sorted(options.items())) if isinstance(options, Mapping) else options
    held = {"name": spec} if isinstance(spec, str) else attrs.asdict(spec, recurse=False)
    given = {**held, **fields, **({"options": pairs} if options else {})}
    try:
        return BackboneSpec(given.pop("name"), **given).settled()
    except OptionError as error:
        known = [field.name for field in attrs.fields(BackboneSpec)]
        other = {key: value for key, value in fields.items() if key not in known}
        if other and not error.near:
            rest = {key: value for key, value in fields.items() if key in known}
            rest["options"] = {**options, **other} if isinstance(options, Mapping) else other
            error.write = call_text("backbone", [literal(spec)], rest)
        error.asked, error.write = asked, error.write.replace("BackboneSpec(", "backbone(", 1)
        raise
