"""Where two models part, and what they do differently there, as values."""

from __future__ import annotations

import attrs


@attrs.frozen
class Site:
    """Where an operation stands in a model.

    Args:
        path: the module that runs it; empty for the root.
        keys: the parameters that it uses.
        kind: what it is: ``norm``, ``linear``, ``gelu``.
    """

    path: str
    keys: tuple[str, ...]
    kind: str

    def __str__(self) -> str:
        return self.path or "the root"


@attrs.frozen
class Difference:
    """What two sites do differently.

    Args:
        what: the setting, such as ``eps``; ``weight``, ``bias``, ``function``, ``input``;
            ``moved`` for weights that stand elsewhere in the second model.
        a: what it is in the first model; of weights, their names.
        b: what it is in the second.
        apart: how far the weights are apart, as a share of the largest of the first.
    """

    what: str
    a: object
    b: object
    apart: float | None = None

    def __str__(self) -> str:
        if self.what == "moved":
            return f"{self.a} of the first is {self.b} of the second"
        if self.apart == float("inf"):
            far = ", of another shape"
        else:
            far = "" if self.apart is None else f", {self.apart:.2g} apart"
        a, b = ("none" if value is None else str(value) for value in (self.a, self.b))
        return f"{self.what} {a if a == b else f'{a} against {b}'}{far}"


@attrs.frozen
class Divergence:
    """The first site that sees the same in both models and gives something else.

    Args:
        site_a: where it is in the first model.
        site_b: where it is in the second.
        reasons: what is different there.
        seen: how far apart is what it is given.
        made: how far apart is what comes of it.
        agree: how many sites with parameters agree before it.
        total: how many there are.
    """

    site_a: Site
    site_b: Site
    reasons: tuple[Difference, ...]
    seen: float
    made: float
    agree: int
    total: int

    @property
    def place(self) -> str:
        """Where it is, in words: ``layer1.0.bn1 / stages.0.bn (norm)``."""
        where = " / ".join(dict.fromkeys((str(self.site_a), str(self.site_b))))
        return f"{where} ({' / '.join(dict.fromkeys((self.site_a.kind, self.site_b.kind)))})"

    @property
    def why(self) -> str:
        """The reasons, in words."""
        return "; ".join(map(str, self.reasons)) or "no settings or weights differ there"

    def __str__(self) -> str:
        return f"{self.place}: {self.why}; {self.agree} of {self.total} sites agree before it"
