"""Options of builders: checked against what a builder takes, and kept as plain data."""

from __future__ import annotations

import re
from collections.abc import Mapping

import attrs

from torchgraft.errors import GraftError, OptionError, SourceError
from torchgraft.sources.source import Found
from torchgraft.text import literal, near, some

_INSTEAD = {
    "drop_path": ("drop_path_rate", "stochastic_depth_prob"),
    "set_dropout": ("drop_rate", "dropout", "dropout_rate", "proj_drop_rate"),
    "adapt_input": ("in_chans", "in_channels", "num_channels"),
    "swap_head": ("num_classes", "num_labels"),
    "dilate": ("output_stride",),
}
"""What libraries call an option for, and a transform does to any model."""
_MOST = 12
"""Options that an error lists."""
_WIDEST = 400
"""Letters of a value in a message; a config has thousands."""
_TWICE = re.compile(r"got multiple values for (?:keyword )?argument '(\w+)'")
_MAPS = ("features_only", "out_indices", "out_features")
_WEIGHTS = ("pretrained", "checkpoint_path", "weights_backbone")


@attrs.frozen(repr=False)
class Unwritten:
    """Stand for an option that is no plain data, in what is kept about a model.

    Args:
        text: what it was, in words.
    """

    text: str

    def __repr__(self) -> str:
        return self.text


def kept(value: object) -> object:
    """Return an option as it is kept: lists as tuples, and code in words."""
    if isinstance(value, (list, tuple)):
        return tuple(kept(item) for item in value)
    plain = value is None or type(value) in (bool, int, float, str) or isinstance(value, Unwritten)
    return value if plain else Unwritten(literal(value))


def is_plain(value: object) -> bool:
    """Tell whether an option as it is kept says all that there is to it."""
    return all(map(is_plain, value)) if isinstance(value, tuple) else not isinstance(value, Unwritten)


def check_options(found: Found, options: Mapping[str, object]) -> None:
    """Check that a builder takes some options, and that it needs no others.

    Raises:
        OptionError: it does not.
        SourceError: the builder cannot be had.
    """
    known = found.source.signature(found.name, options).parameters
    by_name = [p.name for p in known.values() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    any_name = any(p.kind is p.VAR_KEYWORD for p in known.values())
    for name in options:
        if name not in by_name and not any_name:
            raise _unknown(found, options, name, by_name)
    no_values = [p for p in known.values() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    missing = [p.name for p in no_values if p.default is p.empty and p.name not in options]
    if missing:
        raise OptionError(
            f"the builder of {found.base} needs {', '.join(missing)}",
            asked=written(found, options),
            found=f"it takes {_listed(by_name)}",
            write=written(found, options, "".join(f", {name}=..." for name in missing)),
        )


def refused(found: Found, options: Mapping[str, object], error: Exception) -> GraftError:
    """Say that a builder stopped at some values, whatever it raised."""
    said = " ".join(str(error).split())
    quoted = f"{type(error).__name__}{f': {said[:300]}' if said else ''}"
    twice = _TWICE.search(said)
    if isinstance(error, TypeError) and twice and twice[1] in options:
        step = _transform(twice[1], options[twice[1]])
        others = {key: value for key, value in options.items() if key != twice[1]}
        return OptionError(
            f"the builder of {found.base} sets {twice[1]} itself",
            asked=written(found, options),
            found=quoted,
            write=f"pipe({written(found, others)}, {step})" if step else written(found, others),
        )
    return SourceError(
        f"the builder of {found.base} refuses these options", asked=written(found, options), found=quoted
    )


def written(found: Found, options: Mapping[str, object], more: str = "") -> str:
    """Write the call that asks for a model."""
    words = "".join(f", {name}={_short(literal(value))}" for name, value in options.items())
    return f"get_model({literal(found.said or found.base)}{words}{more})"


def _short(text: str) -> str:
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST // 2]} ... {text[-8:]}"


def _unknown(found: Found, options: Mapping[str, object], name: str, known: list[str]) -> OptionError:
    close = near(name, known)
    others = {key: value for key, value in options.items() if key != name}
    step = _transform(name, options[name])
    if step:
        write = f"pipe({written(found, others)}, {step})"
    elif name in _WEIGHTS:
        write = written(found, {"weights": True if options[name] else None, **others})
    else:
        write = written(found, {**others, close[0]: options[name]} if close else others)
    return OptionError(
        f"the builder of {found.base} takes no {name}",
        asked=written(found, options),
        found=f"it takes {_listed(known)}",
        near=close,
        write=write,
    )


def _listed(names: list[str]) -> str:
    return some(names, _MOST) or "no options"


def _transform(name: str, value: object) -> str:
    """Write the transform that does to any model what an option is usually for."""
    if name in _MAPS:
        return "features(strides=(8, 16, 32))"
    return next((f"{step}({literal(value)})" for step, names in _INSTEAD.items() if name in names), "")
