"""Results live on: compiled, exported, averaged, distributed."""

from __future__ import annotations

import copy
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from checks import close, compiles, exports, flat, run
from nets import ByMode, Small
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torchvision.models import resnet18

from torchgraft import features, freeze, inject, pipe, swap_head, wrap
from torchgraft.blocks import se


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("check", [compiles, exports])
def test_compiles_and_exports(check, images):
    check(Small().eval(), images, "stage")


@pytest.mark.filterwarnings("ignore")
def test_a_level_with_two_modes_compiles_in_both(images):
    result = pipe(ByMode(), wrap("body", se))
    compiled = torch.compile(result, fullgraph=True, backend="eager")
    for mode in (True, False, True):
        close(run(compiled, images, mode=mode), run(result, images, mode=mode))


def test_averages():
    result = pipe(resnet18(), wrap("layer4", se), swap_head(10)).eval()
    average = AveragedModel(result)
    x = torch.randn(2, 3, 32, 32)
    average.update_parameters(result)
    close(average.eval()(x), result(x))


def test_moves_and_casts(small, images):
    result = pipe(small, wrap("stage", se))
    assert result.double()(images.double()).dtype == torch.float64
    assert result.to(torch.bfloat16)(images.bfloat16()).dtype == torch.bfloat16
    assert small(images).dtype == torch.float32


def _port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _worker(rank: int, port: int, out: dict) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = pipe(Small(), wrap("stage", se), swap_head(3), freeze("stem"), seed=1)
    model = pipe(model, freeze("unused"))
    parallel = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(2)).chunk(2)[rank]
    optimizer = torch.optim.SGD([p for p in parallel.parameters() if p.requires_grad], lr=0.1)
    parallel(x).square().sum().backward()
    optimizer.step()
    out[rank] = model.fc.weight.detach().clone()
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
def test_distributed_data_parallel_over_two_processes():
    with mp.Manager() as manager:
        out = manager.dict()
        mp.spawn(_worker, args=(_port(), out), nprocs=2)
        assert out[0].equal(out[1])
        torch.manual_seed(0)
        untouched = pipe(Small(), wrap("stage", se), swap_head(3), seed=1).fc.weight
        assert not out[0].equal(untouched)


class Forwarding(nn.Module):
    """A wrapper that hands on what it does not have itself, as adapters and compiled models do."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def __getattr__(self, name: str) -> object:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


def test_a_copy_of_a_wrapper_is_the_wrapper(small, images):
    result = pipe(small, wrap("stage", se))
    for wrapper in (Forwarding(result), torch.compile(result, backend="eager")):
        twin = copy.deepcopy(wrapper)
        assert type(twin) is type(wrapper)
        assert twin(images).equal(result(images))
        with torch.no_grad():
            next(twin.parameters()).zero_()
        assert not next(result.parameters()).eq(0).all()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "steps",
    [
        (),
        (swap_head(3),),
        (freeze("**"),),
        (features("layer2", "layer3"),),
        (inject("layer2", nn.Identity()),),
        *((wrap("layer2", block),) for block in ("se", "eca", "cbam", "adapter", "layer_scale")),
    ],
    ids=repr,
)
def test_results_can_be_scripted_where_the_model_can(steps):
    result, x = pipe(resnet18(num_classes=5).eval(), *steps), torch.rand(2, 3, 32, 32)
    for one, other in zip(flat(torch.jit.script(result)(x)), flat(result(x)), strict=True):
        assert torch.allclose(one, other, atol=1e-5)
