"""Steps as text: read back what is printed, refuse everything else."""

from __future__ import annotations

import pytest
from torch import nn
from torch.nn import functional as F

from torchgraft import at, compose, freeze, inject, load_weights, op, replace, stage, swap_head, wrap
from torchgraft.blocks import cbam
from torchgraft.errors import GraftError, RecipeError
from torchgraft.recipe import parse

STEPS = [
    wrap("layer4", "se"),
    freeze(~(at("layer4") | "fc")),
    replace(op(F.relu) | op("add").maybe(), nn.SiLU),
    inject(at(nn.Conv2d | nn.Linear).nth(0, -1), cbam(kernel=3), where="before", name="x"),
    compose(),
    wrap((at("a") - "b" & nn.ReLU).inside("x.*").first, "eca"),
    swap_head(10, dropout=0.5) >> freeze("a", norm_stats=False),
]


@pytest.mark.parametrize("step", STEPS, ids=repr)
def test_what_is_printed_is_read_back(step):
    assert parse(repr(step)) == step


@pytest.mark.parametrize(
    "text",
    [
        '__import__("os")',
        'wrap("a", lambda x: x)',
        'wrap("a").__class__',
        'wrap("a", se).name',
        'at("x").find("y")',
        'at("x").where(print)',
        'wrap("a", F.relu)',
        'wrap("a", torch.load)',
        'replace("a", torch.nn.functional.os)',
        "op(torch.os.system)",
        "[x for x in (1,)]",
        'wrap(*("a", "se"))',
        'wrap(**{"a": 1})',
        'wrap("a", se) if 1 else 2',
        "swap_head(",
        "se()",
        "10",
        "",
        "-" * 80 + "1",
        "(" * 300 + ")" * 300,
        'wrap("a", se)' + " >> wrap('a', se)" * 2000,
        'freeze("a" | "b")',
        'freeze(at("a") | 3)',
        "f'{1}'",
        "(lambda: 1)()",
        "edit(print, name='x')",
        "where(print)",
        b"wrap",
    ],
    ids=lambda text: str(text)[:40],
)
def test_nothing_else_is_read(text):
    with pytest.raises(GraftError) as caught:
        parse(text)
    assert caught.value.summary


def test_errors_name_what_is_near():
    with pytest.raises(RecipeError) as caught:
        parse('wrapp("layer4", se)')
    assert caught.value.near == ("wrap",)
    assert caught.value.write == 'wrap("layer4", se)'
    with pytest.raises(GraftError) as caught:
        parse('wrap("layer4", "cbm")')
    assert "cbam" in caught.value.near


@pytest.mark.parametrize(
    ("text", "summary", "write"),
    [
        ("freeze(at('a').innermost)", "\"at('a').innermost\" is not called", "at('a').innermost(...)"),
        ("freeze(at('a').inside())", "", ""),
        (
            "freeze(at('a').nth(*[]))",
            "'*[]' is not part of a step",
            "transforms, selectors, blocks and literals",
        ),
        (
            "edit(print, name='x')",
            "'edit' takes a function of the draft, which cannot be written",
            "a step without it",
        ),
        ("wrapp(open, x)", "'wrapp' is no known name", "wrap(open, x)"),
    ],
)
def test_errors_tell_what_to_write(text, summary, write):
    with pytest.raises(GraftError) as caught:
        parse(text)
    if summary:
        assert (caught.value.summary, caught.value.write) == (summary, write)


def test_tuples_and_signs_are_read():
    for step in (load_weights("w.pth", exclude=("a", nn.Conv2d)), freeze(stage(-1)), freeze(at("a").nth(-1))):
        assert parse(repr(step)) == step
