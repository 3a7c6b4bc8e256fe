"""The code of a forward and of what it names, where its graph would tell too little or nothing."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator

from torch import nn


def codes_of(module: nn.Module) -> Iterator[types.CodeType]:
    """Yield the code of a forward, and that of the methods and functions it names."""
    seen: set[types.CodeType] = set()
    waiting: list[tuple[types.CodeType, dict[str, object]]] = []

    def named(value: object) -> None:
        value = getattr(value, "__func__", value)
        function = inspect.unwrap(value) if callable(value) else value
        # A generated forward has no module.
        if isinstance(function, types.FunctionType) and not str(function.__module__).startswith("torch."):
            waiting.append((function.__code__, function.__globals__))
            for cell in function.__closure__ or ():  # a generated forward may have one for each mode
                named(cell.cell_contents)

    named(vars(module).get("forward", type(module).forward))
    while waiting:
        code, names = waiting.pop()
        if code in seen:
            continue
        seen.add(code)
        yield code
        waiting += [(inner, names) for inner in code.co_consts if isinstance(inner, types.CodeType)]
        for name in code.co_names:
            named(inspect.getattr_static(type(module), name, None))
            named(names.get(name))
