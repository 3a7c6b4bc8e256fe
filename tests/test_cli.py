"""The command line: what it answers, how it fails, what it costs to start, and how it looks."""

from __future__ import annotations

import doctest
import io
import json
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

from torchgraft import Alignment, pipe, swap_head, wrap
from torchgraft.alignment.alignment import Entry, Part
from torchgraft.cli import output
from torchgraft.cli.failure import Failure
from torchgraft.cli.main import app, main
from torchgraft.cli.output_files import check_output
from torchgraft.cli.parameters import read_options, read_value
from torchgraft.cli.progress import show_progress
from torchgraft.cli.work.relating import _rewrite as rewritten
from torchgraft.cli.work.selecting import read_target
from torchgraft.cli.work.showing import size_text
from torchgraft.cli.work.trees import name_tree
from torchgraft.errors import CheckpointError, GraftError, OptionError, TargetError
from torchgraft.sources.get import get_model
from torchgraft.sources.registry import register_model
from torchgraft.store.load import load
from torchgraft.store.reading import read_record
from torchgraft.store.save import save

COMMANDS = ("models", "blocks", "show", "apply", "build", "check", "explain", "diff", "align")


def ran(*args: object, code: int = 0):
    """Run a command in this process; it must end as expected."""
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def answered(*args: object, code: int = 0) -> dict:
    """Run a command for machines: one JSON document on the standard output and nothing else."""
    result = ran(*args, "--json", code=code)
    assert result.stderr == ""
    return json.loads(result.stdout)


def refused(*args: object, code: int = 1) -> dict:
    """Run a command that is wrong: nothing on the standard output, one JSON document on the other."""
    result = ran(*args, "--json", code=code)
    assert result.stdout == ""
    told = json.loads(result.stderr)
    assert told["code"] == code
    assert "Traceback" not in result.stderr
    return told


def program(*args: object, **options) -> subprocess.CompletedProcess[str]:
    """Run the program in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "torchgraft", *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        **options,
    )


class Terminal(io.StringIO):
    """Text that was written to a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


# Starting


@pytest.mark.parametrize(
    "asked", [["--help"], ["--version"], ["bloks"], ["show", "--josn"], *([c, "--help"] for c in COMMANDS)]
)
def test_nothing_heavy_is_imported_before_a_command_runs(asked) -> None:
    code = (
        "import sys\n"
        "from torchgraft.cli.main import main\n"
        f"sys.argv = ['torchgraft', *{asked!r}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'numpy', 'torchvision', 'yaml'} & set(sys.modules)), file=sys.stderr)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_answers_without_torch(shell) -> None:
    code = (
        "import sys\n"
        "from torchgraft.cli.main import app\n"
        "try:\n    app(prog_name='torchgraft')\nexcept SystemExit:\n    pass\n"
        "print('torch' in sys.modules, file=sys.stderr)\n"
    )
    asked = {
        "_TORCHGRAFT_COMPLETE": f"complete_{shell}",
        "_TYPER_COMPLETE_ARGS": "torchgraft show --s",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        "COMP_WORDS": "torchgraft show --s",
        "COMP_CWORD": "2",
    }
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, **asked}
    )
    assert result.stderr.splitlines()[-1] == "False"
    assert {"--select", "--shape"} <= set(re.findall(r"--\w+", result.stdout))


def test_every_command_has_a_help_with_an_example() -> None:
    said = ran("--help").stdout
    for command in COMMANDS:
        assert re.search(rf"\b{command}\b", said)
        told = ran(command, "--help").stdout
        assert f"Example: torchgraft {command}" in told
        assert "--json" in told
        assert "--debug" in told


@pytest.mark.parametrize("width", [60, 80, 120])
def test_help_stays_within_the_terminal(width) -> None:
    for command in ([], *([c] for c in COMMANDS)):
        result = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": str(width)})
        lines = result.stdout.splitlines()
        assert max(map(len, lines)) <= width
        # The one word that is cut is not ours, and only below 65 columns.
        assert "…" not in result.stdout.replace("--install-completi…", "")


def test_without_a_command_the_help_is_shown_and_it_is_a_usage_error() -> None:
    assert "Usage: torchgraft" in ran(code=2).stdout


def test_the_program_is_what_the_script_runs(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["torchgraft", "--version"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("torchgraft ")


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (46_827_520, "46.8 MB"),
        (5 * 10**16, "50000.0 TB"),
    ],
)
def test_sizes_are_written_for_people(count, said) -> None:
    assert size_text(count) == said


def test_the_version() -> None:
    assert re.fullmatch(r"torchgraft \d+\.\d+\.\d+\S*\n", ran("--version").stdout)


# Usage


@pytest.mark.parametrize(
    ("asked", "near"),
    [
        (["show", "resnet18", "--selct", "fc"], ["--select"]),
        (["bloks"], []),
        (["apply", "resnet18"], []),
        (["apply", "resnet18", "swap_head(3)"], []),
        (["build", "r.yaml"], []),
        (["apply", "resnet18", "swap_head(3)", "-o", "m.safetensors", "--seed", "x"], []),
        (["show", "resnet18", "--shape", "1,3,a"], []),
        (["show", "resnet18", "--shape", ""], []),
        (["show", "resnet18", "--shape", "1,0,3"], []),
        (["show", "resnet18", "--shape", "1,3,99999999999"], []),
        (["apply", "resnet18", "freeze(head)", "-o", "m.safetensors", "--seed", "-1"], []),
        (["apply", "resnet18", "freeze(head)", "-o", "m.safetensors", "--seed", "9" * 30], []),
        (["show", "resnet18", "--option", "num_classes"], []),
        (["show", "resnet18", "--option", "a=1", "--option", "a=2"], []),
        (["check", "r.yaml", "--var", "=x"], []),
        (["diff", "resnet18"], []),
        (["models", "a", "b"], []),
    ],
)
def test_what_cannot_be_read_ends_with_2(asked, near) -> None:
    told = refused(*asked, code=2)
    assert told["near"] == near
    assert told["asked"] == shlex.join(["torchgraft", *asked, "--json"])
    assert told["write"].endswith("--help")
    shown = ran(*asked, code=2)
    assert shown.stdout == ""
    assert shown.stderr.startswith("error: ")


def test_a_usage_error_reads_like_every_other() -> None:
    assert ran("models", "--pretraind", code=2).stderr == (
        "error: No such option: --pretraind\n"
        "  asked  torchgraft models --pretraind\n"
        "  near   --pretrained\n"
        "  write  torchgraft models --help\n"
    )


# Errors


def test_an_error_of_the_library_is_shown_as_it_prints() -> None:
    error = TargetError("nothing is called 'x'", wrong="x", found="3 modules", near=["y"], write='"y"')
    error.asked = 'freeze("x")'
    error.add_note('while applying step 1 of 1: freeze("x")')
    failure = Failure.of(error, ["show"])
    assert failure.text() == f'error: {error}\n  note   while applying step 1 of 1: freeze("x")'
    assert json.loads(failure.json()) == {
        "kind": "TargetError",
        "error": "nothing is called 'x'",
        "asked": 'freeze("x")',
        "found": "3 modules",
        "near": ["y"],
        "write": '"y"',
        "notes": ['while applying step 1 of 1: freeze("x")'],
        "code": 1,
    }


def test_an_error_that_nobody_expects_says_how_to_see_it(monkeypatch) -> None:
    monkeypatch.setattr("torchgraft.cli.work.blocks", lambda *_, **__: 1 / 0)
    assert ran("blocks", "a b", code=1).stderr == (
        "error: ZeroDivisionError: division by zero\n"
        "  asked  torchgraft blocks 'a b'\n"
        "  found  an error that torchgraft does not expect\n"
        "  write  torchgraft blocks 'a b' --debug\n"
    )
    assert refused("blocks")["kind"] == "ZeroDivisionError"
    shown = ran("blocks", "--debug", code=1).stderr
    assert "Traceback (most recent call last)" in shown
    assert "ZeroDivisionError: division by zero" in shown


def test_an_error_of_the_system_names_the_file(monkeypatch) -> None:
    def run(*_, **__):
        raise PermissionError(13, "Permission denied", "/held/m.safetensors")

    monkeypatch.setattr("torchgraft.cli.work.blocks", run)
    told = refused("blocks")
    assert (told["error"], told["found"]) == ("Permission denied", "/held/m.safetensors")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), typer.Abort()])
def test_an_interrupt_is_told_to_machines(error) -> None:
    failure = Failure.of(error, [])
    assert (failure.kind, failure.text(), failure.code) == ("Interrupted", "error: interrupted", 130)


def test_an_interrupt_ends_with_130(monkeypatch) -> None:
    def run(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("torchgraft.cli.work.blocks", run)
    result = CliRunner().invoke(app, ["blocks"])
    assert result.exit_code == 130
    assert "Traceback" not in result.output


@pytest.mark.filterwarnings("default")
def test_what_a_library_prints_or_warns_is_no_part_of_the_answer(monkeypatch) -> None:
    def run(*_, **__):
        import warnings

        sys.stdout.write("chatter\n")
        sys.stderr.write("noise\n")
        logger, handler = logging.getLogger("torchgraft.test"), logging.StreamHandler()
        logger.addHandler(handler)
        logger.critical("logged")
        logger.removeHandler(handler)
        warnings.warn("mind the gap\nsecond line", UserWarning, stacklevel=1)
        return output.Answer("done", {"done": True})

    monkeypatch.setattr("torchgraft.cli.work.blocks", run)
    shown = ran("blocks")
    assert shown.stdout == "done\n"
    assert shown.stderr == "chatter\nnoise\nlogged\nwarning: mind the gap\n"
    assert answered("blocks") == {"done": True}
    with pytest.warns(UserWarning, match="mind the gap"):
        ran("blocks", "--debug")


# Looks


def test_wide_lines_are_broken_between_columns_then_words_and_no_word_is_cut() -> None:
    path = "/a/very/long/path/that/is/wider/than/the/terminal.safetensors"
    text = (
        "short\n  near   layer1, layer2, layer3, layer4, layer5, layer6\n"
        f"  write  {path}\n  conv1  Conv2d  1 64 112 112  NCHW"
    )
    assert output.fit_lines(text, 30) == (
        "short\n  near   layer1, layer2,\n      layer3, layer4, layer5,\n      layer6\n"
        f"  write\n      {path}\n  conv1  Conv2d  1 64 112 112\n      NCHW"
    )
    assert output.fit_lines("a" * 20 + "  " + "b c " * 10, 30) == (
        "a" * 20 + "\n    " + "b c b c b c b c b c b c b\n    c b c b c b c"
    )


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_terminal_gets_colours_and_fitted_lines(width, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = Terminal()
    output.write("error: no\n  near   " + ", ".join(f"layer{n}.0.conv1" for n in range(20)), stream)
    shown = stream.getvalue()
    assert "\x1b[1;31merror:\x1b[0m" in shown
    bare = re.sub(r"\x1b\[[\d;]*m", "", shown)
    assert 0.7 * width < max(map(len, bare.splitlines())) <= width
    monkeypatch.setenv("NO_COLOR", "1")
    plain = Terminal()
    output.write("error: no", plain)
    assert re.sub(r"\x1b\[[12]?m", "", plain.getvalue()).replace("\x1b[0m", "") == "error: no\n"


def test_a_pipe_gets_neither() -> None:
    stream = io.StringIO()
    output.write("error: " + "x " * 200, stream)
    assert stream.getvalue() == "error: " + "x " * 200 + "\n"


def test_what_a_terminal_would_obey_is_written_out() -> None:
    stream = Terminal()
    output.write("a\x1b[2Jb\x07\udcff\tc", stream)
    assert "\x1b[2J" not in stream.getvalue()
    assert "a\\x1b[2Jb\\x07\\udcff" in stream.getvalue()


def test_an_encoding_that_lacks_a_letter_is_no_error() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    output.write("größe", stream)
    assert stream.buffer.getvalue() == b"gr\\xf6\\xdfe\n"


def test_a_stream_that_nobody_reads_ends_with_141(monkeypatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream, pytest.raises(typer.Exit) as caught:
        output.write("text", stream)
    assert caught.value.exit_code == 141


def test_names_stand_side_by_side_on_a_terminal_alone(monkeypatch) -> None:
    names = ["a", "bb", "ccc", "d", "e"]
    assert output.set_columns(names) == "a\nbb\nccc\nd\ne"
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("COLUMNS", "12")
    assert output.set_columns(names) == "a    d\nbb   e\nccc"
    assert output.set_columns([""]) == ""


def test_what_decides_is_where_the_answer_goes(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "dumb")
    with pytest.raises(SystemExit):
        app(["models", "squeezenet*", "--source", "torchvision"])
    assert capsys.readouterr().out == "torchvision/squeezenet1_0\ntorchvision/squeezenet1_1\n"


def test_progress_is_for_terminals() -> None:
    with show_progress(shown=True) as said:
        said("building")  # the standard error is none here
    with show_progress(shown=False) as said:
        said("building")


def test_a_terminal_that_cannot_move_back_gets_no_bar(monkeypatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "dumb")
    with show_progress(shown=True) as said:
        said("building")
    assert stream.getvalue() == ""


def test_progress_tells_what_is_going_on(monkeypatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    with show_progress(shown=True) as said:
        said("building [resnet18]")
        time.sleep(0.5)
    assert "building [resnet18]" in stream.getvalue()


# Words


def test_values_are_literals_or_text() -> None:
    asked = ["a=1", "b=(1, 2)", "c=True", "d=true", "e=none", "f=relu", "g=a=b", "h=", "i=" + "(" * 300]
    assert read_options(asked) == {
        "a": 1,
        "b": (1, 2),
        "c": True,
        "d": True,
        "e": None,
        "f": "relu",
        "g": "a=b",
        "h": "",
        "i": "(" * 300,
    }


# Paths


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "m.pth",
            (
                "-o takes a file that ends in .safetensors\n  asked  -o {}/m.pth\n  found  .pth\n"
                "  write  -o {}/m.safetensors"
            ),
        ),
        (
            "m",
            (
                "-o takes a file that ends in .safetensors\n  asked  -o {}/m\n  found  no ending\n"
                "  write  -o {}/m.safetensors"
            ),
        ),
        (
            "no/m.safetensors",
            (
                "the folder of -o is not there\n  asked  -o {}/no/m.safetensors\n  found  no folder '{}/no'\n"
                "  write  mkdir -p {}/no"
            ),
        ),
        (
            "held.safetensors",
            (
                "'held.safetensors' is there already\n  asked  -o {}/held.safetensors\n  found  3 bytes\n"
                "  write  -o {}/held.safetensors --force, or another name"
            ),
        ),
    ],
)
def test_where_results_go_is_checked_before_the_work(tmp_path, name, message) -> None:
    (tmp_path / "held.safetensors").write_bytes(b"abc")
    with pytest.raises(OptionError) as caught:
        check_output(tmp_path / name, "-o", (".safetensors",), force=False)
    assert str(caught.value) == message.replace("{}", str(tmp_path))
    told = refused("apply", "no_such_model", "no_such_step(", "-o", tmp_path / name)
    assert told["error"] == caught.value.summary


def test_a_folder_is_no_place_for_a_model(tmp_path) -> None:
    with pytest.raises(OptionError, match=r"ends in \.html or \.htm") as caught:
        check_output(tmp_path, "--html", (".html", ".htm"), force=True)
    assert caught.value.found == "a folder"
    assert caught.value.write == f"--html {tmp_path}/model.html"


def test_shards_count_as_the_file_that_is_there(tmp_path) -> None:
    (tmp_path / "m.safetensors.index.json").write_text("{}")
    with pytest.raises(OptionError, match="already"):
        check_output(tmp_path / "m.safetensors", "-o", (".safetensors",), force=False)
    check_output(tmp_path / "m.safetensors", "-o", (".safetensors",), force=True)


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OptionError, match="cannot be written to"):
        check_output(Path(tmp_path) / "m.safetensors", "-o", (".safetensors",), force=False)


# blocks


def test_blocks_are_listed_with_their_options() -> None:
    shown = ran("blocks", "*attention*").stdout
    assert "channel_attention(reduction=16, neutral=True)  Describe the channel half of CBAM" in shown
    told = answered("blocks", "se")["blocks"]
    assert [one["name"] for one in told] == ["se"]
    assert "reduction=16" in told[0]["options"]


def test_no_block_of_that_name_is_said_beside_the_answer() -> None:
    shown = ran("blocks", "zz*")
    assert (shown.stdout, shown.stderr) == ("", "no block is named 'zz*'\n")
    assert answered("blocks", "zz*") == {"blocks": []}


# models


def test_models_are_listed_by_a_pattern() -> None:
    assert ran("models", "squeezenet?_?", "--source", "torchvision").stdout == (
        "torchvision/squeezenet1_0\ntorchvision/squeezenet1_1\n"
    )
    assert answered("models", "raft_*") == {"models": ["torchvision/raft_large", "torchvision/raft_small"]}
    assert answered("models", "mnasnet0_75", "--pretrained", "--source", "torchvision")["models"] != []
    shown = ran("models", "no_such*", "--pretrained")
    assert (shown.stdout, shown.stderr) == ("", "no model is named 'no_such*' and has weights\n")
    assert refused("models", "--source", "tim")["near"] == ["timm"]


# show


def test_show_draws_tiers_and_modules() -> None:
    shown = ran("show", "squeezenet1_1").stdout
    assert "stage 0  features.3 features.4 " in shown
    assert "\n    12        Fire                 197,184\n" in shown
    assert "... deeper: --all shows everything" in shown
    assert "expand3x3_activation" in ran("show", "squeezenet1_1", "--all").stdout


def test_show_for_machines() -> None:
    told = answered("show", "squeezenet1_1", "--option", "num_classes=7")
    assert told["model"] == "SqueezeNet"
    assert told["base"] == "torchvision/squeezenet1_1"
    assert told["tiers"]["head"] == ["classifier"]
    assert [stage["stride"] for stage in told["tiers"]["stages"]] == [4, 8, 16]
    assert {"path": "classifier.1", "kind": "Conv2d", "parameters": 7 * 513} in told["modules"]


def test_show_a_model_without_maps() -> None:
    told = answered("show", "raft_small")
    assert told["tiers"] is None
    assert told["parameters"] == 990_162


class Both(nn.Module):
    """Takes two images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 4, 3)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return self.conv(torch.cat([a, b], 1))


@pytest.fixture
def both(monkeypatch) -> str:
    monkeypatch.setattr("torchgraft.sources.registry._TABLE", {})
    register_model("two_images")(Both)
    return "two_images"


def test_shapes_of_one_input_and_of_two(both) -> None:
    shown = ran("show", "squeezenet1_1", "--shape", "2,3,64,64").stdout
    assert shown.startswith("SqueezeNet on 2 3 64 64 gives 2 1000: 1,235,496 parameters")
    told = answered("show", both, "--shape", "1,3,16,16", "--shape", "1,3,16,16")
    assert told["modules"][0]["inputs"] == [[1, 3, 16, 16], [1, 3, 16, 16]]
    assert told["modules"][0]["output"] == [1, 4, 14, 14]
    assert refused("show", "squeezenet1_1", "--shape", "2,4,64,64")["kind"] == "ShapeError"
    assert "expand3x3_activation" in ran("show", "squeezenet1_1", "--shape", "2,3,64,64", "--all").stdout
    assert "--all lists every module" in ran("show", "regnet_x_400mf", "--shape", "1,3,64,64").stdout


def test_a_selection_is_marked() -> None:
    shown = ran("show", "squeezenet1_1", "--select", 'nn.Conv2d & inside("features.12")').stdout
    assert shown.startswith('at(nn.Conv2d).inside("features.12") on SqueezeNet: 3 sites\n')
    assert ">     expand1x1             Conv2d      n 64 3 3" not in shown
    assert re.search(r"^> +expand1x1 +Conv2d +n 64 13 13 -> n 256 13 13$", shown, re.MULTILINE)
    sites = answered("show", "squeezenet1_1", "--select", "classifier.*", "--shape", "1,3,64,64")["sites"]
    assert [site["kind"] for site in sites] == ["Dropout", "Conv2d", "ReLU", "AdaptiveAvgPool2d"]
    assert sites[1]["shapes"] == "n 512 3 3 -> n 1000 3 3"
    table = ran("show", "squeezenet1_1", "--select", "classifier.*", "--all").stdout
    assert table.startswith("path          kind")


def test_what_is_selected_in_vain_comes_with_the_word_to_write() -> None:
    assert ran("show", "squeezenet1_1", "--select", "clasifier", code=1).stderr == (
        'error: "clasifier" is no module and no node of this model\n'
        '  asked  at("clasifier")\n'
        "  found  67 modules, no node of that name in the root\n"
        "  near   classifier, classifier.3, classifier.2\n"
        "  write  --select classifier\n"
    )


def test_show_a_saved_file_a_recipe_and_bare_weights(made, folder) -> None:
    told = answered("show", made)
    assert told["steps"] == ['wrap("features.12", se())', "swap_head(10)"]
    assert answered("show", folder / "recipe.yaml")["steps"] == told["steps"]
    bare = folder / "bare.pth"
    torch.save({"fc.weight": torch.zeros(2, 3), "fc.bias": torch.zeros(2)}, bare)
    assert ran("show", bare).stdout == (
        "bare.pth: 2 tensors, 32 bytes, no record of a model\n\n"
        "  fc\n    weight  F32  2 3\n    bias    F32  2\n"
    )
    assert answered("show", bare)["tensors"][0] == {"name": "fc.weight", "dtype": "F32", "shape": [2, 3]}
    assert refused("show", bare, "--select", "fc")["found"] == "2 tensors"
    assert refused("show", made, "--option", "num_classes=3")["asked"] == "num_classes=3"
    assert refused("show", "squeezenet1_1", "--select", "zzzzzz")["write"] == ""


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "SourceError"),
        ("squeezenet1_11", "SourceError"),
        ("timm/squeezenet", "SourceError"),
        ("hf/nowhere", "SourceError"),
        ("a\x1b[2Jb", "SourceError"),
        ("nowhere.safetensors", "CheckpointError"),
        ("nowhere.pth", "CheckpointError"),
        ("nowhere.yaml", "RecipeError"),
        ("/", "SourceError"),
        ("broken.safetensors", "CheckpointError"),
        ("broken.pth", "CheckpointError"),
        ("broken.yaml", "RecipeError"),
        ("broken.json", "RecipeError"),
    ],
)
def test_what_is_no_model_is_an_error_in_words(text, kind, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("broken.safetensors", "broken.pth", "broken.yaml", "broken.json"):
        Path(name).write_bytes(b"\x00\xff{[not a thing")
    told = refused("show", text)
    assert told["kind"] == kind
    assert "\x1b" not in ran("show", text, code=1).stderr


def test_what_has_no_end_is_not_read(tmp_path) -> None:
    pipe_of_names, a_folder = tmp_path / "pipe.safetensors", tmp_path / "folder.safetensors"
    os.mkfifo(pipe_of_names)
    a_folder.mkdir()
    assert refused("show", pipe_of_names)["found"] == "a pipe or a device"
    assert refused("explain", a_folder)["found"] == "a folder"
    told = refused("apply", pipe_of_names, "freeze(head)", "-o", tmp_path / "m.safetensors")
    assert told["error"] == "'pipe.safetensors' is no file of weights"


def test_odd_names_of_tensors_are_drawn() -> None:
    names = ("a", "a.b", "c..d", ".e", "")
    assert name_tree({name: ("F32", (2,)) for name in names}).splitlines() == [
        "  a      F32  2",
        "    b    F32  2",
        "  c",
        "",
        "      d  F32  2",
        "         F32  2",
        "    e    F32  2",
    ]
    assert name_tree({"a." * 10_000 + "b": ("F32", ())}, every=True).endswith("F32  scalar")


# select


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ('nn.Conv2d & inside("layer4")', 'at(nn.Conv2d).inside("layer4")'),
        ('inside("layer4") & nn.Conv2d', 'at(nn.Conv2d).inside("layer4")'),
        ("op(F.relu) & after(layer3)", 'op(F.relu).after("layer3")'),
        ('before("layer3")', 'at("**").before("layer3")'),
        ('inside("a") & after("b")', 'at("**").inside("a") & at("**").after("b")'),
        ('nn.Conv2d | inside("a")', 'at(nn.Conv2d) | at("**").inside("a")'),
        ("head - after(x)", 'head - at("**").after("x")'),
        ("layer4", 'at("layer4")'),
        ("layer4.*.conv1", 'at("layer4.*.conv1")'),
        ('"layer4"', 'at("layer4")'),
        ("layer3 | layer4", 'at("layer3") | "layer4"'),
        ("~fc", '~at("fc")'),
        ("head", "head"),
        ("head.last", "head.last"),
        ("head.fc", 'at("head.fc")'),
        ("se", 'at("se")'),
        ("stage(-1) | head", "stage(-1) | head"),
        ("(nn.Conv2d | nn.Linear) & before(stage(2))", "at(nn.Conv2d | nn.Linear).before(stage(2))"),
        ("at(layer4).first", 'at("layer4").first'),
        ("torchvision.ops.misc.Conv2dNormActivation", "at(torchvision.ops.misc.Conv2dNormActivation)"),
    ],
)
def test_a_target_is_read_as_it_is_typed(text, meant) -> None:
    assert repr(read_target(text)) == meant


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nn.Conv2d &",
        "a..b",
        "nn.Konv2d",
        "swap_head(10)",
        "inside()",
        "inside(1, 2)",
        "nn.Conv2d, norm_stats=True",
        '"a") >> swap_head(3',
        "__import__('os').system('true')",
        "lambda: 0",
        "x" * 20_000,
        "~" * 900 + "x",
        "(" * 900,
        "[a]",
        "1 & inside(a)",
        "nn.Conv2d & 3",
    ],
)
def test_what_is_no_target_is_an_error_in_words(text) -> None:
    with pytest.raises(GraftError) as caught:
        read_target(text)
    assert "freeze" not in str(caught.value)


# apply, build, check, explain


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("cli")
    (path / "recipe.yaml").write_text(
        "torchgraft: 1\nbase: torchvision/squeezenet1_1\nvars:\n  attention: se\nsteps:\n"
        '  - wrap("features.12", ${attention})\n  - swap_head(10)\n'
    )
    return path


@pytest.fixture(scope="module")
def made(folder) -> Path:
    path = folder / "m.safetensors"
    ran("apply", "squeezenet1_1", 'wrap("features.12", se)', "swap_head(10)", "-o", path, "--seed", 7)
    return path


def test_what_apply_saves_is_what_the_library_makes(made) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        base = get_model("squeezenet1_1")
    wanted = pipe(base, wrap("features.12", "se"), swap_head(10), seed=7).state_dict()
    found = load(made).state_dict()
    assert list(found) == list(wanted)
    assert all(found[key].equal(wanted[key]) for key in wanted)


def test_apply_tells_what_the_file_holds(tmp_path) -> None:
    told = answered("apply", "squeezenet1_1", "swap_head(3)", "-o", tmp_path / "m.safetensors")
    assert told["file"] == str(tmp_path / "m.safetensors")
    assert told["recipe"]["steps"] == ["swap_head(3)"]
    assert told["loaded"] is None
    assert told["bytes"] == 4 * (1_235_496 - 997 * 513)


def test_apply_takes_its_own_file_again(made, tmp_path) -> None:
    path = tmp_path / "again.safetensors"
    path.write_bytes(made.read_bytes())
    assert (
        refused("apply", path, "freeze(~head)", "-o", path)["error"] == "'again.safetensors' is there already"
    )
    ran("apply", path, "freeze(~head)", "-o", path, "--force")
    assert answered("explain", path)["recipe"]["steps"][-1] == "freeze(~head)"
    assert answered("explain", path)["frozen"] == ["features"]


def test_apply_takes_a_recipe(folder, tmp_path) -> None:
    paths = [tmp_path / f"{name}.safetensors" for name in "ab"]
    for path in paths:
        ran("apply", folder / "recipe.yaml", "freeze(~head)", "-o", path, "--seed", 5)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert len(answered("explain", paths[0])["recipe"]["steps"]) == 3


def test_apply_puts_weights_of_a_file_in_and_says_what_became_of_them(tmp_path) -> None:
    weights = tmp_path / "w.pth"
    torch.save(get_model("squeezenet1_1", num_classes=4).state_dict(), weights)
    path = tmp_path / "m.safetensors"
    asked = ("apply", "squeezenet1_1", "swap_head(2)", "-o", path, "--weights", weights)
    shown = ran(*asked, "--option", "num_classes=4").stdout
    assert re.search(r"weights +began as \S+w.pth, sha256 [0-9a-f]{12}\n", shown)
    assert "loaded 100.0 % of parameters (52 of 52 tensors)" in shown
    loaded = answered(*asked, "--option", "num_classes=4", "--force")["loaded"]
    assert len(loaded["loaded"]) == 52
    assert loaded["missing"] == []
    assert refused(*asked[:-1], tmp_path / "none.pth", "--force")["kind"] == "SourceError"


def test_apply_passes_the_shape_of_an_input_on(tmp_path) -> None:
    path = tmp_path / "m.safetensors"
    ran("apply", "squeezenet1_1", "swap_head(2)", "-o", path, "--shape", "1,3,96,96")
    assert read_record(path).example == {"tensor": [1, 3, 96, 96], "dtype": "float32"}


@pytest.mark.parametrize(
    ("steps", "kind"),
    [
        (["swap_haed(10)"], "RecipeError"),
        (["swap_head(10)", "edit(print)"], "RecipeError"),
        (["wrap('features.12', lambda c: c)"], "RecipeError"),
        (["features"], "RecipeError"),
        (["swap_head(-1)"], "OptionError"),
        (["swap_head('ten')"], "OptionError"),
        (["__import__('os').system('true')"], "RecipeError"),
    ],
)
def test_steps_are_read_before_any_model_is_built(steps, kind, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("torchgraft.cli.work.given.build", lambda *_, **__: pytest.fail("built"))
    assert refused("apply", "squeezenet1_1", *steps, "-o", tmp_path / "m.safetensors")["kind"] == kind


def test_a_step_that_cannot_be_done_is_named_and_nothing_is_written(tmp_path) -> None:
    path = tmp_path / "m.safetensors"
    told = refused("apply", "squeezenet1_1", "swap_head(2)", 'wrap("featurs", se)', "-o", path)
    assert told["notes"] == ['while applying step 2 of 2: wrap("featurs", se())']
    assert told["write"] == 'wrap("features", se())'
    assert list(tmp_path.iterdir()) == []


def test_build_does_what_a_recipe_says(folder, tmp_path) -> None:
    paths = [tmp_path / f"{n}.safetensors" for n in "ab"]
    for path in paths:
        ran("build", folder / "recipe.yaml", "-o", path, "--var", "attention=eca", "--seed", 3)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert answered("explain", paths[0])["recipe"]["steps"][0] == 'wrap("features.12", eca())'


def test_check_finds_every_problem_at_once(folder, tmp_path) -> None:
    assert ran("check", folder / "recipe.yaml").stdout == f"{folder / 'recipe.yaml'}: 2 steps, no problems\n"
    assert answered("check", folder / "recipe.yaml", "--var", "attention=sse", code=1)["ok"] is False
    bad = tmp_path / "bad.yaml"
    bad.write_text(
        "torchgraft: 1\nbase: torchvision/squeezenet1_1\nwieghts: x\nsteps:\n"
        '  - wrap("featurs", se)\n  - load_weights("../x.pth")\n'
    )
    told = answered("check", bad, code=1)
    assert [problem["line"] for problem in told["problems"]] == [3, 5, 6]
    lines = ran("check", bad, code=1).stdout.splitlines()
    assert [line.split(": ")[0] for line in lines if not line.startswith("  ")] == [
        f"{bad}:3", f"{bad}:5", f"{bad}:6", str(bad)
    ]  # fmt: skip
    assert "leads out" not in ran("check", bad, "--outside", code=1).stdout
    assert refused("build", bad, "-o", tmp_path / "m.safetensors")["error"].startswith(f"{bad}:3: ")


def test_explain_reads_no_tensor(made, monkeypatch) -> None:
    monkeypatch.setattr("torchgraft.store.reading.values", lambda *_: pytest.fail("read"))
    shown = ran("explain", made).stdout
    assert shown.splitlines()[1:4] == [
        "  base      torchvision/squeezenet1_1",
        '  step 1    wrap("features.12", se())',
        "  step 2    swap_head(10)",
    ]
    assert "step 2     swap_head(10)" in ran("show", made).stdout
    told = answered("explain", made)
    assert told["dtypes"] == {"F32": 56}
    assert set(told["versions"]) == {"torchgraft", "torch", "torchvision"}


def test_explain_shards_by_either_name(tmp_path) -> None:
    path = tmp_path / "m.safetensors"
    save(pipe(get_model("squeezenet1_1"), swap_head(2)), path, max_shard_size="1MB")
    told = answered("explain", path)
    assert told["file"] == str(tmp_path / "m.safetensors.index.json")
    assert told["tensors"] == 52
    assert answered("explain", told["file"]) == told
    assert answered("show", path)["steps"] == ["swap_head(2)"]


def test_a_long_option_is_told_in_brief(tmp_path) -> None:
    from hugging import folder as hugging_face

    path = tmp_path / "m.safetensors"
    ran("apply", f"hf/{hugging_face(tmp_path / 'net')}", "swap_head(7)", "-o", path)
    [line] = [line for line in ran("explain", path).stdout.splitlines() if "config" in line]
    assert len(line) < 100
    assert line.endswith("...")
    assert len(answered("explain", path)["recipe"]["options"]["config"]) > 100


def test_explain_says_what_it_is_not_for(folder) -> None:
    told = refused("explain", folder / "recipe.yaml")
    assert told["write"].startswith("torchgraft check ")


def test_a_base_that_no_source_knows_is_told(tmp_path) -> None:
    path = save(
        pipe(nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)), swap_head(4)), tmp_path / "m.safetensors"
    )
    shown = ran("explain", path).stdout
    assert "base      a Sequential that no source knows" in shown
    assert re.search(r", F32 \d+, I64 1\n", shown)
    assert refused("show", path)["kind"] == "StoreError"
    assert answered("explain", path)["recipe"]["base"] == ""


def test_a_file_cannot_talk_to_the_terminal(tmp_path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"a": torch.zeros(2)}, path, metadata={"note": "\x1b]0;owned\x07"})
    assert "note      \\x1b]0;owned\\x07" in ran("explain", path).stdout
    assert answered("explain", path)["metadata"] == {"note": "\x1b]0;owned\x07"}


# diff, align


def test_diff_in_three_forms(made, folder, tmp_path) -> None:
    page = tmp_path / "diff.html"
    shown = ran("diff", "squeezenet1_1", made, "--html", page)
    assert '+ step 1        wrap("features.12", se())' in shown.stdout
    assert shown.stderr == f"written: {page}\n"
    assert page.read_text().lower().startswith("<!doctype html>")
    assert refused("diff", "squeezenet1_1", made, "--html", page)["error"] == "'diff.html' is there already"
    told = answered("diff", folder / "recipe.yaml", made, "--html", page, "--force")
    assert told["same"] is True
    assert told["html"] == str(page)


def test_two_files_are_compared_with_their_values(made, tmp_path) -> None:
    other = tmp_path / "other.safetensors"
    ran("build", made.parent / "recipe.yaml", "-o", other, "--seed", 1)
    assert answered("diff", made, other)["same"] is False
    assert answered("diff", made, made)["same"] is True
    assert refused("diff", made, "squeezenet1_11")["kind"] == "SourceError"
    assert answered("diff", made, made, "--shape", "1,3,64,64")["before"]["inputs"] == "1 3 64 64"


def test_align_writes_the_alignment_and_the_weights(made, tmp_path) -> None:
    paths = tmp_path / "a.json", tmp_path / "w.safetensors"
    told = answered("align", made, "squeezenet1_1", "-o", paths[0], "--apply", paths[1])
    assert told["written"] == [str(path) for path in paths]
    assert told["entries"] == 50
    assert [one["target"] for one in told["mismatched"]] == ["classifier.1.weight", "classifier.1.bias"]
    assert len(Alignment.load(paths[0]).entries) == 50
    assert load_file(paths[1])["features.0.weight"].equal(load_file(made)["features.0.weight"])
    # What is written is no longer the model that the source was saved from.
    assert answered("explain", paths[1])["recipe"] is None


def test_align_takes_bare_weights(tmp_path) -> None:
    model = get_model("squeezenet1_1")
    source, target = tmp_path / "bare.pth", tmp_path / "w.safetensors"
    torch.save({f"net.{key}": value for key, value in model.state_dict().items()}, source)
    shown = ran("align", source, "squeezenet1_1", "--apply", target)
    assert shown.stdout.startswith("100.0 % of 1,235,496 values aligned")
    assert shown.stderr == f"written: {target}\n"
    assert all(load_file(target)[key].equal(value) for key, value in model.state_dict().items())


def test_align_writes_nothing_unless_asked_to(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert answered("align", "squeezenet1_1", "squeezenet1_1", "--shape", "1,3,64,64")["coverage"] == 1.0
    assert list(tmp_path.iterdir()) == []
    assert refused("align", "squeezenet1_1", "squeezenet1_1", "--policy", "same_shap")["near"] == [
        "same_shape"
    ]


def test_a_dtype_that_no_file_holds_is_an_error_in_words(tmp_path) -> None:
    found = Alignment({"a": (2,)}, {"b": (2,)}, (Entry("b", (Part("a"),)),))
    path = tmp_path / "w.safetensors"
    with pytest.raises(CheckpointError, match="safetensors has no dtype for 'b'"):
        rewritten(found, "bare.pth", {"a": torch.zeros(2, dtype=torch.complex128)}, path)
    assert not path.exists()
    rewritten(found, "bare.pth", {"a": torch.ones(2, dtype=torch.bfloat16)}, path)
    assert load_file(path)["b"].equal(torch.ones(2, dtype=torch.bfloat16))


# The guide


def test_every_command_of_the_guide_answers_as_it_says(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parent.parent / "docs" / "cli.md").read_text()
    Path("recipe.yaml").write_text(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])
    tried = re.findall(r"^\$ torchgraft (.*)\n((?:(?!\$ |```).*\n)*)", text, re.MULTILINE)
    assert len(tried) > 12
    for command, wanted in tried:
        found = ran(*shlex.split(command)).stdout
        assert doctest.OutputChecker().check_output(wanted, found, doctest.ELLIPSIS), f"{command}\n{found}"


# Processes of their own


def test_the_program_answers_in_a_process_of_its_own(tmp_path) -> None:
    result = program("explain", "nowhere.safetensors", "--json", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    assert json.loads(result.stderr)["error"] == "'nowhere.safetensors' cannot be read"


def test_a_reader_that_leaves_is_no_error() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "torchgraft", "blocks"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    with process.stderr as said:
        assert said.read() == b""
    assert process.wait() == 141


def test_nobody_needs_to_read_an_error() -> None:
    command = [sys.executable, "-m", "torchgraft", "explain", "nowhere.safetensors"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    process.stderr.close()
    assert process.wait() == 1


def test_an_interrupt_is_silent() -> None:
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
        "from torchgraft.cli import main, work\n"
        "work.blocks = lambda *_, **__: (print('running', file=sys.__stdout__, flush=True), time.sleep(60))\n"
        "main.app(['blocks'])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == b"running\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate() == (b"", b"")
    assert process.returncode == 130


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_json_is_json_whatever_is_asked_for(encoding):
    command = [sys.executable, "-m", "torchgraft", "show", "a\x7fb\N{GRINNING FACE}", "--json"]
    done = subprocess.run(
        command, capture_output=True, check=False, env={**os.environ, "PYTHONIOENCODING": encoding}
    )
    assert done.returncode == 1
    assert "a\x7fb\N{GRINNING FACE}" in json.loads(done.stderr)["error"]


def test_values_that_python_cannot_make_are_text():
    assert read_value("{[]: 1}") == "{[]: 1}"
