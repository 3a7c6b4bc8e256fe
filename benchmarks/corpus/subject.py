"""A model of the corpus: how it is called, what it gives, and whether another gives the same."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable

import torch
from cases import Size, case, made, ways
from checks import run
from fingerprint import told
from torch import nn

from torchgraft.graph.probe import Example

MODES = ((False, 0), (True, 0), (False, 1), (True, 1), (False, 0))
"""Mode and number of the size of each run, one after the other on one model."""


class WrongError(Exception):
    """Report a result that differs and does not say so."""


class NotAskedError(Exception):
    """Report something that the model itself cannot do."""


class Subject:
    """A model of the corpus, its ways to be called, and what it answers itself."""

    def __init__(self, name: str, largest: int) -> None:
        self.case = case(name)
        self.sizes: list[Size] = []
        first: Exception | None = None
        for make in self.case.makers:
            try:
                self.make, count = make, parameters(make)
                if count > largest:
                    first = MemoryError(f"{count} parameters")
                    continue
                self.model = made(make)
                self.sizes = self._sizes()
                break
            except Exception as error:
                first = first or error
        if not self.sizes:
            raise first or NotAskedError("nothing to build")
        self.model = made(self.make)  # some remember the sizes that they saw
        both = [ways(self.case, self.model, size) for size in self.sizes]
        self.calls = {way: [self._example(found[way]) for found in both] for way in both[0]}
        self.reference = functools.cache(self._reference)  # by way

    def _sizes(self) -> list[Size]:
        """Find two sizes that the model takes, in both modes if there are such."""
        scratch, failed = copy.deepcopy(self.model), None

        def takes(size: Size, modes: tuple[bool, ...]) -> bool:
            nonlocal scratch, failed
            calls = ways(self.case, scratch, size)
            for mode in modes:
                for way in ("", "all") if mode and "all" in calls else ("",):
                    try:
                        run(scratch, self._example(calls[way]), mode=mode)
                        break
                    except Exception as error:
                        failed = failed or error
                else:
                    scratch = copy.deepcopy(self.model)  # some keep what they saw, as window sizes
                    return False
            return True

        for modes in ((False, True), (False,)):
            for side in self.case.sides:
                if takes((2, side, side), modes):
                    more = ((3, side, side + side // 2), (3, side + 64, side + 64), (3, side, side))
                    return [(2, side, side), next(s for s in more if takes(s, modes))]
        raise failed or NotAskedError("no size")

    def _example(self, arguments: dict[str, object]) -> Example:
        """Pass by position what can be, when it is all that the forward must have."""
        names = list(inspect.signature(self.model.forward).parameters)
        if list(arguments) != names[: len(arguments)]:
            return arguments
        only = tuple(arguments.values())
        return only[0] if len(only) == 1 and isinstance(only[0], torch.Tensor) else only

    def _reference(self, way: str) -> tuple[list[tuple[bool, int]], list[str]]:
        """Return the runs that the model itself can do, and what it gives."""
        script = list(MODES)
        while script:
            twin, answers = copy.deepcopy(self.model), []
            for mode, size in script:
                try:
                    answers.append(told(run(twin, self.calls[way][size], mode=mode)))
                except Exception as error:
                    script = [one for one in script if one != (mode, size)]
                    said = f"{type(error).__name__}: {error}"
                    break
            else:
                return script, [*answers, told(dict(twin.named_buffers()))]
        raise NotAskedError(f"the model itself cannot: {said}")

    def compare(self, result: nn.Module, way: str = "", other: nn.Module | None = None) -> None:
        """Run a result as the model was run, and compare bit by bit."""
        script, expected = self.reference(way)
        if other is not None:
            expected = self._answers(other, script, way)
        found = self._answers(result, script, way)
        if found == expected:
            return
        if other is None and self._answers(copy.deepcopy(self.model), script, way) != expected:
            raise NotAskedError("the model itself does not give the same twice")
        at = next((i for i, (a, b) in enumerate(zip(found, expected)) if a != b), 0)
        if at == len(script):
            raise WrongError("buffers differ after the runs")
        mode, size = script[at]
        raise WrongError(f"outputs differ in {'training' if mode else 'eval'} at size {self.sizes[size]}")

    def _answers(self, model: nn.Module, script: list[tuple[bool, int]], way: str) -> list[str]:
        answers = [told(run(model, self.calls[way][size], mode=mode)) for mode, size in script]
        return [*answers, told(dict(model.named_buffers()))]

    def trains(self, way: str) -> bool:
        """Return True if the model itself runs in training when it is called in a way."""
        try:
            return any(mode for mode, _ in self.reference(way)[0])
        except NotAskedError:
            return False

    @functools.cached_property
    def middle(self) -> tuple[str, int]:
        """Name the leaf in the middle of the order of execution, and how often it is called in a run."""
        return middle(copy.deepcopy(self.model), self.calls[""][0], self.reference("")[0][0][0])


def middle(model: nn.Module, x: Example, mode: bool) -> tuple[str, int]:
    """Name the leaf in the middle of the order of execution, and how often it is called in a run."""
    called: list[str] = []

    def note(path: str, output: object) -> None:
        if isinstance(output, torch.Tensor) and output.is_floating_point():
            called.append(path)

    for path, module in model.named_modules():
        if path and not module._modules and "parametrizations" not in path:  # those make weights, no values
            module.register_forward_hook(lambda *given, path=path: note(path, given[2]))
    run(model, x, mode=mode)
    if not called:
        raise NotAskedError("it calls no module without children")
    path = called[len(called) // 2]
    return path, called.count(path)


def parameters(maker: Callable[[], nn.Module]) -> int:
    """Count the parameters of a model without making them, or 0 where its constructor needs them."""
    try:
        with torch.device("meta"):
            return sum(p.numel() for p in maker().parameters())
    except Exception:
        return 0
