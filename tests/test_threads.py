"""Other threads run other models while one is edited, and get right outputs."""

from __future__ import annotations

import sys
import threading

import torch
from nets import BySize, Small
from torchvision.models import swin_t

from torchgraft import pipe, swap_head, wrap
from torchgraft.blocks import se


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
