"""Models by name: build one, list what there is."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn

from torchgraft.alignment.load.accounts import load_report
from torchgraft.alignment.load.digest import digest
from torchgraft.calls import tell
from torchgraft.errors import GraftError, OptionError, SourceError
from torchgraft.graph.history import History, Origin, set_history
from torchgraft.sources.filling import chosen, filled, structured
from torchgraft.sources.find import SOURCES, resolve, source_named
from torchgraft.sources.hugging_face import HUGGING_FACE
from torchgraft.sources.options import check_options, is_plain, kept, refused, written
from torchgraft.sources.skeleton import skeleton
from torchgraft.sources.source import Found
from torchgraft.sources.timm import TIMM
from torchgraft.text import kind, literal


def get_model(name: str, *, weights: object = None, **options: object) -> nn.Module:
    """Build a model by its name.

    Args:
        name: a model of torchvision, ``"resnet50"``, of timm, ``"timm/convnext_tiny"``, of
            Hugging Face, ``"hf/<folder or id>"``, or one registered with ``register_model``.
            Without a source, registered ones come first, then torchvision, then timm.
        weights: a name that the source knows, ``"IMAGENET1K_V2"``; ``True`` for its default;
            the path of a file; ``None`` for random ones.
        options: of the builder; lists are handed on as tuples.

    Returns:
        The model as its builder makes it; it knows where it comes from.

    Raises:
        SourceError: no source knows the name or the weights, or the builder refuses a value.
        OptionError: the builder takes no such option, or needs another one.

    Example:
        >>> get_model("squeezenet1_1", num_classes=10).classifier[1]
        Conv2d(512, 10, kernel_size=(1, 1), stride=(1, 1))
    """
    found = resolve(name)
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    with _in_words(found, given):
        check_options(found, given)
        label = chosen(found, weights, given)
        model = filled(found, label, given)
        settled = found.source.settled(found.name, given)
    plain = tuple((key, kept(value)) for key, value in sorted(settled.items()))
    origin = Origin(
        found.base, label, plain, "" if label is None else digest(model, load_report(model).loaded)
    )
    set_history(model, History(origin))
    return model


def list_models(
    pattern: str = "*", *, pretrained: bool = False, source: str | None = None
) -> tuple[str, ...]:
    """List the models that ``get_model`` knows by name.

    Args:
        pattern: as in a shell: ``*``, ``?`` and ``[...]``. With a slash it is for full names,
            ``"timm/*vit*"``, else for the part behind it. One with a dot finds tags of timm,
            ``"resnet50.*"``.
        pretrained: only those for which the source has weights.
        source: ``"torchvision"``, ``"timm"`` or ``"registered"``; all that are installed, if
            none is given. Models of Hugging Face stand on a server and cannot be listed.

    Returns:
        Full names in alphabetical order; empty where nothing matches.

    Raises:
        OptionError: the pattern is no text.
        SourceError: no source has this name, or it is not installed.

    Example:
        >>> list_models("resnet1*", source="torchvision")
        ('torchvision/resnet101', 'torchvision/resnet152', 'torchvision/resnet18')
    """
    if not isinstance(pattern, str):
        raise OptionError(
            "a pattern is text",
            asked=f"list_models({literal(pattern)})",
            found=kind(pattern),
            write='"*resnet*"',
        )
    head, slash, rest = pattern.partition("/")
    asked = [source_named(source)] if source is not None else [each for each in SOURCES if each.installed()]
    listed = set()
    for each in asked:
        if slash and not fnmatch.fnmatchcase(each.name, head):
            continue
        names = [
            *each.names(pretrained=pretrained),
            *(TIMM.tagged() if each is TIMM and "." in pattern else ()),
        ]
        wanted = rest if slash else pattern
        listed |= {f"{each.name}/{name}" for name in names if fnmatch.fnmatchcase(name, wanted)}
    return tuple(sorted(listed))


def skeleton_of(origin: Origin, *, files: bool = False, limit: int | None = None) -> nn.Module:
    """Build the model that an origin names, without weights and without their memory.

    Args:
        origin: where a model comes from; it may stand in a file of unknown origin.
        files: may read the config of a model of Hugging Face from its folder, where the origin
            does not hold it. Nothing else is ever read, and nothing is fetched.
        limit: bytes that the builder may fill, where its options come from anywhere.

    Returns:
        The model, its parameters on the meta device, with that origin.

    Raises:
        SourceError: no source knows it, or it cannot be built from what the origin says.
        OptionError: its builder takes no such option.

    Example:
        >>> skeleton_of(Origin("torchvision/resnet18")).conv1.weight.device
        device(type='meta')
    """
    found, options = resolve(origin.base), dict(origin.options)
    for name, value in options.items():
        if not is_plain(value):
            raise SourceError(
                f"option {name!r} of {found.base} cannot be set up again: it is no plain value",
                asked=written(found, options),
                found=literal(value),
                write="a builder that sets it up, under a name: @register_model(...)",
            )
    if found.source is HUGGING_FACE and not files and "config" not in options:
        raise SourceError(
            f"the origin of {found.base} does not hold its config",
            asked=written(found, options),
            found=f"{', '.join(options) or 'no options'}",
            write=f"get_model({literal(found.base)}), which keeps it",
        )
    with _in_words(found, options):
        if found.source is HUGGING_FACE:
            HUGGING_FACE.check_modest(found.name, options)
        check_options(found, options)
        model = skeleton(lambda: structured(found, origin.weights, options), limit=limit)
    set_history(model, History(origin))
    return model


@contextmanager
def _in_words(found: Found, options: Mapping[str, object]) -> Iterator[None]:
    """Say that a builder refused some values, whatever it raised."""
    try:
        yield
    except GraftError as error:
        tell(error, error.asked)
        raise
    except Exception as error:
        raise refused(found, options, error) from error
