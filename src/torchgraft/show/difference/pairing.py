"""Which module of one model is which of another: by path, and by equal content where paths part."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from torchgraft.show.difference.facts import Facts, Reading, joined

_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Pairs:
    """Pair the modules of two models.

    Children of a pair belong together under the same name. What is left over belongs together
    where class and tensors are the same, bit by bit, and nothing else is like it.

    Args:
        before: one model.
        after: the other.
    """

    def __init__(self, before: Reading, after: Reading) -> None:
        self._before, self._after = before, after
        self.there: dict[str, str] = {}
        self.back: dict[str, str] = {}
        self._pair("", "")
        self._moved()

    def _pair(self, old: str, new: str) -> None:
        self.there[old], self.back[new] = new, old
        names = self._after.children(new)
        for name, path in self._before.children(old).items():
            other = names.get(name)
            if other is not None and path not in self.there and other not in self.back:
                self._pair(path, other)

    def _moved(self) -> None:
        """Pair what stands elsewhere now, outer modules before those in them."""
        like: dict[object, list[str]] = {}
        for path in self._after.facts:
            if path not in self.back:
                like.setdefault(_form(self._after, path), []).append(path)
        for old in self._before.facts:  # an outer module stands before those in it
            if old in self.there or not like:
                continue
            form = _form(self._before, old)
            free = [new for new in like.get(form, ()) if new not in self.back]
            same = [new for new in free if form and self._equal(old, new)]
            if len({id(self._after.facts[new].module) for new in same}) == 1:
                self._pair(old, same[0])

    def _equal(self, old: str, new: str) -> bool:
        both = list(zip(_tensors(self._before, old), _tensors(self._after, new), strict=True))
        # Zeros and ones are the same everywhere and tell nothing.
        return all(differ(a, b) is False for (_, a), (_, b) in both) and any(_varied(a) for (_, a), _ in both)


def differ(one: torch.Tensor, other: torch.Tensor) -> bool | None:
    """Tell whether the bits of two tensors of one shape and dtype differ; ``None`` if they have none."""
    if one is other:
        return False
    if one.is_meta or other.is_meta:
        return None
    a, b = one.detach(), other.detach().to(one.device)
    whole = _WHOLE.get(a.element_size())
    try:
        return not torch.equal(a.view(whole), b.view(whole)) if whole else not torch.equal(a, b)
    except (RuntimeError, NotImplementedError):  # a tensor without plain memory
        return None


def _form(reading: Reading, path: str) -> tuple[object, ...]:
    tensors = [(key, tuple(t.shape), t.dtype) for key, t in _tensors(reading, path)]
    return (reading.facts[path].home, *tensors) if tensors else ()


def _tensors(reading: Reading, path: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors in a module and below, with their keys seen from there."""
    facts: Facts = reading.facts[path]
    yield from facts.tensors.items()
    for name, child in reading.children(path).items():
        yield from ((joined(name, key), tensor) for key, tensor in _tensors(reading, child))


def _varied(tensor: torch.Tensor) -> bool:
    flat = tensor.detach().flatten()
    return flat.numel() > 1 and differ(flat[1:], flat[:-1]) is not False
