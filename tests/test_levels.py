"""Levels: what a traced forward keeps, decides and refuses."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from checks import run, same
from fingerprint import changes, fingerprint
from nets import ByData, ByMode, BySize, Caching, Listed, Residual
from torch import nn
from torch.nn import functional as F
from torchvision.models.feature_extraction import get_graph_node_names

import torchgraft.graph.draft as draft_module
from torchgraft import explain, inject, pipe, swap_head, trace, wrap
from torchgraft.blocks import se
from torchgraft.errors import SpecialisedError, TraceError
from torchgraft.graph.draft import Draft
from torchgraft.graph.names import node_names


def test_both_modes_keep_their_meaning(images):
    model = ByMode()
    result = pipe(model)
    for mode in (True, False, True):
        assert same(run(result, images, mode=mode), run(model, images, mode=mode))
    assert len(result.graphs) == 2
    for other in (copy.deepcopy(result), pickle.loads(pickle.dumps(result)), copy.copy(result)):
        for mode in (True, False):
            assert same(run(other, images, mode=mode), run(model, images, mode=mode))


def test_both_modes_are_edited(images):
    result = pipe(ByMode(), inject("body", se, name="gate"), swap_head(7))
    run(result, images, mode=True)
    assert [t.shape[-1] for t in result.train()(images)] == [7, 7]
    for graph in result.graphs:
        assert [node for node in graph.nodes if node.target == "gate"]


def test_a_decision_on_sizes_is_guarded(images):
    result = pipe(BySize(), example=images)
    assert result(images).shape == (2, 5)
    assert result(torch.randn(4, 3, 32, 32)).shape == (4, 5)  # decides the same way
    with pytest.raises(SpecialisedError, match="2x3x16x16"):
        result(torch.randn(2, 3, 20, 20))
    assert "2x3x16x16" in explain(result).guards[0]


def test_a_decision_on_data_keeps_the_class_and_says_so(images):
    model = ByData()
    result = pipe(model, swap_head_by_path(7))
    assert type(result) is ByData
    assert "x.sum() > 0" in explain(result).unfollowed
    assert result(images).shape == (2, 7)


def swap_head_by_path(classes):
    from torchgraft import replace

    return replace("fc", lambda old: nn.Linear(old.in_features, classes), keep_shape=False)


def test_an_edit_inside_such_a_forward_is_refused_with_file_and_line():
    with pytest.raises(TraceError) as caught:
        pipe(nn.Sequential(ByData()), inject("0.conv", se))
    assert caught.value.module == "0"
    assert caught.value.filename.endswith("nets.py")


def test_what_a_forward_writes_on_itself_is_not_kept():
    model = Caching()
    x = torch.randn(2, 3)
    before = fingerprint(model)
    result = pipe(pipe(model))
    assert model.last is None
    assert result.last is None
    assert not changes(before, fingerprint(model))
    assert result(x).equal(model(x))


def test_hooks_of_root_containers_and_layers_run(small, images):
    seen = []
    for name in ("", "stage", "stage.0", "fc"):
        small.get_submodule(name).register_forward_hook(lambda m, i, o, name=name: seen.append(name))
    result = pipe(small, wrap("stage", se))
    assert seen == []
    result(images)
    assert seen == ["stage.0", "stage", "fc", ""]


def test_attributes_and_class_attributes_survive():
    model = nn.Sequential(Residual(3))
    model.default_cfg = {"mean": 0.5}
    result = pipe(model, wrap("0", se))
    assert result.default_cfg == {"mean": 0.5}
    assert result.default_cfg is not model.default_cfg
    assert result[0].expansion == 1


def test_unreached_modules_stay(small):
    assert "unused.weight" in pipe(small).state_dict()


def test_constants_and_buffers_follow_the_device_and_dtype():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("scale", torch.tensor([2.0, 3.0]), persistent=False)

        def forward(self, x):
            steps = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)
            return x * self.scale + steps

    result = pipe(Net())
    x = torch.randn(3, 2, dtype=torch.float64)
    assert result.double()(x).equal(Net().double()(x))
    assert result.to("meta")(x.to("meta")).device.type == "meta"


def test_arguments_that_callers_leave_out_are_checked():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x, mask=None, *, scale=2.0):
            y = self.fc(x) * scale
            return y if mask is None else y * mask

    model, x = Net(), torch.randn(2, 3)
    result = pipe(model)
    assert result(x).equal(model(x))
    assert result(x, scale=3.0).equal(model(x, scale=3.0))
    with pytest.raises(SpecialisedError, match="mask"):
        result(x, torch.ones(2))
    with_mask = pipe(model, example=(torch.zeros(2, 3), torch.zeros(2)))
    assert with_mask(x, torch.ones(2, 2)[0]).equal(model(x, torch.ones(2)))


def test_control_flow_that_values_can_decide():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            if isinstance(x, torch.Tensor):
                x = [x]
            out = 0
            for part in x:
                b, _ = part.shape
                out = out + self.fc(part).view(b, -1)
            rows = [row for row in out]
            return torch.stack(rows)[: len(rows)]

    model, x = Net(), torch.randn(2, 4)
    result = pipe(model, example=x)
    assert result(x).equal(model(x))
    with pytest.raises(SpecialisedError):
        result(torch.randn(3, 4))


def test_functional_dropout_draws_the_same_numbers(images):
    class Net(nn.Module):
        def forward(self, x):
            return F.dropout(x, 0.3, self.training) + torch.rand(2)[0]

    model = Net()
    result = pipe(model)
    for mode in (True, False):
        assert same(run(result, images, mode=mode), run(model, images, mode=mode))


@pytest.mark.parametrize("path", ["layer1.0", "layer2.0", ""])
def test_nodes_are_named_as_torchvision_names_them(path):
    from torchvision.models import resnet18

    model = resnet18()
    theirs = get_graph_node_names(model)[1]
    ours = node_names(Draft(model), path)
    prefix = f"{path}." if path else ""
    mine = [n for n in ours if n.count(".") == prefix.count(".")]
    assert [n for n in theirs if n.startswith(prefix) and n.count(".") == prefix.count(".")] == [
        n for n in mine if n in theirs
    ]


def test_a_shared_module_has_the_calls_of_both_paths():
    shared = nn.Conv2d(3, 3, 3, padding=1)
    model = nn.Sequential(nn.Sequential(shared, nn.ReLU()), nn.Sequential(shared))
    calls = Draft(model).calls("0.0")
    assert sorted(call.owner for call in calls) == ["0", "1"]
    result = pipe(model)
    assert result[0][0] is result[1][0]


def test_units_of_a_list_are_called_by_the_level_above(images):
    result = pipe(Listed(), wrap("units.1", se), wrap("units", se, name="last"))
    assert [n.target for n in result.graph.nodes if n.op == "call_module"] == [
        "units.0",
        "units.1",
        "last",
        "fc",
    ]
    assert "units.1.se.fc1.weight" in result.state_dict()


def test_a_traced_model_is_transformed_again_without_a_trace(small, images):
    once = pipe(small, wrap("stage", se))
    twice = pipe(once, wrap("stage", se), swap_head(3))
    assert [name for name, _ in twice.stage.named_children()] == ["0", "1", "se", "se_1"]
    assert explain(twice).steps == ('wrap("stage", se())', 'wrap("stage", se())', "swap_head(3)")


def test_a_graph_module_of_another_tracer_is_taken_as_it_is(small, images):
    foreign = torch.fx.symbolic_trace(small)
    result = pipe(foreign, swap_head(3))
    assert result(images).shape == (2, 3)
    assert trace(foreign)(images).equal(small(images))


def test_graphs_lint_and_can_be_recompiled(small, images):
    result = pipe(small, wrap("stage", se), inject("stem", se))
    for module in result.modules():
        if isinstance(module, torch.fx.GraphModule):
            for graph in module.graphs:
                graph.lint()
    expected = result(images)
    result.recompile()
    assert result(images).equal(expected)


class Scaled(nn.Module):
    def __init__(self, factor: float, parts: int = 1) -> None:
        super().__init__()
        self.fc, self.factor, self.limits = nn.Linear(4, 4), factor, {"parts": [parts]}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(self.limits["parts"][0]):
            x = self.fc(x) * self.factor
        return x


def test_modules_that_are_alike_are_followed_once_and_edited_apart(monkeypatch):
    followed = []
    follow = draft_module.trace_level
    monkeypatch.setattr(
        draft_module, "trace_level", lambda m, path, *rest: followed.append(path) or follow(m, path, *rest)
    )
    model = nn.Sequential(Scaled(2.0), Scaled(2.0), Scaled(3.0), Scaled(2, 1), Scaled(2.0, 2), Scaled(2.0))
    x = torch.randn(2, 4)
    result = pipe(model, *[wrap(f"{i}.fc", nn.Tanh()) for i in range(5)])
    assert [path for path in followed if path] == ["0", "2", "3", "4"]
    for i, unit in enumerate(model):
        expected = x
        for _ in range(unit.limits["parts"][0]):
            expected = (unit.fc(expected).tanh() if i < 5 else unit.fc(expected)) * unit.factor
        assert result[i](x).equal(expected)


def test_an_example_is_remembered_as_a_shape():
    x = torch.randn(2, 3, 32, 32)
    result = pipe(BySize(), example=x)
    (held,) = [v for v in vars(result).values() if isinstance(v, torch.Tensor)]
    assert held.is_meta
    assert held.shape == x.shape
    pair = pipe(BySize(), example=(x,))
    assert wrap("conv", nn.Identity())(pair)(x).shape == (2, 5)
