"""Recipes as values and as files: written as people write them, read strictly, one extending another."""

from __future__ import annotations

import json
import pickle

import attrs
import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from torchgraft import (
    drop_head,
    edit,
    freeze,
    head,
    load_weights,
    pipe,
    replace,
    stage,
    swap_head,
    where,
    wrap,
)
from torchgraft.blocks import cbam, register_block, se
from torchgraft.errors import GraftError, ModelError, OptionError, RecipeError
from torchgraft.recipe import Recipe, build, check, read_recipe, recipe_of
from torchgraft.recipe.plain import from_plain, to_plain
from torchgraft.recipe.yaml_text import write_yaml

ISSUE = """\
torchgraft: 1
base: torchvision/resnet50
weights: IMAGENET1K_V2
steps:
  - wrap("layer3", se)
  - wrap("layer4", cbam(reduction=8))
  - swap_head(10)
  - freeze(~(stage(-1) | head))
"""


def text(call) -> str:
    with pytest.raises(GraftError) as caught:
        call()
    return f"{type(caught.value).__name__}: {caught.value}"


@pytest.fixture
def folder(tmp_path):
    """A folder in which files are written by name."""

    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        return path

    return write


def test_a_recipe_reads_and_writes_as_people_write_it():
    recipe = Recipe.from_yaml(ISSUE)
    assert recipe.steps[0] == wrap("layer3", "se")
    assert recipe.to_yaml() == ISSUE.replace("se)", "se())")
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert recipe == attrs.evolve(recipe) == pickle.loads(pickle.dumps(recipe))
    assert hash(recipe) == hash(Recipe.from_yaml(ISSUE))
    names = {
        "Recipe": Recipe,
        "wrap": wrap,
        "freeze": freeze,
        "swap_head": swap_head,
        "stage": stage,
        "head": head,
    }
    assert eval(repr(recipe), {**names, "se": se, "cbam": cbam}) == recipe
    assert recipe.origin.weights == "IMAGENET1K_V2"


def test_all_parts_are_written():
    recipe = Recipe(
        "torchvision/resnet18",
        weights=True,
        options={"width": 2, "rates": [0.5, 1e-5], "kind": "no", "deep": True},
        steps=[freeze("a") >> drop_head(), 'rename({"a": "b"})'],
        example=[1, 3, 64, 64],
        sha256="0" * 64,
    )
    assert recipe.to_yaml() == (
        "torchgraft: 1\n"
        "base: torchvision/resnet18\n"
        "weights: true\n"
        "options:\n"
        "  deep: true\n"
        "  kind: 'no'\n"
        "  rates: [0.5, 1.0e-5]\n"
        "  width: 2\n"
        "steps:\n"
        '  - freeze("a")\n'
        "  - drop_head()\n"
        '  - \'rename({"a": "b"})\'\n'
        "example: [1, 3, 64, 64]\n"
        f"sha256: '{'0' * 64}'\n"
    )
    assert to_plain(recipe) == {
        "torchgraft": 1,
        "base": "torchvision/resnet18",
        "weights": True,
        "options": {"deep": True, "kind": "no", "rates": [0.5, 1e-5], "width": 2},
        "steps": ['freeze("a")', "drop_head()", 'rename({"a": "b"})'],
        "example": [1, 3, 64, 64],
        "sha256": "0" * 64,
    }
    assert from_plain(to_plain(recipe)) == recipe


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Recipe(3), "base is the name of a model"),
        (lambda: Recipe("a\nb"), "base is the name of a model"),
        (lambda: Recipe("a", weights=3), "weights is a name"),
        (lambda: Recipe("a", weights=""), "weights is a name"),
        (lambda: Recipe("a", options=3), "options are values by name"),
        (lambda: Recipe("a", options={"a b": 1}), "the name of an option"),
        (lambda: Recipe("a", options={"weights": 1}), "no option of a builder"),
        (lambda: Recipe("a", options={"a": nn.Linear}), "option 'a' is no text"),
        (lambda: Recipe("a", options={"a": {"b": 1}}), "option 'a' is no text"),
        (lambda: Recipe("a", options={"a": float("nan")}), "option 'a' is no text"),
        (lambda: Recipe("a", options={"a": 2**70}), "found  a number of 71 bits"),
        (lambda: Recipe("a", steps=[3]), "a step is a transform"),
        (lambda: Recipe("a", steps=3), "steps are a list"),
        (lambda: Recipe("a", steps=["freez('a')"]), "'freez' is no known name"),
        (lambda: Recipe("a", steps=[freeze("a")] * 1001), "at most 1,000 steps"),
        (lambda: Recipe("a", example=3), "example is the sizes"),
        (lambda: Recipe("a", example=()), "example is the sizes"),
        (lambda: Recipe("a", example=(1, -3)), "example is the sizes"),
        (lambda: Recipe("a", example=(2**30, 2**30)), "example is the sizes"),
        (lambda: Recipe("a", sha256="A" * 64), "sha256 is 64 digits"),
    ],
)
def test_every_part_is_checked(make, said):
    assert said in text(make)


def test_one_step_needs_no_list():
    assert (
        Recipe("a", steps="drop_head()") == Recipe("a", steps=drop_head()) == Recipe("a", steps=[drop_head()])
    )
    assert Recipe("a", weights=False).weights is None


def test_what_a_file_cannot_hold_is_refused_by_its_number():
    assert text(Recipe("x", steps=[freeze("a"), edit(lambda draft: None, name="mine")]).to_yaml).startswith(
        "RecipeError: step 2 cannot be written\n  asked  edit(<lambda at "
    )
    found = {
        "it holds a function of the draft": edit(print, name="mine"),
        "it holds a function of a site": freeze(where(lambda site: True)),
        "it holds tensors": load_weights({"a": torch.zeros(1)}),
        "it holds a function without a name": replace("a", lambda old: old),
        "'Sly' is no known name": wrap("a", Sly()),
    }
    for why, step in found.items():
        assert f"  found  {why}\n  write  " in text(Recipe("x", steps=[step]).to_json)
    assert text(lambda: to_plain(Recipe("x", steps=[wrap("a", Sly())]))) == (
        "RecipeError: step 1 cannot be written\n"
        '  asked  wrap("a", Sly())\n'
        "  found  'Sly' is no known name\n"
        '  write  @register_block("my_block") on what makes the module, and "my_block" in the step'
    )


class Sly(nn.Tanh):
    """A class of the user, which may print as anything."""


def test_a_module_that_prints_as_a_block_is_no_block(monkeypatch):
    monkeypatch.setattr(Sly, "__repr__", lambda _: "se()")
    assert "found  its text is read as another step" in text(Recipe("x", steps=[wrap("a", Sly())]).to_yaml)


def test_remarks_are_read_and_explained():
    written = "torchgraft: 1\nbase: '# no source knows it'\nsteps:\n  - '# edit(print, name=\"x\")'\n  - drop_head()\n"
    recipe = Recipe.from_yaml(written)
    assert recipe.base == ""
    assert [repr(step) for step in recipe.steps] == ['# edit(print, name="x")', "drop_head()"]
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert "base: '# no source knows" in recipe.to_yaml()
    assert "the base of the recipe is not known" in str(check(recipe))
    known = Recipe("torchvision/resnet18", steps=recipe.steps)
    assert "a step was not written" in text(lambda: build(known))
    (problem,) = check(known).problems
    assert (problem.step, problem.found) == (1, "it holds a function of the draft")


def test_registered_blocks_are_written_by_name():
    register_block("squash")(nn.Tanh)
    recipe = Recipe("x", steps=[wrap("a", "squash")])
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe == Recipe("x", steps=['wrap("a", squash)'])
    assert text(lambda: Recipe("x", steps=['wrap("a", squash())'])).splitlines()[0] == (
        "RecipeError: 'squash' is registered without options, so it is not called"
    )


def test_recipes_tell_where_they_are_wrong():
    wrong = ISSUE.replace("swap_head(10)", "swap_haed(10)").replace("weights:", "wieghts:")
    with pytest.raises(RecipeError) as caught:
        Recipe.from_yaml(wrong)
    assert str(caught.value).startswith("line 3: a recipe has no 'wieghts'\n")
    assert caught.value.__notes__ == ["and 1 problem more; check(...) tells all of them"]
    assert text(lambda: Recipe.from_yaml(ISSUE.replace("swap_head(10)", "swap_haed(10)"))) == (
        "RecipeError: line 7: 'swap_haed' is no known name\n"
        "  asked  swap_haed(10)\n"
        "  found  column 1\n"
        "  near   swap_head, drop_head\n"
        "  write  swap_head(10)"
    )
    assert text(
        lambda: Recipe.from_json('{"torchgraft": 1,\n "base": "x",\n "steps": [\n "a("]}')
    ).startswith("RecipeError: line 4: the step is no expression of Python\n")
    assert text(lambda: from_plain({"torchgraft": 1, "base": 3}, "m.safetensors")).startswith(
        "RecipeError: m.safetensors: base is the name of a model\n"
    )


def test_a_step_with_a_colon_is_quoted():
    said = text(lambda: Recipe.from_yaml('torchgraft: 1\nbase: x\nsteps:\n  - rename({"a": "b"})\n'))
    assert said.startswith("RecipeError: line 4: it is no YAML\n")
    assert said.endswith('write  - \'rename({"a": "b"})\'')
    assert text(lambda: Recipe.from_yaml("torchgraft: 1\nbase: x\nsteps:\n  - rename({a: b})\n")) == (
        "RecipeError: line 4: a step with a colon has to be quoted\n"
        "  asked  rename({a: b})\n"
        "  write  - 'rename({a: b})'"
    )


@pytest.mark.parametrize("word", ["no", "yes", "on", "010", "1e5", "0o17", "1:30", "2020-01-01", ".inf", "="])
def test_words_that_readers_of_yaml_disagree_about_are_refused(word):
    assert text(lambda: Recipe.from_yaml(f"torchgraft: 1\nbase: {word}\n")).startswith(
        f"RecipeError: line 2: '{word}' is read in different ways\n"
    )
    assert Recipe.from_yaml(f"torchgraft: 1\nbase: '{word}'\n").base == word


def test_variables(folder):
    path = folder(
        "recipe.yaml",
        "torchgraft: 1\n"
        "base: torchvision/${net}\n"
        "weights: ${weights}\n"
        "vars: {net: resnet18, weights: true, attention: cbam, classes: 3}\n"
        "options: {num_classes: '${classes}', note: 'costs $$5, ${net}'}\n"
        'steps: [\'wrap("layer1", ${attention})\', "swap_head(${classes})"]\n',
    )
    recipe = read_recipe(path)
    assert recipe.base == "torchvision/resnet18"
    assert recipe.weights is True
    assert dict(recipe.options) == {"num_classes": 3, "note": "costs $5, resnet18"}
    assert recipe.steps == (wrap("layer1", "cbam"), swap_head(3))
    other = read_recipe(path, variables={"attention": "se(reduction=4)", "classes": "7"})
    assert other.steps == (wrap("layer1", se(reduction=4)), swap_head(7))
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe  # its dollar, too
    assert text(lambda: read_recipe(path, variables={"atention": "se"})) == (
        "RecipeError: no ${atention} is in the recipe\n"
        "  asked  atention=se\n"
        "  found  attention, classes, net, weights\n"
        "  near   attention\n"
        "  write  attention=..."
    )


def test_variables_that_mean_nothing(folder):
    start = "torchgraft: 1\nbase: x\nvars: {attention: se, size: 3}\nsteps:\n"
    path = folder("a.yaml", f'{start}  - wrap("a", ${{atention}})\n')
    assert text(lambda: read_recipe(path)) == (
        f"RecipeError: {path}:5: variable 'atention' is not defined\n"
        '  asked  wrap("a", ${atention})\n'
        "  found  attention, size\n"
        "  near   attention\n"
        '  write  wrap("a", ${attention})'
    )
    assert "a dollar begins a variable" in text(
        lambda: read_recipe(folder("b.yaml", f'{start}  - freeze("$a")\n'))
    )
    assert "is a name with text" in text(
        lambda: read_recipe(folder("c.yaml", "torchgraft: 1\nbase: x\nvars: {a: [1]}\n"))
    )
    assert "is a name with text" in text(lambda: read_recipe(path, variables={"a b": 1}))
    assert "is a name with text" in text(lambda: read_recipe(path, variables={"a": object()}))
    long = folder(
        "d.yaml",
        "torchgraft: 1\nbase: x\nvars: {a: " + "b" * 900 + "}\nsteps: ['freeze(\"" + "${a}" * 20 + "\")']\n",
    )
    assert "longer than 10,000 characters" in text(lambda: read_recipe(long))


def test_a_value_of_a_variable_is_text(folder):
    path = folder("r.yaml", "torchgraft: 1\nbase: ${a}\nvars: {a: '${b}', b: c}\n")
    assert read_recipe(path).base == "${b}"


def test_a_recipe_extends_another(folder):
    folder("base.yaml", ISSUE.replace("steps:", "options: {a: 1, b: 2}\nvars: {n: 1}\nsteps:"))
    path = folder(
        "mine.json",
        json.dumps(
            {
                "torchgraft": 1,
                "extends": "base.yaml",
                "weights": None,
                "options": {"b": 3},
                "steps": ["drop_path(0.5)"],
            }
        ),
    )
    recipe = read_recipe(path)
    assert recipe.base == "torchvision/resnet50"
    assert recipe.weights is None
    assert recipe.options == (("a", 1), ("b", 3))
    assert [step.name for step in recipe.steps] == ["wrap", "wrap", "swap_head", "freeze", "drop_path"]


def test_a_digest_belongs_to_the_base_beside_it(folder):
    folder("base.yaml", f"torchgraft: 1\nbase: x\nweights: A\nsha256: '{'0' * 64}'\n")
    assert read_recipe(folder("a.yaml", "torchgraft: 1\nextends: base.yaml\n")).sha256 == "0" * 64
    assert read_recipe(folder("b.yaml", "torchgraft: 1\nextends: base.yaml\nweights: B\n")).sha256 == ""


def test_the_file_that_is_extended_is_named(folder):
    base = folder("sub/base.yaml", "torchgraft: 1\nbase: x\nsteps:\n  - frieze(1)\n")
    path = folder("mine.yaml", "torchgraft: 1\nextends: sub/base.yaml\n")
    assert text(lambda: read_recipe(path)).startswith(f"RecipeError: {base}:4: 'frieze' is no known name\n")
    missing = folder("other.yaml", "torchgraft: 1\n\nextends: sub/bse.yaml\n")
    assert text(lambda: read_recipe(missing)) == (
        f"RecipeError: {missing}:3: the recipe cannot be read\n"
        f"  asked  {missing.parent}/sub/bse.yaml\n"
        "  found  there is no such file\n"
        "  near   base.yaml\n"
        f"  write  {missing.parent}/sub/base.yaml"
    )


def test_recipes_in_a_circle_and_in_a_long_row(folder):
    path = folder("a.yaml", "torchgraft: 1\nextends: b.yaml\n")
    second = folder("b.yaml", "torchgraft: 1\nextends: a.yaml\n")
    assert text(lambda: read_recipe(path)) == (
        f"RecipeError: {second}:2: recipes extend each other in a circle\n"
        "  asked  extends: a.yaml\n"
        "  found  a.yaml -> b.yaml -> a.yaml\n"
        "  write  a recipe that extends nothing"
    )
    for number in range(12):
        folder(f"{number}.yaml", f"torchgraft: 1\nextends: {number + 1}.yaml\n")
    assert "more than 8 recipes extend each other" in text(lambda: read_recipe(path.with_name("0.yaml")))
    assert "extends is the path of a recipe" in text(
        lambda: read_recipe(folder("c.yaml", "torchgraft: 1\nextends: 3\n"))
    )
    assert "extends none" in text(lambda: Recipe.from_yaml("torchgraft: 1\nextends: a.yaml\n"))


def test_no_path_leads_out_of_the_folder(folder, tmp_path):
    folder("out.yaml", "torchgraft: 1\nbase: x\n")
    folder("in/ok.yaml", "torchgraft: 1\nbase: x\n")
    (tmp_path / "in" / "link.yaml").symlink_to(tmp_path / "out.yaml")
    (tmp_path / "in" / "self").symlink_to(tmp_path / "in" / "self")
    head = "torchgraft: 1\nbase: x\n"
    for number, line in enumerate([
        "extends: ../out.yaml",
        "extends: link.yaml",
        f"extends: {tmp_path}/out.yaml",
        "weights: ../w.pth",
        "weights: sub/../../w.pth",
        "weights: ~/w.pth",
        "steps: ['load_weights(\"../w.pth\")']",
        "steps: ['freeze(\"a\") >> load_weights(\"/etc/passwd\")']",
    ]):  # fmt: skip
        path = folder(f"in/{number}.yaml", f"{head}{line}\n")
        said = text(lambda path=path: read_recipe(path))
        assert said.startswith(f"RecipeError: {path}:3: the path leads out of the folder of the recipe\n"), (
            line
        )
        assert "outside=True" in said
        read_recipe(path, outside=True)
    assert "leads out" in text(lambda: read_recipe(folder("in/hf.yaml", "torchgraft: 1\nbase: hf/../../x\n")))
    assert "it is no path" in text(
        lambda: read_recipe(folder("in/loop.yaml", f"{head}weights: self/w.pth\n"))
    )
    assert text(lambda: read_recipe(folder("in/nul.yaml", f'{head}weights: "./a\\0.pth"\n')))


def test_paths_are_relative_to_the_file_in_which_they_stand(folder, tmp_path, monkeypatch):
    folder(
        "sub/base.yaml",
        "torchgraft: 1\nbase: hf/./net\nweights: ./w.pth\nsteps: ['load_weights(\"v.pth\")']\n",
    )
    path = folder("mine.yaml", "torchgraft: 1\nextends: sub/base.yaml\n")
    recipe = read_recipe(path)
    assert recipe.weights == f"{tmp_path}/sub/w.pth"
    assert recipe.base == f"hf/{tmp_path}/sub/net"
    assert recipe.steps == (load_weights(f"{tmp_path}/sub/v.pth"),)
    monkeypatch.chdir(tmp_path)
    assert read_recipe("mine.yaml").weights == "sub/w.pth"
    assert Recipe.from_yaml("torchgraft: 1\nbase: x\nweights: ../w.pth\n").weights == "../w.pth"


def test_files_that_are_no_recipes(folder, tmp_path):
    assert text(lambda: read_recipe(tmp_path / "m.safetensors")).endswith(
        "load(path), or read_record(path).recipe"
    )
    assert "there is no such file" in text(lambda: read_recipe(tmp_path))
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    assert "no UTF-8 text" in text(lambda: read_recipe(tmp_path / "a.yaml"))
    (tmp_path / "b.yaml").write_bytes(b"\xef\xbb\xbf" + ISSUE.encode())
    assert len(read_recipe(tmp_path / "b.yaml").steps) == 4
    assert "a recipe is values by name" in text(lambda: read_recipe(folder("c.yaml", "- a\n")))
    assert "the recipe has no base" in text(lambda: read_recipe(folder("d.yaml", "torchgraft: 1\n")))


def test_a_model_is_built_and_tells_its_recipe():
    recipe = Recipe(
        "torchvision/resnet18", options={"num_classes": 7}, steps=['wrap("layer4", se)', "swap_head(10)"]
    )
    model = build(recipe, seed=0)
    assert recipe_of(model) == recipe
    assert recipe_of(build(Recipe("resnet18"))) == Recipe("torchvision/resnet18")
    again = build(recipe, seed=0)
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True)
    )
    state = torch.get_rng_state()
    build(recipe, seed=1)
    assert torch.equal(state, torch.get_rng_state())


def test_sizes_of_an_example_are_kept():
    model = pipe(build(Recipe("resnet18")), freeze("layer1"), example=torch.zeros(1, 3, 64, 64))
    recipe = recipe_of(model)
    assert recipe.example == (1, 3, 64, 64)
    assert recipe_of(build(recipe)) == recipe


def test_what_cannot_be_built():
    assert "does not say what it begins with" in text(lambda: build(Recipe("")))
    with pytest.raises(ModelError):
        recipe_of(3)
    made = pipe(build(Recipe("resnet18")), freeze("layer1"), edit(lambda draft: None, name="mine"))
    assert "RecipeError: step 2 cannot be written" in text(lambda: recipe_of(made))


def test_a_model_of_unknown_origin_has_its_steps():
    recipe = recipe_of(pipe(nn.Sequential(nn.Linear(3, 2)), freeze("0")))
    assert recipe == Recipe("", steps=[freeze("0")])
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


def test_the_base_of_a_model_that_a_library_built_is_known():
    model = pipe(resnet18(num_classes=7), wrap("layer4", "se"), swap_head(10))
    recipe = recipe_of(model)
    assert recipe == Recipe(
        "torchvision/resnet18", options=recipe.options, steps=['wrap("layer4", se)', "swap_head(10)"]
    )
    assert {key: t.shape for key, t in build(recipe).state_dict().items()} == {
        key: t.shape for key, t in model.state_dict().items()
    }


def test_other_weights_than_those_of_the_recipe_are_refused(tmp_path):
    torch.save(build(Recipe("squeezenet1_1"), seed=0).state_dict(), tmp_path / "w.pth")
    recipe = Recipe("squeezenet1_1", weights=str(tmp_path / "w.pth"), steps=["drop_head()"])
    known = recipe_of(build(recipe))
    assert len(known.sha256) == 64
    build(known)
    assert "are not those that the recipe was written for" in text(
        lambda: build(attrs.evolve(known, sha256="0" * 64))
    )


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("y", "'y'"),
        ("it's", "it's"),
        ("a: b", "'a: b'"),
        ("a #b", "'a #b'"),
        ("a:", "'a:'"),
        ("'a'", "'''a'''"),
        ("1", "'1'"),
        ("1e5", "'1e5'"),
        ("a\nb\x85\ufeff", '"a\\nb\\u0085\\ufeff"'),
        (1e-5, "1.0e-5"),
        (1.5e300, "1.5e+300"),
        (True, "true"),
        (None, "null"),
        ([], "[]"),
        (["a", [1, "b"]], "['a', [1, 'b']]"),
    ],
)
def test_values_are_written_for_every_reader(value, said):
    assert write_yaml({"a": value}) == f"a: {said}\n"
    assert write_yaml({"a": {"b": value}}) == f"a:\n  b: {said}\n"


def test_build_takes_what_reading_takes(tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "base.yaml").write_text("torchgraft: 1\nbase: torchvision/squeezenet1_1\n")
    path = tmp_path / "r" / "recipe.yaml"
    path.write_text("torchgraft: 1\nextends: ../base.yaml\nvars: {n: 3}\nsteps:\n  - swap_head(${n})\n")
    with pytest.raises(RecipeError):
        build(path)
    assert build(path, outside=True, variables={"n": 4}).classifier[1].out_channels == 4
    with pytest.raises(OptionError, match="has its variables and its paths"):
        build(Recipe("torchvision/squeezenet1_1"), outside=True)


def test_the_example_of_a_recipe_is_that_of_its_base():
    recipe = Recipe("torchvision/squeezenet1_1", example=(1, 3, 64, 64), steps=["adapt_input(4)"])
    assert recipe_of(build(recipe)) == recipe
    model = pipe(nn.Linear(3, 2), example={"input": torch.zeros(1, 3)})
    with pytest.raises(RecipeError, match="the example that the model was made with cannot be written"):
        recipe_of(model)
