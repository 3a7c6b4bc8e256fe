"""Broken and hostile files: each is refused by an error that says what is wrong, and nothing is run."""

from __future__ import annotations

import builtins
import json
import os
import re
import socket
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
import torch
from forged import forge, joined, parts, without
from safetensors.torch import save_file
from torch import nn

from torchgraft import freeze, pipe, swap_head
from torchgraft.errors import CheckpointError, GraftError, StoreError
from torchgraft.sources.get import get_model
from torchgraft.store import fitting
from torchgraft.store.load import load
from torchgraft.store.reading import read_record
from torchgraft.store.save import save
from torchgraft.text import shown


def base() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))


@pytest.fixture
def file(tmp_path):
    torch.manual_seed(0)
    return save(pipe(base(), freeze("0"), swap_head(3)), tmp_path / "m.safetensors")


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """A file of which a source knows the base."""
    folder = tmp_path_factory.mktemp("known")
    return save(pipe(get_model("squeezenet1_1"), swap_head(2)), folder / "m.safetensors")


@pytest.fixture(autouse=True)
def nothing_happens(monkeypatch):
    """No code is run, nothing is fetched, no process begins, and no file but the one meant is opened."""

    def refuse(*args, **kwargs):
        raise AssertionError("a file made it do this")

    pytest.importorskip("timm")  # imported before, as its import evaluates text of its own
    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(builtins, "eval", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)


def text(call, path: Path, kind=StoreError) -> str:
    with pytest.raises(CheckpointError if kind is StoreError else kind) as caught:
        call()
    error = caught.value
    if error.asked.startswith("load(") and path.name == "forged.safetensors":
        assert re.match(re.escape(f"load({shown(path)}") + r"(, base=|\)$)", error.asked)
        error.asked = ""
    return str(error).replace(str(path.parent), "DIR")


FRESH = "\n  write  a fresh copy of the file"


# Bytes ---------------------------------------------------------------------------------------


def test_truncated_at_every_length(file, tmp_path):
    raw = file.read_bytes()
    broken = tmp_path / "forged.safetensors"
    lengths = [*range(0, len(raw), 97), *range(12), len(raw) - 1]
    for length in lengths:
        broken.write_bytes(raw[:length])
        for read in (read_record, lambda path: load(path, base=base)):
            with pytest.raises(CheckpointError):
                read(broken)
    broken.write_bytes(raw[:-1])
    assert text(lambda: load(broken, base=base), broken) == (
        "'forged.safetensors' is cut off, or has a tail that is no tensor\n"
        f"  found  {len(raw) - 9 - int.from_bytes(raw[:8], 'little'):,} bytes of tensors, the header tells of "
        f"{len(raw) - 8 - int.from_bytes(raw[:8], 'little'):,}" + FRESH
    )
    broken.write_bytes(raw + b"more")
    assert "has a tail that is no tensor" in text(lambda: load(broken, base=base), broken)


def test_a_wrong_length_of_the_header(file, tmp_path):
    raw = file.read_bytes()
    broken = tmp_path / "forged.safetensors"
    for length in (0, 1, 2**63, 2**64 - 1, len(raw), int.from_bytes(raw[:8], "little") + 1):
        broken.write_bytes(length.to_bytes(8, "little") + raw[8:])
        with pytest.raises(CheckpointError):
            load(broken, base=base)
    assert "is no whole safetensors file" in text(
        lambda: read_record(_with_length(broken, raw, 2**63)), broken
    )


def _with_length(path, raw, length):
    path.write_bytes(length.to_bytes(8, "little") + raw[8:])
    return path


def test_a_header_of_a_hundred_megabytes(tmp_path):
    broken = tmp_path / "forged.safetensors"
    with broken.open("wb") as out:
        out.write((100_000_000).to_bytes(8, "little"))
        out.write(b'{"a":' + b"[" * 1000)
        out.truncate(8 + 100_000_000)
    tracemalloc.start()
    assert text(lambda: load(broken), broken) == (
        "the header of 'forged.safetensors' is longer than that of any model\n"
        "  found  100,000,000 bytes, 16,000,000 at most\n"
        "  write  read_checkpoint(...) for the tensors alone"
    )
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_names_that_stand_twice(file, tmp_path):
    header, record, data = parts(file.read_bytes())
    said = json.dumps(header)
    broken = tmp_path / "forged.safetensors"
    name = '"0.weight":'
    assert name in said
    broken.write_bytes(joined(said.replace(name, f'"0.bias": 1, {name}').encode(), None, data))
    assert text(lambda: load(broken, base=base), broken) == (
        "'forged.safetensors' has no header that can be read\n"
        "  found  '0.bias' stands twice in one object" + FRESH
    )
    del record["modes"]
    twice = json.dumps(record)[:-1] + ', "modes": {"": true}, "modes": {"": false}}'
    assert text(lambda: load(forge(file, lambda header, record: twice), base=base), broken) == (
        "the record in 'forged.safetensors' must be JSON\n"
        "  found  \"'modes' stands twice in one object\"" + FRESH
    )


NUMBERS = ["NaN", "Infinity", "-1", "1.5", '"3"', "null", "true", "1e999", "9" * 30, "9" * 5000, "[3]", "{}"]


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number[:12])
@pytest.mark.parametrize("field", ["shape", "data_offsets"])
def test_numbers_that_are_none(file, tmp_path, number, field):
    header, _, data = parts(file.read_bytes())
    header["0.weight"][field][0] = "HERE"
    broken = tmp_path / "forged.safetensors"
    broken.write_bytes(joined(json.dumps(header).replace('"HERE"', number).encode(), None, data))
    with pytest.raises(CheckpointError):
        load(broken, base=base)


def test_a_shape_of_many_sizes(file):
    def change(header, record):
        header["0.weight"]["shape"] = [2**62] * 100_000

    forged = forge(file, change)
    assert text(lambda: load(forged, base=base), forged) == (
        "shape of '0.weight' in 'forged.safetensors' must be of at most 64 sizes\n"
        "  found  '100,000 sizes'" + FRESH
    )


def test_nesting(file, tmp_path):
    _, _, data = parts(file.read_bytes())
    broken = tmp_path / "forged.safetensors"
    deep = "[" * 100_000 + "]" * 100_000
    for said in (deep.encode(), f'{{"__metadata__": {deep}}}'.encode(), f'{{"a": {deep}}}'.encode()):
        broken.write_bytes(joined(said, None, data))
        assert "nested too deep" in text(lambda: load(broken, base=base), broken)
    assert "nested too deep" in text(
        lambda: load(forge(file, lambda header, record: deep), base=base), broken
    )


def test_what_is_no_file_of_ours(tmp_path):
    path = tmp_path / "forged.safetensors"
    save_file({"a": torch.zeros(2)}, path, metadata={"format": "pt"})
    assert text(lambda: load(path), path) == (
        "'forged.safetensors' has weights alone and no record of a model\n"
        "  found  1 tensor\n"
        '  write  pipe(<the model>, load_weights("DIR/forged.safetensors")), or read_checkpoint(...)'
    )
    save_file({"a": torch.zeros(2)}, path)
    assert "has weights alone" in text(lambda: read_record(path), path)
    path = tmp_path / "n.safetensors"
    assert text(lambda: load(path), path).startswith("'n.safetensors' cannot be read")
    (tmp_path / "d.safetensors").mkdir()
    for other in (tmp_path / "d.safetensors", tmp_path, tmp_path / "no" / "m.safetensors"):
        with pytest.raises(CheckpointError, match="cannot be read"):
            load(other)
    torch.save({"a": torch.zeros(2)}, tmp_path / "m.pth")
    with pytest.raises(CheckpointError):
        load(tmp_path / "m.pth")


# Tensors -------------------------------------------------------------------------------------


def test_a_missing_tensor(file, tmp_path):
    header, _, data = parts(file.read_bytes())
    header, data = without(header, "0.bias", data)
    forged = tmp_path / "forged.safetensors"
    forged.write_bytes(joined(header, None, data))
    assert text(lambda: load(forged, base=base), forged) == (
        "'forged.safetensors' has no 0.bias\n"
        "  found  a Sequential that no source knows, 2 steps; 3 tensors\n"
        "  near   2.bias\n"
        "  write  load(path, base=<what built the model that was saved>), or a fresh copy of the file"
    )


def test_a_tensor_that_is_left_over(file):
    def change(header, record):
        header["0.more"] = header.pop("0.bias")
        record["ties"] = {"0.bias": "0.weight"}

    forged = forge(file, change)
    assert text(lambda: load(forged, base=base), forged) == (
        "'forged.safetensors' has, and the model has no place for, 0.more\n"
        "  found  a Sequential that no source knows, 2 steps; 4 tensors\n"
        "  write  load(path, base=<what built the model that was saved>), or a fresh copy of the file"
    )


@pytest.mark.parametrize("path", ["nothing", "conv.weight", "../x"])
def test_tables_that_the_model_has_not(file, path):
    forged = forge(file, lambda header, record: record.update(tables=[path]))
    assert "and the model has no place for," in text(lambda: load(forged, base=base), forged)


def test_another_shape(file):
    def change(header, record):
        header["0.weight"]["shape"] = [3, 4, 3, 3]

    forged = forge(file, change)
    assert "has in another shape: 0.weight 3 4 3 3, not 4 3 3 3\n" in text(
        lambda: load(forged, base=base), forged
    )


def test_another_dtype(file):
    def change(header, record):
        header["0.weight"]["dtype"] = "I32"

    forged = forge(file, change)
    assert "has in another dtype: 0.weight I32, not F32\n" in text(lambda: load(forged, base=base), forged)

    def unknown(header, record):
        header["0.weight"]["dtype"] = "F31"

    forged = forge(file, unknown)
    assert "dtype of '0.weight' in 'forged.safetensors' must be one of" in text(
        lambda: load(forged, base=base), forged
    )


def test_ties_that_cannot_be(file):
    for ties, said in (
        ({"0.bias": "0.weight"}, "no place for, 0.bias"),
        ({"zzz": "0.weight"}, "no place for, zzz"),
        ({"0.bias": "zzz"}, "has no 0.bias"),
        ({"0.bias": "2.bias", "2.bias": "0.bias"}, "no place for|in another shape"),
    ):

        def change(header, record, ties=ties):
            record["ties"] = ties

        forged = forge(file, change)
        with pytest.raises(StoreError, match=said):
            load(forged, base=base)


def test_a_file_that_becomes_shorter(file, monkeypatch):
    raw, fitted = file.read_bytes(), fitting.fitted

    def shortened(*args):
        file.write_bytes(raw[: len(raw) // 2])
        return fitted(*args)

    monkeypatch.setattr(sys.modules["torchgraft.store.load"], "fitted", shortened)
    assert "became shorter while it was read" in text(lambda: load(file, base=base), file)


# The record ----------------------------------------------------------------------------------


def _set(**fields):
    def change(header, record):
        record.update(fields)

    return change


def _recipe(**fields):
    def change(header, record):
        record["recipe"].update(fields)

    return change


def _drop(name):
    def change(header, record):
        del record[name]

    return change


RECORDS = {
    "a later version": (_set(version=2), "is of a version that is not known here\n  found  version 2, known is 1\n  write  a newer torchgraft"),
    "no version": (_drop("version"), "must be an object with 'version'"),
    "a version of text": (_set(version="1"), "is of a version that is not known here\n  found  version 1, known is 1"),
    "a flag for a version": (_set(version=True), "is of a version that is not known here"),
    "no text": (lambda header, record: "[]", "the record in 'forged.safetensors' must be an object"),
    "no JSON": (lambda header, record: "{", "the record in 'forged.safetensors' must be JSON"),
    "a number": (lambda header, record: "NaN", "NaN is no number of JSON"),
    "too long": (_set(base_class="a" * 5_000_000), "is longer than a file may hold\n  found  5,000"),
    "an unknown part": (_set(model=1), "must be without 'model'\n  found  'model'\n  near   modes"),
    "a portrait of text": (_set(portrait="a"), "must be an object"),
    "no recipe": (_drop("recipe"), "must be an object with 'recipe'"),
    "a recipe of text": (_set(recipe="a"), "recipe"),
    "10,000 steps": (_recipe(steps=['freeze("0")'] * 10_000), "1,000 steps"),
    "a step of many": (_recipe(steps=['freeze("0")' + ' >> freeze("0")' * 900]), "10,000 characters"),
    "a step that runs code": (_recipe(steps=["__import__('os').system('true')"]), "__import__"),
    "a step that evaluates": (_recipe(steps=["eval('1')"]), "'eval' is no known name"),
    "an attribute": (_recipe(steps=['freeze(at("0").__class__)']), "__class__"),
    "no step": (_recipe(steps=["1"]), "a step is a transform"),
    "a step of a number": (_recipe(steps=[1]), "step"),
    "a step that is deep": (_recipe(steps=["freeze(" + "~" * 9000 + 'at("0"))']), "nested"),
    "brackets": (_recipe(steps=["(" * 9000]), "nested"),
    "a step on nothing": (_recipe(steps=['freeze("9")']), "the steps of the file cannot be done on its base"),
    "a step that fails": (_recipe(steps=["swap_head(-1)"]), "the number of classes must be positive"),
    "an option of the recipe": (_recipe(more=1), "more"),
    "another version of recipes": (_recipe(torchgraft=9), "9"),
    "a base outside": (_recipe(base="hf//etc"), "the base of the file, 'hf//etc', cannot be built"),
    "a base of a folder": (_recipe(base="hf/../../etc"), "cannot be built"),
    "a base on a server": (_recipe(base="timm/hf-hub:timm/resnet18"), "cannot be built"),
    "an unknown base": (_recipe(base="torchvision/resnet9"), "cannot be built"),
    "no source": (_recipe(base="zoo/resnet18"), "cannot be built"),
    "a base of numbers": (_recipe(base=3), "base"),
    "modes without a root": (_set(modes={"0": True}), "modes of the record in 'forged.safetensors' must be an object with ''"),
    "modes of numbers": (_set(modes={"": 1}), "must be true or false"),
    "ties of numbers": (_set(ties={"a": 1}), "must be text"),
    "a list of ties": (_set(ties=[]), "must be an object"),
    "frozen text": (_set(frozen="0"), "must be a list"),
    "surrogates": (_set(frozen=["\ud800"]), "must be text"),
    "an unknown dtype": (_set(dtypes={"F31": [""]}), "must be of known names\n  found  'F31'\n  near   F32"),
    "axes that cannot be": (_set(axes={"0 1": [""]}), "into an order that they cannot have"),
    "axes twice": (_set(axes={"0 0 1 1": ["0.weight"]}), "into an order that they cannot have"),
    "axes of words": (_set(axes={"a b c d": ["0.weight"]}), "into an order that they cannot have"),
    "axes of many": (_set(axes={"0 " * 10_000: ["0.weight"]}), "into an order that they cannot have"),
    "an example of words": (_set(example="a"), "the example must be a tensor, a tuple or a mapping"),
    "an example of code": (_set(example={"tensor": [1], "dtype": "nn"}), "the example must be tensors and plain values"),
    "a large example": (_set(example={"tensor": [2**62] * 9, "dtype": "float32"}), "the shape of the example must be one that a tensor can have"),
    "a deep example": (_set(example=json.loads('{"tuple":[' * 40 + "1" + "]}" * 40)), "nested at most 20 deep"),
    "an example of both": (_set(example={"tensor": [1], "dtype": "float32", "list": []}), "the example must be tensors"),
    "an unknown example": (_set(example={"set": [1]}), "the example must be without 'set'"),
    "constants of text": (_set(constants={"a": "b"}), "must be a list"),
    "constants of few": (_set(constants={"a": ["float32", [1], 1.0]}), "dtype, shape and two sums"),
    "constants of large numbers": (_set(constants={"a": ["float32", [1], 10**400, 1.0]}), "dtype, shape and two sums"),
    "graph of text": (_set(graph="yes"), "must be true or false"),
}  # fmt: skip


@pytest.mark.parametrize("case", RECORDS)
def test_records(file, case):
    change, said = RECORDS[case]
    forged = forge(file, change)
    given = None if "base" in case or case == "no source" else base
    found = text(lambda: load(forged, base=given), forged, GraftError)
    assert said in found


def test_another_portrait(file):
    forged = forge(file, _set(portrait={}))
    assert text(lambda: load(forged, base=base), forged) == (
        "the base is not the one that the file was made from: a Sequential that no source knows, 2 steps\n"
        "  found  other parts, settings or forwards in its root, 0, 1\n"
        "  write  load(path, base=<what built the model that was saved>)"
    )
    versions = {**read_record(file).versions, "torch": "1.0"}
    load(forge(file, _set(portrait={"a": "b"}, versions=versions)), base=base)


def test_other_versions_are_told_where_something_does_not_fit(file):
    def change(header, record):
        record["versions"]["torch"] = "1.0"
        header["0.weight"]["shape"] = [3, 4, 3, 3]

    forged = forge(file, change)
    assert f"made with torch 1.0, here {torch.__version__.partition('+')[0]}" in text(
        lambda: load(forged, base=base), forged
    )


# Options of a base that a source knows ---------------------------------------------------------

OPTIONS = {
    "weights to fetch": {"weights": "IMAGENET1K_V1"},
    "weights of the backbone": {"weights_backbone": "DEFAULT"},
    "progress": {"progress": True},
    "an unknown one": {"depth": 3},
    "a wrong kind": {"num_classes": "ten"},
    "too many": {"num_classes": 2**62},
    "negative": {"num_classes": -3},
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options_of_a_base(known, case):
    forged = forge(known, _recipe(options=OPTIONS[case]))
    with pytest.raises(GraftError):
        load(forged)


@pytest.mark.parametrize("weights", ["/etc/passwd", "no such", True, "IMAGENET1K_V1", "../m.safetensors"])
def test_weights_of_a_base_are_never_opened(known, weights, monkeypatch):
    opened = []
    real = Path.open
    monkeypatch.setattr(
        Path, "open", lambda self, *args, **kwargs: opened.append(self) or real(self, *args, **kwargs)
    )
    forged = forge(known, _recipe(weights=weights))
    opened.clear()
    try:
        load(forged)
    except GraftError:
        pass
    assert {path.name for path in opened} <= {"forged.safetensors", "METADATA"}  # versions of the libraries


TIMM = {
    "pretrained": {"pretrained": True},
    "a path": {"checkpoint_path": "/etc/passwd"},
    "a configuration": {"pretrained_cfg": "x"},
    "an overlay": {"pretrained_cfg_overlay": "x"},
    "a cache": {"cache_dir": "/tmp"},
}


@pytest.mark.parametrize("case", TIMM)
def test_options_of_timm(tmp_path, case):
    file = save(pipe(get_model("timm/test_resnet"), swap_head(2)), tmp_path / "m.safetensors")
    with pytest.raises(GraftError):
        load(forge(file, _recipe(options=TIMM[case])))


def test_a_base_with_too_many_parts(file, monkeypatch):
    monkeypatch.setattr("torchgraft.sources.skeleton._MOST_PARTS", 20)
    forged = forge(file, _recipe(base="torchvision/resnet18"))
    assert text(lambda: load(forged), forged) == (
        "the base of the file, 'torchvision/resnet18', cannot be built\n"
        "  found  what is asked for has more parts than any model: 20 modules and parameters, and no end\n"
        "  write  other options for its builder"
    )
    load(file, base=base)


def test_steps_that_are_played_again_open_no_file(file, tmp_path):
    secret = tmp_path / "secret.safetensors"
    save_file({"0.weight": torch.full((4, 3, 3, 3), 7.0)}, secret)

    def change(header, record):
        record["recipe"]["steps"].append(f'load_weights("{secret}", min_coverage=0)')

    secret.unlink()
    model = load(forge(file, change), base=base)
    assert not (model[0].weight == 7).any()


# Indices -------------------------------------------------------------------------------------


@pytest.fixture
def index(tmp_path):
    return save(pipe(base(), swap_head(3)), tmp_path / "m.safetensors", max_shard_size=100)


def _changed(index, change):
    held = json.loads(index.read_text())
    made = change(held)
    index.write_text(json.dumps(held if made is None else made))
    return index


INDICES = {
    "no map": (lambda held: held.pop("weight_map") and None, "weight_map"),
    "a map of a list": (lambda held: held.update(weight_map=[1]), "weight_map"),
    "a list": (lambda held: [1], "must be an object"),
    "no metadata": (lambda held: held.pop("metadata") and None, "has weights alone"),
    "metadata of text": (lambda held: held.update(metadata="a"), "has weights alone"),
    "a record of a number": (lambda held: held["metadata"].update(torchgraft=1), "has weights alone"),
    "a shard outside": (lambda held: held["weight_map"].update({"0.bias": "../m.safetensors"}), "beside the index"),
    "an absolute shard": (lambda held: held["weight_map"].update({"0.bias": "/etc/passwd"}), "beside the index"),
    "a shard of a number": (lambda held: held["weight_map"].update({"0.bias": 3}), "must be text"),
    "no such shard": (lambda held: held["weight_map"].update({"0.bias": "n.safetensors"}), "cannot be read"),
    "another shard": (lambda held: held["weight_map"].update({"0.bias": held["weight_map"]["0.weight"]}), "and it is not"),
    "a tensor less": (lambda held: held["weight_map"].pop("0.bias") and None, "has no 0.bias"),
}  # fmt: skip


@pytest.mark.parametrize("case", INDICES)
def test_indices(index, case):
    change, said = INDICES[case]
    with pytest.raises(CheckpointError, match=said):
        load(_changed(index, change), base=base)


def test_an_index_that_is_no_text(index):
    for raw in (b"", b"\xff", b"{", b"[" * 100_000, b"nul"):
        index.write_bytes(raw)
        with pytest.raises(CheckpointError):
            load(index, base=base)
    with index.open("wb") as out:
        out.truncate(20_000_000)
    assert "the header of 'm.safetensors.index.json' is longer" in text(lambda: load(index, base=base), index)


def test_a_shard_that_is_missing(index, tmp_path):
    next(tmp_path.glob("m-*")).unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(index, base=base)


def test_what_is_no_regular_file(tmp_path):
    path = tmp_path / "forged.safetensors"
    os.mkfifo(path)
    assert text(lambda: load(path), path) == (
        "'forged.safetensors' is no regular file\n  write  the path of a file"
    )


def test_a_file_of_torch_save(tmp_path):
    path = tmp_path / "forged.safetensors"
    for old in (False, True):
        torch.save({"a": torch.zeros(1)}, path, _use_new_zipfile_serialization=not old)
        assert text(lambda: load(path), path) == (
            "'forged.safetensors' is a file of torch.save, with tensors and no model\n"
            '  write  get_model(<name>, weights="DIR/forged.safetensors"), '
            'or load_weights("DIR/forged.safetensors")'
        )
