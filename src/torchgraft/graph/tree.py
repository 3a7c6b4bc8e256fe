"""The tree of modules under edit: look paths up, put modules in, take them out."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from torchgraft.errors import NameClashError, OptionError, TargetError
from torchgraft.graph.outline import named_tensors
from torchgraft.graph.settings import ADDED
from torchgraft.text import kind, literal, near, plural


class Tree:
    """Modules by path, with every name of those that are shared.

    Args:
        root: the module at the top; it is edited in place.
    """

    def __init__(self, root: nn.Module) -> None:
        self.root = root
        self.begun = {id(tensor): (name, tensor) for name, tensor in named_tensors(root)}
        self._names: dict[int, list[str]] | None = None
        self.grown: dict[int, nn.Module] = {}
        """Modules that got a child, by their identity."""
        self._beside: dict[int, tuple[nn.Module, list[tuple[str, str]]]] = {}

    @property
    def like(self) -> torch.Tensor:
        """The tensor whose dtype and device new modules take where no layer tells: the first parameter."""
        return next((p for p in self.root.parameters() if p.is_floating_point()), torch.empty(0))

    def get(self, path: str) -> nn.Module:
        """Return the module at a path of the draft."""
        module: nn.Module | None = self.root
        for name in path.split(".") if path else []:
            module = module._modules.get(name) if module is not None else None
        if module is None:
            names = [found for found, _ in self.modules() if found]
            raise TargetError(
                f"{path!r} is no module of this model",
                wrong=path,
                found=plural(len(names), "module"),
                near=near(path, names),
            )
        return module

    def has(self, path: str) -> bool:
        """Tell whether a module stands at a path."""
        module: nn.Module | None = self.root
        for name in path.split(".") if path else []:
            module = module._modules.get(name) if module is not None else None
        return module is not None

    def modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield every path with its module, a shared module under each of its paths."""
        return iter(self.root.named_modules(remove_duplicate=False))

    def names(self, module: nn.Module) -> list[str]:
        """Return every path at which a module is registered."""
        if self._names is None:
            self._names = {}
            for path, found in self.modules():
                self._names.setdefault(id(found), []).append(path)
        return self._names.get(id(module), [])

    def shared(self) -> list[list[str]]:
        """Return the names of each module that stands under several."""
        self.names(self.root)
        return [names for names in (self._names or {}).values() if len(names) > 1]

    def exchange(self, path: str, new: nn.Module) -> None:
        """Put another module in the place of one, under each of its names."""
        if not isinstance(new, nn.Module):
            raise OptionError("only a module can take the place of a module", found=kind(new))
        old = self.get(path)
        places = list(self.names(old))
        for place in places:
            self._forget(place, old)
        for place in places:
            self._put(place, new)
            self._learn(place, new)

    def place(self, owner: str, name: str, module: nn.Module, *, beside: str = "") -> None:
        """Register a new module in a level.

        Args:
            owner: path of the level.
            name: its name there.
            module: the module.
            beside: name of the child it is registered after; at the end if empty.

        Raises:
            NameClashError: the name is in use.
        """
        parent = self.get(owner)
        if not self.free(owner, name):
            raise NameClashError(
                f"the name {name!r} is already used in {owner or 'the root'}",
                found=f"{owner}.{name}".lstrip("."),
                write=f"name={literal(self.fresh(owner, name))}",
            )
        places = list(self.names(parent))
        parent._modules[name] = module
        self.grown[id(parent)] = parent
        vars(parent)[ADDED] = vars(parent).get(ADDED, frozenset()) | {name}
        if beside in parent._modules:
            self._beside.setdefault(id(parent), (parent, []))[1].append((beside, name))
        for place in places:
            self._learn(f"{place}.{name}".lstrip("."), module)

    def discard(self, path: str) -> None:
        """Take a module out of the tree, under each of its names."""
        module = self.get(path)
        for name in list(self.names(module)):
            parent, _, last = name.rpartition(".")
            self._forget(name, module)
            if self.has(parent):
                held = self.get(parent)
                held._modules.pop(last, None)
                if ADDED in vars(held):
                    vars(held)[ADDED] -= {last}

    def is_added(self, path: str) -> bool:
        """Return True if an edit put the module at a path there, and no class knows of it."""
        owner, _, name = path.rpartition(".")
        return name in vars(self.get(owner)).get(ADDED, ())

    def free(self, owner: str, name: str) -> bool:
        """Tell whether a name can be given to a new module of a level."""
        parent = self.get(owner)
        return (
            bool(name)
            and "." not in name
            and not (
                name in parent._modules
                or name in parent._parameters
                or name in parent._buffers
                or hasattr(parent, name)
            )
        )

    def fresh(self, owner: str, name: str) -> str:
        """Return a name, numbered where it is used already."""
        number, candidate = 0, name
        while not self.free(owner, candidate):
            number += 1
            candidate = f"{name}_{number}"
        return candidate

    def _put(self, path: str, module: nn.Module) -> None:
        if path == "":
            self.root = module
        else:
            parent, _, last = path.rpartition(".")
            self.get(parent)._modules[last] = module

    def _learn(self, path: str, module: nn.Module) -> None:
        """Note the paths of a module and of those in it."""
        if self._names is not None:
            for name, part in module.named_modules(prefix=path, remove_duplicate=False):
                self._names.setdefault(id(part), []).append(name)

    def _forget(self, path: str, module: nn.Module) -> None:
        """Drop the paths of a module and of those in it."""
        if self._names is not None:
            for name, part in module.named_modules(prefix=path, remove_duplicate=False):
                held = self._names.get(id(part), [])
                if name in held:
                    held.remove(name)

    def order(self) -> None:
        """Move new modules behind the child that each was placed beside."""
        for level, moves in self._beside.values():
            followers: dict[str, list[str]] = {}
            for anchor, name in moves:
                followers.setdefault(anchor, []).append(name)
            held = dict(level._modules)
            moved = {name for anchor, name in moves if anchor in held}
            level._modules.clear()
            waiting = [name for name in reversed(held) if name not in moved]
            while waiting:
                name = waiting.pop()
                level._modules[name] = held[name]
                waiting += [n for n in followers.get(name, []) if n in held]
        self._beside.clear()
