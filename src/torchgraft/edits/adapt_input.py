"""Adapt the input: another number of channels, with weights made from the old ones."""

from __future__ import annotations

from typing import ClassVar

import attrs
import torch
from torch import nn

from torchgraft.errors import AnalysisError, ShapeError, TargetError
from torchgraft.graph.draft import Draft
from torchgraft.graph.entry.search import Entry, Input, find_inputs, refound, take_channels
from torchgraft.paths import join_path, parent_of
from torchgraft.text import literal, spelled, wrong
from torchgraft.transform import Transform

_SOURCES = ("mean", "repeat", "sum", "random")
_COUNTS = ("in_chans", "in_channels", "num_channels", "input_channels")


@attrs.frozen(repr=False)
class AdaptInput(Transform):
    """Let a model take another number of channels."""

    name: ClassVar[str] = "adapt_input"
    channels: int
    source: str = attrs.field(kw_only=True, default="mean")

    def _edit(self, draft: Draft) -> None:
        inputs = find_inputs(draft)
        old = inputs[0].channels
        if any(given.channels != old for given in inputs):
            raise TargetError(
                "the model takes several inputs with different numbers of channels",
                found=", ".join(f"{given.name} ({given.channels})" for given in inputs),
                write='replace("<the first layer>", ..., keep_shape=False)',
            )
        if old == self.channels and self.source != "random":
            return
        pairs = [pair for given in inputs for pair in self._pairs(draft, given)]
        for entry, _ in pairs:
            _check(draft, entry, [known for known, _ in pairs])
        could_run = _runs(draft)
        made: dict[nn.Parameter, nn.Parameter] = {}
        for entry, new in pairs:
            self._exchange(draft, entry, new, made)
            _count(draft, entry.path, old, self.channels)
        for given in inputs:
            take_channels(draft, given, self.channels)
        if could_run and not _runs(draft):
            raise ShapeError(
                f"the model does not run on {self.channels} channels, though its first layers take them",
                found="a forward that holds the number of channels elsewhere",
                write="edit(<a function of the draft that changes it>, name=...)",
            )

    def _pairs(self, draft: Draft, given: Input) -> list[tuple[Entry, Entry]]:
        return list(zip(given.entries, refound(draft, given, self.channels), strict=True))

    def _exchange(
        self, draft: Draft, entry: Entry, new: Entry, made: dict[nn.Parameter, nn.Parameter]
    ) -> None:
        module = draft.get(entry.path)
        old = module._parameters[entry.name]
        if old is None or any(old is fresh for fresh in made.values()):  # a layer with two names
            return
        if old not in made:
            weight = _weight(old.detach(), entry, new, self.source)
            if weight.ndim == 4 and not old.is_contiguous():
                weight = weight.contiguous(memory_format=torch.channels_last)
            made[old] = nn.Parameter(weight, requires_grad=old.requires_grad)
        module._parameters[entry.name] = made[old]
        for name in ("in_channels", "in_features"):
            if vars(module).get(name) == len(entry.channels):
                vars(module)[name] = len(new.channels)
        if self.source == "random":
            _initialise(module, entry.name)


@spelled
def adapt_input(channels: int, *, source: str = "mean") -> AdaptInput:
    """Let a model take images with another number of channels.

    The layers that take the input are found by structure: convolutions, and linear layers
    behind a cut into patches. Their weights keep key, device, dtype and memory format.
    All sources but ``"random"`` keep the sum of the weights over the channels:

    - ``"mean"``: every channel gets the mean of the old ones, scaled. A grey image, given in
      every channel, gives what it gave.
    - ``"repeat"``: new channel ``i`` gets old channel ``i mod old``, divided by how often that
      one is used. An image whose channels are repeated in turn gives what it gave.
    - ``"sum"``: the old channels stay, further ones start at zero. An image gives what it
      gave, whatever further channels hold.
    - ``"random"``: the layers start anew, as torch starts them.

    Fewer channels than before hold the sums of those that fall on them, in turn, in
    ``"repeat"`` and ``"sum"``.

    Args:
        channels: number of channels.
        source: where the weights come from: ``"mean"``, ``"repeat"``, ``"sum"`` or ``"random"``.

    Returns:
        The transform; it does nothing where the number is the old one, but for ``"random"``.

    Raises:
        OptionError: the number is not positive, or the source unknown.

    Example:
        >>> from torchvision.models import resnet18
        >>> import torch
        >>> model, grey = resnet18().eval(), torch.rand(1, 1, 64, 64)
        >>> five = adapt_input(5)(model)
        >>> five.conv1
        Conv2d(5, 64, kernel_size=(7, 7), stride=(2, 2), padding=(3, 3), bias=False)
        >>> torch.allclose(five(grey.expand(1, 5, 64, 64)), model(grey.expand(1, 3, 64, 64)), atol=1e-5)
        True
    """
    if isinstance(channels, bool) or not isinstance(channels, int) or channels < 1:
        raise wrong("the number of channels must be positive", channels, "4")
    if source not in _SOURCES:
        raise wrong(f"source is {' or '.join(map(literal, _SOURCES))}", source, name="source", known=_SOURCES)
    return AdaptInput(channels, source=source)


def _check(draft: Draft, entry: Entry, entries: list[Entry]) -> None:
    """Refuse a weight that is computed, or that is also used where the input does not go."""
    held = draft.get(entry.path)._parameters.get(entry.name)
    if held is None:
        raise TargetError(
            f"the weight of {entry.path!r} is no parameter of its own, so it cannot be exchanged",
            found="a weight that is computed from others, as by weight norm or a parametrization",
            write="torch.nn.utils.parametrize.remove_parametrizations(<the layer>, 'weight') before",
        )
    taken = {(id(draft.get(known.path)), known.name) for known in entries}
    for path, module in draft.root.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is held and (id(module), name) not in taken:
                raise TargetError(
                    f"the weight of {entry.path!r} is tied to one that does not take the input",
                    found=join_path(path, name),
                    write="a model without the tie",
                )


def _weight(old: torch.Tensor, entry: Entry, new: Entry, source: str) -> torch.Tensor:
    """Make the weight for what arrives now from that for what arrived before."""
    shape = (old.shape[0], len(new.channels), *old.shape[2:])
    if source == "random":
        return old.new_empty(shape)
    places = sorted(set(entry.places))
    count, channels = len(entry.channels) // len(places), len(new.channels) // len(places)
    order = sorted(range(len(entry.channels)), key=lambda i: (entry.channels[i], entry.places[i]))
    wide = old.float() if old.dtype in (torch.float16, torch.bfloat16) else old
    apart = wide[:, order].reshape(shape[0], count, len(places), *shape[2:])  # out channel place ...
    turn = torch.arange(max(count, channels), device=old.device)
    if source == "mean":
        made = (apart.sum(1, keepdim=True) / channels).repeat_interleave(channels, 1)
    elif channels < count:
        made = apart.new_zeros(shape[0], channels, *apart.shape[2:]).index_add(1, turn % channels, apart)
    elif source == "repeat":
        used = apart.new_tensor([len(range(i, channels, count)) for i in range(count)])
        made = (apart / used.reshape(-1, *(1,) * (apart.ndim - 2)))[:, turn % count]
    else:
        more = apart.new_zeros(shape[0], channels - count, *apart.shape[2:])
        made = torch.cat([apart, more], 1)
    index = [places.index(place) for place in new.places]
    taken: torch.Tensor = made[:, list(new.channels), index]
    return taken.to(old.dtype)


def _initialise(module: nn.Module, name: str) -> None:
    """Start a layer anew, as torch does."""
    if isinstance(module, nn.modules.conv._ConvNd):
        nn.modules.conv._ConvNd.reset_parameters(module)
    elif isinstance(module, nn.Linear):
        nn.Linear.reset_parameters(module)
    else:
        nn.init.kaiming_uniform_(module.get_parameter(name), a=5**0.5)


def _count(draft: Draft, path: str, old: int, channels: int) -> None:
    """Keep the number right that the modules around a layer declare."""
    while path:
        path = parent_of(path)
        held = vars(draft.get(path))
        held.update({name: channels for name in _COUNTS if held.get(name) == old})
        config = held.get("config")  # of Hugging Face models, which write it beside the weights
        for name in _COUNTS:
            if getattr(config, name, None) == old:
                setattr(config, name, channels)


def _runs(draft: Draft) -> bool:
    try:
        draft.runs.run(training=False)
    except AnalysisError:
        return False
    return True
