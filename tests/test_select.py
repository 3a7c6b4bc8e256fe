"""Selectors: what they find, in which order, what they refuse."""

from __future__ import annotations

import pickle

import pytest
import torch
from nets import ByData, ByMode, Small
from torch import nn
from torch.nn import functional as F
from torchvision.models import googlenet, resnet18, resnet152, swin_t, vit_b_16

from torchgraft import at, freeze, node, op, pipe, replace, where, wrap
from torchgraft.errors import AnalysisError, OptionError, TargetError, TraceError


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    with torch.device("meta"):
        return resnet18()


def test_the_algebra_is_that_of_what_is_covered(resnet):
    convs = at(nn.Conv2d).on(resnet).paths
    inside = [p for p in convs if p.startswith("layer4")]
    assert (at(nn.Conv2d) & "layer4").on(resnet).paths == tuple(inside)
    assert ("layer4" & at(nn.Conv2d)).on(resnet).paths == tuple(inside)
    assert (at(nn.Conv2d) - "layer4").on(resnet).paths == tuple(p for p in convs if p not in inside)
    assert ("layer4" - at("layer4.0")).on(resnet).paths == ("layer4.1",)
    assert (~at("layer4")).on(resnet).paths == (
        "conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "avgpool", "fc",
    )  # fmt: skip
    assert (~~at("layer4.0.conv1")).on(resnet).paths == ("layer4.0.conv1",)
    assert (~(at("layer4") | "fc") & nn.Conv2d).on(resnet).paths == tuple(p for p in convs if p not in inside)


def test_the_order_is_that_of_execution():
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(F.relu(self.first(x)))

    model = Backwards()
    assert at(nn.Conv2d).on(model).paths == ("first", "last")
    assert (at("last") | "first").on(model).paths == ("first", "last")
    assert at(nn.Conv2d).first.on(model).paths == ("first",)
    assert at(nn.Conv2d).nth(-1, 0).on(model).paths == ("first", "last")
    assert (op("relu") | "last" | "first").on(model).paths == ("first", "relu", "last")
    assert at(nn.Conv2d).after(op("relu")).on(model).paths == ("last",)
    assert at(nn.Conv2d).before("last").on(model).paths == ("first",)


def test_of_one_path_positions_are_its_calls(resnet):
    assert at("layer1.0.relu").nth(1).on(resnet).paths == ("layer1.0.relu_1",)
    assert at("layer1.0.relu").calls.on(resnet).paths == ("layer1.0.relu", "layer1.0.relu_1")
    assert at("conv1").first.on(resnet).paths == ("conv1",)
    assert at("conv1").first.on(resnet)[0].is_module
    assert at(nn.ReLU).nth(1).on(resnet).paths == ("layer1.0.relu",)
    (site,) = at("layer1.0.relu").last.on(resnet)
    assert not site.is_module
    assert site.cls is nn.ReLU


def test_what_never_runs_has_no_position():
    assert at(nn.Linear).on(Small()).paths == ("fc", "unused")
    assert at(nn.Linear).last.on(Small()).paths == ("fc",)
    with pytest.raises(TargetError, match="no match number 1"):
        at(nn.Linear).nth(1).on(Small())


def test_relations(resnet):
    assert at(nn.Conv2d).inside("layer2.0").on(resnet).paths == (
        "layer2.0.conv1", "layer2.0.conv2", "layer2.0.downsample.0",
    )  # fmt: skip
    assert at(nn.Conv2d).after("layer3").before("layer4.1").on(resnet).paths == (
        "layer4.0.conv1", "layer4.0.conv2", "layer4.0.downsample.0",
    )  # fmt: skip
    assert at("**").inside("layer1.0").innermost().on(resnet).paths[0] == "layer1.0.conv1"
    with pytest.raises(TargetError, match="nothing is left"):
        at("layer4").inside("layer4").on(resnet)
    with pytest.raises(TargetError, match="never runs"):
        at("fc").after("unused").on(Small())


def test_operations_by_name_function_and_method(resnet):
    assert len(op("add").on(resnet)) == 8
    assert op(torch.add).on(resnet).paths == op("add").on(resnet).paths == op("a*d").on(resnet).paths
    assert op(torch.Tensor.add).on(resnet).paths == op("add").on(resnet).paths
    assert op("add").inside("layer1").on(resnet).paths == ("layer1.0.add", "layer1.1.add")
    assert (op("add") & "layer1.0").on(resnet).paths == ("layer1.0.add",)
    assert (op("add") - "layer1").on(resnet).paths[0] == "layer2.0.add"
    with pytest.raises(TargetError, match="runs conv9"):
        op("conv9").on(resnet)
    with pytest.raises(OptionError) as caught:
        op(nn.ReLU)
    assert caught.value.write == "at(nn.ReLU)"


def mine(x: torch.Tensor) -> torch.Tensor:
    return x + 1


torch.fx.wrap("mine")


class CallsMine(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return mine(x).relu_()


def test_own_functions_are_told_by_identity():
    assert op(mine).on(CallsMine()).paths == ("mine",)
    assert op(F.relu).on(CallsMine()).paths == ("relu_",)

    def mine_too(x: torch.Tensor) -> torch.Tensor:
        return x

    mine_too.__name__ = "mine"
    with pytest.raises(TargetError):
        op(mine_too).on(CallsMine())


def test_an_operation_that_may_hide_in_a_forward_that_cannot_be_followed():
    model = nn.Sequential(nn.Sequential(Small(), nn.ReLU()), ByData())
    with pytest.raises(TraceError) as caught:
        op("relu").on(model, example=torch.zeros(2, 3, 32, 32))
    assert ".inside(" in caught.value.write
    with pytest.raises(TraceError):
        op("relu").maybe().on(model, example=torch.zeros(2, 3, 32, 32))
    with pytest.raises(TraceError):
        op("relu").inside("1").on(nn.Sequential(Small(), nn.Sequential(ByData())))
    assert op("relu").inside("0").on(model).paths == ("0.0.relu",)
    assert op("relu").inside("0.0").on(model).paths == ("0.0.relu",)


def test_both_modes_are_one_operation_where_they_are_the_same_line():
    sites = op("mean").on(ByMode())
    assert sites.paths == ("mean",)
    assert len(sites[0].nodes) == 2
    with torch.device("meta"):
        inception = googlenet(init_weights=False, aux_logits=True)
    result = pipe(inception, replace(op(F.relu), nn.SiLU))
    assert not [m for m in result.modules() if isinstance(m, nn.ReLU)]


def test_nodes_by_name(resnet):
    assert node("layer1.0.relu_1").on(resnet).paths == ("layer1.0.relu_1",)
    assert not node("layer1.0.relu").on(resnet)[0].is_module
    with pytest.raises(TargetError) as caught:
        node("layer1.0.relu_7").on(resnet)
    assert "layer1.0.relu_1" in caught.value.near


def test_predicates(resnet):
    strided = where(lambda site: getattr(site.module, "stride", 1) == (2, 2))
    assert strided.on(resnet).paths[0] == "conv1"
    wide = at(nn.Conv2d).where(lambda site: site.output[1] == 512 and site.layout == "NCHW")
    assert len(wide.on(resnet)) == 5
    for wrong in (lambda site: site.nothing, lambda site: 3):
        with pytest.raises(OptionError):
            where(wrong).on(resnet)


def test_counts(resnet):
    assert at("fc").one().on(resnet).paths == ("fc",)
    assert len(at(nn.Linear | nn.MaxPool2d).exactly(2).on(resnet)) == 2
    assert at("zzz").maybe().on(resnet).paths == ()
    assert (at("zzz").maybe() | "fc").on(resnet).paths == ("fc",)
    assert at(nn.Conv3d).exactly(0).on(resnet).paths == ()
    assert pipe(Small(), wrap(at(nn.Conv3d).maybe(), "se")).stem is not None
    with pytest.raises(TargetError, match="matches 9 times, not 1"):
        at(nn.ReLU).one().on(resnet)
    with pytest.raises(TargetError):
        (at("zzz") | "fc").on(resnet)
    with pytest.raises(TargetError):
        (at("fc") - "zzz").on(resnet)


def test_what_is_no_selector_is_refused():
    with pytest.raises(OptionError, match="no truth value"):
        at("a") and at("b")
    for call in (
        lambda: at(""), lambda: at("a..b"), lambda: at(int), lambda: node("a.*"), lambda: where(3),
        lambda: at("a").nth(), lambda: at("a").nth("0"), lambda: at("a").exactly(-1), lambda: op(""),
    ):  # fmt: skip
        with pytest.raises(OptionError):
            call()
    with pytest.raises(TargetError, match="is an operation"):
        (~op("add")).on(Small())


def test_outermost_wins_and_innermost_changes_it():
    def wrapped(target) -> list[str]:
        result = pipe(Small(), wrap(target, "eca", name="e"))
        return [k for k in result.state_dict() if ".e.conv" in f".{k}"]

    assert wrapped(at("stage") | "stage.0") == ["stage.e.conv.weight"]
    assert wrapped((at("stage") | "stage.0").innermost()) == ["stage.0.e.conv.weight"]


def test_the_rest_of_a_model_is_frozen_with_what_hangs_on_its_containers():
    with torch.device("meta"):
        model = vit_b_16()
    result = pipe(model, freeze(~(at("encoder.layers.encoder_layer_11") | "heads")))
    free = {name for name, p in result.named_parameters() if p.requires_grad}
    assert all(name.startswith(("encoder.layers.encoder_layer_11.", "heads.")) for name in free)
    assert len(free) == 14
    assert not result.class_token.requires_grad
    assert not result.encoder.pos_embedding.requires_grad


def test_selectors_are_values():
    one = (at("a") | nn.Conv2d).inside("b.*").first - op(F.relu).maybe() & ~at("c")
    other = (at("a") | nn.Conv2d).inside("b.*").first - op(F.relu).maybe() & ~at("c")
    assert one == other
    assert hash(one) == hash(other)
    assert pickle.loads(pickle.dumps(one)) == one
    assert repr(one) == '(at("a") | nn.Conv2d).inside("b.*").first - op(F.relu).maybe() & ~at("c")'
    assert repr(at("a") & (at("b") | "c")) == 'at("a") & (at("b") | "c")'
    assert repr((~at("a")).first) == '(~at("a")).first'


def test_a_selection_prints_the_marked_tree(resnet):
    assert repr(at("layer1.0.relu").last.on(resnet)) == (
        'at("layer1.0.relu").last on ResNet: 1 site\n'
        "  conv1 ... maxpool  4 modules\n"
        "  layer1             Sequential\n"
        "    0                BasicBlock\n"
        "      conv1 ... bn2  5 modules\n"
        ">     relu_1         ReLU        n 64 56 56 -> n 64 56 56\n"
        "    1\n"
        "  layer2 ... fc      5 modules"
    )
    with torch.device("meta"):
        deep = resnet152()
    assert len(repr(at(nn.Conv2d).on(deep)).splitlines()) < 65
    assert len(at(nn.Conv2d).on(deep)) == 155
    table = at(nn.Conv2d).nth(0).on(resnet).table()
    assert table.splitlines()[1].split("  ")[-1].strip() == "conv1"
    assert "NHWC" in at("features.1").on(swin_t()).table()


def test_a_model_that_does_not_run_keeps_the_order_of_registration():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.b, self.a = nn.Linear(3, 3), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor, y: object) -> torch.Tensor:
            return self.b(x) + y.z

    found = at(nn.Linear).on(Odd())
    assert found.paths == ("b", "a")
    assert "order of registration" in repr(found)
    with pytest.raises(AnalysisError):
        at(nn.Linear).first.on(Odd())
    with pytest.raises(AnalysisError):
        at(nn.Linear).after("b").on(Odd())


def test_selecting_leaves_the_model_alone():
    model = Small()
    before = {k: id(v) for k, v in vars(model).items()}
    for site in (at("**") | op("relu")).on(model):
        assert site.shapes() is not None
        assert isinstance(site.calls, tuple)
    assert before == {k: id(v) for k, v in vars(model).items()}


class ReadsDevice(nn.Module):
    """A forward that cannot be followed and still runs on meta tensors; a ReLU after or in a child."""

    def __init__(self, *, own: bool) -> None:
        super().__init__()
        self.own = own
        self.part = nn.Conv2d(3, 4, 1) if own else nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.part(x)
        if str(x.device) == "nowhere":
            return x
        return F.relu(x) if self.own else x * 2


def test_what_a_forward_runs_itself_is_told_from_what_its_parts_run():
    with pytest.raises(TraceError):
        op("relu").maybe().on(nn.Sequential(ReadsDevice(own=True)))
    assert op("relu").maybe().on(nn.Sequential(ReadsDevice(own=False))).paths == ()


class Spelled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.multiply(x, 2) * x
        return torch.true_divide(x, 3) - torch.concat([x, x]).chunk(2)[0]


def test_spellings_of_one_operation_are_one():
    counts = {name: len(op(name).on(Spelled(), example=torch.zeros(2, 3))) for name in ("mul", "div", "cat")}
    assert counts == {"mul": 2, "div": 1, "cat": 1}
    site = op("mul").on(Spelled(), example=torch.zeros(2, 3))[0]
    assert (site.op, site.kind, site.cls, site.module) == ("mul", "mul", None, None)


def test_what_hangs_on_a_container_does_not_hide_its_parts():
    class Held(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.position = nn.Parameter(torch.zeros(3))
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x + self.position))

    result = pipe(nn.Sequential(Held()), freeze(~at("0.b")))
    assert {n for n, p in result.named_parameters() if p.requires_grad} == {"0.b.weight", "0.b.bias"}
