"""An alignment applied to files: equal to what it does in memory, bit for bit; hostile files are refused."""

from __future__ import annotations

import json
import os

import pytest
import torch
from alignments import SOURCE, every, state
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from torchgraft.alignment.alignment import Alignment, Entry, Part
from torchgraft.alignment.files import container, rewrite, streaming
from torchgraft.alignment.files.container import listing
from torchgraft.alignment.files.rewrite import apply_to_file
from torchgraft.calls import call_text
from torchgraft.errors import AlignmentError, CheckpointError, GraftError, OptionError
from torchgraft.text import shown

DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
    torch.int8, torch.uint8, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64,
    torch.uint16, torch.uint32, torch.uint64,
]  # fmt: skip


def bits(tensor: torch.Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    return tensor.dtype, tensor.shape, bytes(tensor.reshape(-1).view(torch.uint8).tolist())


def same(path, wanted) -> None:
    got = load_file(path)
    assert set(got) == set(wanted)
    assert all(bits(got[key]) == bits(wanted[key]) for key in wanted)


@pytest.fixture(params=[None, 7, 48])
def _chunks(request, monkeypatch):
    """Chunks smaller than a row, than a tensor, and larger than all."""
    if request.param:
        monkeypatch.setattr(streaming, "_CHUNK", request.param)


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_to_memory(tmp_path, dtype):
    held = state(dtype)
    save_file(held, tmp_path / "a.safetensors", {"format": "pt", "note": "é"})
    paths = apply_to_file(every(), tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert paths == (tmp_path / "b.safetensors",)
    same(paths[0], every().apply(held))
    with safe_open(paths[0], framework="pt") as file:
        assert file.metadata() == {"format": "pt", "note": "é"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


@pytest.mark.usefixtures("_chunks")
def test_in_chunks_of_any_size(tmp_path):
    held = state()
    save_file(held, tmp_path / "a.safetensors")
    [path] = apply_to_file(every(), str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors"))
    same(path, every().apply(held))


def test_mixed_dtypes_begin_aligned(tmp_path):
    held = {"flag": torch.ones(3, dtype=torch.bool), "half": torch.randn(3).bfloat16(), "n": torch.tensor(5)}
    held |= {"none": torch.empty(0, 3), "w": torch.randn(2, 2)}
    source = {key: tuple(tensor.shape) for key, tensor in held.items()}
    a = Alignment(source, source, tuple(Entry(key, (Part(key),)) for key in source))
    save_file(held, tmp_path / "a.safetensors")
    [path] = apply_to_file(a, tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    same(path, held)
    for stored in listing(path)[0].values():
        assert stored.start % container.BYTES[stored.dtype] == 0
    assert not listing(path)[1]


def test_in_place_and_into_nothing(tmp_path):
    held, path = state(), tmp_path / "a.safetensors"
    save_file(held, path)
    apply_to_file(every(), path, path)
    same(path, every().apply(held))
    apply_to_file(Alignment({}, {"x": (2,)}, ()), path, tmp_path / "b.safetensors")
    assert load_file(tmp_path / "b.safetensors") == {}


def shard(folder, held, parts=2) -> None:
    names = list(held)
    files = {key: f"m-{1 + at % parts:05}-of-{parts:05}.safetensors" for at, key in enumerate(names)}
    for name in set(files.values()):
        save_file({key: held[key] for key in names if files[key] == name}, folder / name, {"format": "pt"})
    index = {"metadata": {"total_size": 0}, "weight_map": files}
    (folder / "m.safetensors.index.json").write_text(json.dumps(index))


def test_shards_in_and_out(tmp_path):
    held = state()
    shard(tmp_path, held, 3)
    out = tmp_path / "out"
    out.mkdir()
    paths = apply_to_file(
        every(), tmp_path / "m.safetensors.index.json", out / "model.safetensors", max_shard_size=400
    )
    wanted = every().apply(held)
    assert [path.name for path in paths] == [
        "model-00001-of-00004.safetensors",
        "model-00002-of-00004.safetensors",
        "model-00003-of-00004.safetensors",
        "model-00004-of-00004.safetensors",
        "model.safetensors.index.json",
    ]
    index = json.loads(paths[-1].read_text())
    assert index["metadata"] == {"total_size": sum(tensor.nbytes for tensor in wanted.values())}
    got = {key: load_file(out / name)[key] for key, name in index["weight_map"].items()}
    assert set(got) == set(wanted)
    assert all(bits(got[key]) == bits(wanted[key]) for key in wanted)
    for path in paths[:-1]:
        with safe_open(path, framework="pt") as file:
            assert file.metadata() == {"format": "pt"}
            assert sum(file.get_tensor(key).nbytes for key in file.keys()) <= 400
    assert {path.parent for path in paths} == {out}
    assert len(list(out.iterdir())) == 5
    back = apply_to_file(Alignment(every().target, {"x": (18, 4)}, (Entry("x", (Part("qkv"),)),)), paths[-1], out / "x.safetensors")  # fmt: skip
    same(back[0], {"x": wanted["qkv"]})


def test_a_tensor_larger_than_a_shard_gets_its_own(tmp_path):
    shapes = {"a": (2,), "b": (100,), "c": (2,)}
    save_file({key: torch.randn(shape) for key, shape in shapes.items()}, tmp_path / "a.safetensors")
    a = Alignment(shapes, shapes, tuple(Entry(key, (Part(key),)) for key in shapes))
    paths = apply_to_file(a, tmp_path / "a.safetensors", tmp_path / "m.safetensors", max_shard_size=1)
    assert [list(load_file(path)) for path in paths[:-1]] == [["a"], ["b"], ["c"]]
    whole = apply_to_file(a, tmp_path / "a.safetensors", tmp_path / "n.safetensors", max_shard_size=416)
    assert whole == (tmp_path / "n.safetensors",)


def refused(kind, *args, **options) -> str:
    with pytest.raises(kind) as caught:
        apply_to_file(*args, **options)
    error = caught.value
    assert isinstance(error, GraftError)
    if error.asked.startswith("apply_to_file("):
        assert error.asked == call_text("apply_to_file", map(shown, args), options)
        error.asked = ""  # holds paths of this run
    return str(error)


def test_what_the_file_does_not_hold(tmp_path):
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    held = state()
    save_file({key: tensor for key, tensor in held.items() if key != "fused"}, source)
    assert refused(AlignmentError, every(), source, target) == (
        "'fused' is not in the file\n"
        "  asked  'key' takes from it\n"
        "  found  8 tensors\n"
        "  write  the file that the alignment was made for"
    )
    save_file(held | {"turned": torch.zeros(6, 4)}, source)
    assert refused(AlignmentError, every(), source, target) == (
        "'turned' has another shape than the alignment was made for\n"
        "  asked  (4, 6)\n"
        "  found  (6, 4)\n"
        "  write  the file that the alignment was made for"
    )
    save_file(held | {"k.weight": held["k.weight"].half()}, source)
    assert "q.weight: F32, k.weight: F16, v.weight: F32" in refused(AlignmentError, every(), source, target)
    a = Alignment(SOURCE, {"__metadata__": ()}, (Entry("__metadata__", (Part("scale"),)),))
    assert "is no name for a tensor" in refused(AlignmentError, a, source, target)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_options(tmp_path):
    source = tmp_path / "a.safetensors"
    save_file(state(), source)
    assert refused(OptionError, every(), source, tmp_path / "b.bin") == (
        "the target is a .safetensors file in a folder that is there\n"
        f"  found  {tmp_path}/b.bin\n"
        f'  write  "{tmp_path}/b.safetensors"'
    )
    assert "in a folder that is there" in refused(
        OptionError, every(), source, tmp_path / "no" / "b.safetensors"
    )
    for size in (0, 1.5, True, "5GB"):
        assert "is a number of bytes from 1" in refused(
            OptionError, every(), source, tmp_path / "b.safetensors", max_shard_size=size
        )
    (tmp_path / "b.safetensors").touch()
    assert refused(OptionError, every(), source, tmp_path / "b.safetensors", max_shard_size=600).startswith(
        "'b.safetensors' is there already, and readers would take it and not the shards"
    )
    assert "write  apply_to_file" in refused(
        OptionError, every(), source, tmp_path / "c.safetensors", max_shard_sice=600
    )


def test_a_failure_leaves_what_was_there(tmp_path, monkeypatch):
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file(state(), source)
    target.write_text("before")
    names = set(tmp_path.iterdir())

    def fails(stored):
        raise OSError("disk on fire")

    monkeypatch.setattr(rewrite, "read", fails)
    with pytest.raises(OSError, match="on fire"):
        apply_to_file(every(), source, target)
    assert target.read_text() == "before"
    assert set(tmp_path.iterdir()) == names


def test_a_file_cut_while_it_is_read(tmp_path, monkeypatch):
    source = tmp_path / "a.safetensors"
    save_file(state(), source)
    told = listing(source)
    os.truncate(source, 700)
    monkeypatch.setattr(rewrite, "listing", lambda path: told)
    assert refused(CheckpointError, every(), source, tmp_path / "b.safetensors") == (
        "'a.safetensors' became shorter while it was read\n  write  a fresh copy of the file"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def written(header: object, tail: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + tail


def one(**changes) -> dict:
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes}


F = {"dtype": "U8", "shape": [4]}
HOSTILE = {
    "is no whole safetensors file\n  found  0 bytes, a header of 0": b"",
    "found  3 bytes": b"abc",
    "a header of 9,223,372,036,854,775,807": written(b"{}", length=2**63 - 1),
    "a header of 3": written(b"{}", length=3),
    "has no header that can be read": written(b"{,}"),
    "can't decode byte": written(b'{"\xff": 1}'),
    "nested too deep": written(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "'a' stands twice": written(b'{"a": {}, "a": {}}'),
    "the header of 'x.safetensors' must be an object": written([]),
    "'a' in 'x.safetensors' must be an object\n": written({"a": 1}),
    "must be an object with 'dtype'": written({"a": {}}),
    "must be without 'more'": written(one(more=1), bytes(8)),
    "must be one of BOOL": written(one(dtype="F31"), bytes(8)),
    "dtype of 'a' in 'x.safetensors' must be text": written(one(dtype=[]), bytes(8)),
    "shape of 'a' in 'x.safetensors' must be an integer from 0\n  found  -2": written(
        one(shape=[-2]), bytes(8)
    ),
    "shape of 'a' in 'x.safetensors' must be a list": written(one(shape=2), bytes(8)),
    "must be two that are 12 apart": written(one(shape=[3]), bytes(8)),
    "must be two that are 8 apart\n  found  (0, 8, 8)": written(one(data_offsets=[0, 8, 8]), bytes(8)),
    "must be two that are 8 apart\n  found  (8, 0)": written(one(data_offsets=[8, 0]), bytes(8)),
    "the header tells of 8": written(one(), bytes(7)),
    "9 bytes of tensors": written(one(), bytes(9)),
    "one ends at 0, the next begins at 4": written(one(data_offsets=[4, 12]), bytes(12)),
    "one ends at 4, the next begins at 2": written(
        {"a": F | {"data_offsets": [0, 4]}, "b": F | {"data_offsets": [2, 6]}}, bytes(6)
    ),
    "one ends at 4, the next begins at 0": written(
        {"a": F | {"data_offsets": [0, 4]}, "b": F | {"data_offsets": [0, 4]}}, bytes(4)
    ),
    "is cut off, or has a tail": written(one(data_offsets=[0, 2**62], shape=[2**60]), bytes(8)),
    "a number of 101 bits": written(one(data_offsets=[0, 2**100]), bytes(8)),
    "metadata of 'x.safetensors' must be an object": written({"__metadata__": 1}),
    "metadata 'a' of 'x.safetensors' must be text": written({"__metadata__": {"a": 1}}),
    "a name must be text": written({"\ud800": one()["a"]}, bytes(8)),
}


@pytest.mark.parametrize("said", list(HOSTILE))
def test_hostile_headers(tmp_path, said):
    source = tmp_path / "x.safetensors"
    source.write_bytes(HOSTILE[said])
    a = Alignment({"a": (2,)}, {"b": (2,)}, (Entry("b", (Part("a"),)),))
    assert said in refused(CheckpointError, a, source, tmp_path / "y.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_any_cut_or_changed_byte_is_read_or_refused(tmp_path):
    source = tmp_path / "x.safetensors"
    save_file(state(), source)
    whole = source.read_bytes()
    generator = torch.Generator().manual_seed(0)
    refusals = 0
    for _ in range(200):
        at, byte = (int(torch.randint(most, (), generator=generator)) for most in (800, 256))
        for broken in (whole[:at], whole[:at] + bytes([byte]) + whole[at + 1 :]):
            source.write_bytes(broken)
            try:
                listing(source)
            except CheckpointError:
                refusals += 1
    assert refusals > 250


def test_files_that_are_not_there(tmp_path):
    (tmp_path / "model.safetensors").touch()
    assert refused(CheckpointError, every(), tmp_path / "mode.safetensors", tmp_path / "b.safetensors") == (
        "'mode.safetensors' cannot be read\n  found  No such file or directory\n  near   model.safetensors"
    )
    assert "cannot be read" in refused(
        CheckpointError, every(), "/no/a.safetensors", tmp_path / "b.safetensors"
    )
    assert "Is a directory" in refused(CheckpointError, every(), tmp_path, tmp_path / "b.safetensors")


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ("[]", "the header of 'm.safetensors.index.json' must be an object"),
        ("{}", "the index 'm.safetensors.index.json' must be an object with 'weight_map'"),
        ('{"weight_map": []}', "weight_map of 'm.safetensors.index.json' must be an object"),
        ('{"weight_map": {"a": 1}}', "the file of 'a' must be text"),
        ('{"weight_map": {"a": "../a.safetensors"}}', "must be a .safetensors file beside the index"),
        ('{"weight_map": {"a": "/a.safetensors"}}', "must be a .safetensors file beside the index"),
        ('{"weight_map": {"a": "m.safetensors.index.json"}}', "must be a .safetensors file beside the index"),
        ('{"weight_map": {"a": "no.safetensors"}}', "'no.safetensors' cannot be read"),
        ('{"weight_map": {"scala": "m-00001-of-00001.safetensors"}}', "near   scale"),
    ],
)
def test_hostile_indices(tmp_path, index, said):
    shard(tmp_path, state(), 1)
    path = tmp_path / "m.safetensors.index.json"
    path.write_text(index)
    assert said in refused(CheckpointError, every(), path, tmp_path / "b.safetensors")
