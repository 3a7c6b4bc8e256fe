"""Read off the code of a function whether it may write into its arguments."""

from __future__ import annotations

import dis
import functools
import inspect
import types

_STORES = frozenset(("STORE_SUBSCR", "DELETE_SUBSCR", "STORE_ATTR", "DELETE_ATTR"))
_OPTIONS = frozenset(("inplace", "out"))


@functools.lru_cache(maxsize=256)
def only_reads(function: object) -> bool:
    """Tell whether a Python function, with those that it names, has nothing in it that writes.

    Args:
        function: any callable.
    """
    seen: set[types.CodeType] = set()
    waiting = [function]
    while waiting:
        plain = inspect.unwrap(waiting.pop())  # type: ignore[arg-type]  # anything can be unwrapped
        if is_of_torch(plain) or isinstance(plain, type):
            continue
        if not isinstance(plain, types.FunctionType):
            return False
        codes = [plain.__code__]
        while codes:
            code = codes.pop()
            if code in seen:
                continue
            seen.add(code)
            if _writes(code):
                return False
            codes += [inner for inner in code.co_consts if isinstance(inner, types.CodeType)]
            named = (plain.__globals__.get(name) for name in code.co_names)
            waiting += [value for value in named if callable(value)]
    return True


def is_of_torch(function: object) -> bool:
    """Tell whether a function is one of torch or of Python itself, which are known by their names."""
    home = getattr(function, "__module__", None) or "torch"
    return home.partition(".")[0] in ("torch", "_operator", "builtins", "math", "collections")


def _writes(code: types.CodeType) -> bool:
    if any(name.endswith("_") and not name.endswith("__") for name in code.co_names):
        return True
    return any(
        step.opname in _STORES
        or (step.opname == "BINARY_OP" and step.argrepr.endswith("="))
        or (step.opname == "KW_NAMES" and not _OPTIONS.isdisjoint(code.co_consts[step.arg or 0]))
        for step in dis.get_instructions(code)
    )
