"""Throw broken text at the readers of recipes, and see that nothing but typed errors comes back.

    python benchmarks/fuzz_recipe.py --minutes 10

Valid steps and recipes are cut, joined, repeated and peppered with tokens and bytes; each
result goes through one reader. Anything that is raised and is no ``GraftError``, and any input
that takes longer than ten seconds or lets the process grow by more than 256 MB, is printed
with its input, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import collections
import faulthandler
import functools
import json
import random
import resource
import signal
import sys
import time
import warnings
from collections.abc import Callable

import torch

from torchgraft import GraftError
from torchgraft.recipe import Recipe, parse
from torchgraft.recipe.names import METHODS, PROPERTIES, known
from torchgraft.recipe.plain import from_plain, to_plain

SECONDS, MEGABYTES = 10, 256
STEPS = [
    'wrap("layer3", se)',
    'wrap("layer4", cbam(reduction=8))',
    "swap_head(10, dropout=0.5)",
    "freeze(~(stage(-1) | head))",
    'replace(op(F.relu) | op("add").maybe(), nn.SiLU)',
    'inject(at(nn.Conv2d | nn.Linear).nth(0, -1), cbam(kernel=3), where="before", name="x")',
    'wrap((at("a") - "b" & nn.ReLU).inside("x.*").first, "eca")',
    'rename({"head": "classifier.last", "spare": "other"})',
    'features(node("add"), "norm", names=("sum", "stem"), keep_output=True)',
    'load_weights("w.safetensors", exclude=("fc", nn.Conv2d), init="kaiming_normal", min_coverage=0.25)',
    'compose(freeze("a"), unfreeze(at("**").innermost()), drop_path(0.5)) >> identity()',
    'fpn(4, targets=("body", stage(1).calls))',
]
TOKENS = [
    *known(), *METHODS, *PROPERTIES, *"()[]{}.,:=|&-~+*/%@^<>!;#\\\"'`$? \t\n\r\0",
    *("**", ">>", "<<", ":=", "->", "...", "lambda x: x", "lambda", "not ", "await ", "yield ", "if", "else", "for", "in"),
    *("nn", "F", "torch", "torch.load", "nn.Sequential", "nn.Module", "F.relu", "operator.add", "torch.Tensor.add"),
    *("None", "True", "False", "0", "-1", "1e999", "1e400", "-1e-400", "1j", "0x" + "f" * 999, "9" * 5000, "9" * 400),
    *('f"{x}"', 'b"x"', 'r"\\d"', '"\\ud800"', '"\\U0010ffff"', '"""', "'''", "\\x", "\\N{DEGREE SIGN}", "\ud800", "\ufeff"),
    *("__import__", "__class__", "__builtins__", "eval", "exec", "open", "print", "self", "_edit", "éé", "\u2028", "\x85"),
    *("{1: 2}", "{[]: 1}", "{**x}", "*x", "**x", "[x for x in y]", "x[0]", "x[1:2]", "x = 1", "(" * 90, "-" * 200, "~" * 200),
    *(" >> ".join(["identity()"] * 50), "a." * 300, '"**.**.**.**.x"', '"' + "*" * 300 + '"', "0_0", "1_000", "0o7", "0b1"),
]  # fmt: skip
LINES = [
    *("---\n", "...\n", "%YAML 1.1\n", "%TAG ! tag:x,2000:\n", "&a ", "*a", "!!python/object:os.system ", "!!binary ", "? ", "- "),
    *(": ", "<<: *a\n", "|\n  ", ">-\n ", "{", "}", "[", "]", "\t", "# x\n", "~", "null", "yes", "no", ".inf", ".nan", "1:30"),
    *("2020-01-01", "0o17", "1e5", "1.5e+3", "torchgraft: 1\n", "torchgraft: 2\n", "base: x\n", "weights: true\n", "vars: {a: b}\n"),
    *("options: {a: [1, {b: 2}]}\n", "example: [1, 3, .nan, -4]\n", "sha256: 00\n", "extends: ../x.yaml\n", "steps: []\n", "${a}"),
    *("$$", "${", "$a", "'", '"', '"\\uD800"', '"\\UFFFFFFFF"', "\\", "\r", "\x00", "\x85", "\u2028", "\ufeff", "a" * 3000),
    *("[" * 100, "{a: " * 100, "- " * 100, "? " * 100, "\n" * 500, "a: &a [*a]\n", '{"a": 1, "a": 2}', "NaN", "Infinity"),
    *('"\\u0000"', "1E400", "-0", "-0.0", "01", "9" * 5000, "\ud83d\ude00", '"\ud83d"'),
]  # fmt: skip


def recipe(rng: random.Random) -> Recipe:
    """Make a valid recipe."""
    options = {
        rng.choice("abcdef"): rng.choice([1, 2.5, True, None, "x", (1, (2, "y"))])
        for _ in range(rng.randrange(4))
    }
    return Recipe(
        "torchvision/resnet50",
        weights=rng.choice([None, True, "DEFAULT", "./w.pth"]),
        options=options,
        steps=rng.choices(STEPS, k=rng.randrange(5)),
        example=rng.choice([None, (1, 3, 224, 224)]),
        sha256=rng.choice(["", "a" * 64]),
    )


@functools.cache
def pool() -> list[tuple[str, str, str]]:
    """Write a few hundred valid recipes in every form."""
    made = [recipe(random.Random(seed)) for seed in range(300)]
    return [(one.to_yaml(), one.to_json(), json.dumps(to_plain(one))) for one in made]


def mutated(text: str, words: list[str], rng: random.Random) -> str:
    """Change a text at one place or at several."""
    for _ in range(rng.choice([1, 1, 2, 3, 8, 40])):
        start = rng.randrange(len(text) + 1)
        end = min(len(text), start + rng.choice([0, 0, 1, 1, 2, 5, 20]))
        kind = rng.randrange(6)
        if kind < 3:
            new = rng.choice(words)
        elif kind == 3:
            new = text[start:end] * rng.choice([0, 2, 3, 50])
        elif kind == 4:
            other = rng.randrange(len(text) + 1)
            new = text[other : other + rng.randrange(30)]
        else:
            new = chr(rng.choice([rng.randrange(128), rng.randrange(0x300), rng.randrange(0x110000)]))
        text = text[:start] + new + text[end:]
    return text[:1_100_000]


def a_step(rng: random.Random) -> tuple[str, Callable[[], object]]:
    text = rng.choice(STEPS) if rng.random() < 0.8 else "".join(rng.choices(TOKENS, k=rng.randrange(30)))
    text = mutated(text, TOKENS, rng)
    return text, lambda: _again(parse(text))


def _again(step: object) -> None:
    assert parse(repr(step)) == step


def a_yaml(rng: random.Random) -> tuple[str, Callable[[], object]]:
    text = rng.choice(pool())[0] if rng.random() < 0.8 else "".join(rng.choices(LINES, k=rng.randrange(40)))
    text = mutated(text, [*LINES, *LINES, *TOKENS], rng)
    return text, lambda: _round(Recipe.from_yaml(text))


def a_json(rng: random.Random) -> tuple[str, Callable[[], object]]:
    text = rng.choice(pool())[1] if rng.random() < 0.8 else "".join(rng.choices(LINES, k=rng.randrange(40)))
    text = mutated(text, [*LINES, *LINES, *TOKENS], rng)
    return text, lambda: _round(Recipe.from_json(text))


def a_plain(rng: random.Random) -> tuple[str, Callable[[], object]]:
    odd = [
        None,
        True,
        1,
        -1,
        10**400,
        2.5,
        float("nan"),
        float("inf"),
        "x",
        "\ud800",
        b"x",
        [],
        {},
        [[]],
        {"a": {}},
        {1: 2},
        object(),
    ]
    data = json.loads(rng.choice(pool())[2])
    for _ in range(rng.randrange(1, 4)):
        name = rng.choice([*data, "vars", "extends", "", "\ud800"])
        data[name] = rng.choice(
            [*odd, [rng.choice(odd)], {rng.choice(["a", "", "\ud800", 1]): rng.choice(odd)}, data]
        )
    return repr(data)[:2000] if data not in data.values() else "a circle", lambda: _round(from_plain(data))


def _round(made: Recipe) -> None:
    assert Recipe.from_yaml(made.to_yaml()) == made
    assert Recipe.from_json(made.to_json()) == made


KINDS = {"parse": a_step, "from_yaml": a_yaml, "from_json": a_json, "from_plain": a_plain}


def _late(*_: object) -> None:
    raise TimeoutError(f"more than {SECONDS} s")


def grown() -> float:
    """Return the peak of resident memory, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--minutes", type=float, default=10)
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    torch.set_num_threads(1)
    faulthandler.enable()
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, _late)
    rng = random.Random(given.seed)
    counts: dict[str, collections.Counter[str]] = {name: collections.Counter() for name in KINDS}
    said: dict[str, set[str]] = {name: set() for name in KINDS}
    slowest: dict[str, float] = dict.fromkeys(KINDS, 0.0)
    pool()
    bad, before = 0, grown()
    end = time.monotonic() + 60 * given.minutes
    while time.monotonic() < end:
        name = rng.choice(list(KINDS))
        state = rng.getstate()
        text, run = KINDS[name](rng)
        peak, start = grown(), time.monotonic()
        signal.alarm(SECONDS)
        try:
            run()
            counts[name]["read"] += 1
        except GraftError as error:
            counts[name]["typed"] += 1
            str(error)
            said[name].add(error.summary[:60])
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            counts[name]["other"] += 1
            bad += 1
            print(f"{name}: {type(error).__name__}: {str(error)[:300]}\n  {text[:2000]!r}", flush=True)
        finally:
            signal.alarm(0)
        slowest[name] = max(slowest[name], time.monotonic() - start)
        if grown() - peak > MEGABYTES:
            bad += 1
            print(f"{name}: grew by {grown() - peak:.0f} MB\n  {text[:2000]!r}\n  {hash(state)}", flush=True)
    print("| reader | inputs | read | typed errors | messages | anything else | slowest |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, count in counts.items():
        print(
            f"| `{name}` | {count.total():,} | {count['read']:,} | {count['typed']:,} "
            f"| {len(said[name]):,} | {count['other']:,} | {slowest[name]:.2f} s |"
        )
    print(f"\n{given.minutes:g} minutes, seed {given.seed}; memory grew by {grown() - before:.0f} MB")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
