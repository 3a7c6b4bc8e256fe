"""Forwards that are easy to get wrong: each computes the same, or stays as it was, or is refused."""

from __future__ import annotations

import random
import types
from collections import Counter, OrderedDict, deque
from random import random as draw

import pytest
import torch
from checks import run, same
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from torchgraft import drop_head, explain, freeze, inject, pipe, remove, swap_head, trace, wrap
from torchgraft.blocks import se
from torchgraft.errors import HeadError, ModelError, SpecialisedError, TargetError, TraceError

X = torch.randn(2, 4)


def net(forward, init=lambda self: None):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 4)
            init(self)

    Net.forward = forward
    return Net()


def bank(self):
    self.register_buffer("n", torch.zeros(()))
    self.count, self.aux, self.seen = 0, 0.0, []
    self.plan = OrderedDict(a=1)
    self.plain = torch.tensor([0.0, 0.0, 0.0, 0.0])
    self.d = nn.Dropout(0.5)
    self.bn = nn.BatchNorm1d(4)
    self.table, self.tally, self.queue = {"d": self.d}, Counter(), deque()
    self.rng = random.Random(0)
    self.none = Nothing()


class Nothing(nn.Module):
    def forward(self, x):
        return None


def counts_in_a_buffer(self, x):
    self.n += 1
    return self.a(x) * self.n


def rebinds_a_buffer(self, x):
    self.n = self.n + 1
    return self.a(x) * self.n


def counts_in_python(self, x):
    self.count += 1
    return self.a(x) * self.count


def keeps_a_loss(self, x):
    y = self.a(x)
    self.aux = y.mean()
    return y


def appends(self, x):
    self.seen.append(x.shape)
    return self.a(x) * len(self.seen)


def draws_in_python(self, x):
    return self.a(x) * (2 if random.random() < 0.5 else 1)


def seeds(self, x):
    torch.manual_seed(7)
    return self.a(x) + torch.rand(4)


def asks_for_gradients(self, x):
    return self.a(x) if torch.is_grad_enabled() else self.a(x) * 2


def under_no_grad(self, x):
    with torch.no_grad():
        x = self.a(x)
    return x * 2


def sets_the_mode(self, x):
    with torch.set_grad_enabled(False):
        x = self.a(x)
    return x * 2


def turns_autocast_on(self, x):
    torch.set_autocast_enabled("cpu", True)
    x = self.a(x)
    torch.set_autocast_enabled("cpu", False)
    return x


@torch.no_grad()
def decorated(self, x):
    return self.a(x)


def under_autocast(self, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return self.a(x)


def walks_an_ordered_dict(self, x):
    for name in self.plan:
        x = getattr(self, name)(x)
    return x


def sums_its_parameters(self, x):
    return self.a(x) * sum(p.pow(2).sum() for p in self.parameters())


def accumulates(self, x):
    total = self.plain.clone()
    total += x.sum(0)
    return total


def makes_a_constant(self, x):
    total = torch.as_tensor([0.0, 0.0])
    total += x.sum(1)
    return total


def casts_to_its_dtype(self, x):
    return x.to(next(self.parameters()).dtype) * 2


def writes_a_view(self, x):
    y = x.clone()
    z = y[:, 0]
    z += 100
    return y


def sets_an_item(self, x):
    y = x.clone()
    y[:, 0] = 5
    return self.a(y)


def looks_in_a_set(self, x):
    return x * 2 if x.shape[1] in {3, 4} else x * 3


def looks_in_a_dict(self, x):
    return x * {4: 2}.get(x.shape[1], 3)


def compares_a_text(self, x):
    return x * 2 if str(x.dtype) == "torch.float32" else x * 3


def asks_for_a_tensor(self, x):
    return x * 2 if torch.is_tensor(x) else x * 3


def asks_for_an_attribute(self, x):
    return x.tensors if hasattr(x, "tensors") else x * 2


def asks_for_the_device(self, x):
    return x * 2 if x.device.type == "cpu" else x * 3


def rounds(self, x):
    return x[:, : len(range(int(x.shape[1] * 0.6)))]


def makes_by_size(self, x):
    return self.a(x) + torch.full((x.size(0), 1), 2.0) + torch.randn(x.shape[0], 1).mul(0)


def formats(self, x):
    torch._assert(x.dim() == 2, f"got {x.shape}")
    return self.a(x)


def returns_an_ordered_dict(self, x):
    return OrderedDict(a=self.a(x))


def reads_a_childs_mode(self, x):
    return F.dropout(self.a(x), 0.5, self.d.training)


class Negated(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


def applies_a_function(self, x):
    return Negated.apply(self.a(x))


def checkpoints(self, x):
    return checkpoint(self.a, x, use_reentrant=True)


def switches_a_child(self, x):
    self.bn.eval()
    return self.bn(self.a(x))


def walks_a_plain_dict(self, x):
    return self.table["d"](self.a(x))


def hides_what_fails(self, x):
    try:
        k = float(x.mean())
    except Exception:
        k = 0.0
    return self.a(x) * k


def counts_in_a_counter(self, x):
    self.tally["n"] += 1
    return self.a(x) * self.tally["n"]


def queues(self, x):
    self.queue.append(x.mean())
    return self.a(x) * len(self.queue)


def writes_into_the_buffers(self, x):
    self._buffers["n"] = self.n + 1
    return self.a(x) * self.n


def draws_from_its_own(self, x):
    return self.a(x) * self.rng.random()


def draws_by_an_imported_name(self, x):
    return self.a(x) * draw()


def asks_for_autocast(self, x):
    return self.a(x) * (2 if torch.is_autocast_enabled("cpu") else 1)


def compares_identity(self, x):
    return self.a(x) * (2 if x.grad_fn is None else 1)


def compares_by_walrus(self, x):
    return self.a(x) if (y := self.none(x)) is None else y


FORWARDS = [
    applies_a_function, checkpoints, switches_a_child, walks_a_plain_dict, hides_what_fails, counts_in_a_counter,
    queues, writes_into_the_buffers, draws_from_its_own, draws_by_an_imported_name, asks_for_autocast,
    compares_identity, compares_by_walrus,
    counts_in_a_buffer, rebinds_a_buffer, counts_in_python, keeps_a_loss, appends, draws_in_python, seeds,
    asks_for_gradients, sets_the_mode, turns_autocast_on, under_no_grad, decorated, under_autocast, walks_an_ordered_dict, sums_its_parameters,
    accumulates, makes_a_constant, casts_to_its_dtype, writes_a_view, sets_an_item, looks_in_a_set,
    looks_in_a_dict, compares_a_text, asks_for_a_tensor, asks_for_an_attribute, asks_for_the_device, rounds,
    makes_by_size, formats, returns_an_ordered_dict, reads_a_childs_mode,
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:None of the inputs:UserWarning")
@pytest.mark.parametrize("graph", [False, True], ids=["python", "graph"])
@pytest.mark.parametrize("forward", FORWARDS, ids=lambda f: f.__name__)
def test_computes_the_same_again_and_again(forward, graph):
    model = net(forward, bank)
    state = random.getstate()
    result = pipe(model, example=X)
    if graph:
        try:
            result.recompile()
        except TraceError:
            return  # refused, where somebody wants to edit it
    assert random.getstate() == state
    for mode in (False, True, False):
        for _ in range(3):
            random.seed(1)
            expected = run(model, X, mode=mode)
            random.seed(1)
            assert same(run(result, X, mode=mode), expected)
            ours, theirs = (m(X.clone().requires_grad_()) for m in (result, model))
            assert getattr(ours, "requires_grad", None) == getattr(theirs, "requires_grad", None)
    for (name, ours), theirs in zip(result.named_buffers(), model.buffers(), strict=True):
        assert ours.equal(theirs), name


def test_gradients_stop_where_they_stopped():
    model = net(under_no_grad)
    result = pipe(model)
    assert isinstance(result, torch.fx.GraphModule)
    assert not result(X).requires_grad
    with pytest.raises(TypeError):
        result("not a tensor")
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("forward", [looks_in_a_set, looks_in_a_dict, rounds], ids=lambda f: f.__name__)
def test_other_sizes_are_followed_anew_and_not_guessed(forward):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.a = nn.Identity(), nn.Identity()

        def forward(self, x):
            return forward(self, self.first(x))

    model = Wrapped()
    result, other = pipe(model, inject("first", nn.Identity()), example=X), torch.randn(3, 7)
    for x in (X, other, X):
        assert result(x).equal(model(x))


@pytest.mark.parametrize("batch", [1, 5])
def test_sizes_that_only_flow_stay_free(batch):
    model, x = net(makes_by_size), torch.randn(batch, 4)
    assert same(run(pipe(model), x, mode=False), run(model, x, mode=False))


def test_a_mode_that_is_not_that_of_the_level_stays_python_or_is_refused():
    model = net(reads_a_childs_mode, bank)
    model.d.eval()
    result = pipe(model)
    assert same(run(result, X, mode=True), run(model, X, mode=True))
    once = pipe(net(reads_a_childs_mode, bank), inject("a", nn.Identity()))
    once.d.eval()
    with pytest.raises((SpecialisedError, TraceError)):
        once(X)


def test_statistics_that_the_forward_itself_moves_hold():
    def forward(self, x):
        bn = self.bn
        return F.batch_norm(self.a(x), bn.running_mean, bn.running_var, bn.weight, bn.bias, bn.training)

    frozen = pipe(net(forward, bank).train(), freeze("bn"))
    before = frozen.bn.running_mean.clone()
    frozen.train()(X)
    assert frozen.bn.running_mean.equal(before)


@pytest.mark.parametrize("extra", [0, 1, 2])
def test_variable_arguments_are_counted(extra):
    def forward(self, x, *more, **named):
        for y in more:
            x = x + y
        return self.a(x)

    model, xs = net(forward), [X] * extra
    for result in (pipe(model, example=(X, *xs)), pipe(model, inject("a", nn.Identity()), example=(X, *xs))):
        for given in (xs, [*xs, X], xs):
            assert result(X, *given).equal(model(X, *given))
        assert result(X, *xs, key=X).equal(model(X, *xs, key=X))


def test_none_where_data_was_is_followed_anew():
    def forward(self, x, mask):
        return self.a(x) * 3 if mask is None else self.a(x) * 2

    model = net(forward)
    result = pipe(model, inject("a", nn.Identity()), example=(X, X))
    for mask in (X, None, X):
        assert result(X, mask).equal(model(X, mask))


def test_a_child_that_returns_none_is_noticed():
    class Maybe(nn.Module):
        def forward(self, x):
            return None if x.shape[1] == 4 else x

    def forward(self, x):
        extra = self.maybe(x)
        return self.a(x) if extra is None else self.a(x) + extra

    model = net(forward, lambda self: setattr(self, "maybe", Maybe()))
    assert pipe(model, example=X)(X).equal(model(X))
    assert inject("a", nn.Tanh)(model, example=X)(X).equal(model(X).tanh())


def test_settings_that_callers_pass_are_followed():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x, scale=None, *, flip=False):
            x = self.fc(x) if scale is None else self.fc(x) * scale
            return -x if flip else x

    def forward(self, x):
        return self.part(x, self.scale, flip=True)

    def init(self):
        self.part, self.scale = Scaled(), nn.Parameter(torch.full((4,), 2.0))

    model = net(forward, init).eval()
    result = pipe(model, wrap("part", se))
    assert result(X).equal(model(X))
    assert "flip=True" in str(explain(result))
    assert result.part(X, X, flip=False).equal(model.part(X, X, flip=False))
    assert len(explain(result).guards) > 0


def test_the_classes_own_protocol_goes_on_to_work():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn, self.loaded = nn.BatchNorm1d(4), 0
            self.register_load_state_dict_pre_hook(lambda *args: None)

        def forward(self, x):
            return self.bn(x)

        def train(self, mode=True):
            super().train(mode)
            self.bn.eval()
            return self

        def get_extra_state(self):
            return {"kept": 1}

        def set_extra_state(self, state):
            self.loaded += state["kept"]

        def features(self, x):
            return self.bn(x) * 2

        @property
        def width(self):
            return 4

    result = pipe(Own())
    assert isinstance(result, torch.fx.GraphModule)
    assert isinstance(result, Own)
    assert not result.train().bn.training
    result.load_state_dict(result.state_dict())
    assert result.loaded == 1
    assert result.width == 4
    assert result.features(X).shape == X.shape


def test_a_forward_set_on_the_instance():
    model = net(lambda self, x: self.a(x))
    model.forward = types.MethodType(lambda self, x: self.a(x) * 2, model)
    assert pipe(model)(X).equal(model(X))
    assert not pipe(model, inject("a", nn.Tanh))(X).equal(model(X))
    other = net(lambda self, x: self.a(x))
    old = other.forward
    other.forward = lambda x: old(x) * 2
    with pytest.raises(ModelError, match="holds the model"):
        pipe(other)


def test_compiled_in_place_is_not_called_any_more():
    model = net(lambda self, x: self.a(x))
    model.compile(backend="eager")
    assert pipe(model, swap_head(7))(X).shape == (2, 7)


def test_shared_modules_are_edited_once():
    class Part(nn.Module):
        def __init__(self):
            super().__init__()
            self.c, self.d = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.d(self.c(x))

    def init(self):
        self.p = Part()
        self.q = self.p

    model = net(lambda self, x: self.q(self.p(x)), init)
    result = pipe(model, inject("p.c", nn.Linear(4, 4), name="new"))
    assert [n.target for n in result.p.graph.nodes if n.op == "call_module"] == ["c", "new", "d"]
    assert result.p is result.q
    assert "c" not in pipe(model, remove("p.c")).q._modules


def test_children_that_a_level_above_runs_one_by_one():
    class Part(nn.Module):
        def __init__(self):
            super().__init__()
            self.c = nn.Linear(4, 4)

        def forward(self, x):
            return self.c(x)

        def twice(self, x):
            return self.c(self.c(x))

    class Zero(nn.Module):
        def forward(self, x):
            return x * 0

    for forward in (lambda self, x: self.part.twice(x), lambda self, x: self.part(x) + self.part.twice(x)):
        model = net(forward, lambda self: setattr(self, "part", Part()))
        assert pipe(model, inject("part.c", Zero))(X).abs().sum() == 0


def test_a_name_that_means_two_operations_is_refused():
    def forward(self, x):
        if self.training:
            x = F.relu(x)
        return self.a(F.relu(x))

    with pytest.raises(TargetError, match="one operation in training"):
        pipe(net(forward), inject("relu", nn.Tanh))


def test_what_stands_behind_a_head():
    with pytest.raises(HeadError, match="odds of features"):
        pipe(net(lambda self, x: F.log_softmax(self.a(x), 1)), drop_head())
    assert pipe(net(lambda self, x: F.log_softmax(self.a(x), 1)), swap_head(3))(X).shape == (2, 3)
    with pytest.raises(HeadError, match="number of classes is written"):
        pipe(net(lambda self, x: self.a(x).view(-1, 4)), swap_head(3))
    strided = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 1, stride=2))
    assert pipe(strided, swap_head(2))(torch.ones(1, 3, 9, 9)).shape == (1, 2, 4, 4)


def test_names_that_a_graph_module_needs():
    class Named(nn.Module):
        def __init__(self, name):
            super().__init__()
            self.name = name
            self.add_module(name, nn.Linear(4, 4))

        def forward(self, x):
            return self._modules[self.name](x)

    for name in ("graph", "code", "meta", "graphs", "_graph", "train_graph"):
        model = Named(name)
        assert pipe(model)(X).equal(model(X))
        if name != "train_graph":
            with pytest.raises(TraceError, match="which a GraphModule needs"):
                trace(model)


def test_other_models_of_the_zoo_of_errors():
    model = net(lambda self, x: self.a(x))
    model.lock = __import__("threading").Lock()
    with pytest.raises(ModelError, match="'lock' of Net cannot be copied"):
        pipe(model)
    with torch.inference_mode():
        result = pipe(net(lambda self, x: self.a(x)))
    result(X).sum().backward()
    sparse = net(lambda self, x: self.a(x), lambda s: s.register_buffer("m", torch.eye(3).to_sparse()))
    assert pipe(sparse)(X).equal(sparse(X))


def test_an_error_in_a_block_leaves_no_mode_behind():
    class Fails(nn.Module):
        def forward(self, x):
            if x.sum() > 10:
                raise RuntimeError("full")
            return x

    def forward(self, x):
        with torch.no_grad():
            x = self.fails(x)
        return self.a(x)

    result = pipe(net(forward, lambda self: setattr(self, "fails", Fails())))
    with pytest.raises(RuntimeError, match="full") as kept:
        result(torch.ones(9, 4))
    assert torch.is_grad_enabled()
    with torch.no_grad():
        del kept
        assert not torch.is_grad_enabled()


def test_functions_that_hold_the_model_are_refused():
    model = net(lambda self, x: self.act(x))
    model.act = lambda x: model.a(x) * 2
    with pytest.raises(ModelError, match="act of the root is a function that holds the model"):
        pipe(model)
    hooked = net(lambda self, x: self.a(x))
    hooked.a.register_forward_hook(lambda module, args, output: setattr(hooked, "seen", output))
    with pytest.raises(ModelError, match="_forward_hooks of a"):
        pipe(hooked)


def test_arrays_of_the_model_are_not_written():
    import numpy as np

    def forward(self, x):
        self.array[0] += 1
        return self.a(x)

    from torchgraft import replace

    model = net(forward, lambda self: setattr(self, "array", np.zeros(1)))
    pipe(model, replace("a", nn.Linear(4, 4), keep_shape=False))
    assert model.array[0] == 0


def test_edits_that_would_not_show_are_refused():
    def in_place(self, x):
        y = self.a(x)
        self.act(y)
        return y

    model = net(in_place, lambda self: setattr(self, "act", nn.ReLU(inplace=True)))
    with pytest.raises(TargetError, match="nothing takes the value"):
        pipe(model, wrap("act", nn.Tanh))

    class Part(nn.Module):
        def __init__(self):
            super().__init__()
            self.c = nn.Linear(4, 4)

        def forward(self, x):
            return self.c(x)

        def features(self, x):
            return self.c(x)

    by_mode = net(
        lambda self, x: self.part(x) if self.training else self.part.features(x),
        lambda self: setattr(self, "part", Part()),
    )
    with pytest.raises(TargetError, match="called in one mode"):
        pipe(by_mode, wrap("part", nn.Tanh))


def test_what_stands_beside_something_that_goes_stays():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    result = pipe(model, wrap("1", nn.Linear(4, 4), name="new"), remove("1"))
    assert "new.weight" in result.state_dict()
    assert result(X).shape == X.shape
    weighs = net(lambda self, x: F.linear(self.a(x), self.a.weight))
    with pytest.raises(TargetError, match="which was taken out"):
        pipe(weighs, remove("a"))


def test_own_names_are_not_shadowed():
    model = net(lambda self, x: self.a(x), lambda self: setattr(self, "graph", "adjacency"))
    assert pipe(model).graph == "adjacency"


def test_pickled_levels_still_know_their_lines():
    import pickle

    from nets import ByMode

    result = pickle.loads(pickle.dumps(pipe(ByMode())))
    assert all(
        node.meta["line"] for graph in result.graphs for node in graph.nodes if node.op == "call_module"
    )


def test_slices_of_a_sequential_are_sequentials():
    result = pipe(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)))
    assert type(result[:2]) is nn.Sequential
    assert len(result) == 3
    assert result[1] is list(result)[1]


class Quiet(torch.no_grad):
    """A gradient block of the user's."""


class Loud(torch.no_grad):
    def __enter__(self) -> None:
        super().__enter__()


@pytest.mark.parametrize(("block", "followed"), [(torch.no_grad, True), (Quiet, True), (Loud, False)])
def test_blocks_of_subclasses_stop_gradients_too(block, followed):
    class Blocked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with block():
                x = self.a(x)
            return self.b(x)

    steps = [inject("b", nn.Identity())] if followed else []
    result = pipe(Blocked(), *steps)
    result(torch.randn(2, 4)).sum().backward()
    assert result.a.weight.grad is None
    assert result.b.weight.grad is not None
    if not followed:
        with pytest.raises(TraceError):
            pipe(Blocked(), inject("b", nn.Identity()))


def test_ordered_results_stay_ordered():
    class Ordered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> OrderedDict:
            x = self.fc(x)
            return OrderedDict([("b", x), ("a", -x)])

    model, x = Ordered(), torch.randn(2, 3)
    result = pipe(model, wrap("fc", nn.Identity()))(x)
    assert type(result) is OrderedDict
    assert list(result) == ["b", "a"]
    assert result["a"].equal(model(x)["a"])
