"""What is asked of each model of the corpus; an answer is same, refused, WRONG, crash or not asked."""

from __future__ import annotations

import copy
import functools
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import checks
import torch
from cases import CLASSES
from checks import flat, graft, run, step
from fingerprint import told
from subject import NotAskedError, Subject, WrongError
from torch import nn

from torchgraft import GraftError, explain, freeze, inject, load, save, swap_head, tiers
from torchgraft.errors import AnalysisError
from torchgraft.graph.probe import Example

Answers = Iterator[tuple[str, str]]
COLUMNS = ("pipe", "deep", "again", "swap_head", "features", "freeze", "save", "structure", "keys", "shapes")


class Gain(nn.Module):
    """Multiply by one, with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gain.to(x.dtype)


def kept(model: nn.Module, result: nn.Module, new: int = 0) -> None:
    """Compare keys, shapes and their order, and the classes of modules."""
    before = {k: (t.shape, t.dtype) for k, t in model.state_dict().items()}
    after = {k: (t.shape, t.dtype) for k, t in result.state_dict().items()}
    if list(before.items()) != [one for one in after.items() if one[0] in before]:
        raise WrongError("keys of the state dict")
    if len(after) - len(before) != new:
        raise WrongError(f"new keys {set(after) - set(before)}")


def classes_kept(model: nn.Module, result: nn.Module) -> None:
    """Compare the classes of modules by path; opened levels become graphs of their class."""
    found = dict(result.named_modules(remove_duplicate=False))
    for path, module in model.named_modules(remove_duplicate=False):
        if path not in found or (path and not module._modules and type(found[path]) is not type(module)):
            raise WrongError(f"the module {path!r}")


def piped(subject: Subject, way: str) -> None:
    subject.reference(way)
    result = graft(subject.model)
    kept(subject.model, result)
    classes_kept(subject.model, result)
    subject.compare(result, way)


def deep(subject: Subject, way: str) -> None:
    script, _ = subject.reference(way)
    path, count = subject.middle
    result = graft(subject.model, inject(path, Gain()))
    kept(subject.model, result, new=1)
    if not way:
        calls: list[int] = []
        gains = {id(m): m for m in result.modules() if isinstance(m, Gain)}.values()
        hooks = [m.register_forward_hook(lambda *_: calls.append(1)) for m in gains]
        run(copy.deepcopy(result), subject.calls[""][0], mode=script[0][0])
        for hook in hooks:
            hook.remove()
        if len(calls) != count:
            raise WrongError(f"the block behind {path} runs {len(calls)} times, {path} itself {count}")
    subject.compare(result, way)


def again(subject: Subject) -> None:
    """A result with a block inside can be edited again, told about and copied."""
    result = graft(graft(subject.model, inject(subject.middle[0], Gain())))
    explain(result)
    subject.compare(copy.deepcopy(result))


def heads(subject: Subject) -> None:
    """The model with the new layers in the place of the old ones gives what the result gives."""
    if not subject.case.has_classes:
        raise NotAskedError("no classes")
    script, _ = subject.reference("")
    result = graft(subject.model, swap_head(7))
    old, new = (m.state_dict() for m in (subject.model, result))
    changed = {k.rpartition(".")[0] for k in new if k not in old or old[k].shape != new[k].shape}
    x, mode = subject.calls[""][0], script[0][0]
    twin = _exchanged(subject.model, result, changed, lambda twin: run(twin, x, mode=mode))
    was, now = (flat(run(copy.deepcopy(m), x, mode=mode)) for m in (subject.model, twin))
    if any(CLASSES in t.shape for t in was) and [t.shape for t in was] == [t.shape for t in now]:
        raise WrongError(f"outputs keep their shapes; changed: {sorted(changed)}")
    subject.compare(result, other=twin)


def _exchanged(
    model: nn.Module, result: nn.Module, paths: set[str], call: Callable[[nn.Module], object]
) -> nn.Module:
    """Put the modules of a result at some paths into a copy of the model, or those around them if it needs more."""
    said: Exception | None = None
    while paths := paths - {""}:
        twin = copy.deepcopy(model)
        try:
            for path in paths:
                twin.set_submodule(path, copy.deepcopy(result.get_submodule(path)))
            call(copy.deepcopy(twin))
        except Exception as error:
            paths, said = {path.rpartition(".")[0] for path in paths}, said or error
        else:
            return twin
    raise NotAskedError(f"no exchange of layers makes a model that runs: {said}")


def maps(subject: Subject) -> None:
    script, _ = subject.reference("")
    try:
        tiers(subject.model, example=subject.calls[""][0])
    except AnalysisError as error:
        if "makes no maps" in error.summary:
            raise NotAskedError(error.summary) from error
        raise
    modes = sorted({mode for mode, _ in script})
    try:
        checks.gives_its_maps(subject.model, subject.calls[""][0], "", modes=modes)
    except AssertionError as error:
        raise WrongError(str(error)) from error


def frozen(subject: Subject) -> None:
    """What is frozen keeps its bits over a step of training, and the rest still trains."""
    model = subject.model
    total = sum(p.numel() for p in model.parameters() if p.requires_grad)
    parts = subject.middle[0].split(".")
    outer = [".".join(parts[:n]) for n in range(1, len(parts) + 1)]
    sizes = {p: sum(t.numel() for t in model.get_submodule(p).parameters() if t.requires_grad) for p in outer}
    path = next((p for p in outer if 0 < sizes[p] < total), "")
    if not path:
        raise NotAskedError("no part of what is trained stands around the leaf in the middle")
    x = next((calls[0] for way, calls in subject.calls.items() if subject.trains(way)), None)
    if x is None:
        raise NotAskedError("no run in training")
    own = {id(t) for t in model.get_submodule(path).parameters()}
    tied = {k for k, t in model.named_parameters(remove_duplicate=False) if id(t) in own}
    try:
        wanted = _moved(copy.deepcopy(model), x)
    except Exception as error:
        raise NotAskedError(f"the model itself does not train: {type(error).__name__}: {error}") from error
    found = _moved(graft(model, freeze(path)), x)
    # What a forward writes for a size that is new is none of the training.
    written = _moved(copy.deepcopy(model), x, functools.partial(run, mode=False))
    inside = {k for k in wanted - written if k in tied or k == path or k.startswith(path + ".")}
    if inside & found:
        raise WrongError(f"a step of training moved {sorted(inside & found)[:3]}, with {path} frozen")
    if wanted - inside and not found:  # single ones may move by rounding alone: biases before a BatchNorm
        raise WrongError(f"nothing moves any longer, with {path} frozen")


def _moved(model: nn.Module, x: Example, do: Callable[[nn.Module, Example], object] = step) -> set[str]:
    """Do a step of training, by default, and name the tensors that it moved."""

    def tensors() -> dict[str, str]:
        both = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
        return {key: told(tensor) for key, tensor in both}

    before = tensors()
    do(model, x)
    return {key for key, text in tensors().items() if before.get(key) != text}


def stored(subject: Subject) -> None:
    subject.reference("")
    try:
        result = graft(subject.model, inject(subject.middle[0], "layer_scale"))
    except GraftError:
        result = graft(subject.model)
    with tempfile.TemporaryDirectory() as folder:
        again = load(save(result, Path(folder) / "m.safetensors"), base=subject.make)
    kept(result, again)
    subject.compare(again, other=result)


def answers(subject: Subject) -> Answers:
    """Ask everything of a model, one answer after the other."""
    x = subject.calls[""][0]
    for check in (piped, deep):
        for way in subject.calls:
            name = "pipe" if check is piped else "deep"
            yield f"{name} {way}".strip(), answer(functools.partial(check, subject, way), x)
    for name, ask in {
        "again": again,
        "swap_head": heads,
        "features": maps,
        "freeze": frozen,
        "save": stored,
    }.items():
        yield name, answer(functools.partial(ask, subject), x)


def answer(check: Callable[[], None], x: Example) -> str:
    """Do a check, again with an example if it is refused without one, and say how it went."""
    said = ""
    for checks.EXAMPLE[0] in (None, x):
        try:
            check()
            return "same" if checks.EXAMPLE[0] is None else "same, with example="
        except GraftError as error:
            said = f"refused: {type(error).__name__}: {error.summary}; {error.found}"
        except WrongError as error:
            return f"WRONG: {error}"
        except NotAskedError as error:
            return f"not asked: {error}"
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            return f"crash: {type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
    return said
