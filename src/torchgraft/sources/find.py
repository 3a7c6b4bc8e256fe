"""Find the source of a model by its name."""

from __future__ import annotations

from collections.abc import Sequence

from torchgraft.errors import SourceError
from torchgraft.sources.hugging_face import HUGGING_FACE
from torchgraft.sources.registry import REGISTERED
from torchgraft.sources.source import Found, Source
from torchgraft.sources.timm import TIMM
from torchgraft.sources.torchvision import TORCHVISION
from torchgraft.text import kind, literal, near

SOURCES: tuple[Source, ...] = (REGISTERED, TORCHVISION, TIMM, HUGGING_FACE)
"""All of them, in the order in which a name without a source is looked up."""


def source_named(name: str) -> Source:
    """Return a source by its name.

    Raises:
        SourceError: there is none of this name, or it is not installed.
    """
    for source in SOURCES:
        if source.name == name:
            _check_installed(source, f"source={literal(name)}")
            return source
    names = [source.name for source in SOURCES]
    close = near(name, names) if isinstance(name, str) else ()
    raise SourceError(
        f"no source is named {literal(name)}",
        asked=f"source={literal(name)}",
        found=", ".join(names),
        near=close,
        write=f"source={literal(close[0] if close else TORCHVISION.name)}",
    )


def resolve(name: str) -> Found:
    """Find which model of which source a name means.

    Args:
        name: with the name of its source, ``"timm/convnext_tiny"``, or without; then builders
            of the user come first, then torchvision, then timm.

    Returns:
        The source and the name there.

    Raises:
        SourceError: no source knows it, or the source that does is not installed.

    Example:
        >>> resolve("resnet50").base
        'torchvision/resnet50'
    """
    if not isinstance(name, str) or not name:
        raise SourceError(
            "a model is asked for by its name",
            asked=f"get_model({literal(name)})",
            found=kind(name) if name != "" else "an empty text",
            write='get_model("resnet50")',
        )
    head, slash, rest = name.partition("/")
    for source in SOURCES:
        if slash and source.name == head:
            _check_installed(source, f"get_model({literal(name)})")
            if source.has(rest):
                return Found(source, rest, name)
            raise _unknown(name, [source])
    for source in SOURCES:
        if source is not HUGGING_FACE and source.installed() and source.has(name):
            return Found(source, name, name)
    raise _unknown(name, SOURCES)


def _unknown(name: str, sources: Sequence[Source]) -> SourceError:
    """Say that a name is not known, and which ones resemble it."""
    there = [source for source in sources if source.installed()]
    missing = [source for source in sources if not source.installed()]
    full = "/" in name
    known = [f"{source.name}/{each}" if full else each for source in there for each in source.names()]
    model, dot, _ = name.partition(".")
    if dot and TIMM in there and TIMM.has(model.removeprefix("timm/")):
        prefix = "timm/" if full else ""
        known = [prefix + each for each in TIMM.tagged(model.removeprefix("timm/"))]
    close = near(name, known)
    if len(sources) > 1 and full and not near(name.partition("/")[0], [source.name for source in sources]):
        write = f"get_model({literal(f'hf/{name}')})"  # an id or a folder
    elif close:
        write = f"get_model({literal(close[0])})"
    elif len(there) == 1 and there[0] is REGISTERED:
        write = f"import of the module with @register_model({literal(name.partition('/')[2])}) before"
    else:
        write = f"pip install torchgraft[{missing[0].extra}]" if missing else 'list_models("*...*")'
    counts = ", ".join(f"{len(source.names())} of {source.name}" for source in there if source.names())
    gone = "".join(f"; {source.name} is not installed" for source in missing)
    where = there[0].name if len(sources) == 1 else "any source"
    return SourceError(
        f"no model of {where} is named {literal(name)}",
        asked=f"get_model({literal(name)})",
        found=f"{counts or 'no models'}{gone}",
        near=close,
        write=write,
    )


def _check_installed(source: Source, asked: str) -> None:
    """Check that a source can be asked.

    Raises:
        SourceError: its library is not installed.
    """
    if not source.installed():
        raise SourceError(
            f"the models of {source.name} need a library that is not installed",
            asked=asked,
            found=f"no {source.extra}" if source is TIMM else "no transformers",
            write=f"pip install torchgraft[{source.extra}]",
        )
