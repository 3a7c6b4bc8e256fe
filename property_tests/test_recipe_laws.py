"""Law 13 for whole recipes: what is written as YAML, as JSON or as plain data is read back."""

from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import rows

from torchgraft import GraftError, freeze, load_weights
from torchgraft.recipe import Recipe
from torchgraft.recipe.plain import from_plain, to_plain
from torchgraft.recipe.yaml_text import read_yaml, write_yaml

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
PRINTED = TEXT.filter(str.isprintable)
ODD = [
    *("no", "yes", "y", "null", "~", "1", "010", "1e5", "1.0e5", "0x1f", "0o7", "1:30", "2020-01-01", ".5", "-", "- a"),
    *("a: b", "a #b", "#a", "a:", " a", "a ", "'", '"', "${x}", "$$", "$", "%a", "@a", "`a`", "&a", "*a", "!a", "|", ">"),
    *("=", "<<", "[a]", "{a}", "\x85", "\u2028", "\ufeff", "\U0001f600", "\xa0", "\x7f", "---", "...", "\t", "a\nb", ""),
]  # fmt: skip
HARD = st.sampled_from(ODD)
WORDS = TEXT | HARD
NUMBERS = st.integers(-(2**63) + 1, 2**63 - 1) | st.floats(-(2.0**62), 2.0**62)
PLAIN = st.recursive(
    st.none() | st.booleans() | NUMBERS | WORDS,
    lambda held: st.lists(held, max_size=3).map(tuple),
    max_leaves=5,
)
NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True).filter(
    lambda n: n not in ("name", "weights")
)
TRANSFORMS = rows(lambda row: row.parsed).map(lambda row: row.make())
STEPS = st.lists(TRANSFORMS | WORDS.map(load_weights), max_size=4)
RECIPES = st.builds(
    Recipe,
    PRINTED | HARD.filter(str.isprintable),
    steps=STEPS,
    weights=st.none() | st.just(True) | (PRINTED | HARD.filter(str.isprintable)).filter(bool),
    options=st.dictionaries(NAMES, PLAIN, max_size=3),
    example=st.none() | st.lists(st.integers(1, 300), min_size=1, max_size=4),
    sha256=st.just("") | st.text("0123456789abcdef", min_size=64, max_size=64) | st.just("1" * 64) | st.just("0" * 60 + "1e55"),
)  # fmt: skip


@given(RECIPES)
@example(Recipe("x", options={"lr": 1e-5, "big": 1e22 / 1e10, "no": "no"}, steps=['rename({"a": "b"})']))
def test_law_13_of_whole_recipes(recipe):
    """Law 13: a recipe is read back from its YAML, its JSON and its plain data, also by other readers."""
    text = recipe.to_yaml()
    assert Recipe.from_yaml(text) == recipe
    assert Recipe.from_json(recipe.to_json()) == recipe
    plain = to_plain(recipe)
    assert from_plain(json.loads(json.dumps(plain))) == recipe
    assert hash(from_plain(plain)) == hash(recipe)
    assert text.count("\n  - ") >= len(recipe.steps)
    # PyYAML, which goes by YAML 1.1, sees the same values.
    assert Recipe.from_json(json.dumps(yaml.safe_load(text))) == recipe


@given(st.dictionaries(NAMES, PLAIN, min_size=1, max_size=4), PLAIN)
@example({f"k{n}": word for n, word in enumerate(ODD)}, tuple(ODD))
def test_law_13_of_yaml(held, value):
    """Law 13: what is written as YAML is read back by this reader and by PyYAML alike."""
    plain = {"held": {name: _listed(item) for name, item in held.items()}, "value": _listed(value)}
    text = write_yaml(plain)
    assert _values(read_yaml(text)) == plain
    assert yaml.safe_load(text) == plain


def _listed(value):
    return [_listed(item) for item in value] if isinstance(value, tuple) else value


def _values(entry):
    if isinstance(entry.value, dict):
        return {name: _values(item) for name, item in entry.value.items()}
    return [_values(item) for item in entry.value] if isinstance(entry.value, list) else entry.value


@given(rows(lambda row: not row.parsed))
def test_law_13_what_cannot_be_written_is_refused(row):
    """Law 13: a recipe with a step that no file can hold says which step it is."""
    transform = row.make()
    recipe = Recipe("x", steps=[freeze("a"), transform])
    with pytest.raises(GraftError, match=r"step \d cannot be written"):
        recipe.to_yaml()
