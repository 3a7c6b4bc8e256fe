"""Check of recipes: everything that is wrong, at once, with file and line, and no values anywhere."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from torchgraft import freeze, load_weights
from torchgraft.blocks import register_block
from torchgraft.recipe import Recipe, check, read_recipe

HEAD = "torchgraft: 1\nbase: torchvision/resnet18\n"


@pytest.fixture
def checked(tmp_path, monkeypatch):
    """Check what is written to ``recipe.yaml``, and return the report as text."""
    monkeypatch.chdir(tmp_path)

    def run(content, **options):
        (tmp_path / "recipe.yaml").write_text(content)
        return check("recipe.yaml", **options)

    return run


def lines(report):
    return [(problem.line, problem.summary) for problem in report.problems]


def test_a_recipe_that_is_right(checked):
    report = checked(
        f'{HEAD}steps:\n  - wrap("layer4", cbam(reduction=8))\n  - freeze(~(stage(-1) | head))\n'
    )
    assert report.ok
    assert str(report) == "recipe.yaml: 2 steps, no problems"
    assert report.to_json() == {"name": "recipe.yaml", "ok": True, "steps": 2, "problems": []}


def test_everything_is_told_at_once(checked, tmp_path):
    (tmp_path / "near.pth").write_bytes(b"")
    report = checked(
        "torchgraft: 1\n"
        "base: torchvision/resnet18\n"
        "wieghts: DEFAULT\n"
        "weights: IMAGENET1K_V3\n"
        "options:\n"
        "  num_clases: 3\n"
        "  drop_path_rate: 0.1\n"
        "  foo: 1\n"
        "vars: {attention: se}\n"
        "example: [1, 3, -4]\n"
        "steps:\n"
        '  - wrap("layr1", se)\n'
        '  - wrap("layer2", sse, name="x")\n'
        '  - freeze("layer2.x")\n'
        "  - freeze(stage(9))\n"
        '  - wrap("layer1", ${atention})\n'
        "  - swap_head(-3)\n"
        '  - wrap("layer1", cbam(kernl=2))\n'
        '  - load_weights("nera.pth")\n'
        '  - load_weights("../w.pth")\n'
        "  - 3\n"
        '  - replace("layer3.0.conv1", batch_norm)\n'
    )
    assert lines(report) == [
        (3, "a recipe has no 'wieghts'"),
        (4, 'torchvision/resnet18 has no weights "IMAGENET1K_V3"'),
        (6, "the builder of torchvision/resnet18 takes no num_clases"),
        (7, "the builder of torchvision/resnet18 takes no drop_path_rate"),
        (8, "the builder of torchvision/resnet18 takes no foo"),
        (10, "example is the sizes of an input, all of them positive"),
        (12, '"layr1" is no module and no node of this model'),
        (13, "'sse' is no known name"),
        (15, "this model has no stage 9"),
        (16, "variable 'atention' is not defined"),
        (17, "the number of classes must be positive"),
        (18, "cbam: got an unexpected keyword argument 'kernl'"),
        (19, "there is no file 'nera.pth'"),
        (20, "the path leads out of the folder of the recipe"),
        (21, "a step is a transform, or its text"),
        (22, "'layer3.0.conv1' gives n 256 14 14 and batch_norm() gives n 128 28 28"),
    ]
    write = {problem.line: problem.write for problem in report.problems}
    assert write[4] == "weights: IMAGENET1K_V1"
    assert write[6] == "num_classes: 3"
    assert write[7] == "- drop_path(0.1)"
    assert write[8] == "no foo"
    assert write[12] == 'wrap("layer1", se())'
    assert write[19] == 'load_weights("near.pth")'
    assert str(report).endswith("\nrecipe.yaml: 16 problems")


def test_a_problem_as_it_is_printed(checked):
    report = checked(f'{HEAD}steps:\n  - freeze("fc")\n\n  - wrap("layr4", se)\n')
    assert str(report) == (
        'recipe.yaml:6: "layr4" is no module and no node of this model\n'
        '  asked  wrap("layr4", se())\n'
        "  found  67 modules, no node of that name in the root\n"
        "  near   layer4, layer4.1, layer4.0\n"
        '  write  wrap("layer4", se())\n'
        "recipe.yaml: 1 problem"
    )
    assert json.loads(json.dumps(report.to_json()))["problems"] == [
        {
            "file": "recipe.yaml",
            "line": 6,
            "step": 2,
            "summary": '"layr4" is no module and no node of this model',
            "asked": 'wrap("layr4", se())',
            "found": "67 modules, no node of that name in the root",
            "near": ["layer4", "layer4.1", "layer4.0"],
            "write": 'wrap("layer4", se())',
            "after": "",
        }
    ]


def test_what_follows_from_another_problem_says_so(checked):
    report = checked(
        f'{HEAD}steps:\n  - wrap("layer2", qqqqqq, name="x")\n  - freeze("layer2.x")\n  - wrap("layr1", se)\n  - freeze(stage(9))\n'
    )
    assert [problem.after for problem in report.problems] == [
        "",
        "step 1 was left out",
        "step 1 was left out; step 2 was taken as it was most likely meant",
        "step 1 was left out; steps 2, 3 were taken as they were most likely meant",
    ]
    assert str(report.problems[1]).endswith("\n  after  step 1 was left out")


def test_files_that_are_extended_are_named(checked, tmp_path):
    (tmp_path / "base.yaml").write_text(
        f"{HEAD}options: {{foo: 1}}\nsteps:\n- frieze('a')\n- swap_head(10)\n"
    )
    report = checked("torchgraft: 1\nextends: base.yaml\nsteps:\n- wrap('layr1', se)\nsteps2: 1\n")
    assert [(problem.file, problem.line) for problem in report.problems] == [
        ("recipe.yaml", 4),
        ("recipe.yaml", 5),
        ("base.yaml", 3),
        ("base.yaml", 5),
    ]


def test_syntax_has_line_and_column(checked):
    (problem,) = checked(f"{HEAD}steps: [a\nfoo: 1\n").problems
    assert (problem.line, problem.summary) == (4, "it is no YAML")
    assert problem.found.startswith("column 4: ")
    (problem,) = checked(f"{HEAD}base: x\n").problems
    assert (problem.line, problem.summary, problem.found) == (3, "'base' stands twice", "first on line 2")


@pytest.mark.parametrize(
    ("content", "line", "summary"),
    [
        ("", 1, "a recipe is values by name"),
        ("a", 1, "a recipe is values by name"),
        ("torchgraft: 2\nfoo: 1\n", 1, "this version of torchgraft does not read recipes of that version"),
        ("torchgraft: true\n", 1, "this version of torchgraft does not read recipes of that version"),
        ("base: torchvision/resnet18\n", 1, "a recipe says which version of its form it is written in"),
        ("torchgraft: 1\n", 1, "the recipe has no base"),
        ("torchgraft: 1\nbase:\n", 1, "the recipe has no base"),
        ("torchgraft: 1\nbase: 3\n", 2, "base is the name of a model"),
        ("torchgraft: 1\nbase: {a: b}\n", 2, "base is the name of a model"),
        ("torchgraft: 1\nbase: ''\n", 2, "the base of the recipe is not known"),
        ("torchgraft: 1\nbase: torchvision/resnet181\n", 2, "no model of torchvision is named"),
        (
            f"{HEAD}weights: 3\n",
            3,
            "weights is a name, the path of a file, or true for those that the source takes itself",
        ),
        (f"{HEAD}options: 3\n", 3, "options are values by name"),
        (
            f"{HEAD}options:\n  a: {{b: 1}}\n",
            4,
            "option 'a' is no text, number, flag or list of these, so no file can hold it",
        ),
        (f"{HEAD}steps: 3\n", 3, "steps are a list"),
        (f"{HEAD}steps:\n  - a: b\n    c: d\n", 4, "a step is a transform, or its text"),
        (f"{HEAD}steps:\n  - rename({{a: b}})\n", 4, "a step with a colon has to be quoted"),
        (f"{HEAD}sha256: abc\n", 3, "sha256 is 64 digits, 0 to 9 and a to f"),
        (f"{HEAD}vars: 3\n", 3, "vars are values by name"),
        (f"{HEAD}weights: ./w.pth\n", 3, 'there is no file "w.pth"'),
        (
            f"{HEAD}options: {{num_classes: abc}}\n",
            3,
            "the builder of torchvision/resnet18 refuses these options",
        ),
        (f"{HEAD}steps: [" + "freeze('a')," * 1001 + "]\n", 3, "a recipe has at most 1,000 steps"),
    ],
)
def test_each_kind_of_problem(checked, content, line, summary):
    report = checked(content)
    (found,) = [
        problem for problem in report.problems if problem.summary.replace("./", "").startswith(summary)
    ]
    assert found.line == line
    assert not report.ok


def test_a_file_that_is_not_there(tmp_path):
    (tmp_path / "recipe.yaml").write_text("")
    report = check(tmp_path / "recpe.yaml")
    assert report.problems[0].near == ("recipe.yaml",)
    assert report.problems[0].write == str(tmp_path / "recipe.yaml")


def test_variables_and_paths_are_given(checked):
    content = f"{HEAD}steps: ['swap_head(${{n}})', 'load_weights(\"../w.pth\")']\n"
    assert len(checked(content).problems) == 2
    (problem,) = checked(content, variables={"n": 3}, outside=True).problems
    assert problem.summary == "there is no file 'w.pth'"


def test_a_recipe_of_python_has_numbers_of_steps():
    report = check(
        Recipe(
            "resnet18",
            weights="V9",
            options={"foo": 1},
            steps=['freeze("layer1")', 'freeze("layr2")', load_weights("x.pth")],
        )
    )
    assert [(p.file, p.line, p.step) for p in report.problems] == [
        ("", 0, 0),
        ("", 0, 0),
        ("", 0, 2),
        ("", 0, 3),
    ]
    assert str(report.problems[2]).startswith('step 2: "layr2" is no module')
    assert repr(report) == str(report)
    assert "the base of the recipe is not known" in str(check(Recipe("", steps=[freeze("a")])))


def test_all_failures_of_steps_are_found_however_they_fail():
    @register_block("raising")
    class Raising(nn.Module):
        def __init__(self):
            super().__init__()
            raise RuntimeError("not today")

    steps = [
        "drop_head()",
        'wrap("layer1", "raising")',
        "swap_head(5)",
        'wrap("layr2", se)',
        'inject("layer3", "raising")',
    ]
    report = check(Recipe("resnet18", steps=steps))
    assert [problem.step for problem in report.problems] == [2, 4, 5]
    assert report.problems[0].found == "RuntimeError: not today"


def test_sizes_of_an_example_are_used():
    assert check(Recipe("resnet18", steps=["swap_head(3)", 'wrap("layer4", se)'], example=(1, 3, 64, 64))).ok


def test_a_model_whose_input_is_not_guessed_asks_for_an_example():
    (problem,) = check(Recipe("s3d", steps=["wrap(stage(-1), se)"])).problems
    assert problem.write == "example: [<sizes of an input that the model takes>]"


def test_many_problems_have_an_end():
    report = check(Recipe("resnet18", steps=[f"freeze(stage({n}))" for n in range(9, 99)]))
    assert len(report.problems) == 21
    assert report.problems[-1].summary == "20 steps fail, so no more of them were tried"


def test_nothing_is_allocated():
    steps = [f"swap_head({10**12})", 'wrap("layer4", se)', f'wrap("layer1", adapter({10**9}))']
    report = check(Recipe("torchvision/resnet18", options={"num_classes": 10**10}, steps=steps))
    assert report.ok


def test_the_generator_is_left_where_it_was():
    state = torch.get_rng_state()
    check(Recipe("resnet18", steps=['wrap("layer4", se)', "swap_head(3)"]))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    "line",
    [
        f"extends: {'a' * 5_000}.yaml",
        f"extends: {'a/' * 3_000}b.yaml",
        f"weights: {'a' * 3_000}.pth",
        f"weights: {'a/' * 1_500}b.pth",
        f"steps: ['load_weights(\"{'a' * 5_000}\")']",
        f"steps: ['load_weights(\"{'a/' * 3_000}b\")']",
        "weights: './a\\0.pth'",
        "steps: [\"load_weights('a\\0')\"]",
    ],
    ids=lambda line: line[:14],
)  # fmt: skip
def test_names_that_no_system_takes(checked, line):
    report = checked(f"{HEAD}{line}\n")
    assert [problem.line for problem in report.problems] == [3]
    assert len(str(report)) < 13_000


def test_a_folder_beside_a_recipe_is_a_base(tmp_path, monkeypatch):
    (tmp_path / "own" / "net").mkdir(parents=True)
    for base in ("hf/own/net", "hf/./own/net"):
        (tmp_path / "recipe.yaml").write_text(f"torchgraft: 1\nbase: {base}\n")
        assert read_recipe(tmp_path / "recipe.yaml").base == f"hf/{tmp_path}/own/net"
    (tmp_path / "recipe.yaml").write_text("torchgraft: 1\nbase: hf/other/net\n")
    assert read_recipe(tmp_path / "recipe.yaml").base == "hf/other/net"
