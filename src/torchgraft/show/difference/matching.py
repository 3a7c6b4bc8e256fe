"""Which module of one model is which of another: by path, and by equal content where paths part."""

from __future__ import annotations

import torch

from torchgraft.show.difference.snapshot import Snapshot

_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Pairs:
    """Pair the modules of two models.

    Children of a pair belong together under the same name. What is left over belongs together
    where class and tensors are the same, bit by bit, and nothing else is like it.

    Args:
        before: one model.
        after: the other.
    """

    def __init__(self, before: Snapshot, after: Snapshot) -> None:
        self._before, self._after = before, after
        self.there: dict[str, str] = {}
        self.back: dict[str, str] = {}
        self._pair("", "")
        self._pair_moved()

    def _pair(self, old: str, new: str) -> None:
        self.there[old], self.back[new] = new, old
        names = self._after.children(new)
        for name, path in self._before.children(old).items():
            other = names.get(name)
            if other is not None and path not in self.there and other not in self.back:
                self._pair(path, other)

    def _pair_moved(self) -> None:
        """Pair what stands elsewhere now, outer modules before those in them."""
        like: dict[object, list[str]] = {}
        for path in self._after.parts:
            if path not in self.back:
                like.setdefault(_form_of(self._after, path), []).append(path)
        for old in self._before.parts:  # an outer module stands before those in it
            if old in self.there or not like:
                continue
            form = _form_of(self._before, old)
            free = [new for new in like.get(form, ()) if new not in self.back]
            same = [new for new in free if form and self._hold_equal(old, new)]
            if len({id(self._after.parts[new].module) for new in same}) == 1:
                self._pair(old, same[0])

    def _hold_equal(self, old: str, new: str) -> bool:
        both = list(zip(_tensors_in(self._before, old), _tensors_in(self._after, new), strict=True))
        # Zeros and ones are the same everywhere and tell nothing.
        return all(differ(a, b) is False for (_, a), (_, b) in both) and any(_varies(a) for (_, a), _ in both)


def differ(one: torch.Tensor, other: torch.Tensor) -> bool | None:
    """Return True if the bits of two tensors of one shape and dtype differ; ``None`` if they have none."""
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


def _form_of(model: Snapshot, path: str) -> tuple[object, ...]:
    tensors = [(key, tuple(t.shape), t.dtype) for key, t in _tensors_in(model, path)]
    return (model.parts[path].home, *tensors) if tensors else ()


def _tensors_in(model: Snapshot, path: str) -> list[tuple[str, torch.Tensor]]:
    """Return the tensors in a module and below, with their keys seen from there."""
    module = model.parts[path].module
    held = module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False)
    return [*held[0], *held[1]]


def _varies(tensor: torch.Tensor) -> bool:
    flat = tensor.detach().flatten()
    return flat.numel() > 1 and differ(flat[1:], flat[:-1]) is not False
