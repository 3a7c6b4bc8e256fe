"""Recipes of unknown origin: a typed error each, nothing executed, time and memory bounded."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch import nn

from torchgraft import freeze, pipe
from torchgraft.blocks import dense, group_norm, register_block
from torchgraft.errors import GraftError, OptionError, RecipeError
from torchgraft.recipe import Recipe, parse, read_recipe
from torchgraft.recipe.plain import from_plain

HEAD = "torchgraft: 1\nbase: x\n"
MEGABYTE = 1_000_000

STEPS = {
    "too long": "freeze('" + "a" * 10_000 + "')",
    "brackets": "(" * 5_000 + ")" * 4_000,
    "open brackets": "[" * 9_999,
    "signs": "-" * 9_000 + "1",
    "tildes": "~" * 9_000 + "stem",
    "not": "not " * 2_000 + "stem",
    "dots": "a" + ".a" * 4_900,
    "sums": "stem" + "|stem" * 1_900,
    "arrows": "identity()" + ">>identity()" * 800,
    "calls": "at" + "()" * 4_900,
    "subscripts": "a" + "[0]" * 3_000,
    "lambdas": "lambda:" * 1_400 + "0",
    "conditions": "1 if 1 else " * 800 + "1",
    "powers": "9**9**9**9",
    "strings that are computed": "f'{" * 50 + "1" + "}'" * 50,
    "a computed string": "freeze(F'a')",
    "bytes": "freeze(b'a')",
    "complex": "swap_head(1j)",
    "digits": "swap_head(" + "9" * 9_000 + ")",
    "hexadecimal": "swap_head(0x" + "f" * 9_000 + ")",
    "large": f"swap_head({2**63})",
    "infinite": "swap_head(3, dropout=1e999)",
    "negative": "swap_head(-1e999)",
    "null byte": "freeze('a')\0",
    "surrogate": "freeze('\ud800')",
    "escaped surrogate": "freeze('\\ud800')",
    "unknown character": "freeze('\\N{no such thing}')",
    "no list as a key": "rename({[]: 1})",
    "a number as a key": "rename({1: 'a'})",
    "twice a key": "rename({'a': 'b', 'a': 'c'})",
    "a mapping unpacked": "rename({**{}})",
    "arguments unpacked": "freeze(*[])",
    "options unpacked": "freeze(**{})",
    "twice an option": "swap_head(head=1, head=2)",
    "wide": "features(" + "'a'," * 2_000 + ")",
    "lists in lists": "features(" + "[" * 55 + "]" * 55 + ")",
    "assignment": "(x := freeze('a'))",
    "two steps": "freeze('a')\nfreeze('b')",
    "statement": "import os",
    "await": "await freeze('a')",
    "comprehension": "[freeze(x) for x in 'ab'][0]",
    "attribute": "freeze('a').__class__",
    "private": "at('a')._edit",
    "method": "at('a').find('b')",
    "module": "torch.os.system('true')",
    "builtin": "__import__('os')",
    "class": "nn.Module()",
    "function": "wrap('a', torch.load)",
    "comment": "# freeze('a')",
    "tabs": "\tfreeze(\t\n\t'a'",
    "no end": "freeze('''a",
    "no text": 3,
    "nothing": "",
    "space": " \n ",
    "ellipsis": "...",
    "a selector": "stem | head",
    "type of an option": "swap_head([1])",
    "a step as a target": "freeze(freeze('a'))",
    "a class as a target of a method": "nn.Conv2d.inside('a')",
}  # fmt: skip


@pytest.mark.parametrize("text", STEPS.values(), ids=STEPS)
def test_no_step_breaks_the_reader(text):
    start = time.monotonic()
    with pytest.raises(GraftError) as caught:
        parse(text)
    assert time.monotonic() - start < 5
    assert len(str(caught.value)) < 12_000
    assert caught.value.summary.isprintable()


def test_errors_of_text_that_no_terminal_prints():
    with pytest.raises(RecipeError) as caught:
        parse("freeze('a')\x1b[31m\0")
    assert "\x1b" not in str(caught.value)
    with pytest.raises(RecipeError) as caught:
        parse("freeze('\ud800')")
    str(caught.value).encode()


def test_what_a_factory_raises_is_told(monkeypatch):
    def raising(*args):
        raise ZeroDivisionError("by a factory")

    from torchgraft.recipe import names

    monkeypatch.setitem(names.TRANSFORMS, "freeze", raising)
    with pytest.raises(RecipeError) as caught:
        parse("freeze('a')")
    assert str(caught.value) == (
        "the step cannot be made\n"
        "  asked  freeze('a')\n"
        "  found  ZeroDivisionError: by a factory\n"
        "  write  the arguments of its docstring"
    )


def test_functions_of_users_are_not_called():
    called = []

    @register_block("calling")
    def calling(channels):
        called.append(channels)
        return nn.Identity()

    with pytest.raises(RecipeError):
        parse("wrap('a', calling(3))")
    parse("wrap('a', calling)")
    assert not called


YAML = {
    "brackets": "[" * MEGABYTE,
    "braces": "{a: " * (MEGABYTE // 4),
    "dashes": "- " * (MEGABYTE // 2),
    "questions": "? " * (MEGABYTE // 2),
    "many items": "[" + "a," * 400_000 + "]",
    "many lines": "".join(f"k{n}: 1\n" for n in range(60_000)),
    "indented": "\n".join(" " * n + "a:" for n in range(1_300)),
    "one word": "a: " + "x" * (MEGABYTE - 3),
    "one word of many lines": "a: " + "x\n  " * 200_000,
    "quoted": 'a: "' + "\\x41" * 240_000 + '"',
    "block": "a: |\n" + "  x\n" * 240_000,
    "comments": "#\n" * (MEGABYTE // 2),
    "empty lines": "\n" * MEGABYTE,
    "documents": "---\n" * 200_000,
    "too large": "#" * (MEGABYTE + 1),
    "alias": f"{HEAD}vars: &a {{b: *a}}\n",
    "laughs": "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
    "merge": f"{HEAD}<<: {{a: 1}}\n",
    "tag": f"{HEAD}vars: !!python/object/apply:os.system [exit]\n",
    "own tag": f"{HEAD}vars: !x 1\n",
    "binary": f"{HEAD}weights: !!binary aGFsbG8=\n",
    "twice": f"{HEAD}base: y\n",
    "list as a name": "[a]: 1\n",
    "number as a name": "1: 1\n",
    "null byte": f"{HEAD}vars: \0\n",
    "escaped null byte": f'{HEAD}weights: "a\\0"\n',
    "escaped surrogate": f'{HEAD}weights: "\\uD800"\n',
    "no character": f'{HEAD}weights: "\\UFFFFFFFF"\n',
    "surrogate": f"{HEAD}weights: \ud800\n",
    "digits": f"{HEAD}options: {{a: {'9' * 5_000}}}\n",
    "fraction": f"{HEAD}options: {{a: {'9' * 500}.5}}\n",
    "large": f"{HEAD}options: {{a: {2**64}}}\n",
    "not a number": f"{HEAD}options: {{a: .nan}}\n",
    "sizes": f"{HEAD}example: [.nan, 3]\n",
    "step of steps": f"{HEAD}steps: [[freeze('a')]]\n",
    "step of a number": f"{HEAD}steps: [3]\n",
    "10,000 steps": f"{HEAD}steps:\n" + "- stem\n" * 10_000,
    "1,001 steps": f"{HEAD}steps:\n" + "- drop_head()\n" * 1_001,
    "directive": "%YAML 3.0\n---\na: 1\n",
    "version": "torchgraft: 1e999\nbase: x\n",
    "deep option": f"{HEAD}options: {{a: {'[' * 15 + ']' * 15}}}\n",
}


@pytest.mark.parametrize("text", YAML.values(), ids=YAML)
def test_no_yaml_breaks_the_reader(text):
    start = time.monotonic()
    with pytest.raises(RecipeError) as caught:
        Recipe.from_yaml(text)
    assert time.monotonic() - start < 10
    assert len(str(caught.value)) < 2_000
    str(caught.value).encode()


JSON = {
    "brackets": "[" * MEGABYTE,
    "braces": '{"a":' * (MEGABYTE // 5),
    "many items": "[" + "1," * 400_000 + "1]",
    "too large": " " * (MEGABYTE + 1),
    "cut off": '{"torchgraft": 1, "base": "x',
    "twice": '{"torchgraft": 1, "base": "x", "base": "y"}',
    "a tail": '{"torchgraft": 1, "base": "x"} x',
    "digits": '{"torchgraft": ' + "9" * 5_000 + "}",
    "large": '{"torchgraft": 1e999}',
    "not a number": '{"torchgraft": 1, "base": "x", "example": [NaN]}',
    "infinite": '{"torchgraft": 1, "base": "x", "options": {"a": Infinity}}',
    "surrogate": '{"torchgraft": 1, "base": "\\ud800"}',
    "surrogate as a name": '{"torchgraft": 1, "base": "x", "\\ud800": 1}',
    "null byte": '{"torchgraft": 1, "base": "\\u0000"}',
    "nothing": "",
    "a number": "3",
    "a byte order mark": "\ufeff{}",
    "plain": "torchgraft: 1",
    "other types": '{"torchgraft": 1, "base": [], "weights": {}, "options": [], "steps": {}, "example": "a", "sha256": 3}',
}


@pytest.mark.parametrize("text", JSON.values(), ids=JSON)
def test_no_json_breaks_the_reader(text):
    start = time.monotonic()
    with pytest.raises(RecipeError) as caught:
        Recipe.from_json(text)
    assert time.monotonic() - start < 10
    str(caught.value).encode()


def test_json_tells_the_line():
    with pytest.raises(RecipeError, match=r"^line 3: 'a' stands twice"):
        Recipe.from_json('{"a": 1,\n "b": [1,\n 2], "a": 3}')
    with pytest.raises(RecipeError, match=r"^line 2: it is no JSON"):
        Recipe.from_json('{"a": 1,\n}')


@pytest.mark.parametrize(
    "data",
    [
        *(None, 3, [], {}, {1: 2}, {"torchgraft": 1}, {"torchgraft": 1, "base": object()}),
        *({"torchgraft": 1, "base": b"x"}, {"torchgraft": 1.0, "base": "x"}),
        *({"torchgraft": 1, "base": "x", "vars": {}}, {"torchgraft": 1, "base": "x", "extends": "a"}),
        {"torchgraft": 1, "base": "x", "options": {"a": 10**400}},
    ],
)  # fmt: skip
def test_no_data_breaks_the_reader(data):
    with pytest.raises(RecipeError):
        from_plain(data, "here")


def test_data_in_a_circle():
    held = {"torchgraft": 1, "base": "x"}
    held["options"] = held
    with pytest.raises(RecipeError, match="nested more than"):
        from_plain(held)


def test_a_dollar_of_plain_data_is_a_dollar():
    assert from_plain({"torchgraft": 1, "base": "${a}"}).base == "${a}"


def test_a_pipe_is_no_recipe(tmp_path):
    os.mkfifo(tmp_path / "recipe.yaml")
    with pytest.raises(RecipeError, match="cannot be read"):
        read_recipe(tmp_path / "recipe.yaml")


def test_a_large_file_is_not_read(tmp_path):
    with (tmp_path / "recipe.yaml").open("wb") as file:
        file.truncate(50 * 2**30)  # no bytes are written
    with pytest.raises(RecipeError):
        read_recipe(tmp_path / "recipe.yaml")


def test_targets_cost_little():
    start = time.monotonic()
    for pattern in ("**." * 300 + "x", "*" * 4_000 + "x", "**.*." * 600 + "x"):
        with pytest.raises(GraftError):
            pipe(nn.Sequential(*(nn.Sequential(nn.Linear(2, 2)) for _ in range(20))), freeze(pattern))
    assert time.monotonic() - start < 10


def test_counts_are_bounded_before_anything_is_made():
    with pytest.raises(OptionError) as caught:
        dense(layers=10**12)
    assert caught.value.summary == "layers must be an integer from 1 to 1,000"
    assert caught.value.write == "dense(layers=1000)"
    with pytest.raises(OptionError) as caught:
        dense(layers=0)
    assert caught.value.write == "dense()"
    start = time.monotonic()
    pipe(nn.Sequential(nn.Conv2d(3, 4, 1)), parse(f'inject("0", {group_norm(10**12)!r})'))
    assert time.monotonic() - start < 5


def test_the_worst_takes_little_memory():
    """Measured in a process of its own, beside what the imports take."""
    program = (
        "import resource, sys\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "import test_recipe_hostile as t\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for name in ('brackets', 'many items', 'block', 'dashes'):\n"
        "    t.test_no_yaml_breaks_the_reader(t.YAML[name])\n"
        "for text in t.JSON.values():\n"
        "    t.test_no_json_breaks_the_reader(text)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    here = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", program, here], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100
