"""Loading: what is filled, what stays, the account of it, and what is refused."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from fingerprint import bits, changes, fingerprint
from nets import Residual, Small
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torch.testing._internal.two_tensor import TwoTensor
from torchvision.models import resnet18

from torchgraft import (
    at,
    explain,
    freeze,
    head,
    load_report,
    load_weights,
    op,
    partial_load,
    pipe,
    read_checkpoint,
    swap_head,
    transfer,
    transfer_weights,
    wrap,
)
from torchgraft.alignment.alignment import Alignment, Ambiguity, Entry, Mismatch, Part
from torchgraft.alignment.load.accounts import LoadReport
from torchgraft.alignment.load.loading import Terms, load
from torchgraft.blocks import se
from torchgraft.errors import (
    AlignmentError,
    CheckpointError,
    CoverageError,
    GraftError,
    ModelError,
    OptionError,
    RecipeError,
    TargetError,
)
from torchgraft.graph.draft import Draft
from torchgraft.recipe import parse


def text(call) -> str:
    with pytest.raises(GraftError) as caught:
        call()
    assert isinstance(caught.value, ValueError) or not isinstance(caught.value, CheckpointError)
    return f"{type(caught.value).__name__}: {caught.value}"


@pytest.fixture
def other() -> nn.Module:
    """The net of ``small`` with other values, as after a training."""
    model = Small()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(1)
    return model


def equal(model: nn.Module, state: dict[str, torch.Tensor], keys=None) -> bool:
    held = model.state_dict()
    return all(held[key].equal(state[key]) for key in (keys or state))


# What is loaded ------------------------------------------------------------------------------


def test_another_number_of_classes():
    source, target = resnet18(), resnet18(num_classes=10)
    result = partial_load(target, source.state_dict())
    report = load_report(result)
    assert (len(report.loaded), len(report.mismatched), round(report.ratio, 4)) == (120, 2, 0.9836)
    assert report.evidence == (("names", 120),)
    assert report.mismatched[0] == Mismatch("fc.weight", "fc.weight", (10, 512), (1000, 512))
    assert (report.missing, report.unexpected, report.excluded, report.converted) == ((), (), (), ())
    assert equal(result, source.state_dict(), report.loaded)
    assert equal(result, target.state_dict(), ["fc.weight", "fc.bias"])
    assert str(report) == (
        "loaded 98.4 % of parameters (120 of 122 tensors); 2 differ in shape\n"
        "  differ      fc.weight 1000 512 -> 10 512, fc.bias 1000 -> 10"
    )


def test_what_is_excluded_stays():
    source, target = resnet18(), resnet18()
    result = transfer_weights(source, target, exclude="fc")
    report = load_report(result)
    assert (len(report.loaded), report.excluded, report.ratio) == (120, ("fc.weight", "fc.bias"), 1.0)
    assert equal(result, source.state_dict(), report.loaded)
    assert equal(result, target.state_dict(), report.excluded)
    assert str(report) == (
        "loaded 100.0 % of parameters (120 of 120 tensors); 2 excluded\n"
        "  found by    behaviour 120\n"
        "  excluded    fc.weight, fc.bias"
    )


def test_in_a_pipe_from_a_file(tmp_path, small, other, images):
    save_file(other.state_dict(), tmp_path / "w.safetensors")
    step = load_weights(tmp_path / "w.safetensors")
    result = pipe(small, step, swap_head(3), wrap("stage", se))
    assert equal(result, other.state_dict(), [k for k in other.state_dict() if not k.startswith("fc")])
    assert load_report(result).ratio == 1
    assert explain(result).steps[0] == f'load_weights("{tmp_path}/w.safetensors")'
    loaded = pipe(small, step)
    assert type(loaded) is not Small
    assert loaded(images).equal(other.eval()(images))
    assert equal(pipe(small, swap_head(3), step), other.state_dict(), ["stem.weight"])


@pytest.mark.parametrize("prefix", ["module.", "model.", "backbone.", "module.model."])
def test_prefixes_wrappers_and_averages(small, other, prefix):
    state = {prefix + key: tensor for key, tensor in other.state_dict().items()}
    average = {key: tensor + 1 for key, tensor in state.items() if tensor.is_floating_point()}
    saved = {"epoch": 3, "nested": {"state_dict": state, "state_dict_ema": average}}
    result = partial_load(small, saved)
    assert equal(result, other.state_dict())
    assert str(load_report(result)) == (
        "loaded 100.0 % of parameters (24 of 24 tensors)\n"
        "  unwrapped   nested.state_dict\n"
        "  left        nested.state_dict_ema\n"
        f'  prefix      "{prefix}" removed'
    )
    result = pipe(small, load_weights(saved, ema=True))
    assert equal(result, {k.removeprefix(prefix): t for k, t in average.items()})
    assert load_report(result).counters == (
        "stage.0.bn.num_batches_tracked",
        "stage.1.bn.num_batches_tracked",
    )


@pytest.mark.parametrize("by", ["names", "structure"])
def test_a_prefix_says_which_of_several_models_is_meant(other, by):
    state = other.state_dict()
    whole = {f"module.{side}.{key}": t for side in ("encoder_q", "encoder_k") for key, t in state.items()}
    whole = {key: t + key.startswith("module.encoder_k") for key, t in whole.items()}
    with pytest.raises(CheckpointError, match="several prefixes") as caught:
        pipe(Small(), load_weights(whole, by=by))
    assert 'prefix="module.encoder_q."' in caught.value.write
    result = pipe(Small(), load_weights(whole, by=by, prefix="module.encoder_q."))
    assert equal(result, state, load_report(result).loaded)
    assert load_report(result).prefix == "module.encoder_q."
    with pytest.raises(OptionError, match=r"load_weights\(<the model>.stem\)"):
        load_weights(other, prefix="stem.")


def test_what_another_tower_leaves_open_is_settled_by_a_prefix():
    tensors = {"image.scale": torch.ones(6), "image.x": torch.ones(2), "text.x": torch.ones(2)}
    checkpoint, model = read_checkpoint(tensors), nn.Sequential(nn.LayerNorm(6), nn.LayerNorm(2))
    draft = Draft(model)
    shapes = {key: tuple(tensor.shape) for key, tensor in draft.root.state_dict().items()}
    entry = Entry("0.weight", (Part("image.scale"),), rule="place", evidence="structure")
    for candidates, write in ((("image.x",), 'prefix="image."'), (("image.x", "text.x"), "transfer(")):
        found = Alignment(checkpoint.shapes, shapes, (entry,), ambiguous=(Ambiguity("1.weight", candidates),))
        with pytest.raises(AlignmentError) as caught:
            load(draft, checkpoint, found, Terms(decided=True))
        assert caught.value.write.startswith(write)


@pytest.mark.parametrize("by", ["names", "structure"])
def test_a_part_of_a_model_is_filled(small, other, by):
    whole = nn.ModuleDict({"student": small, "teacher": copy.deepcopy(small)})
    state = other.state_dict()
    result = pipe(whole, load_weights(state, into="teacher", by=by), load_weights(state, into="teacher.stem"))
    assert equal(result["teacher"], state, [key for key in state if "unused" not in key])
    assert equal(result["student"], small.state_dict())
    assert load_report(result).summary == "loaded 100.0 % of parameters (2 of 2 tensors); 22 unexpected"
    whole["student"].stem.bias = whole["teacher"].stem.bias
    tied = pipe(whole, load_weights(state, into="teacher"))
    assert tied["student"].stem.bias.equal(state["stem.bias"])
    with pytest.raises(TargetError, match='into="teacher"'):
        pipe(whole, load_weights(state, into="techer"))


def test_what_steps_added_or_reshaped_is_told_apart_and_does_not_count(small, other):
    step = load_weights(other.state_dict(), min_coverage=1.0)
    for model in (small, pipe(small, swap_head(3), wrap("stage", se))):
        steps = (swap_head(4), wrap("stem", se), step)
        report = load_report(pipe(model, *steps))
        assert report.ratio == 1
        assert {"fc.weight", "fc.bias", "stem_se.fc1.weight"} <= set(report.apart)
        assert not {*report.apart} & {*report.loaded}
        assert report.apart[0] in str(report).partition("of steps    ")[2]
    with pytest.raises(CoverageError):
        pipe(small, swap_head(4), load_weights(other.state_dict(), strict=True))
    two = {k: t for k, t in other.state_dict().items() if not k.startswith("stage.0")}
    with pytest.raises(CoverageError, match="asks for 90 %"):
        pipe(small, load_weights(two))


def test_a_part_into_a_whole(small, other):
    class Around(nn.Module):
        def __init__(self, backbone: nn.Module) -> None:
            super().__init__()
            self.backbone, self.neck = backbone, nn.Linear(5, 2)

        def forward(self, x):
            return self.neck(self.backbone(x))

    whole = Around(copy.deepcopy(small))
    result = partial_load(whole, other.state_dict())
    assert equal(result.backbone, other.state_dict())
    report = load_report(result)
    assert (report.added, report.missing) == ("backbone.", ("neck.weight", "neck.bias"))
    assert '  prefix      "backbone." added\n  new         neck.weight, neck.bias' in str(report)
    back = partial_load(small, result.state_dict())
    assert load_report(back).prefix == "backbone."
    assert load_report(back).unexpected == ("neck.weight", "neck.bias")


def test_half_precision_is_converted(small, other):
    half = {key: t.half() if t.is_floating_point() else t for key, t in other.state_dict().items()}
    result = partial_load(small, half)
    assert {t.dtype for t in result.parameters()} == {torch.float32}
    assert equal(result, {key: t.float() if t.is_floating_point() else t for key, t in half.items()})
    report = load_report(result)
    assert len(report.converted) == 22
    assert report.converted[0] == ("stem.weight", "float16", "float32")
    assert "  converted   22 tensors float16 -> float32" in str(report)
    again = partial_load(copy.deepcopy(small).half(), other.state_dict())
    assert equal(again, half)


def test_extra_and_missing_keys(small, other):
    state = other.state_dict()
    del state["stem.weight"], state["fc.bias"]
    state |= {f"extra.{i}": torch.ones(1) for i in range(6)}
    result = partial_load(small, state)
    assert str(load_report(result)) == (
        "loaded 91.7 % of parameters (22 of 24 tensors); 2 new; 6 unexpected\n"
        "  new         stem.weight, fc.bias\n"
        "  unexpected  extra.0, extra.1, extra.2, extra.3 ... and 2 more"
    )
    assert equal(result, small.state_dict(), ["stem.weight", "fc.bias"])


def test_old_checkpoints_do_not_count_batches():
    source = {k: t for k, t in resnet18().state_dict().items() if not k.endswith("num_batches_tracked")}
    result = pipe(resnet18(), load_weights(source, strict=True))
    report = load_report(result)
    assert (len(report.loaded), len(report.counters), report.ratio) == (102, 20, 1.0)
    assert "  counters    20 as they were" in str(report)


class Tied(nn.Module):
    """An embedding whose weight is also that of the head, and a layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
        self.last.weight = self.first.weight
        self.again = self.first

    def forward(self, x):
        return self.again(self.last(self.first(x)))


def test_ties_are_kept():
    state = {"first.weight": torch.ones(4, 4), "first.bias": torch.ones(4)}
    result = partial_load(Tied(), state)
    assert result.last.weight is result.first.weight
    assert result.again is result.first
    assert equal(result, state)
    report = load_report(result)
    assert report.loaded == ("first.weight", "first.bias", "last.weight", "again.weight", "again.bias")
    assert not report.missing
    assert load_report(partial_load(Tied(), Tied().state_dict(), exclude="last")).excluded == (
        "first.weight",
        "last.weight",
        "again.weight",
    )
    assert text(lambda: partial_load(Tied(), {**state, "last.weight": torch.zeros(4, 4)})) == (
        "CheckpointError: 'first.weight' and 'last.weight' are one tensor in the model and two in the checkpoint\n"
        "  asked  partial_load(<a Tied>, <3 tensors>)\n"
        "  found  different values\n"
        '  write  partial_load(<a Tied>, <3 tensors>, exclude=("last.weight",))'
    )


def test_the_last_account_stays(small, other):
    result = pipe(small, load_weights(other), load_weights({"fc.bias": torch.ones(5)}, min_coverage=0))
    assert load_report(pipe(result, freeze("stem"))).loaded == ("fc.bias",)
    assert load_report(pickle.loads(pickle.dumps(result))) == load_report(copy.deepcopy(result))
    assert text(lambda: load_report(small)) == (
        "ModelError: no weights were loaded into this model\n"
        "  asked  load_report(<a Small>)\n"
        "  found  a Small\n"
        '  write  pipe(model, load_weights("weights.safetensors"))'
    )
    with pytest.raises(ModelError):
        load_report("model")


def test_all_that_an_account_can_say():
    report = LoadReport(
        ("a",),
        ambiguous=(Ambiguity("b", ("x", "y")),),
        mismatched=(Mismatch("c", "c", (), (2, 3)),),
        nan=("a",),
        initialised=("c",),
        evidence=(("behaviour", 3), ("names", 1)),
    )
    assert str(report) == (
        "loaded 33.3 % of parameters (1 of 3 tensors); 1 differ in shape; 1 ambiguous; 1 not finite\n"
        "  found by    behaviour 3, names 1\n"
        "  differ      c 2 3 -> scalar\n"
        "  ambiguous   b (x | y)\n"
        "  not finite  a\n"
        "  initialised c"
    )
    assert LoadReport(()).ratio == 0


# Exclusion ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("exclude", "expected"),
    [
        ("fc", ["fc.weight", "fc.bias"]),
        (("fc", "stem"), ["stem.weight", "stem.bias", "fc.weight", "fc.bias"]),
        ("fc.bias", ["fc.bias"]),
        ("**.running_mean", ["stage.0.bn.running_mean", "stage.1.bn.running_mean"]),
        (head, ["fc.weight", "fc.bias"]),
        (nn.Linear, ["unused.weight", "unused.bias", "fc.weight", "fc.bias"]),
        ((at("stage.0.*") - nn.Conv2d, "fc.*"), [f"stage.0.bn.{n}" for n in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")] + ["fc.weight", "fc.bias"]),
        (~(at("stage") | "unused"), ["stem.weight", "stem.bias", "fc.weight", "fc.bias"]),
        ([at("nothing").maybe()], []),
    ],
    ids=repr,
)  # fmt: skip
def test_exclude_takes_targets_and_tensors(small, other, exclude, expected):
    result = partial_load(small, other.state_dict(), exclude=exclude)
    report = load_report(result)
    assert list(report.excluded) == expected
    assert equal(result, small.state_dict(), expected or ["stage.0.bn.running_mean"]) is bool(expected)
    assert equal(result, other.state_dict(), report.loaded)
    assert len(report.loaded) + len(expected) == 24


def test_own_tensors_of_a_module_that_was_broken_up(other):
    class Token(Small):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.zeros(3))

    state = {**other.state_dict(), "token": torch.ones(3)}
    result = partial_load(Token(), state, exclude=~at("stage"))
    assert "token" in load_report(result).excluded
    assert result.token.eq(0).all()


def test_what_cannot_be_excluded(small, other):
    assert text(lambda: partial_load(small, other.state_dict(), exclude="head")) == (
        'TargetError: "head" is no module and no node of this model\n'
        '  asked  partial_load(<a Small>, <24 tensors>, exclude="head")\n'
        "  found  14 modules, no node of that name in the root\n"
        "  near   fc\n"
        '  write  partial_load(<a Small>, <24 tensors>, exclude=at("head").maybe())'
    )
    with pytest.raises(TargetError, match=r"\*\*.runing_mean"):
        partial_load(small, other.state_dict(), exclude="**.runing_mean")
    assert text(lambda: partial_load(small, other.state_dict(), exclude=op(F.relu))) == (
        "TargetError: 'relu' is an operation, which has no tensors\n"
        "  asked  partial_load(<a Small>, <24 tensors>, exclude=op(F.relu))\n"
        "  found  a node of the root\n"
        "  write  the module that holds the tensors"
    )
    with pytest.raises(CoverageError, match=r"loaded 0\.0 %"):
        partial_load(small, other.state_dict(), exclude="**")


# Initialisers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "init",
    ["kaiming_normal", "kaiming_uniform", "xavier_normal", "xavier_uniform", "trunc_normal", "normal", "uniform", "orthogonal", "zeros", "ones"],
)  # fmt: skip
def test_what_is_not_loaded_gets_an_initialiser(small, other, init):
    with torch.no_grad():
        for tensor in small.state_dict().values():
            tensor.fill_(3)
    state = {key: tensor for key, tensor in other.state_dict().items() if key.startswith(("stem", "unused"))}
    state["fc.weight"] = torch.ones(7, 8)
    before = torch.get_rng_state()
    result = partial_load(small, state, min_coverage=0, init=init, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    twin = partial_load(small, state, min_coverage=0, init=init, seed=1)
    assert equal(result, twin.state_dict())
    report = load_report(result)
    assert set(report.initialised) == {*report.missing, "fc.weight"}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        expected = torch.empty(8, 8, 3, 3)
        getattr(nn.init, f"{init}_")(expected)
    unit = result.stage[0]
    assert unit.conv1.weight.equal(expected)
    assert unit.conv1.bias.eq(0).all()
    assert (unit.bn.weight.eq(1).all(), unit.bn.bias.eq(0).all()) == (True, True)
    assert (unit.bn.running_mean.eq(0).all(), unit.bn.running_var.eq(1).all()) == (True, True)
    assert result.fc.weight.ne(3).all() or init == "trunc_normal"


def test_what_an_initialiser_has_no_say_about():
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.scale = nn.Linear(3, 3), nn.Parameter(torch.full((3,), 0.1))
            self.register_buffer("table", torch.arange(9.0).reshape(3, 3))
            self.register_buffer("places", torch.arange(9), persistent=False)

        def forward(self, x):
            return self.fc(x) * self.scale

    result = partial_load(Own(), {"fc.weight": torch.ones(3, 3)}, min_coverage=0, init="ones")
    report = load_report(result)
    assert (report.missing, report.initialised) == (("scale", "table", "fc.bias"), ("fc.bias",))
    assert result.scale.eq(0.1).all()
    assert result.table.equal(torch.arange(9.0).reshape(3, 3))


def test_what_an_alignment_makes_of_several_tensors():
    tensors = {
        "q": torch.ones(2, 3),
        "k": torch.full((2, 3), 2.0),
        "scale": torch.ones(6, 1, 1),
        "x": torch.ones(2),
        "y": torch.ones(2),
    }
    checkpoint = read_checkpoint(tensors)
    draft = Draft(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(6), nn.Linear(2, 2, bias=False)))
    target = {key: tuple(tensor.shape) for key, tensor in draft.root.state_dict().items()}
    entries = (
        Entry("0.weight", (Part("q"), Part("k")), rule="same input", evidence="behaviour"),
        Entry("0.bias", (Part("", view=(4,)),), rule="nothing", evidence="structure"),
        Entry("1.weight", (Part("scale"),), rule="same input", evidence="behaviour"),
    )
    alignment = Alignment(checkpoint.shapes, target, entries, ambiguous=(Ambiguity("1.bias", ("x", "y")),))
    report = load(draft, checkpoint, alignment, Terms())
    model = draft.seal()
    assert model[0].weight.equal(torch.cat([tensors["q"], tensors["k"]]))
    assert model[0].bias.eq(0).all()
    assert model[1].weight.eq(1).all()
    assert str(report) == (
        "loaded 60.0 % of parameters (3 of 5 tensors); 1 new; 1 ambiguous\n"
        "  found by    behaviour 2, structure 1\n"
        "  new         2.weight\n"
        "  ambiguous   1.bias (x | y)"
    )
    with pytest.raises(CoverageError, match="strict asks for all"):
        load(Draft(model), checkpoint, alignment, Terms(strict=True))


# What is refused --------------------------------------------------------------------------------


def test_too_little_is_refused(small):
    state = {f"encoder.{i}.weight": torch.ones(2, 2) for i in range(9)}
    assert text(lambda: partial_load(small, state)) == (
        "CoverageError: loaded 0.0 % of parameters (0 of 22 tensors); 22 new; 9 unexpected, "
        "and min_coverage asks for 50 %\n"
        "  asked  partial_load(<a Small>, <9 tensors>)\n"
        "  found  new stem.weight, stem.bias, stage.0.conv1.weight, stage.0.conv1.bias ... and 18 more\n"
        "         unexpected encoder.0.weight, encoder.1.weight, encoder.2.weight, encoder.3.weight "
        "... and 5 more\n"
        "         counters 2 as they were\n"
        '  write  load_weights(<9 tensors>, min_coverage=0.5, by="structure")'
    )
    few = {"fc.weight": torch.ones(5, 8), "fc.bias": torch.ones(5)}
    assert text(lambda: partial_load(small, few)).endswith(
        "write  partial_load(<a Small>, <2 tensors>, min_coverage=0.09)"
    )
    assert load_report(partial_load(small, few, min_coverage=2 / 22)).ratio == 2 / 22


def test_strict_asks_for_all(small, other):
    state = other.state_dict()
    assert load_report(pipe(small, load_weights(state, strict=True))).ratio == 1
    for wrong in ({"extra": torch.ones(1)}, {"fc.weight": torch.ones(3, 8)}):
        said = text(lambda wrong=wrong: pipe(small, load_weights({**state, **wrong}, strict=True)))
        assert said.startswith("CoverageError: loaded ")
        assert "and strict asks for all" in said
        assert said.endswith("strict=False)")
    assert pipe(small, load_weights({**state, "fc.weight": torch.ones(3, 8)}, strict=True, exclude="fc"))
    del state["fc.bias"]
    with pytest.raises(CoverageError):
        pipe(small, load_weights(state, strict=True))


def test_values_that_are_not_finite(small, other):
    state = other.state_dict()
    state["fc.bias"][0], state["stem.bias"][1] = torch.nan, torch.inf
    assert text(lambda: partial_load(small, state)) == (
        "CheckpointError: 2 tensors would hold values that are not finite\n"
        "  asked  partial_load(<a Small>, <24 tensors>)\n"
        "  found  stem.bias, fc.bias\n"
        "  write  load_weights(<24 tensors>, min_coverage=0.5, allow_nan=True)"
    )
    assert load_report(partial_load(small, state, exclude=("stem.bias", "fc.bias"))).nan == ()
    result = pipe(small, load_weights(state, allow_nan=True))
    assert load_report(result).nan == ("stem.bias", "fc.bias")
    assert bits(result.fc.bias) == bits(state["fc.bias"])
    large = {**other.state_dict(), "fc.bias": torch.full((5,), 1e6)}
    with pytest.raises(CheckpointError, match="not finite"):
        partial_load(copy.deepcopy(small).half(), large)


def test_values_that_a_dtype_cannot_hold(small, other):
    counter = "stage.0.bn.num_batches_tracked"
    state = {**other.state_dict(), counter: torch.tensor(7.0)}
    assert partial_load(small, state).stage[0].bn.num_batches_tracked == 7
    state[counter] = torch.tensor(7.5)
    assert text(lambda: partial_load(small, state)) == (
        f"CheckpointError: '{counter}' is int64, which cannot hold the values of {counter}\n"
        "  asked  partial_load(<a Small>, <24 tensors>)\n"
        "  found  float32\n"
        f'  write  partial_load(<a Small>, <24 tensors>, exclude=("{counter}",))'
    )
    with pytest.raises(CheckpointError, match="is float32"):
        partial_load(small, {**other.state_dict(), "fc.bias": torch.ones(5, dtype=torch.complex64)})


def test_tensors_without_plain_values(small, other):
    for wrong, found in (
        (torch.ones(5, device="meta"), "no values (it is on the meta device)"),
        (torch.ones(5).to_sparse(), "the layout torch.sparse_coo"),
    ):
        assert text(lambda wrong=wrong: partial_load(small, {**other.state_dict(), "fc.bias": wrong})) == (
            "CheckpointError: 'fc.bias' cannot be loaded into 'fc.bias'\n"
            "  asked  partial_load(<a Small>, <24 tensors>)\n"
            f"  found  {found}\n"
            "  write  a checkpoint of dense tensors"
        )
    packed = {**other.state_dict(), "fc.bias": TwoTensor(torch.ones(5), torch.ones(5))}
    for step in (load_weights(packed), load_weights(packed, by="structure")):
        said = text(lambda step=step: pipe(small, step))
        assert "found  quantised values, a TwoTensor" in said
        assert "t.dequantize() for name, t in <the tensors>.items()" in said
    with torch.device("meta"):
        empty = Small()
    assert text(lambda: partial_load(empty, other.state_dict())) == (
        "CheckpointError: the model is on the meta device, where it has no values\n"
        "  asked  partial_load(<a Small>, <24 tensors>)\n"
        "  found  stem.weight\n"
        '  write  model.to_empty(device="cpu") before'
    )


def test_wrong_sources(tmp_path, small, other):
    assert text(lambda: load_weights({})) == (
        "CheckpointError: this holds no weights\n"
        "  asked  load_weights(<a dict>)\n"
        "  found  an empty mapping\n"
        "  write  a mapping of names to tensors, as model.state_dict() gives it"
    )
    step = load_weights("no.pth")
    assert text(lambda: pipe(small, step)).startswith(
        "CheckpointError: there is no file 'no.pth'\n  asked  load_weights(\"no.pth\")\n"
    )
    assert text(lambda: load_weights(3)) == (
        "OptionError: weights come from a file, from a mapping of names to tensors, or from a model\n"
        "  asked  load_weights(3)\n"
        "  found  an int\n"
        '  write  load_weights("weights.safetensors")'
    )
    assert text(lambda: load_weights(other, ema=True)) == (
        "OptionError: which of several weights are meant is said where a checkpoint is read\n"
        "  asked  load_weights(<a Small>, ema=True)\n"
        "  found  a Small\n"
        "  write  load_weights(read_checkpoint(..., ema=True))"
    )
    with pytest.raises(ModelError):
        load_weights(nn.DataParallel(other))
    held = read_checkpoint({"teacher": other.state_dict(), "student": small.state_dict()}, key="teacher")
    assert equal(pipe(small, load_weights(held)), other.state_dict())


def test_wrong_options():
    assert text(lambda: load_weights("w.pth", init="kaiming_norml")) == (
        "OptionError: init is one of kaiming_normal, kaiming_uniform, xavier_normal, xavier_uniform, "
        "trunc_normal, normal, uniform, orthogonal, zeros, ones\n"
        '  asked  load_weights("w.pth", init="kaiming_norml")\n'
        '  found  init="kaiming_norml"\n'
        "  near   kaiming_normal, kaiming_uniform, xavier_normal\n"
        '  write  load_weights("w.pth", init="kaiming_normal")'
    )
    assert text(lambda: load_weights("w.pth", min_coverage=50)) == (
        "OptionError: min_coverage is a share from 0 to 1\n"
        '  asked  load_weights("w.pth", min_coverage=50)\n'
        "  found  min_coverage=50\n"
        '  write  load_weights("w.pth", min_coverage=0.9)'
    )
    assert text(lambda: load_weights("w.pth", by="name")) == (
        'OptionError: by is "names" or "structure"\n'
        '  asked  load_weights("w.pth", by="name")\n'
        '  found  by="name"\n'
        "  near   names\n"
        '  write  load_weights("w.pth", by="names")'
    )
    for wrong in ({"policy": 3}, {"strict": 1}, {"min_coverage": True}, {"init": 3}, {"exclude": 3}):
        with pytest.raises(OptionError):
            load_weights("w.pth", **wrong)


# Values, and purity -------------------------------------------------------------------------------


def test_a_step_is_a_value(other):
    step = load_weights("w.pth", exclude=("fc", at("stem") | "stage.0"), init="zeros", min_coverage=0.25)
    assert repr(step) == (
        'load_weights("w.pth", exclude=("fc", at("stem") | "stage.0"), min_coverage=0.25, init="zeros")'
    )
    assert parse(repr(step)) == step
    assert hash(parse(repr(step))) == hash(step)
    for ready in (load_weights(other.state_dict()), load_weights(other)):
        assert hash(ready) == hash(ready)
        with pytest.raises(RecipeError):
            parse(repr(ready))
    assert repr(load_weights(other)) == "load_weights(<a Small>)"


def test_what_is_given_is_only_read(small, other, images):
    other.train()(images)
    state = other.state_dict()
    saved = {"state_dict": state}
    kept, before = {key: bits(tensor) for key, tensor in state.items()}, fingerprint(small)
    step = load_weights(saved, exclude="fc", init="zeros")
    donated = load_weights(other)
    result = pipe(small, step)
    with torch.no_grad():
        for tensor in result.state_dict().values():
            tensor.zero_()
    assert {key: bits(tensor) for key, tensor in state.items()} == kept
    assert equal(pipe(small, step), state, ["stem.weight", "stage.0.bn.running_mean"])
    assert list(saved) == ["state_dict"]
    assert not changes(before, fingerprint(small))
    with torch.no_grad():
        for tensor in state.values():
            tensor.zero_()
    assert {key: bits(t) for key, t in pipe(small, donated).state_dict().items()} == kept


@pytest.mark.parametrize(
    "wrong", [torch.full((5,), torch.nan), torch.ones(5, dtype=torch.complex64)], ids=["nan", "dtype"]
)
def test_nothing_is_left_half_loaded(small, other, wrong):
    before = fingerprint(small)
    for _ in range(2):
        with pytest.raises(CheckpointError):
            partial_load(small, {**other.state_dict(), "fc.bias": wrong})
    assert not changes(before, fingerprint(small))


def test_flags_modes_and_hooks_are_kept(small, other, images):
    small.stem.requires_grad_(requires_grad=False)
    small.train()
    small.stage[0].eval()
    small.fc.register_forward_hook(lambda module, args, output: output * 2)
    result = partial_load(small, other.state_dict())
    assert [p.requires_grad for p in result.parameters()] == [p.requires_grad for p in small.parameters()]
    assert [m.training for m in result.modules()] == [m.training for m in small.modules()]
    assert all(p.is_leaf and p.grad is None for p in result.parameters())
    held = pipe(small, freeze("stage"), load_weights(other))
    assert not held.stage[1].bn.training
    assert held.eval()(images).equal(other.eval()(images) * 2)


def test_what_was_prepared_for_evaluation_is_prepared_anew(images):
    class Cached(nn.Module):
        """Keeps what it computes from its table, until it is trained again."""

        def __init__(self) -> None:
            super().__init__()
            self.table, self.cache, self.body = nn.Parameter(torch.zeros(5)), {}, Residual(3)

        def train(self, mode=True):
            super().train(mode)
            self.body.eval()
            if mode:
                self.cache = {}
            return self

        def forward(self, x):
            if "bias" not in self.cache:
                self.cache["bias"] = self.table * 2
            return self.body(x).mean() + self.cache["bias"]

    model, new = nn.Sequential(Cached()).eval(), nn.Sequential(Cached()).eval()
    model[0].body.conv1.train()
    with torch.no_grad():
        new[0].table.fill_(1)
        stale = model(images)
    result = pipe(model, load_weights(new))
    assert result(images).equal(new(images))
    assert model[0].cache["bias"].eq(0).all()
    assert not result(images).equal(stale)
    assert [m.training for m in result.modules()] == [m.training for m in model.modules()]


def test_memory_is_laid_out_as_it_was(small, other):
    class Flat(nn.Module):
        """Two parameters in one storage, as some optimizers lay them out."""

        def __init__(self) -> None:
            super().__init__()
            whole = torch.zeros(8)
            self.one, self.two = nn.Parameter(whole[:3]), nn.Parameter(whole[3:])

        def forward(self, x):
            return x * self.one.sum() * self.two.sum()

    large = torch.arange(1000.0)
    result = partial_load(Flat(), {"one": large[1:4].clone(), "two": large[5:10].clone()})
    assert result.one.untyped_storage().data_ptr() == result.two.untyped_storage().data_ptr()
    assert (result.one.tolist(), result.two.tolist()) == ([1, 2, 3], [5, 6, 7, 8, 9])
    result = partial_load(small.to(memory_format=torch.channels_last), other.state_dict())
    assert result.stem.weight.stride() == small.stem.weight.stride() != other.stem.weight.stride()
    few = partial_load(small, {**other.state_dict(), "fc.bias": large[:5]})
    assert few.fc.bias.untyped_storage().nbytes() == 20
    assert few.fc.bias.tolist() == [0, 1, 2, 3, 4]


def test_transfer_leaves_both(small, other, images):
    before = fingerprint(small), fingerprint(other)
    result = transfer(other, small, example=images)
    assert equal(result, other.state_dict())
    with torch.no_grad():
        result.fc.weight.zero_()
    assert not changes(before[0], fingerprint(small))
    assert not changes(before[1], fingerprint(other))
