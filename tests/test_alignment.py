"""The alignment: what it checks, what it makes, turned round, joined, written and printed."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
import torch
from alignments import ENTRIES, SOURCE, TARGET, K, Q, V, every, state

from torchgraft.alignment.alignment import Alignment, Ambiguity, Entry, Mismatch, Part
from torchgraft.alignment.maps.pieces import index_map, summarise
from torchgraft.errors import AlignmentError, GraftError


def raised(call, *args) -> str:
    with pytest.raises(AlignmentError) as caught:
        call(*args)
    assert isinstance(caught.value, GraftError)
    assert isinstance(caught.value, ValueError)
    return str(caught.value)


def test_every_tensor_stands_in_one_place():
    a = every()
    assert a.missing == ("new",)
    assert a.unused == ()
    assert Alignment({"a": (2,), "b": ()}, {}, ()).unused == ("a", "b")
    assert a.coverage == pytest.approx(1 - (5 + 3 + 8) / sum(torch.Size(s).numel() for s in TARGET.values()))
    assert Alignment({}, {}, ()).coverage == 1.0
    assert Alignment({}, {"a": (2,)}, ()).coverage == 0.0
    placed = [e.target for e in a.entries] + [m.target for m in a.mismatched]
    placed += [x.target for x in a.ambiguous] + list(a.missing)
    assert sorted(placed) == sorted(TARGET)


def test_operations():
    a = every()
    assert [a.operation(e) for e in a.entries] == [
        "concat", "concat", "reshape", "slice", "slice", "transpose", "identity", "concat", "zeros",
    ]  # fmt: skip
    turned_after = Entry("w", (Part("turned"),), (4, 6), (1, 0))
    assert turned_after.operation({"turned": (4, 6)}, (6, 4)) == "transpose"
    assert ENTRIES[7].keys == ("q.weight",)


def test_of():
    a = every()
    assert a.of("qkv") is ENTRIES[0]
    assert raised(a.of, "qkw") == (
        "there is no entry for 'qkw'\n"
        '  asked  .of("qkw")\n'
        "  found  9 entries\n"
        "  near   qkv\n"
        '  write  .of("qkv")'
    )
    assert "found  it is missing" in raised(a.of, "new")
    assert "found  it differs in shape from 'wide'" in raised(a.of, "narrow")
    assert "found  as good are left" in raised(a.of, "twin")


def test_a_value():
    a = every()
    assert a == every()
    assert hash(a) == hash(every())
    assert pickle.loads(pickle.dumps(a)) == a == copy.deepcopy(a)
    assert a != Alignment(SOURCE, TARGET, ENTRIES)
    shapes = {"a": [2]}
    b = Alignment(shapes, {}, ())
    shapes["b"] = [3]
    assert b.source == {"a": (2,)}
    assert repr(a) == "<Alignment of 9 of 12 tensors>"


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.bool]
)
def test_apply_moves_bits(dtype):
    held = state(dtype=dtype)
    before = {key: tensor.clone() for key, tensor in held.items()}
    q, k, v = (held[f"{letter}.weight"] for letter in "qkv")
    got = every().apply(held)
    zeros = torch.zeros(4, 4, dtype=dtype)
    want = {
        "qkv": torch.cat([q, k, v]),
        "mixed": torch.stack([q.view(2, 3, 4), k.view(2, 3, 4), v.view(2, 3, 4)], 1).reshape(18, 4),
        "fc.weight": held["head.weight"].flatten(1),
        "key": held["fused"][6:12],
        "middle": held["fused"].view(2, 3, 3, 4)[:, 1].reshape(6, 4),
        "straight": held["turned"].t(),
        "scale": held["scale"],
        "padded": torch.cat([q, zeros]),
        "zero": torch.zeros(2, 2),
    }
    assert list(got) == list(want)
    memory = {tensor.untyped_storage().data_ptr() for tensor in held.values()}
    for key, tensor in got.items():
        assert tensor.dtype == want[key].dtype
        assert tensor.shape == TARGET[key]
        assert tensor.is_contiguous()
        assert tensor.contiguous().view(-1).view(torch.uint8).equal(want[key].reshape(-1).view(torch.uint8))
        assert tensor.untyped_storage().data_ptr() not in memory
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
    for key, tensor in held.items():
        assert tensor.view(-1).view(torch.uint8).equal(before[key].view(-1).view(torch.uint8))


def test_apply_to_parameters_and_other_strides():
    weight = torch.nn.Parameter(torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last))
    a = Alignment({"w": (2, 3, 4, 4)}, {"x": (2, 3, 4, 4), "y": (2, 48)}, tuple(
        Entry(key, (Part("w"),)) for key in "xy"
    ))  # fmt: skip
    got = a.apply({"w": weight, "more": torch.zeros(1)})
    assert not got["x"].requires_grad
    assert got["x"].is_contiguous()
    assert got["x"].equal(weight)
    assert got["y"].equal(weight.reshape(2, 48))
    assert got["x"].untyped_storage().data_ptr() != got["y"].untyped_storage().data_ptr()
    with torch.device("meta"):
        assert a.apply({"w": torch.empty(2, 3, 4, 4)})["y"].is_meta


def test_apply_checks_first():
    a, held = every(), state()
    lost = {key: held[key] for key in held if key != "fused"}
    assert raised(a.apply, lost | {"fuse": held["fused"]}) == (
        "'fused' is not in the state dict\n"
        "  asked  'key' takes from it\n"
        "  found  9 tensors\n"
        "  near   fuse\n"
        '  write  "fuse"'
    )
    assert raised(a.apply, held | {"scale": torch.zeros(1)}) == (
        "'scale' has another shape than the alignment was made for\n"
        "  asked  ()\n"
        "  found  (1,)\n"
        "  write  the state dict that the alignment was made from"
    )
    assert raised(a.apply, held | {"k.weight": held["k.weight"].half()}) == (
        "the parts of 'qkv' differ in kind, and joining them would alter some\n"
        "  found  q.weight: float32 on cpu, k.weight: float16 on cpu, v.weight: float32 on cpu\n"
        "  write  tensors of one dtype and device"
    )
    assert "'scale' is no dense tensor\n  asked  'scale' takes from it\n  found  a float" in raised(
        a.apply, held | {"scale": 1.0}
    )
    assert "no dense tensor" in raised(a.apply, held | {"turned": held["turned"].to_sparse()})


def wrong(parts, *rest, shape=(6, 4), source=SOURCE) -> str:
    return raised(Alignment, source, {"w": shape}, (Entry("w", parts, *rest),))


def test_entries_that_do_not_fit():
    assert wrong((Part("q.weigth"),)) == (
        "an entry for 'w' takes from 'q.weigth', which the source has not\n"
        "  found  9 tensors\n"
        "  near   q.weight, v.weight, k.weight\n"
        '  write  "q.weight"'
    )
    assert "which the source has not\n  found  1 tensor\n  write  a name of the source" in wrong(
        (Part("abc"),), source={"xyz": ()}
    )
    assert wrong((Q, K)) == (
        "the parts for 'w' give 48 elements, not 24\n"
        f"  asked  {Entry('w', (Q, K))!r}\n"
        "  found  parts (6, 4), (6, 4), target (6, 4)\n"
        "  write  parts with 24 elements together"
    )
    assert wrong((Part("fused", rows=(6, 19)),)) == (
        "'fused' has no rows 6 to 19\n"
        f"  asked  {Part('fused', rows=(6, 19))!r} for 'w'\n"
        "  found  18 rows\n"
        "  write  rows=(0, 18)"
    )
    assert wrong((Part("turned", axes=(0, 0)),)) == (
        "(0, 0) is no order of the axes of (4, 6)\n"
        f"  asked  {Part('turned', axes=(0, 0))!r} for 'w'\n"
        "  write  axes=(1, 0)"
    )
    assert wrong((Part("turned", (5, 5)),)) == (
        "'turned' cannot be seen as (5, 5)\n"
        f"  asked  {Part('turned', (5, 5))!r} for 'w'\n"
        "  found  24 elements\n"
        "  write  a view with 24 elements"
    )
    assert "the joined parts for 'w' cannot be seen as (3, 3)" in wrong((Q,), (3, 3), (1, 0))
    assert "(2, 1, 0) is no order of the axes of (6, 4)" in wrong((Q,), (), (2, 1, 0))
    assert "the entry for 'w' takes nothing" in wrong(())
    for zeros in (
        Part("", (6, 4), (1, 0)),
        Part("", (6, 4), rows=(0, 6)),
        Part("", (-6, -4)),
        Part("", (2**41,)),
    ):
        assert "zeros have a shape and nothing else" in wrong((zeros,))
    for rows in ((-1, 3), (3, 3), (3, 2), (0.0, 2), (True, 2)):
        assert "has no rows" in wrong((Part("fused", rows=rows),))
    assert "'scale' has no rows 0 to 1" in wrong((Part("scale", rows=(0, 1)),), shape=())


def test_tensors_in_two_places():
    entry, gap = Entry("w", (Part("a"),)), Mismatch("w", "b", (2,), (3,))
    source, target = {"a": (2,), "b": (3,)}, {"w": (2,)}
    assert raised(Alignment, source, target, (entry, entry)) == (
        "'w' of the target stands in two places\n  found  an entry and an entry\n  write  one of them"
    )
    assert "an entry and a mismatch" in raised(Alignment, source, target, (entry,), (gap,))
    doubt = Ambiguity("w", ("a", "b"))
    assert "a mismatch and an ambiguity" in raised(Alignment, source, target, (), (gap,), (doubt,))
    assert "an entry is for 'x', which the target has not" in raised(
        Alignment, source, target, (Entry("x", (Part("a"),)),)
    )
    assert "an ambiguity for 'w' takes from 'c'" in raised(
        Alignment, source, target, (), (), (Ambiguity("w", ("c",)),)
    )
    assert raised(Alignment, source, target, (), (Mismatch("w", "b", (2,), (4,)),)) == (
        "the mismatch of 'w' and 'b' names other shapes than they have\n"
        "  asked  asked=(2,), found=(4,)\n"
        "  found  target (2,), source (3,)\n"
        "  write  asked=(2,), found=(3,)"
    )


@pytest.mark.parametrize("shape", [(-1,), (2.0,), (True,), (2**40, 2)])
def test_shapes_that_cannot_be(shape):
    assert "the source has a tensor that cannot be" in raised(Alignment, {"a": shape}, {}, ())
    assert "the target has a tensor that cannot be" in raised(Alignment, {}, {"a": shape}, ())
    assert "the source has a tensor that cannot be" in raised(Alignment, {"": (1,)}, {}, ())


def test_inverse_gives_back_what_was_taken():
    a = every()
    back = a.inverse()
    held = state()
    again = back.apply(a.apply(held))
    # of "fused" only a part went over; "wide" and "left" went nowhere
    assert set(again) == set(SOURCE) - {"fused", "wide", "left"}
    assert all(tensor.equal(held[key]) for key, tensor in again.items())
    assert back.mismatched == (Mismatch("wide", "narrow", (7,), (5,)),)
    assert back.ambiguous == (Ambiguity("left", ("twin",)),)
    assert back.missing == ("fused",)
    assert back.of("q.weight").parts == (Part("qkv", rows=(0, 6)),)
    assert (back.of("q.weight").rule, back.of("q.weight").evidence) == ("same input", "behaviour")
    assert back.of("turned").parts == (Part("straight", axes=(1, 0)),)
    assert back.of("head.weight").parts == (Part("fc.weight"),)


def test_split_and_concat_are_inverse():
    shapes = {letter: (6, 4) for letter in "qkv"}
    thirds = tuple(Entry(k, (Part("f", rows=(6 * i, 6 * i + 6)),)) for i, k in enumerate("qkv"))
    split = Alignment({"f": (18, 4)}, shapes, thirds)
    assert split.inverse().of("f").parts == (Part("q"), Part("k"), Part("v"))
    assert split.inverse().inverse() == split
    # heads hold q, k and v by turns
    mixed = tuple(Entry(k, (Part("f", (2, 3, 3, 4), (1, 0, 2, 3), (i, i + 1)),)) for i, k in enumerate("qkv"))
    split = Alignment({"f": (18, 4)}, shapes, mixed)
    whole = split.inverse()
    assert whole.of("f") == Entry("f", (Part("q"), Part("k"), Part("v")), (3, 2, 3, 4), (1, 0, 2, 3))
    assert whole.inverse() == split
    assert split.compose(whole).of("f") == Entry("f", (Part("f"),))


def test_tied_tensors_and_several_mismatches_turn_round_once():
    a = Alignment(
        {"a": (2,), "b": (3,), "c": (1,)},
        {"x": (2,), "y": (2,), "z": (4,), "t": (4,), "u": (1,)},
        (Entry("x", (Part("a"),)), Entry("y", (Part("a"),))),
        (Mismatch("z", "b", (4,), (3,)), Mismatch("t", "b", (4,), (3,))),
        (Ambiguity("u", ("a", "b", "c")),),
    )
    back = a.inverse()
    assert back.of("a").parts == (Part("x"),)
    assert [m.target for m in back.mismatched] == ["b"]
    assert back.ambiguous == (Ambiguity("c", ("u",)),)


def test_compose():
    first, held = every(), state()
    shapes = {
        "out": (4, 18),
        "half": (9, 4),
        "same": (18, 4),
        "one": (5,),
        "two": (3,),
        "none": (2,),
        "pad": (2, 4),
    }
    second = Alignment(
        TARGET,
        shapes,
        (
            Entry("out", (Part("mixed", axes=(1, 0)),)),
            Entry("half", (Part("qkv", rows=(3, 6)), Part("straight", rows=(0, 4)), Part("fc.weight", rows=(1, 3)))),
            Entry("same", (Part("qkv"),), rule="names", evidence="names"),
            Entry("one", (Part("narrow"),)),
            Entry("two", (Part("twin"),)),
            Entry("pad", (Part("padded", rows=(5, 7)),)),
        ),
    )  # fmt: skip
    both = first.compose(second)
    want = second.apply(first.apply(held) | {"narrow": torch.zeros(5), "twin": torch.zeros(3)})
    got = both.apply(held)
    assert set(got) == {"out", "half", "same", "pad"}
    assert all(tensor.equal(want[key]) for key, tensor in got.items())
    assert both.of("same").parts == (Q, K, V)
    assert (both.of("same").rule, both.of("same").evidence) == ("same input, names", "behaviour, names")
    assert both.of("pad").parts == (Part("q.weight", rows=(5, 6)), Part("", (1, 4)))
    assert both.mismatched == (Mismatch("one", "wide", (5,), (7,)),)
    assert both.ambiguous == (Ambiguity("two", ("left",)),)
    assert both.missing == ("none",)


def test_compose_passes_on_what_the_second_could_not_decide():
    first = Alignment(
        {"a": (2,), "b": (3,)}, {"x": (2,), "y": (3,), "z": (5,)},
        (Entry("x", (Part("a"),)), Entry("y", (Part("b"),))),
    )  # fmt: skip
    second = Alignment(
        {"x": (2,), "y": (3,), "z": (5,)},
        {"u": (4,), "v": (2,), "w": (5,), "s": (5,), "t": (6,)},
        (Entry("s", (Part("z"),)),),
        (Mismatch("u", "x", (4,), (2,)), Mismatch("t", "z", (6,), (5,))),
        (Ambiguity("v", ("x", "y")), Ambiguity("w", ("z",))),
    )
    both = first.compose(second)
    assert both.mismatched == (Mismatch("u", "a", (4,), (2,)),)
    assert both.ambiguous == (Ambiguity("v", ("a", "b")),)
    assert both.missing == ("w", "s", "t")


def test_compose_through_whole_tensors_of_another_shape():
    first = Alignment(
        {"a": (24,), "b": (6, 4, 1)}, {"x": (4, 6), "y": (6, 4)},
        (Entry("x", (Part("a"),)), Entry("y", (Part("b"),))),
    )  # fmt: skip
    second = Alignment(
        {"x": (4, 6), "y": (6, 4)}, {"z": (14, 4)},
        (Entry("z", (Part("x", axes=(1, 0)), Part("", (2, 4)), Part("y"))),),
    )  # fmt: skip
    both = first.compose(second)
    assert both.of("z").parts == (Part("a", (4, 6), (1, 0)), Part("", (2, 4)), Part("b", (6, 4)))
    held = {"a": torch.randn(24), "b": torch.randn(6, 4, 1)}
    assert both.apply(held)["z"].equal(second.apply(first.apply(held))["z"])


def test_compose_keeps_the_shape_that_axes_are_turned_in():
    first = Alignment({"a": ()}, {"x": (1,)}, (Entry("x", (Part("a", (1,), (0,)),)),))
    second = Alignment({"x": (1,)}, {"y": ()}, (Entry("y", (Part("x"),), (), (0,)),))
    third = Alignment({"x": (1,)}, {"y": ()}, (Entry("y", (Part("x", axes=(0,)),), (), (0,)),))
    for then in (second, third):
        assert first.compose(then).apply({"a": torch.tensor(5)})["y"] == 5


def test_compose_of_strangers():
    first = Alignment({"a": (2,)}, {"weight": (2,)}, (Entry("weight", (Part("a"),)),))
    assert raised(
        first.compose, Alignment({"weights": (2,)}, {"x": (2,)}, (Entry("x", (Part("weights"),)),))
    ) == (
        "the second alignment does not start where the first one ends\n"
        "  asked  'x' takes from 'weights' with shape (2,)\n"
        "  found  no such tensor\n"
        "  near   weight"
    )
    assert "found  shape (2,)" in raised(
        first.compose, Alignment({"weight": (3,)}, {"x": (3,)}, (Entry("x", (Part("weight"),)),))
    )


def test_what_has_no_description():
    where = torch.randperm(5000)
    assert summarise("w", (5000,), ["v"], {"v": (5000,)}, torch.zeros_like(where), where) is None
    which = torch.arange(5000) % 2
    alternating = torch.arange(5000) // 2
    shapes = {"a": (2500,), "b": (2500,)}
    found = summarise("w", (5000,), ["a", "b"], shapes, which, alternating)
    assert found == Entry("w", (Part("a"), Part("b")), (2, 2500), (1, 0))
    some = (torch.rand(5000) > 0.5).long()
    assert summarise("w", (5000,), ["a", "b"], shapes, some, alternating) is None
    beyond = torch.tensor([3, 4])
    assert summarise("w", (2,), ["v"], {"v": (4,)}, torch.zeros_like(beyond), beyond) is None
    assert summarise("w", (0, 3), [], {}, where[:0], where[:0]) == Entry("w", (Part("", (0, 3)),))


def test_repeated_and_rotated_rows():
    shapes = {"a": (7, 4), "b": (3,)}
    for parts in (
        (Part("a", rows=(3, 7)), Part("a", rows=(0, 3))),
        (Part("b"), Part("b"), Part("b")),
        (Part("b", rows=(2, 3)), Part("b", rows=(1, 2))),
        (Part("b"), Part("", (4,)), Part("b", rows=(1, 3))),
    ):
        entry = Entry("w", parts)
        size = sum(torch.Size(s).numel() for s in [index_map(entry, shapes)[0].shape])
        found = summarise("w", (size,), list(entry.keys), shapes, *index_map(entry, shapes))
        assert found == entry


@pytest.mark.parametrize(
    ("entry", "shape"),
    [
        (Entry("w", (Part("a", rows=(1, 3)),), (2, 4), (1, 0)), (4, 2)),  # rows that begin within a pair
        (Entry("w", (Part("a", (12,), rows=(3, 5)), Part("a", (12,), rows=(7, 9)))), (4,)),  # over an edge
        (Entry("w", (Part("a", rows=(0, 1)), Part("b", rows=(1, 2)))), (2, 4)),  # another tensor goes on
    ],
)
def test_what_looks_regular(entry, shape):
    shapes = {"a": (3, 4), "b": (3, 4)}
    made = summarise("w", shape, entry.keys, shapes, *index_map(entry, shapes))
    held = {"a": torch.randn(3, 4), "b": torch.randn(3, 4)}
    again, wanted = (Alignment(shapes, {"w": shape}, (one,)).apply(held)["w"] for one in (made, entry))
    assert again.equal(wanted)


def test_what_was_taken_twice_is_not_all():
    halves = tuple(Entry(key, (Part("f", rows=(0, 2)),)) for key in "xy")
    assert Alignment({"f": (4,)}, {"x": (2,), "y": (2,)}, halves).inverse().missing == ("f",)


def test_json_reads_back():
    a = every()
    text = a.to_json()
    assert Alignment.from_json(text) == a
    assert list(Alignment.from_json(text).source) == list(SOURCE)
    assert Alignment.from_json(text).to_json() == text
    empty = Alignment({}, {}, ())
    assert Alignment.from_json(empty.to_json()) == empty
    lines = [line for line in text.splitlines() if '"mixed"' in line and "concat" in line]
    assert "".join(lines) == (
        '  {"target": "mixed", "concat": ["q.weight", "k.weight", "v.weight"], "view": [3, 2, 3, 4], '
        '"axes": [1, 0, 2, 3], "rule": "", "evidence": ""},'
    )
    assert '  {"target": "fc.weight", "from": "head.weight", "rule": "", "evidence": ""},' in text
    assert '"concat": ["q.weight", {"zeros": [4, 4]}]' in text
    assert '"from": {"key": "fused", "rows": [6, 12]}' in text
    assert '  {"target": "narrow", "source": "wide"}' in text


def test_files(tmp_path):
    a, path = every(), tmp_path / "a.json"
    a.save(path)
    assert Alignment.load(str(path)) == a
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(FileNotFoundError):
        a.save(tmp_path / "none" / "a.json")
    assert "'no.json' cannot be read as text" in raised(Alignment.load, "no.json")
    path.write_bytes(b"\xff\xfe\x00")
    assert "cannot be read as text" in raised(Alignment.load, path)


def test_a_failed_save_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_text("before")
    monkeypatch.setattr("os.fsync", lambda number: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        every().save(path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def edited(**changes) -> str:
    data = json.loads(every().to_json())
    data.update(changes)
    return json.dumps(data)


def entry(**changes) -> str:
    return edited(entries=[{"target": "qkv", "from": "fused"} | changes])


HOSTILE = {
    "": "the text is no JSON",
    "[]": "an alignment must be an object that begins with 'torchgraft_alignment'",
    "{}": "an alignment must be an object",
    "[" * 100_000: "nested too deep",
    '{"torchgraft_alignment": 1, "torchgraft_alignment": 1}': "stands twice in one object",
    '{"torchgraft_alignment": 1, "source": {"a": [2], "a": [2]}}': "'a' stands twice in one object",
    '{"torchgraft_alignment": NaN}': "NaN is no number of JSON",
    '{"torchgraft_alignment": 1' + "0" * 5000 + "}": "the text is no JSON",
    edited(torchgraft_alignment=2): "torchgraft_alignment must be version 1",
    edited(torchgraft_alignment=True): "torchgraft_alignment must be version 1",
    edited(torchgraft_alignment="1"): "torchgraft_alignment must be version 1",
    edited(sources={}): "an alignment must be without 'sources'",
    '{"torchgraft_alignment": 1, "source": {}}': "an alignment must be an object with 'target'",
    edited(source=[]): "source must be an object",
    edited(source={"a": 3}): "the shape of 'a' must be a list",
    edited(source={"a": [3.0]}): "the shape of 'a' must be an integer from 0",
    edited(source={"a": [True]}): "the shape of 'a' must be an integer from 0",
    edited(source={"a": [-3]}): "the shape of 'a' must be an integer from 0",
    edited(source={"a": [10**400]}): "a number of 1329 bits",
    edited(source={"a": [2**62]}): "the source has a tensor that cannot be",
    edited(source={"\ud800": [3]}): "a name of the source must be text",
    edited(entries={}): "entries must be a list",
    edited(entries=["qkv"]): "an entry must be an object",
    edited(entries=[{"target": "qkv"}]): """the entry for 'qkv' must be an object with either "from" or "concat\"""",
    entry(concat=[]): "either",
    entry(rules="x"): "an entry must be without 'rules'\n  found  'rules'\n  near   rule",
    entry(target=3): "the target of an entry must be text",
    entry(target="nothing"): "which the target has not",
    entry(view="x"): "view of the entry for 'qkv' must be a list",
    entry(axes=[-1]): "axes of the entry for 'qkv' must be an integer from 0",
    entry(rule=1): "rule of the entry for 'qkv' must be text",
    entry(evidence=None): "evidence of the entry for 'qkv' must be text",
    entry(**{"from": 3}): "a part of the entry for 'qkv' must be an object",
    entry(**{"from": ""}): "must be a name, with rows",
    entry(**{"from": {"rows": [0, 1]}}): "must be an object with 'key'",
    entry(**{"from": {"key": "fused", "rows": [0]}}): "must be a name, with rows",
    entry(**{"from": {"key": "fused", "rows": [-1, 3]}}): "rows of the entry for 'qkv' must be an integer from 0",
    entry(**{"from": {"key": "fused", "rows": [3, 10**30]}}): "a number of 100 bits",
    entry(**{"from": {"zeros": [18, 4], "key": "q.weight"}}): "zeros of the entry for 'qkv' must be without 'key'",
    entry(**{"from": {"zeros": [2**50]}}): "zeros have a shape",
    edited(entries=[{"target": "qkv", "concat": "fused"}]): "concat of the entry for 'qkv' must be a list",
    edited(entries=[{"target": "qkv", "concat": []}]): "the entry for 'qkv' takes nothing",
    edited(entries=[{"target": "qkv", "from": "fused"}] * 2): "stands in two places",
    edited(mismatched=[{"target": "qkv"}]): "a mismatch must be an object with 'source'",
    edited(entries=[], mismatched=[{"target": "no", "source": "q.weight"}]): "a mismatch is for 'no'",
    edited(ambiguous=[{"target": "qkv", "candidates": "q"}]): "the candidates of an ambiguity must be a list",
    edited(ambiguous=[{"target": "qkv", "candidates": [1]}]): "a candidate for 'qkv' must be text",
}  # fmt: skip


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_hostile_json(number):
    text, said = list(HOSTILE.items())[number]
    assert said in raised(Alignment.from_json, text)


def test_hostile_json_of_a_wrong_kind():
    assert raised(Alignment.from_json, None).startswith("the text is no JSON")
    assert raised(Alignment.from_json, entry(rules="x")) == (
        "an entry must be without 'rules'\n"
        "  found  'rules'\n"
        "  near   rule\n"
        "  write  what Alignment.to_json() writes"
    )


def test_any_cut_or_swapped_character_is_read_or_refused():
    text = every().to_json()
    generator = torch.Generator().manual_seed(0)
    refused = 0
    for _ in range(300):
        at = int(torch.randint(len(text), (), generator=generator))
        letter = chr(int(torch.randint(32, 127, (), generator=generator)))
        for broken in (text[:at], text[:at] + letter + text[at + 1 :]):
            try:
                Alignment.from_json(broken)
            except AlignmentError:
                refused += 1
    assert refused > 400  # some letters stand in names, rules or spaces


def test_report():
    assert str(every()) == (
        "94.6 % of 297 values aligned: 3 concat, 2 slice, 1 reshape, 1 transpose, 1 identity, 1 zeros; "
        "1 differ in shape; 1 missing; 0 unused; 1 ambiguous\n"
        "  differ in shape\n"
        "    narrow  5  <-  wide  7\n"
        "  ambiguous\n"
        "    twin  <-  left\n"
        "  missing\n"
        "    new  8"
    )
    many = {f"layer.{n}.weight": (2, 3) for n in range(14)}
    text = str(Alignment({}, many, ()))
    assert text.splitlines()[0] == (
        "0.0 % of 84 values aligned: nothing; 0 differ in shape; 14 missing; 0 unused; 0 ambiguous"
    )
    assert text.splitlines()[-2:] == ["    layer.11.weight  2 3", "    ... and 2 more"]
    doubt = Ambiguity("x", tuple(many)[:6])
    text = str(Alignment(many, {"x": (2, 3)}, (), (), (doubt,)))
    assert "    x  <-  layer.0.weight, layer.1.weight, layer.2.weight, layer.3.weight and 2 more" in text
    nearly = Alignment({"a": (5000,)}, {"x": (5000,), "y": ()}, (Entry("x", (Part("a"),)),))
    assert str(nearly).startswith("99.9 % of 5,001 values")
    assert str(Alignment({"y": ()}, nearly.target, (Entry("y", (Part("y"),)),))).startswith("0.1 % of")
    assert str(Alignment({}, {}, ())).startswith("100.0 % of 0 values aligned: nothing")
