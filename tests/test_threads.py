"""Other threads run other models while one is edited, and get right outputs."""

from __future__ import annotations

import math
import random
import sys
import threading

import pytest
import torch
from nets import ByData, BySize, Small
from torchvision.models import swin_t

from torchgraft import pipe, swap_head, trace, wrap
from torchgraft.blocks import se
from torchgraft.errors import TraceError


def patched() -> list[object]:
    classes = (torch.no_grad, torch.enable_grad, torch.inference_mode, torch.autocast)
    return [
        *(vars(module)[name] for module, name in ((math, "sqrt"), (random, "random"), (torch, "full"))),
        *(vars(module)[name] for module, name in ((torch, "manual_seed"), (torch.random, "fork_rng"))),
        *(function for cls in classes for function in (cls.__enter__, cls.__exit__)),
        vars(torch.autograd.Function)["apply"],
    ]


def test_global_names_are_as_before_also_after_a_failure():
    before = patched()
    pipe(Small(), swap_head(3))
    assert all(a is b for a, b in zip(patched(), before, strict=True))
    with pytest.raises(TraceError):
        trace(ByData())
    assert all(a is b for a, b in zip(patched(), before, strict=True))


def test_four_threads_infer_while_transforms_go_on():
    models = [Small().eval() for _ in range(4)]
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        expected = [model(x) for model in models]
    with torch.device("meta"):
        edited = swin_t()
    wrong: list[str] = []
    done = threading.Event()

    def infer(index: int) -> None:
        with torch.no_grad():
            for _ in range(500):
                try:
                    if not models[index](x).equal(expected[index]):
                        wrong.append("value")
                except Exception as error:
                    wrong.append(repr(error))

    def edit() -> None:
        while not done.is_set():
            pipe(edited, wrap("features.1.0.attn", se), swap_head(3))
            pipe(BySize(), swap_head(3), example=x)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        workers = [threading.Thread(target=infer, args=(i,)) for i in range(4)]
        editors = [threading.Thread(target=edit) for _ in range(2)]
        for thread in (*editors, *workers):
            thread.start()
        for thread in workers:
            thread.join()
        done.set()
        for thread in editors:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert wrong == []
