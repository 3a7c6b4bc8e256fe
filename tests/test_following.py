"""Following a forward: what a graph can say is said right, and what it cannot say is refused."""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import pickle
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import einops
import pytest
import torch
from einops import pack, rearrange, reduce, repeat, unpack
from einops.layers.torch import Rearrange
from torch import nn
from torch.nn import functional as F

from torchgraft import freeze, inject, pipe, shapes, tiers, trace, wrap
from torchgraft.errors import SpecialisedError, TargetError, TraceError
from torchgraft.graph.proxy import Proxy
from torchgraft.graph.settings import CHILDREN, MISSING, Setting, read_setting, settings_hold
from torchgraft.graph.trace import trace_level

SIZES = ((2, 3, 16, 16), (1, 3, 24, 32))


class Neutral(nn.Module):
    def forward(self, x):
        return x


class Named(nn.Module):
    """A net whose forward is a function of the test: what it gives goes through one more layer."""

    def __init__(self, forward, **held):
        super().__init__()
        self.conv, self.bn, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.own = forward
        for name, value in held.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.last(self.own(self, x))


def edited(net, example=None):
    """Return the net with a step that changes nothing, so that its graph is what runs."""
    return pipe(net, inject("last", Neutral()), example=example)


def check(net, result, sizes=SIZES):
    for size in sizes:
        for mode in (True, False, True):
            x = torch.randn(size)
            net.train(mode)
            result.train(mode)
            result.load_state_dict(net.state_dict())
            assert torch.equal(result(x), net(x))


def right_or_refused(net, result, *arguments):
    """Check that a result does not go on with what was decided for other arguments."""
    with contextlib.suppress(SpecialisedError):
        assert result(*arguments).equal(net(*arguments))


def refused(net, match):
    before = pickle.dumps([*net.state_dict().values()])
    with pytest.raises(TraceError, match=match) as caught:
        edited(net)
    assert caught.value.filename == __file__
    assert pickle.dumps([*net.state_dict().values()]) == before
    with pytest.raises(TraceError):
        trace(net)


# Going through what a child gives ----------------------------------------------------------


class Pair(NamedTuple):
    a: torch.Tensor
    b: torch.Tensor


@dataclass
class Both:
    a: torch.Tensor
    b: torch.Tensor


GIVEN = {
    "dict": lambda a, b: {"a": a, "b": b}, "ordered": lambda a, b: OrderedDict(a=a, b=b),
    "numbered": lambda a, b: {1: a, 0: b}, "tuple": lambda a, b: (a, b), "list": lambda a, b: [a, b],
    "pair": Pair, "tensor": lambda a, b: torch.stack([a, b]), "views": lambda a, b: {"a": a, "b": b}.values(),
    "nested": lambda a, b: {"a": [a, b], "b": {"x": b}}, "both": Both, "rest": lambda a, b: (a, b, None),
    "maybe": lambda a, b: {"a": a, "none": None, "b": b}, "made": lambda a, b: (v for v in (a, b)),
}  # fmt: skip


class Two(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind, self.c, self.d = kind, nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x):
        return GIVEN[self.kind](self.c(x), self.d(x))


def by_keyword(a, b):
    return a - 2 * b


def unpacked(d):
    a, b = d.values()
    return a - 2 * b


def summed_by_key(d):
    total = 0
    for key in d:
        total = total * 2 + d[key]
    return total


def summed_by_item(d):
    total = 0
    for key, value in d.items():
        total = total * 2 + value * (3 if key == "a" else 5)
    return total


def starred(d):
    *_, last = d.values()
    return last


def copied(d):
    d = dict(d)
    d["c"] = d["a"] * 2
    return sum(d.values())


def written_into(d):
    d["c"] = d["a"] * 2
    return sum(d.values())


def taken_out(d):
    a = d.pop("a")
    return a - 2 * sum(d.values())


def in_turn(d):
    total = 0
    for i, value in enumerate(d):
        total = total * 2 + value * i
    return total


def first_and_last(d):
    *_, last = d
    return last - d[0] * len(d)


def appended(d):
    d.append(d[0] * 2)
    return sum(d) * len(d)


def of_lists(d):
    (a, b), c = d.values()
    return a - b + c["x"]


def without_none(d):
    a, b, c = d
    return a - b if c is None else a + b


def maps(d):
    a, b = d
    return a - 2 * b


DICTS = [
    unpacked, summed_by_key, summed_by_item, starred, copied, written_into, taken_out,
    lambda d: list(d.values())[::-1][0], lambda d: [v for k, v in d.items()][1], lambda d: sum(d.values()),
    lambda d: {**d}["a"] - {**d}["b"], lambda d: tuple(d.values())[1], lambda d: dict(d)["a"] - d["b"],
    lambda d: by_keyword(**d), lambda d: d[sorted(d)[-2]] - 2 * d[max(d.keys())],
    lambda d: sum(v * i for i, v in zip((2, 3), d.values())), lambda d: next(iter(d.values())) * len(d),
    lambda d: d.get("a") - 2 * d["b"], lambda d: d["a"] if d.get("z") is None else d["b"],
    lambda d: d["a"] if "a" in d else d["b"], lambda d: torch.stack(list(reversed(d.values())))[0],
    lambda d: sum(d[f"{k}"] * 2 for k in d), lambda d: [d[k] for k in d if k != "a"][0],
]  # fmt: skip
SEQUENCES = [
    maps, in_turn, first_and_last, lambda d: list(reversed(d))[0], lambda d: torch.stack([*d]).sum(0),
    lambda d: sum(v * w for v, w in zip(d, (2, 3))), lambda d: d[1:][0],
]  # fmt: skip
WAYS = [
    *((kind, use) for kind in ("dict", "ordered") for use in DICTS),
    *((kind, use) for kind in ("tuple", "list", "pair", "tensor") for use in SEQUENCES),
    *(("numbered", use) for use in (unpacked, summed_by_key)), *(("views", use) for use in (maps, in_turn)),
    ("list", appended), ("pair", lambda d: d.a - 2 * d.b), ("pair", lambda d: sum(d._asdict().values())),
    ("both", lambda d: d.a - 2 * d.b), ("nested", of_lists), ("rest", without_none),
    ("maybe", lambda d: [v for v in d.values() if v is not None][1]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "use"), WAYS)
def test_what_a_child_gives_is_gone_through(kind, use):
    net = Named(lambda self, x: use(self.two(x)), two=Two(kind))
    for example in (None, torch.zeros(SIZES[0])):
        check(net, edited(net, example))


def test_parts_of_a_dictionary_are_read_by_key():
    net = Named(lambda self, x: unpacked(self.two(x)), two=Two("dict"))
    taken = [node.args[1] for node in edited(net).graph.nodes if "getitem" in str(node.target)]
    assert taken == ["a", "b"]


def test_what_has_no_parts_to_name_is_refused():
    refused(Named(lambda self, x: maps(self.two(x)), two=Two("made")), "goes through a generator")


def test_other_keys_are_noticed():
    net = Named(lambda self, x: sum(self.two(x).values()), two=Two("dict"))
    result = edited(net)
    result.two.kind = net.two.kind = "numbered"
    right_or_refused(net, result, torch.zeros(SIZES[0]))


def test_dictionaries_and_modules_are_handed_on():
    class Taking(nn.Module):
        def forward(self, d, layer):
            return sum(layer(value) for value in d)

    net = Named(
        lambda self, x: self.taking(self.two(x).values(), self.last), two=Two("dict"), taking=Taking()
    )
    check(net, edited(net))


def test_a_value_inside_an_object_is_refused():
    class Box:
        def __init__(self, inner):
            self.inner = inner

    class Opening(nn.Module):
        def forward(self, box):
            return box.inner.inner if isinstance(box, Box) else box()

    for put in (lambda y: Box(Box(y)), lambda y: lambda: y):
        refused(
            Named(lambda self, x, put=put: self.open(put(self.conv(x))), open=Opening()), "puts a value into"
        )


# Sizes -------------------------------------------------------------------------------------

SIZED = [
    lambda self, x: F.avg_pool2d(x, (x.size(-2), x.size(-1))), lambda self, x: F.avg_pool2d(x, [*x.shape[2:]]),
    lambda self, x: F.avg_pool2d(x, kernel_size=(x.size(-2), x.size(-1))), lambda self, x: F.avg_pool2d(x, x.shape[2] // 2),
    lambda self, x: torch.roll(x, (x.shape[2] // 2, x.shape[3] // 2), (2, 3)), lambda self, x: torch.roll(x, x.shape[2] // 2, 2),
    lambda self, x: F.conv2d(x, self.last.weight, padding=x.shape[2] // 8),
    lambda self, x: F.conv2d(x, self.last.weight, None, 1, (x.shape[2] // 8, 1)),
    lambda self, x: F.max_pool2d(x, (x.size(-2), x.size(-1))), lambda self, x: torch.narrow(x, 2, 0, x.shape[2] // 2),
    lambda self, x: torch.topk(x, x.shape[2] // 2, 2)[0], lambda self, x: torch.reshape(x, (x.shape[0], 4, -1, 1)),
    lambda self, x: x + torch.broadcast_to(x[:1, :, :1, :1], (x.shape[0], 4, x.shape[2], x.shape[3])),
    lambda self, x: F.layer_norm(x, (x.shape[2], x.shape[3])), lambda self, x: x + torch.zeros((x.shape[0], 1, x.shape[2], 1)),
    lambda self, x: torch.split(x, x.shape[2] // 2, 2)[1], lambda self, x: F.interpolate(x, size=(x.shape[2] * 2, x.shape[3])),
]  # fmt: skip


@pytest.mark.parametrize("use", SIZED)
def test_sizes_that_torch_takes_stay_free(use):
    net = Named(lambda self, x: use(self, self.conv(x)))
    for example in (None, torch.zeros(SIZES[0])):
        check(net, edited(net, example))


def test_sizes_that_python_takes_are_guarded():
    net = Named(lambda self, x: sum(self.conv(x)[:, :, i : i + 1] for i in range(x.shape[2])))
    result = edited(net, torch.zeros(SIZES[0]))
    check(net, result, SIZES[:1])
    right_or_refused(net, result, torch.ones(SIZES[1]))


# Functions of other libraries --------------------------------------------------------------


def with_a_token(self, x):
    y = rearrange(self.conv(x), "b c h w -> b (h w) c")
    tokens = torch.cat((repeat(self.bn.weight, "d -> b 1 d", b=y.shape[0]), y), 1)
    return tokens[:, 1:].transpose(1, 2).reshape(x.shape[0], 4, x.shape[2], x.shape[3])


def packed(self, x):
    tokens = self.flat(self.conv(x))
    both, sizes = pack([tokens.mean(1), tokens], "b * c")
    one, other = unpack(both * 2, sizes, "b * c")
    return rearrange(one + other.mean(1), "b c -> b c 1 1")


def there_and_back(self, x):
    y = self.conv(x)
    return rearrange(rearrange(y, "b c h w -> b (h w) c"), "b (h w) c -> b c h w", h=y.shape[2])


RENAMED = rearrange
REARRANGED = [
    with_a_token, packed, there_and_back,
    lambda self, x: einops.rearrange(self.conv(x), "b c (h p) w -> b c h (w p)", p=2),
    lambda self, x: RENAMED(self.conv(x), "b c h w -> b c w h"),
    lambda self, x: reduce(self.conv(x), "b c h w -> b c 1 1", "mean"),
    lambda self, x: rearrange([self.conv(x), self.bn(self.conv(x))], "l b c h w -> b c (l h) w"),
    lambda self, x: einops.einsum(self.conv(x), self.last.weight[..., 0, 0], "b c h w, d c -> b d h w"),
]  # fmt: skip


@pytest.mark.parametrize("use", REARRANGED, ids=range(len(REARRANGED)))
def test_einops_functions_are_steps(use):
    for example in (None, torch.zeros(SIZES[0]), None):
        net = Named(use, flat=Rearrange("b c h w -> b (h w) c"))
        check(net, edited(net, example))
    assert_no_proxy_is_left()


@functools.lru_cache
def table(size, device=None):
    return torch.arange(size, device=device)[:, None] * 1.0


@functools.lru_cache
def halved(size):
    return size // 2


def hidden_cache():
    @functools.lru_cache
    def ramp(size):
        return torch.ones(size) * 3

    return ramp


RAMP = hidden_cache()


class Tables:
    @staticmethod
    @functools.lru_cache
    def of(size):
        return torch.arange(size) * 2.0


class Cached(Named):
    @functools.lru_cache  # noqa: B019 - what is tested
    def row(self, size):
        return torch.arange(size) * 5.0


CACHED = [
    lambda self, x: self.conv(x) + table(x.shape[2]), lambda self, x: self.conv(x) + table(x.shape[2], x.device),
    lambda self, x: self.conv(x)[:, :, : halved(x.shape[2])], lambda self, x: self.conv(x) + RAMP(x.shape[3]),
    lambda self, x: self.conv(x) * table(4)[:, :, None], lambda self, x: self.conv(x) + self.row(x.shape[3]),
]  # fmt: skip


@pytest.mark.parametrize("use", CACHED, ids=range(len(CACHED)))
def test_functions_with_a_cache_are_followed_without_it(use):
    for _ in range(2):
        net = Cached(use)
        check(net, edited(net))
    assert_no_proxy_is_left()
    assert table(5).shape == (5, 1)
    assert not table(224).is_meta


def test_a_cache_that_is_not_found_is_emptied():
    net = Named(lambda self, x: self.conv(x) + Tables.of(x.shape[3]))
    result = edited(net, torch.zeros(SIZES[0]))
    check(net, result, SIZES[:1])
    assert_no_proxy_is_left()
    assert type(Tables.of(16)) is torch.Tensor
    assert not Tables.of(16).is_meta


def assert_no_proxy_is_left():
    gc.collect()
    assert not [held for held in gc.get_objects() if issubclass(type(held), Proxy)]


# Modes, gradients and identity -------------------------------------------------------------


def evaluated(self, x):
    self.bn.eval()
    return self.bn(self.conv(x))


def kept_for_a_while(self, x):
    before = self.bn.training
    self.bn.train(False)
    y = self.bn(self.conv(x))
    self.bn.train(before)
    return y


def assigned(self, x):
    self.bn.training = False
    return self.bn(self.conv(x))


def looped(self, x):
    for module in self.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return self.bn(self.conv(x))


def applied(self, x):
    self.apply(lambda module: module.eval() if isinstance(module, nn.BatchNorm2d) else None)
    return self.bn(self.conv(x))


def taught(self, x):
    self.teacher.eval()
    with torch.no_grad():
        wanted = self.teacher(x)
    return self.bn(self.conv(x)) + wanted


def whole(self, x):
    self.eval()
    return self.bn(self.conv(x))


def by_name(self, x, name="training"):
    setattr(self.bn, name, False)
    return self.bn(self.conv(x))


@pytest.mark.parametrize(
    "use", [evaluated, kept_for_a_while, assigned, looped, applied, taught, whole, by_name]
)
@pytest.mark.parametrize("mode", [True, False])
def test_changes_of_a_mode_are_refused(use, mode):
    teacher = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
    refused(Named(use, teacher=teacher).train(mode), "changes the mode")


@pytest.mark.parametrize("use", [
    lambda self, x: self.conv(x) if x.requires_grad else self.conv(x) * 2,
    lambda self, x: self.conv(x) * (2 if self.conv(x).grad_fn is None else 1),
    lambda self, x: self.conv(x) * (1 if any(p.requires_grad for p in self.parameters()) else 2),
    lambda self, x: self.conv(x) * (1 if x.is_leaf else 2),
    lambda self, x: self.conv(x) * (1 if self.conv.weight.grad is None else 2),
])  # fmt: skip
def test_questions_for_gradients_are_refused(use):
    refused(Named(use), "asks for")


def test_a_memory_efficient_densenet_trains_as_before():
    from torchvision.models import densenet121

    net = densenet121(memory_efficient=True)
    with pytest.raises(TraceError, match="requires_grad"):
        pipe(net, wrap("features.denseblock4.denselayer3.norm2", "se"))


@pytest.mark.parametrize("ask", [
    lambda: not torch.is_grad_enabled(), lambda: not torch.is_inference_mode_enabled(), lambda: torch.is_autocast_enabled("cpu"),
    lambda: torch.get_autocast_dtype("cpu") is torch.float16, lambda: torch.get_default_dtype() is torch.float64,
])  # fmt: skip
def test_questions_for_a_mode_of_the_caller_are_refused(ask):
    refused(Named(lambda self, x: self.conv(x) * (2 if ask() else 1)), "fixed for ever")


class Optional(nn.Module):
    def __init__(self, given):
        super().__init__()
        self.given = given

    def forward(self, x):
        return x if self.given else None


@pytest.mark.parametrize("given", [True, False])
def test_none_of_a_child_is_told_from_a_run(given):
    def use(self, x):
        y = self.conv(x)
        return y * 3 if (extra := self.extra(y)) is None else y + extra

    net = Named(use, extra=Optional(given))
    check(net, edited(net))


def test_none_for_data_is_noticed():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(4, 4)

        def forward(self, x, mask, bias=None):
            y = self.last(x) if mask is None else self.last(x) * 2
            return y if bias is None else y + bias

    net, x = Net(), torch.randn(2, 4)
    result = edited(net, (x, x, x))
    assert result(x, x, x).equal(net(x, x, x))
    for arguments in ((x, None, x), (x, x, None), (x, x)):
        right_or_refused(net, result, *arguments)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])
def test_backbones_of_timm_are_followed(name):
    import timm

    net = timm.create_model(name, features_only=True)
    last = [key for key, _ in net.named_children()][-1]
    result = inject(last, Neutral())(net).eval()
    x = torch.randn(1, 3, 64, 64)
    assert all(map(torch.equal, result(x), net.eval()(x)))


# The shadow is the module ------------------------------------------------------------------


class Strided(Named):
    stride, gain, scale = torch.zeros(2), 1.0, None

    @property
    def product(self):
        return self.__dict__.get("gain", 1.0) * vars(self)["stride"][1]

    @functools.cached_property
    def cached(self):
        return self.gain * 2


HELD = [
    lambda self, x: self.conv(x) * self.stride[1] * self.gain, lambda self, x: self.conv(x) * self.product,
    lambda self, x: self.conv(x) if self.scale is None else self.conv(x) * self.scale,
    lambda self, x: self.conv(x) * self.__dict__["gain"] * self.cached,
    lambda self, x: self.conv(x) * sum(v for k, v in vars(self).items() if k in ("gain", "scale")),
    lambda self, x: self.__dict__["_modules"]["conv"](x) * self._hooks[1] * self._act_hooks["a"],
]  # fmt: skip


@pytest.mark.parametrize("use", HELD, ids=range(len(HELD)))
def test_what_the_instance_holds_is_what_is_read(use):
    held = {"stride": torch.tensor([8.0, 16.0]), "gain": torch.tensor(5.0), "scale": torch.tensor(3.0)}
    net = Strided(use, **held, _hooks=[1, 2], _act_hooks={"a": 3.0})
    check(net, edited(net))
    assert (
        shapes(net, SIZES[0]).of("last").output
        == shapes(Named(lambda s, x: s.conv(x)), SIZES[0]).of("last").output
    )


def hooked_for_once(self, x):
    handle = self.conv.register_forward_hook(lambda module, args, output: output * 2)
    y = self.conv(x)
    handle.remove()
    return y


def collecting(self, x):
    seen = []
    handles = [
        m.register_forward_pre_hook(lambda m, args: seen.append(args[0])) for m in (self.conv, self.bn)
    ]
    y = self.bn(self.conv(x))
    for handle in handles:
        handle.remove()
    return y + seen[1]


@pytest.mark.parametrize("use", [hooked_for_once, collecting])
def test_hooks_that_a_forward_registers_are_refused(use):
    refused(Named(use), "registers a hook")


class Collecting(Named):
    def __init__(self, forward, path):
        super().__init__(forward, body=nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()))
        self.seen = {}
        self.get_submodule(path).register_forward_hook(functools.partial(self.see, "seen"))

    def see(self, name, module, args, output):
        self.seen[name] = output


@pytest.mark.parametrize("path", ["body", "body.0"])
def test_what_hooks_collect_is_seen_in_runs_and_refused_in_graphs(path):
    used = Collecting(lambda self, x: self.body(x) + self.seen["seen"], path)
    refused(used, "a hook of a child sees")
    assert shapes(used, (1, 3, 8, 8)).of("last").output == (1, 4, 8, 8)
    unused = Collecting(lambda self, x: self.body(x) * 2, path)
    check(unused, edited(unused))


def test_segformer_runs_on_meta():
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    sizes = {"hidden_sizes": [8, 16, 24, 32], "decoder_hidden_size": 16, "num_attention_heads": [1, 2, 2, 4]}
    net = SegformerForSemanticSegmentation(SegformerConfig(depths=[1, 1, 1, 1], num_labels=5, **sizes)).eval()
    x = torch.randn(1, 3, 64, 64)
    for _ in range(2):  # the second time with the hooks of a run in place
        assert tiers(net).stages
        result = pipe(net, wrap("decode_head.linear_fuse", nn.Identity()))
        assert result(x).logits.equal(net(x).logits)


@pytest.mark.parametrize(
    "hold",
    [
        weakref.ref, lambda net: [weakref.ref(net)], lambda net: {"a": weakref.proxy(net)},
        lambda net: functools.partial(type(net).forward, net),
    ],
)  # fmt: skip
def test_references_to_the_module_point_to_the_new_one(hold):
    def use(self, x):
        held = self.me
        held = held[0] if isinstance(held, list) else held
        me = (
            held["a"] if isinstance(held, dict) else held() if isinstance(held, weakref.ref) else held.args[0]
        )
        return me.conv(x)

    net = Named(use)
    net.me = hold(net)
    x = torch.randn(SIZES[0])
    results, expected = (pipe(net, freeze("conv")), edited(net)), net(x)
    with torch.no_grad():
        net.conv.weight.mul_(2)
    assert all(result(x).equal(expected) for result in results)


# Names and words ---------------------------------------------------------------------------


def test_children_may_be_called_like_words_of_python():
    inner = nn.ModuleDict({"from": nn.Conv2d(4, 4, 1), "0": nn.Conv2d(4, 4, 1)})
    heads = nn.ModuleDict({"class": nn.Conv2d(4, 4, 1), "global": inner, "classes": nn.Conv2d(4, 4, 1)})

    def use(self, x):
        y = self.conv(x)
        return (
            self.heads["class"](y)
            + self.heads["global"]["from"](y)
            + self.heads["classes"](y) * getattr(self, "is")
        )

    net = Named(use, heads=heads)
    net.register_parameter("is", nn.Parameter(torch.ones(4, 1, 1)))
    result = edited(net)
    for other in (result, copy.deepcopy(result), copy.copy(result), wrap("heads.class", Neutral())(result)):
        check(net, other) if other is result else None
        assert other(torch.ones(SIZES[0])).equal(result(torch.ones(SIZES[0])))


def test_texts_of_a_forward_say_what_the_input_is():
    def use(self, x):
        torch._assert(
            x.shape[2] == x.shape[3], f"Expected a square, but got {x.shape[2]} x {x.shape[3]} {{}}!"
        )
        return self.conv(x)

    result = edited(Named(use))
    with pytest.raises(AssertionError, match=r"but got 24 x 32 \{\}!"):
        result(torch.zeros(1, 3, 24, 32))


def test_an_error_names_the_line_of_the_forward_and_no_proxy():
    def use(self, x):
        if x.mean() > 0:
            return x
        raise ValueError(f"not for {x.shape[1]} of {[x]}")

    with pytest.raises(TraceError) as caught:
        edited(Named(use))
    assert __file__ in caught.value.found
    assert "Proxy" not in str(caught.value)
    assert "torchgraft/graph" not in str(caught.value)
    listed = nn.Sequential(Two("list"))
    with pytest.raises(TargetError) as other:
        pipe(listed, wrap("0", "se"))
    assert "immutable" not in str(other.value)


# What a trace tells ------------------------------------------------------------------------

FACTOR = 2.0


def scaled(x):
    return x * FACTOR


class Part(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain, self.inner = 0.5, nn.Conv2d(3, 3, 1)

    def twice(self, x):
        return self.inner(self.inner(x)) * self.gain


class Telling(nn.Module):
    expansion, kind = 4, nn.ReLU

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Conv2d(3, 3, 1) for _ in range(2)])
        self.part, self.heads = Part(), nn.ModuleDict({"a": nn.Conv2d(3, 3, 1)})
        self.conv = nn.Conv2d(3, 3, 1, bias=False)
        self.limits, self.mode, self.function, self.absent = {"a": [1, 2]}, "x", F.relu, None

    @property
    def width(self):
        return self.expansion * 2

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        x = self.part.twice(x) * self.limits["a"][0] + self.width
        x = self.function(x) if self.mode == "x" and self.absent is None and not hasattr(self, "flag") else x
        x = x * self.conv.stride[0] if self.training else x
        return scaled(self.heads["a"](x) if self.conv.bias is None else x)


def told(net, **more):
    return trace_level(net, "", lambda mode: ((torch.empty(1, 3, 4, 4, device="meta"),), {}), {}, **more)


def test_a_trace_tells_the_settings_that_it_read():
    net = Telling()
    settings = told(net).settings
    values = {(s.path, s.name): s.value for s in settings}
    assert values.pop((f"<globals>{__name__}", "FACTOR")) == 2.0
    assert values == {
        ("blocks", CHILDREN): ("0", "1"), ("part", "gain"): 0.5, ("", "limits"): {"a": [1, 2]}, ("", "expansion"): 4, ("", "function"): F.relu,
        ("", "mode"): "x", ("", "absent"): None, ("", "flag"): MISSING, ("conv", "stride"): (1, 1),
        ("conv", "bias"): None,
    }  # fmt: skip
    assert settings_hold(net, settings) is None
    assert settings_hold(net, pickle.loads(pickle.dumps(settings))) is None
    changes = {"mode": "y", "function": F.gelu, "absent": 1, "flag": False, "expansion": 4.0}
    for name, value in changes.items():
        other = copy.deepcopy(net)
        setattr(other, name, value)
        differs = settings_hold(other, settings)
        assert differs is not None
        assert differs.name == name
    net.limits["a"][0] = 3
    assert settings_hold(net, settings) == Setting("", "limits", {"a": [1, 2]})
    assert read_setting(net, Setting("part", "gain", 1)) == 0.5


def test_a_changed_global_is_noticed(monkeypatch):
    net = Telling()
    settings = told(net).settings
    monkeypatch.setitem(globals(), "FACTOR", 3.0)
    assert settings_hold(net, settings).name == "FACTOR"


def test_a_trace_tells_which_children_were_gone_through():
    assert told(Telling()).enumerated == {"blocks"}
    for use, seen in {
        lambda self, x: self.body[0](x): {"body"}, lambda self, x: x * len(self.body): {"body"},
        lambda self, x: [m(x) for m in self.children()][0]: {""}, lambda self, x: self.body(x): set(),
        lambda self, x: getattr(self.body, "0")(x): set(), lambda self, x: self.named["a"](x): set(),
        lambda self, x: [m(x) for m in self.named.values()][0]: {"named"},
        lambda self, x: x * len([*self.body.modules()]): {"body"},
    }.items():  # fmt: skip
        net = Named(use, body=nn.Sequential(nn.ReLU()), named=nn.ModuleDict({"a": nn.ReLU()}))
        assert {path for path in told(net).enumerated if not path.startswith("body.")} == seen


def test_a_failed_trace_tells_what_it_saw():
    net = Named(
        lambda self, x: [m(x) for m in self.body][0] if x.mean() > 0 else x, body=nn.Sequential(nn.ReLU())
    )
    net.own = lambda self, x: self.conv(x) if [*self.body] and x.mean() > 0 else x
    with pytest.raises(TraceError) as caught:
        told(net)
    assert caught.value.enumerated == {"body"}


def test_hidden_children_are_not_seen():
    def use(self, x):
        for block in self.body:
            x = block(x)
        return self.extra(x) if hasattr(self, "extra") else x

    net = Named(use, body=nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), extra=nn.ReLU())
    traced = told(net, hidden={"": frozenset({"extra"}), "body": frozenset({"1"})})
    assert [n.target for n in traced.train.nodes if n.op == "call_module"] == ["body.0", "last"]


def test_settings_are_compared_in_compiled_code():
    net = Telling().eval()
    settings = told(net).settings

    class Guarded(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net(x) if settings_hold(self.net, settings) is None else x

    guarded, x = Guarded(), torch.randn(1, 3, 4, 4)
    compiled = torch.compile(guarded, fullgraph=True, backend="eager")
    assert compiled(x).equal(net(x))
    net.part.gain = 7.0
    assert compiled(x).equal(x)
