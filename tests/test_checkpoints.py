"""Checkpoints: files as data alone, wrappers, averages, prefixes, and what is no checkpoint."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import re
import struct
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import distributed, nn
from torch.distributed import checkpoint as folders
from torch.distributed.tensor import distribute_tensor

from torchgraft import read_checkpoint
from torchgraft.alignment.load.checkpoints import Checkpoint
from torchgraft.errors import CheckpointError

WEIGHTS = {
    "conv.weight": torch.arange(12.0).reshape(4, 3, 1, 1),
    "conv.bias": torch.ones(4),
    "steps": torch.tensor(7),
}
OTHERS = {key: tensor + 1 for key, tensor in WEIGHTS.items()}


def shapes(**prefixed: object) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in {**WEIGHTS, **prefixed}.items()}


def holds(found: Checkpoint, expected: dict[str, torch.Tensor]) -> bool:
    return list(found.tensors) == list(expected) and all(
        found.tensors[k].equal(t) for k, t in expected.items()
    )


def text(call, folder: Path | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        call()
    assert isinstance(caught.value, ValueError)
    return str(caught.value).replace(str(folder), "DIR")


@pytest.mark.parametrize(
    "name", ["w.safetensors", "w.pth", "w.pt", "w.bin", "old.pth", "w.index.json", "b.index.json"]
)
def test_every_kind_of_file(tmp_path, name):
    path = tmp_path / name
    if name.endswith(".index.json"):
        shards = {"conv.weight": f"1.{name[0]}", "conv.bias": f"2.{name[0]}", "steps": f"1.{name[0]}"}
        kind = {"w": "safetensors", "b": "bin"}[name[0]]
        files = {key: shard[0] + "." + kind for key, shard in shards.items()}
        for file in set(files.values()):
            part = {key: WEIGHTS[key] for key in WEIGHTS if files[key] == file}
            save_file(part, tmp_path / file) if kind == "safetensors" else torch.save(part, tmp_path / file)
        path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": files}))
    elif path.suffix == ".safetensors":
        save_file(WEIGHTS, path, metadata={"made": "by a test"})
    else:
        torch.save(WEIGHTS, path, _use_new_zipfile_serialization=name != "old.pth")
    for given in (path, str(path)):
        found = read_checkpoint(given)
        assert sorted(found.tensors) == sorted(WEIGHTS)
        assert all(found.tensors[key].equal(tensor) for key, tensor in WEIGHTS.items())
    assert found.metadata == ({"made": "by a test"} if path.suffix == ".safetensors" else {})
    assert repr(found) == "<3 tensors>"


@pytest.mark.parametrize(
    ("given", "way"),
    [
        (WEIGHTS, ()),
        (OrderedDict(WEIGHTS), ()),
        ({"state_dict": WEIGHTS}, ("state_dict",)),
        ({"epoch": 3, "model": WEIGHTS, "optimizer": {"state": {}, "param_groups": []}}, ("model",)),
        ({"epoch": torch.tensor(3), "loss": torch.tensor(0.5), "anything": WEIGHTS}, ("anything",)),
        (
            {"checkpoint": {"model_state_dict": WEIGHTS, "args": {"lr": 0.1}}},
            ("checkpoint", "model_state_dict"),
        ),
        ({"state_dict": WEIGHTS, "callbacks": {"best": {"score": torch.tensor(0.9)}}}, ("state_dict",)),
        ({"own": WEIGHTS, "callbacks": {"best": {"score": torch.tensor(0.9)}}}, ("own",)),
        ({"own": WEIGHTS, "mean": torch.ones(3)}, ("own",)),
        ({"criterion": {"weight": torch.ones(2)}, "model": WEIGHTS}, ("model",)),
        ({"model_ema": WEIGHTS}, ("model_ema",)),
        ({"model": {**WEIGHTS, "note": "a word", 3: torch.ones(2)}}, ("model",)),
    ],
    ids=lambda v: ".".join(map(str, v)) if v else "plain",
)
def test_wrappers_are_entered(given, way):
    found = read_checkpoint(given)
    assert found.unwrapped == way
    assert holds(found, WEIGHTS)


def test_the_weights_are_taken_and_the_average_is_named():
    for raw, average in (("state_dict", "state_dict_ema"), ("model", "model_ema"), ("model", "ema")):
        given = {average: OTHERS, raw: WEIGHTS, "epoch": 3}
        found = read_checkpoint(given)
        assert holds(found, WEIGHTS)
        assert (found.unwrapped, found.left) == ((raw,), (average,))
        found = read_checkpoint(given, ema=True)
        assert holds(found, OTHERS)
        assert (found.unwrapped, found.left) == ((average,), (raw,))
    nested = {"ema": {"decay": 0.9, "module": OTHERS}, "module": WEIGHTS}
    assert read_checkpoint(nested, ema=True).unwrapped == ("ema", "module")
    assert read_checkpoint(nested).left == ("ema.module",)
    assert text(lambda: read_checkpoint({"model": WEIGHTS}, ema=True)) == (
        "this checkpoint holds no average of the weights\n"
        "  asked  read_checkpoint(<a dict>, ema=True)\n"
        "  found  model\n"
        "  write  read_checkpoint(<a dict>, ema=False)"
    )


def test_several_sets_are_a_question():
    given = {"student": WEIGHTS, "teacher": OTHERS}
    assert text(lambda: read_checkpoint(given)) == (
        "this checkpoint holds several sets of weights\n"
        "  asked  read_checkpoint(<a dict>)\n"
        "  found  student, teacher\n"
        "  write  read_checkpoint(<a dict>, ema=True)"
    )
    for found in (read_checkpoint(given, key="teacher"), read_checkpoint(given, ema=True)):
        assert holds(found, OTHERS)
    two = {"generator": WEIGHTS, "critic": OTHERS}
    assert text(lambda: read_checkpoint(two)).endswith('write  read_checkpoint(<a dict>, key="generator")')
    assert text(lambda: read_checkpoint(given, key="techer")) == (
        "this checkpoint holds no weights under 'techer'\n"
        '  asked  read_checkpoint(<a dict>, key="techer")\n'
        "  found  student, teacher\n"
        "  near   teacher\n"
        '  write  read_checkpoint(<a dict>, key="teacher")'
    )
    assert "no key" in text(lambda: read_checkpoint(WEIGHTS, key="teacher"))
    parts = {"model": {"encoder": WEIGHTS, "decoder": OTHERS}}
    assert "model.encoder, model.decoder" in text(lambda: read_checkpoint(parts))


def test_a_mapping_is_kept_as_it_is_now():
    given = {key: tensor.clone() for key, tensor in WEIGHTS.items()}
    found = read_checkpoint(given)
    given["conv.bias"].zero_()
    del given["steps"]
    assert holds(found, WEIGHTS)
    itself: dict[str, object] = {"state_dict": WEIGHTS}
    itself["again"] = itself
    assert read_checkpoint(itself).unwrapped == ("state_dict",)


@pytest.mark.parametrize(
    "prefix", ["module.", "model.", "backbone.", "_orig_mod.", "module.model.", "a.b.c."]
)
def test_prefixes_come_off_and_go_on(prefix):
    longer = {prefix + key: tensor for key, tensor in WEIGHTS.items()}
    found = read_checkpoint(longer).for_keys(shapes())
    assert (found.prefix, found.added) == (prefix, "")
    assert holds(found, WEIGHTS)
    found = read_checkpoint(WEIGHTS).for_keys({key: tuple(t.shape) for key, t in longer.items()})
    assert (found.prefix, found.added) == ("", prefix)
    assert holds(found, longer)
    both = read_checkpoint({**WEIGHTS, **longer})
    assert both.for_keys(shapes()) is both
    whole = read_checkpoint(WEIGHTS)
    assert whole.for_keys(shapes()) is whole
    assert whole.for_keys({"other": (2,)}) is whole


def test_a_prefix_of_a_part():
    whole = {f"backbone.{key}": tensor for key, tensor in WEIGHTS.items()} | {"head.weight": torch.ones(2, 4)}
    found = read_checkpoint(whole).for_keys(shapes())
    assert found.prefix == "backbone."
    assert list(found.tensors) == [*WEIGHTS, "head.weight"]


def test_the_shape_tells_which_part_is_meant():
    two = {"small.weight": torch.ones(2, 2), "large.weight": torch.ones(4, 4)}
    assert read_checkpoint(two).for_keys({"weight": (4, 4)}).prefix == "large."
    two["small.weight"] = torch.ones(4, 4)
    assert text(lambda: read_checkpoint(two).for_keys({"weight": (4, 4)})) == (
        "several prefixes make as many names of the checkpoint fit the model\n"
        '  found  "small.", "large."\n'
        '  write  prefix="small."'
    )


def test_a_prefix_has_to_fit_most_names_and_the_shorter_one_wins():
    layers = {f"{i}.{j}.weight": torch.ones(2) for i in range(6) for j in range(2)}
    target = {**dict.fromkeys(("0.weight", "1.weight"), (2,)), **dict.fromkeys("abcdefg", (2,))}
    assert read_checkpoint(layers).for_keys(target).prefix == ""
    stages = {f"model.backbone.features.{i}.0.weight": torch.ones(2) for i in range(2)}
    nested = read_checkpoint(stages).for_keys({"features.0.0.weight": (2,), "0.weight": (2,)})
    assert nested.prefix == "model.backbone.features.0."[: len("model.backbone.")]


@pytest.mark.parametrize(
    "part", ["module.", "_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.", "base_layer."]
)
def test_what_wrappers_put_inside_of_names_comes_off(part):
    given = {f"net.{part}{key.replace('.', f'.{part}')}": tensor for key, tensor in WEIGHTS.items()}
    found = read_checkpoint(given).for_keys(shapes())
    assert holds(found, WEIGHTS)
    assert (found.prefix, found.inside) == ("net.", (part[:-1],))
    whole = {key.replace(".", f".{part}"): tuple(tensor.shape) for key, tensor in WEIGHTS.items()}
    assert list(read_checkpoint(WEIGHTS).for_keys(whole).tensors) == list(whole)
    own = {f"{part}a": (1,), "a": (1,), f"b.{part}c": (1,)}
    assert read_checkpoint({"a": torch.ones(1), "b.c": torch.ones(1)}).for_keys(own).inside == ()


def test_a_part_is_taken_by_its_prefix():
    both = {f"{side}.{key}": tensor for side in ("q", "k", "q_two") for key, tensor in WEIGHTS.items()}
    for prefix in ("q.", "q"):
        assert holds(read_checkpoint(both).part(prefix), WEIGHTS)
    assert text(lambda: read_checkpoint(both).part("p.")) == (
        'no name of the checkpoint begins with "p."\n'
        "  found  q.conv.weight, q.conv.bias, q.steps, ...\n"
        "  near   q., k., q_two.\n"
        '  write  prefix="q."'
    )


def test_names_that_would_fall_together():
    given = {"module.a": torch.ones(2), "module.b": torch.ones(2), "a": torch.ones(3)}
    assert text(lambda: read_checkpoint(given).for_keys({"a": (2,), "b": (2,)})) == (
        'without "module." several tensors of the checkpoint have one name\n'
        "  found  a\n"
        '  write  prefix="module."'
    )


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, "an empty mapping"),
        ({"state_dict": {}}, "state_dict"),
        ({"epoch": 3, "args": {"lr": 0.1}}, "epoch, args"),
        ({0: torch.ones(2)}, "0"),
        ([torch.ones(2)], "a list"),
        (torch.ones(2), "a Tensor"),
        (3, "an int"),
    ],
    ids=str,
)
def test_what_holds_no_weights(tmp_path, given, found):
    torch.save(given, tmp_path / "x.pth")
    assert text(lambda: read_checkpoint(tmp_path / "x.pth"), tmp_path) == (
        "this holds no weights\n"
        '  asked  read_checkpoint("DIR/x.pth")\n'
        f"  found  {found}\n"
        "  write  a mapping of names to tensors, as model.state_dict() gives it"
    )


def test_an_optimizer_file(tmp_path):
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "o.pth")
    assert text(lambda: read_checkpoint(tmp_path / "o.pth"), tmp_path) == (
        "this is the state of an optimizer, which has no weights\n"
        '  asked  read_checkpoint("DIR/o.pth")\n'
        "  found  state, param_groups\n"
        "  write  the file with the weights of the model"
    )
    with pytest.raises(CheckpointError, match="holds no weights"):
        read_checkpoint({"optimizer": optimizer.state_dict()})


def test_no_file_and_no_source(tmp_path):
    (tmp_path / "weights.pth").touch()
    assert text(lambda: read_checkpoint(tmp_path / "weigths.pth"), tmp_path) == (
        "there is no file 'weigths.pth'\n"
        '  asked  read_checkpoint("DIR/weigths.pth")\n'
        "  found  1 file in 'DIR'\n"
        "  near   weights.pth\n"
        '  write  read_checkpoint("DIR/weights.pth")'
    )
    assert text(lambda: read_checkpoint(tmp_path / "no" / "x.pth"), tmp_path) == (
        "there is no file 'x.pth'\n"
        '  asked  read_checkpoint("DIR/no/x.pth")\n'
        "  found  no folder 'DIR/no'\n"
        "  write  the path of a file of weights"
    )
    for name in ("config.json", "tokens.index.json"):
        (tmp_path / name).touch()
    said = text(lambda: read_checkpoint(tmp_path, key="model"), tmp_path)
    assert "is a folder" in said
    assert said.endswith('write  read_checkpoint("DIR/tokens.index.json", key="model")')
    assert text(lambda: read_checkpoint(nn.Linear(2, 2))) == (
        "weights come from a file or from a mapping of names to tensors\n"
        "  asked  read_checkpoint(<a Linear>)\n"
        "  found  a Linear\n"
        "  write  model.state_dict()"
    )
    assert '"weights.safetensors"' in text(lambda: read_checkpoint(3))


class Runs:
    """Would make a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return os.mkdir, (str(self.path),)


def test_code_is_refused_and_not_run(tmp_path):
    for path, new in ((tmp_path / "e.pth", True), (tmp_path / "f.pth", False)):
        torch.save(
            {"state_dict": WEIGHTS, "x": Runs(tmp_path / "made")}, path, _use_new_zipfile_serialization=new
        )
        assert text(lambda path=path: read_checkpoint(path)) == (
            f"'{path.name}' holds code, which is not run: only tensors are read\n"
            f'  asked  read_checkpoint("{path}")\n'
            f"  found  {os.mkdir.__module__}.mkdir, which torch runs where you trust the file\n"
            f'  write  load_weights(torch.load("{path}", weights_only=False))'
        )
    assert not (tmp_path / "made").exists()
    torch.save(nn.Linear(2, 2), tmp_path / "m.pth")
    assert "torch.nn.modules.linear.Linear" in text(lambda: read_checkpoint(tmp_path / "m.pth"))


def arrays(order: str = "=") -> dict[str, np.ndarray]:
    return {key: t.numpy().astype(t.numpy().dtype.newbyteorder(order)) for key, t in WEIGHTS.items()}


def test_settings_paths_and_numbers_are_no_code(tmp_path):
    args = argparse.Namespace(lr=0.1, out=Path("/out"))
    held = {"model": WEIGHTS, "args": args, "best": np.float64(0.5), "curve": np.ones(3)}
    for new in (True, False):
        torch.save(held, tmp_path / "m.pth", _use_new_zipfile_serialization=new)
        assert holds(read_checkpoint(tmp_path / "m.pth"), WEIGHTS)
    assert argparse.Namespace not in torch.serialization.get_safe_globals()
    with torch.serialization.safe_globals([argparse.Namespace]):
        read_checkpoint(tmp_path / "m.pth")
        assert argparse.Namespace in torch.serialization.get_safe_globals()
    with ThreadPoolExecutor(4) as pool:
        assert all(holds(found, WEIGHTS) for found in pool.map(read_checkpoint, [tmp_path / "m.pth"] * 40))


@pytest.mark.parametrize("order", ["<", ">"])
def test_arrays_of_numpy_are_read_as_tensors(tmp_path, order):
    np.savez(tmp_path / "w.npz", **arrays(order))
    torch.save(arrays(order), tmp_path / "w.pth")
    with (tmp_path / "w.pkl").open("wb") as file:
        pickle.dump({"model": arrays(order), "__author__": "me"}, file, protocol=2)
    turned = {**arrays(order), "conv.weight": np.asfortranarray(arrays(order)["conv.weight"])}
    torch.save(turned, tmp_path / "f.pth")
    for source in (*(tmp_path / name for name in ("w.npz", "w.pth", "w.pkl", "f.pth")), arrays(order)):
        assert holds(read_checkpoint(source), WEIGHTS)
    beside = {"state_dict": WEIGHTS, "history": {"loss": np.ones(9)}}
    assert read_checkpoint(beside).left == ()
    (tmp_path / "text.npz").write_bytes(b"hello")
    assert "is no checkpoint" in text(lambda: read_checkpoint(tmp_path / "text.npz"))
    np.savez(tmp_path / "o.npz", a=np.array([{}]))
    assert "is no checkpoint" in text(lambda: read_checkpoint(tmp_path / "o.npz"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_pickle_that_torch_does_not_read_as_data(tmp_path):
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "s.pt")
    said = text(lambda: read_checkpoint(tmp_path / "s.pt"), tmp_path)
    assert "'s.pt' is an archive of TorchScript" in said
    assert 'write  load_weights(torch.jit.load("DIR/s.pt").state_dict())' in said
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps(arrays(), protocol=4))
    said = text(lambda: read_checkpoint(path), tmp_path)
    assert 'write  load_weights(pickle.load(open("DIR/w.pkl", "rb"), encoding="latin1"))' in said
    path.write_bytes(pickle.dumps({"model": arrays(), "x": Runs(tmp_path / "made")}, protocol=2))
    said = text(lambda: read_checkpoint(path), tmp_path)
    assert "holds code, which is not run" in said
    assert "load_weights(pickle.load(" in said
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("state", [(3, "<", None, None, None, -1, -1, 63), (1, (9,), None, False, b"0" * 8)])
def test_arrays_that_lie_about_themselves_are_refused(tmp_path, state):
    class Lies:
        def __reduce__(self) -> object:
            start = (np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"))
            return *start, (1, (9,), Kind(), False, b"0" * 8)

    class Kind:
        def __reduce__(self) -> object:
            return np.dtype, ("f4", False, True), state

    torch.save({"model": {"a": Lies()}}, tmp_path / "l.pth")
    assert re.search("is no checkpoint|holds no weights", text(lambda: read_checkpoint(tmp_path / "l.pth")))


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_folder_of_a_distributed_checkpoint_says_how_to_make_a_file_of_it(tmp_path):
    folder = tmp_path / "ck"
    folders.save({"model": dict(WEIGHTS)}, checkpoint_id=folder, no_dist=True)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(folder)
    exec(caught.value.write, {})
    assert holds(read_checkpoint(f"{folder}.pth"), WEIGHTS)


def test_tensors_of_several_processes_are_gathered():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = distributed.init_device_mesh("cpu", (1,))
        spread = {key: distribute_tensor(tensor, mesh) for key, tensor in WEIGHTS.items()}
        found = read_checkpoint(spread)
    finally:
        distributed.destroy_process_group()
    assert holds(found, WEIGHTS)
    assert {type(tensor) for tensor in found.tensors.values()} == {torch.Tensor}


def test_files_that_are_something_else(tmp_path):
    whole = tmp_path / "w.pth"
    torch.save(WEIGHTS, whole)
    torch.save(WEIGHTS, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name, raw in {
        "empty.pth": b"",
        "text.pth": b"hello",
        "cut.pth": whole.read_bytes()[:900],
        "pickle.pth": pickle.dumps({"a": 1}),
        "zip.pth": b"PK\x05\x06" + b"\0" * 18,
        "cut_old.pth": (tmp_path / "old.pth").read_bytes()[:200],
        "noise.pth": b"\x80\x02" + bytes(range(256)),
    }.items():
        (tmp_path / name).write_bytes(raw)
        said = text(lambda name=name: read_checkpoint(tmp_path / name), tmp_path)
        assert said.startswith(f"'{name}' is no checkpoint, or not a whole one\n"), name
        assert "write  a .safetensors file, or one that torch.save wrote" in said
    assert "starts with b'hell'" in text(lambda: read_checkpoint(tmp_path / "text.pth"))


def header(**entries: object) -> bytes:
    return json.dumps(entries).encode()


def test_broken_and_hostile_safetensors(tmp_path):
    good = tmp_path / "good.safetensors"
    save_file(WEIGHTS, good)
    raw = good.read_bytes()
    one = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    twice = b'{"a":' + json.dumps(one).encode() + b',"a":' + json.dumps(one).encode() + b"}"
    for broken in (
        b"",
        raw[:4],
        raw[: len(raw) // 2],
        raw[:-1],
        struct.pack("<Q", 1 << 60) + raw[8:],
        struct.pack("<Q", 10) + b"hello worl",
        *(
            struct.pack("<Q", len(said)) + said + b"0" * 8
            for said in (
                header(a={**one, "data_offsets": [0, 800]}),
                header(a={**one, "data_offsets": [-8, 0]}),
                header(a={**one, "dtype": "F99"}),
                header(a={**one, "shape": [1 << 62, 1 << 62]}),
                header(a=one, b=one),
                header(a=3),
                twice,
            )
        ),
    ):
        path = tmp_path / "x.safetensors"
        path.write_bytes(broken)
        said = text(lambda path=path: read_checkpoint(path), tmp_path)
        assert said.startswith("'x.safetensors' is no whole safetensors file\n")
        assert "write  a fresh copy of the file" in said
    assert "'a' stands twice in one object" in said


def test_broken_indices(tmp_path):
    save_file(WEIGHTS, tmp_path / "1.safetensors")
    torch.save([1], tmp_path / "list.bin")
    path = tmp_path / "model.safetensors.index.json"
    for content, found in (
        ("no json", "JSONDecodeError"),
        ("[" * 100_000, "it is nested too deep"),
        ("[]", "a list without a weight_map"),
        ('{"weight_map": {}}', "a dict without a weight_map"),
        ('{"weight_map": {"a": "1.safetensors", "a": "2.safetensors"}}', "stands twice in one object"),
        ('{"weight_map": {"other": "1.safetensors"}}', "'1.safetensors' has no 'other'"),
        ('{"weight_map": {"other": "list.bin"}}', "'list.bin' has no 'other'"),
        (
            '{"weight_map": {"steps": "../1.safetensors"}}',
            "what is no file of tensors beside it: '../1.safetensors'",
        ),
    ):
        path.write_text(content)
        said = text(lambda: read_checkpoint(path), tmp_path)
        assert said.startswith("'model.safetensors.index.json' is no index of shards\n")
        assert found in said
        assert re.search(r'write  \{"weight_map"', said)
    path.write_text('{"weight_map": {"steps": "2.safetensors"}}')
    assert "there is no file '2.safetensors'" in text(lambda: read_checkpoint(path))
    path.write_text('{"weight_map": {"steps": "model.safetensors.index.json"}}')
    assert "is no index of shards" in text(lambda: read_checkpoint(path))


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    torch.save(WEIGHTS, tmp_path / "w.pth")
    monkeypatch.setattr(Path, "open", lambda *_: (_ for _ in ()).throw(PermissionError("not yours")))
    assert text(lambda: read_checkpoint(tmp_path / "w.pth"), tmp_path) == (
        "'w.pth' cannot be read\n"
        '  asked  read_checkpoint("DIR/w.pth")\n'
        "  found  PermissionError: not yours\n"
        "  write  a file that may be read"
    )
