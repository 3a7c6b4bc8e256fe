"""Diff: what differs between two models, as text, JSON and a page."""

from __future__ import annotations

import json
import pickle
import re
from html.parser import HTMLParser
from importlib.resources import files
from itertools import pairwise

import pytest
import torch
from fingerprint import changes, fingerprint
from nets import ByData, BySize, Listed, Small
from torch import nn
from torchvision import models

from torchgraft import adapt_input, features, freeze, pipe, remove, rename, replace, swap_head, trace, wrap
from torchgraft.blocks import lora, se
from torchgraft.errors import ModelError, OptionError
from torchgraft.graph.history import Origin, history_of, set_history
from torchgraft.show.diff import diff

PARTS = "torchgraft.show.difference"


def on_meta(build, **options):
    with torch.device("meta"):
        return build(**options).eval()


def test_the_text(small):
    before = fingerprint(small)
    after = pipe(small, wrap("stage", se), swap_head(3), freeze("stem"))
    made = fingerprint(after)
    assert f"{diff(small, after)}\n" == (
        "Small -> Small\n"
        '  + step 1        wrap("stage", se())\n'
        "  + step 2        swap_head(3)\n"
        '  + step 3        freeze("stem")\n'
        "  parameters          2,649  ->       2,775  +126  +4.8 %\n"
        "  trainable           2,649  ->       2,551   -98  -3.7 %\n"
        "  bytes              10,740  ->      11,244  +504  +4.7 %\n"
        "  multiply-adds  31,610,920  ->  31,611,032  +112\n"
        "  opened         stage\n"
        "  modules        3 added, 3 changed\n"
        "  tensors        4 added, 4 changed\n"
        "~ the root   Small       num_classes 5 -> 3; gives n 5 -> n 3; frozen in 2 of 18 tensors\n"
        "  stem                   frozen\n"
        "~ stage      Sequential  calls +se\n"
        "    0 ... 1  2 modules\n"
        "+   se       SE          +144 parameters\n"
        "  unused\n"
        "~ fc         Linear      out_features 5 -> 3; weight 5 8 -> 3 8; bias 5 -> 3; gives n 5 -> n 3\n"
    )
    assert not changes(before, fingerprint(small))
    assert not changes(made, fingerprint(after))


def test_nothing_differs(small):
    assert diff(small, small).same
    traced = trace(small)
    for opened in ("", "; opened: the root"):
        told = diff(small, traced)
        assert told.same
        assert str(told) == f"Small -> Small: nothing differs in 15 modules, 24 tensors{opened}"
        assert told.added == told.removed == told.changed == told.moved == told.tensors == ()
        assert json.loads(told.to_json())["modules"] == []
        assert "nothing differs" in told.to_html()
        traced.recompile()  # from now on it runs its graph


def test_it_is_a_value(small):
    after = swap_head(3)(small)
    told = diff(small, after)
    assert told == diff(small, after)
    assert hash(told) == hash(diff(small, after))
    assert pickle.loads(pickle.dumps(told)) == told
    assert repr(told) == str(told)
    assert told != diff(small, small)
    assert told.changed == ("", "fc")


def test_what_is_no_model(small):
    with pytest.raises(ModelError) as raised:
        diff(small, "resnet50")
    assert str(raised.value) == (
        "a model must be an instance of nn.Module\n"
        '  asked  diff(<a Small>, "resnet50")\n'
        "  found  a str\n"
        '  write  diff(<a Small>, get_model("resnet50"))'
    )
    with pytest.raises(OptionError, match="exmaple"):
        diff(small, small, exmaple=None)


@pytest.mark.parametrize(
    "name", ["resnet18", "vit_b_16", "swin_t", "convnext_tiny", "mobilenet_v3_small", "shufflenet_v2_x0_5"]
)
def test_multiply_adds_are_those_that_torchvision_publishes(name):
    model = on_meta(getattr(models, name))
    published = models.get_model_weights(name).DEFAULT.meta["_ops"]
    side = diff(model, model).after
    assert side.inputs == "1 3 224 224"
    assert side.macs / 1e9 == pytest.approx(published, abs=6e-4)


def test_multiply_adds_of_the_modules(small):
    told = diff(small, small, example=torch.zeros(3, 3, 16, 16))
    looks = {m.path: m.after for m in told.tree.walk()}
    assert told.after.inputs == "3 3 16 16"
    assert looks["fc"].macs == 3 * 8 * 5
    assert looks["stem"].macs == 3 * 8 * 8 * 8 * 3 * 9
    assert looks["stage"].macs == looks["stage.0"].macs + looks["stage.1"].macs
    assert looks[""].macs == sum(looks[name].macs for name in ("stem", "stage", "fc"))
    assert looks["unused"].macs == 0
    assert looks["unused"].shape == ""
    assert looks["stage.0.relu"].shape == "n 8 8 8"
    held = diff(Listed(), Listed())
    looks = {m.path: m.after for m in held.tree.walk()}
    assert looks["units"].macs == looks["units.0"].macs + looks["units.1"].macs > 0


def test_a_model_that_does_not_run(small):
    told = diff(ByData(), ByData())
    assert told.before.macs is told.after.macs is None
    assert "multiply-adds  unknown  ->  unknown" in str(told)
    cause = r"ByData decides on values, so .* \(RuntimeError: Tensor\.item\(\) cannot be called on meta tensors\)\n"
    assert re.search(f"  unknown        {cause}", str(told))
    assert "unknown" in told.to_html()
    assert json.loads(told.to_json())["before"]["macs"] is None
    one = diff(small, small, example=torch.zeros(1, 4, 8, 8))
    assert one.before.unknown == "RuntimeError: Invalid channel dimensions"
    both = diff(small, ByData())
    assert re.search(f"  unknown        after: {cause}", str(both))
    assert "-> unknown" in " ".join(str(both).split())


def test_inputs_of_their_own(small):
    told = diff(small, pipe(small, adapt_input(1)))
    assert told.before.inputs == "1 3 224 224"
    assert told.after.inputs == "1 1 224 224"
    assert "1 3 224 224 \N{RIGHTWARDS ARROW} 1 1 224 224" in told.to_html()
    kept = pipe(BySize(), example=torch.zeros(5, 3, 33, 33))
    assert diff(BySize(), kept).before.inputs == "1 3 224 224"
    kept.recompile()  # from now on it runs the graph of that size
    assert diff(BySize(), kept).before.inputs == "1 3 33 33"
    assert diff(ByData(), small).after.inputs == "1 3 224 224"


def test_operations_and_classes(small):
    after = pipe(small, replace("stage.1.relu", nn.SiLU), remove("stage.0"))
    told = diff(small, after)
    assert told.removed[0] == "stage.0"
    assert str(told).splitlines()[8:] == [
        "  modules        5 removed, 2 changed",
        "  tensors        9 removed",
        "  stem",
        "~ stage             Sequential  calls -0",
        "-   0               Residual    -1,184 parameters",
        "    1               Residual",
        "      conv1 ... bn  3 modules",
        "~     relu          SiLU        ReLU -> SiLU",
        "  unused ... fc     2 modules",
    ]


def test_what_moved():
    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.backbone(x))

    class Outer(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.body = nn.ModuleDict({"trunk": inner.backbone})
            self.fc = inner.head
            self.again = self.fc

        def forward(self, x):
            return self.fc(self.body["trunk"](x))

    inner = Inner()
    told = diff(inner, Outer(inner))
    assert told.moved == (("backbone", "body.trunk"), ("head", "fc"))
    assert told.added == ("body", "again")
    assert not told.removed
    assert str(told).splitlines()[5:] == [
        "  modules        2 added, 1 changed, 2 moved",
        "  tensors        2 added, 2 renamed, 2 changed",
        "~ the root  Outer       Inner -> Outer",
        "> backbone  Sequential  now body.trunk",
        "+ body      ModuleDict",
        ">   trunk   Sequential  was backbone",
        "> fc        Linear      was head; weight tied to again.weight; bias tied to again.bias",
        "+ again     Linear      the same module as fc",
    ]
    assert told.after.parameters == told.before.parameters
    assert told.changed == ("", "fc")
    back = diff(Outer(inner), inner)
    assert back.moved == (("body.trunk", "backbone"), ("fc", "head"))
    assert "weight no longer tied to again.weight" in str(back)
    assert "-   trunk" not in str(back)


def test_a_rename_is_one_line(small):
    told = diff(small, pipe(small, rename({"stage": "body"})))
    assert told.moved == (("stage", "body"),)
    assert str(told).splitlines()[7:] == [
        "  modules        1 changed, 1 moved",
        "  tensors        18 renamed",
        "~ the root       Small       calls +body, -stage",
        "  stem",
        "> body           Sequential  was stage",
        "  unused ... fc  2 modules",
    ]


def test_zeros_and_ones_tell_nothing():
    told = diff(nn.Sequential(nn.BatchNorm2d(3)), nn.ModuleDict({"bn": nn.BatchNorm2d(3)}))
    assert not told.moved
    twins = nn.Linear(3, 3)
    two = nn.ModuleDict({"a": pipe(twins), "b": pipe(twins)})
    assert not diff(nn.ModuleList([twins]), two).moved  # which of the two it was cannot be told


def test_values_modes_dtypes_and_devices(small):
    torch.manual_seed(1)
    other = Small().eval()
    told = diff(small, other)
    assert "the root       Small      values differ in 14 of 24 tensors" in str(told)
    assert not told.changed
    assert not told.same
    assert {t.changed for t in told.tensors} == {("values",)}
    half = pipe(small).half().train()
    assert str(diff(small, half)).splitlines()[-2:] == [
        "  the root     Small      float32 -> float16; in train mode",
        "  stem ... fc  4 modules",
    ]
    assert "cpu -> meta" in str(diff(small, pipe(small).to("meta")))
    assert diff(small, pipe(small).to("meta")).tensors[0].values is None
    nan = pipe(small)
    with torch.no_grad():
        nan.fc.weight.fill_(float("nan"))
    assert diff(nan, pipe(nan)).same
    frozen = pipe(small, freeze("stage.0"))
    assert "frozen in 6 of 18 tensors" in str(diff(small, frozen))
    assert str(diff(frozen, small)).splitlines()[6:] == [
        "  tensors        6 changed",
        "  the root       Small       unfrozen in 6 tensors",
        "  stem",
        "  stage          Sequential",
        "    0                        unfrozen",
        "    1",
        "  unused ... fc  2 modules",
    ]
    assert diff(frozen, small).to_html().count("unfrozen") == 2


def test_tensors_without_plain_memory():
    def net(value):
        model = nn.Linear(1, 1, bias=False)
        model.weight.data.fill_(1)
        model.register_buffer("sparse", torch.eye(3).mul(value).to_sparse())
        return model

    assert not diff(net(1.0), net(2.0)).tensors  # what cannot be compared is not said to differ
    wide = nn.ModuleDict({"x": nn.Module()})
    wide["x"].register_buffer("z", torch.ones(2, dtype=torch.complex128))
    assert diff(wide, wide).same


def test_ties_roles_and_sharing():
    class Tied(nn.Module):
        def __init__(self, *, tied):
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
            if tied:
                self.two.weight = self.one.weight
                self.three = self.two
            else:
                self.three = nn.Linear(4, 4)
            self.register_buffer("scale", torch.ones(1), persistent=not tied)

        def forward(self, x):
            return self.three(self.two(self.one(x))) * self.scale

    told = diff(Tied(tied=False), Tied(tied=True))
    assert told.after.parameters == 4 * 4 + 2 * 4
    assert told.before.parameters == 3 * 20
    text = str(told)
    assert "scale 1 buffer -> 1 buffer, not kept" in text
    assert "weight tied to two.weight, three.weight" in text
    assert "the same module as two" in text
    kept = Tied(tied=True)
    renamed = diff(kept, pipe(kept, rename({"one": "first"})))
    assert "tied" not in str(renamed)
    assert "no longer the same module as two" in str(diff(Tied(tied=True), Tied(tied=False)))


def test_options_that_are_not_printed():
    class Scaled(nn.Linear):
        def __init__(self, scale):
            super().__init__(2, 2)
            self.scale = scale

    class Said(nn.Linear):
        def extra_repr(self):
            return self._text

    class Broken(nn.Linear):
        def extra_repr(self):
            raise RuntimeError

    assert "scale 0.5 -> 0.25" in str(diff(Scaled(0.5), Scaled(0.25)))
    one, other = Said(2, 2), Said(2, 2)
    one._text, other._text = "<function f at 0x7f00>", "another"
    told = diff(one, one)
    assert told.tree.after.options == "<function f>"
    assert "<function f> -> another" in str(diff(one, other))
    assert diff(Broken(2, 2), Broken(2, 2)).tree.after.options == ""


def test_classes_of_one_name():
    def make(home):
        cls = type("Same", (nn.Linear,), {"__module__": home})
        return cls(2, 2)

    assert "here.Same -> there.Same" in str(diff(make("here"), make("there")))


def test_steps_and_where_a_model_comes_from(small):
    one = pipe(small, swap_head(3), freeze("stem"))
    set_history(small, history_of(small))
    two = pipe(pipe(small, swap_head(3)), swap_head(4))
    text = str(diff(one, two))
    assert (
        '    step 1        swap_head(3)\n  - step 2        freeze("stem")\n  + step 2        swap_head(4)'
        in text
    )
    set_history(one, type(history_of(one))(Origin("somewhere/small"), history_of(one).steps))
    told = diff(small, one)
    assert str(told).startswith("Small -> somewhere/small\n")
    assert told.after.base == "somewhere/small"
    assert "<small>somewhere/</small>small" in told.to_html()


def test_neighbours_that_differ_in_the_same_way_are_one_line():
    model = on_meta(models.resnet18)
    text = str(diff(model, pipe(model, wrap("layer*.*.conv1", lora(2)))))
    assert "0 ... 1" in text
    assert "BasicBlock, 2 alike" in text
    assert "calls +conv1_lora" in text


def test_what_is_frozen_as_a_whole_is_one_line():
    part = nn.Sequential(nn.Sequential(nn.Sequential(nn.Linear(2, 2))), nn.Linear(2, 2))
    net = nn.Sequential(part, nn.Linear(2, 2))
    told = diff(net, pipe(net, freeze("0")))
    assert str(told).splitlines()[-3:] == [
        "  the root  Sequential  frozen in 4 of 6 tensors",
        "  0                     frozen",
        "  1",
    ]
    paths = [m["after"]["path"] for m in json.loads(told.to_json())["modules"]]
    assert paths == ["", "0", "0.0", "0.0.0", "0.0.0.0", "0.1"]


def test_what_is_frozen_above_is_not_followed_below():
    part = nn.Sequential(nn.Sequential(nn.Sequential(nn.Linear(2, 2))), nn.Linear(2, 2), nn.ReLU())
    net = nn.Sequential(part, nn.Linear(2, 2))
    assert str(diff(net, pipe(net, freeze("0"), replace("0.2", nn.SiLU)))).splitlines()[-5:] == [
        "  the root   Sequential  frozen in 4 of 6 tensors",
        "  0          Sequential  frozen",
        "    0 ... 1  2 modules",
        "~   2        SiLU        ReLU -> SiLU",
        "  1",
    ]


def test_modes_alone_are_a_difference():
    model = nn.Sequential(nn.ReLU(), nn.ReLU())
    model.append(model[0])
    told = diff(model, pipe(model).eval())
    assert not told.same
    assert not told.tensors
    assert [(i.aspect, i.after, i.changed, i.of) for i in told.tree.spread] == [("mode", "eval", 3, 3)]


def test_long_trees_are_cut():
    class Many(nn.Module):
        def __init__(self, wide):
            super().__init__()
            self.parts = nn.ModuleList([nn.Linear(i + 1, i + wide) for i in range(90)])

    text = str(diff(Many(2), Many(3)))
    assert text.endswith("  ... 31 more lines; to_html() shows all")


def test_maps_where_there_was_a_vector(small):
    told = diff(small, pipe(small, features("stage")))
    assert "gives n 5 -> {stage: n 8 112 112}" in str(told)
    assert "fc" in told.removed


def test_a_part_that_is_called_no_more():
    class Skips(Small):
        def forward(self, x):
            return self.fc(torch.relu(self.stem(x)).mean((2, 3)))

    told = diff(Small(), Skips())
    assert "gives n 8 112 112 -> not called" in str(told)


def test_json_is_strict_and_stable(small):
    told = diff(small, pipe(small, wrap("stage", se), swap_head(3), rename({"stem": "first"})))
    text = told.to_json()
    assert text == told.to_json()

    def refuse(name):
        raise AssertionError(name)

    data = json.loads(text, parse_constant=refuse)
    assert list(data) == ["same", "before", "after", "modules", "tensors"]
    assert data["same"] is False
    assert data["after"]["steps"][0] == 'wrap("stage", se())'
    assert data["before"]["parameters"] == 2649
    by = {(m["before"] or m["after"])["path"]: m for m in data["modules"]}
    assert {m["status"] for m in by.values()} == {"changed", "added", "moved"}
    assert by["stem"]["after"]["path"] == "first"
    assert by["fc"]["changes"][0] == {
        "aspect": "option", "name": "out_features", "before": "5", "after": "3",
    }  # fmt: skip
    assert by["stage.se"]["before"] is None
    keys = {(t["before"] or t["after"])["key"]: t for t in data["tensors"]}
    assert keys["fc.weight"]["changed"] == ["shape"]
    assert keys["fc.weight"]["after"]["shape"] == [3, 8]
    assert keys["stem.weight"]["changed"] == ["key"]
    assert "stage.0.bn.weight" not in keys


class Page(HTMLParser):
    """Read a page strictly: every element closed, every name known."""

    EMPTY = {"meta", "img", "input", "link", "br"}

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text, self.links = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names))
        assert not [name for name in names if name.startswith("on")]
        self.links += [value for name, value in attrs if name in ("href", "src")]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text.append(data)


def hostile(wide):
    class Evil(nn.Module):
        def __init__(self):
            super().__init__()
            self.note = f"<img src=x onerror=alert({wide})>"
            self.lin = nn.Linear(3, wide)

        def forward(self, x):
            return self.lin(x)

        def extra_repr(self):
            return self.note + '\u202e\x07</script>" onload="x'

    Evil.__name__ = '<script>alert("x")</script>'
    model = nn.Sequential()
    for name, module in (("<b>&'\"", Evil()), ("模块\u202e\n", nn.Linear(wide, 2)), ("\ud800", nn.ReLU())):
        model.add_module(name, module)
    return model


def test_names_are_not_believed():
    one, other = hostile(3), hostile(4)
    set_history(other, type(history_of(other))(Origin("<i>/<u>"), ("<script>1</script>",)))
    told = diff(one, other)
    page = Page(told.to_html())
    assert page.tags.count("script") == 1
    assert "img" not in page.tags
    assert page.links == []
    assert '<script>alert("x")</script>' in page.text
    assert "模块\\u202e\\n" in page.text
    told.to_html().encode()
    told.to_json().encode()
    assert "\u202e" not in str(told) + told.to_html()
    assert "模块\\u202e\\n" in str(told)
    assert "\\ud800" in str(told)


def test_a_page_needs_nothing_else():
    model = on_meta(models.resnet50)
    told = diff(model, pipe(model, wrap("layer3", se), swap_head(10), freeze("layer1")))
    text = told.to_html()
    page = Page(text)
    assert len(text) < 300_000
    assert page.links == []
    assert not re.search(r"https?://|url\(|@import", text)
    assert text.startswith("<!doctype html>")
    assert "default-src 'none'" in text
    assert text.count('class="row ') >= len(list(told.tree.walk()))
    shown = "".join(page.text)
    for said in ("layer3", "Bottleneck", "frozen", "4.09 G", "out_features 1000 -> 10"):
        assert said in shown


def test_rows_say_what_they_are(small):
    text = diff(small, pipe(small, wrap("stage", se), remove("stage.0"), rename({"stem": "first"}))).to_html()
    for status in ("added", "removed", "changed", "moved"):
        assert f'role="img" aria-label="{status}"' in text
    assert '<details open><summary class="row changed' in text


def test_neighbours_that_are_the_same_are_folded():
    net = nn.Sequential(*[nn.Linear(2, 2) for _ in range(4)], nn.Linear(2, 3))
    text = diff(net, swap_head(5)(net)).to_html()
    assert text.count('<details><summary class="row same run"') == 1
    assert "<b>0 \N{HORIZONTAL ELLIPSIS} 3</b> <i>4 modules</i>" in text
    assert text.count('<div class="row same"') == 4
    assert '<span class="count">24</span>' in text


def test_a_tensor_without_axes_is_a_scalar_on_the_page():
    one, other = nn.BatchNorm1d(2), nn.BatchNorm1d(2, track_running_stats=False)
    assert "<td>scalar int64</td>" in diff(one, other).to_html()


def test_many_tensors_are_cut():
    one, other = nn.ModuleList([nn.Linear(2, 2) for _ in range(220)]), nn.ModuleList()
    text = diff(one, other).to_html()
    assert "440 tensors that differ" in text
    assert "and 40 more; to_json() lists all" in text


def _luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_texts_can_be_read():
    style = (files(PARTS) / "page.css").read_text()
    themes = re.findall(r":root \{(.*?)\n\s*\}", style, re.DOTALL)
    assert len(themes) == 2
    for theme in themes:
        colours = dict(re.findall(r"--([\w-]+): (#\w{6})", theme))
        pairs = [("ink", "page"), ("dim", "page"), ("ink", "paper"), ("dim", "paper")]
        for kind in ("add", "del", "chg", "mov"):
            pairs += [(kind, f"{kind}-bg"), ("ink", f"{kind}-bg"), ("dim", f"{kind}-bg"), (kind, "paper")]
        for front, back in pairs:
            dark, light = sorted((_luminance(colours[front]), _luminance(colours[back])))
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (front, back)


@pytest.mark.parametrize(
    ("one", "other"), list(pairwise(["alexnet", "squeezenet1_1", "densenet121", "vit_b_32"]))
)
def test_models_that_have_nothing_in_common(one, other):
    told = diff(on_meta(getattr(models, one)), on_meta(getattr(models, other)))
    seen = [m for m in told.tree.walk()]
    assert sum(m.before is not None for m in seen) == told.before.modules
    assert sum(m.after is not None for m in seen) == told.after.modules
    Page(told.to_html())
