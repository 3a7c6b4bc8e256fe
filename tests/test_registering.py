"""Builders of the user and of installed packages, under names."""

from __future__ import annotations

import pytest
from torch import nn

from torchgraft import pipe, swap_head
from torchgraft.errors import GraftError, OptionError, SourceError
from torchgraft.graph.history import Origin, history_of
from torchgraft.sources import registry
from torchgraft.sources.get import get_model, list_models, skeleton_of
from torchgraft.sources.registry import REGISTERED, register_model


@pytest.fixture(autouse=True)
def _own_table(monkeypatch):
    monkeypatch.setattr(registry, "_TABLE", {})


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Install a package with entry points, on the path of this test alone."""

    def install(points: dict[str, str], code: str, name: str = "nets") -> None:
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [f"{key} = {value}" for key, value in points.items()]
        (info / "entry_points.txt").write_text("\n".join(["[torchgraft.models]", *lines, ""]))
        (tmp_path / f"{name}_of_a_package.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path)

    return install


def text(call) -> str:
    with pytest.raises(GraftError) as caught:
        call()
    return f"{type(caught.value).__name__}: {caught.value}"


def tiny(num_classes: int = 3, *, width: int = 4) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes)
    )


def test_one_name_and_many():
    assert register_model("tiny")(tiny) is tiny
    register_model(["small", "large-2.x"])(tiny)
    model = get_model("tiny", num_classes=7, width=5)
    assert model[3].out_features == 7
    assert history_of(model).origin == Origin("registered/tiny", None, (("num_classes", 7), ("width", 5)))
    assert get_model("registered/large-2.x")[3].out_features == 3
    assert list_models(source="registered") == ("registered/large-2.x", "registered/small", "registered/tiny")
    assert skeleton_of(history_of(model).origin)[0].weight.is_meta


def test_a_builder_is_told_the_name_it_needs():
    @register_model(["net_4", "net_8"])
    def family(name, num_classes=2):
        return nn.Linear(int(name[-1]), num_classes)

    assert get_model("net_4").in_features == 4
    assert get_model("net_8", num_classes=5).in_features == 8
    assert history_of(get_model("net_8")).origin.options == ()
    with pytest.raises(OptionError, match="takes no name"):
        skeleton_of(Origin("registered/net_8", options=(("name", "net_4"),)))

    @register_model("called")
    def called(name="mine"):
        return nn.Linear(len(name), 1)

    assert get_model("called").in_features == 4


def test_a_class_and_any_keyword():
    @register_model("net")
    class Net(nn.Module):
        def __init__(self, width, **kwargs):
            super().__init__()
            self.fc = nn.Linear(width, 2, **kwargs)

    assert get_model("net", width=3, bias=False).fc.bias is None
    assert text(lambda: get_model("net")) == (
        "OptionError: the builder of registered/net needs width\n"
        '  asked  get_model("net")\n'
        "  found  it takes width\n"
        '  write  get_model("net", width=...)'
    )
    assert text(lambda: get_model("net", width=3, bia=False)) == (
        "SourceError: the builder of registered/net refuses these options\n"
        '  asked  get_model("net", width=3, bia=False)\n'
        "  found  TypeError: Linear.__init__() got an unexpected keyword argument 'bia'"
    )


def test_a_parameter_that_cannot_be_named():
    @register_model("positional")
    def positional(width, /):
        return nn.Linear(width, 2)

    with pytest.raises(OptionError, match="needs width"):
        get_model("positional")


def test_own_builders_come_first_and_full_names_say_which():
    register_model("resnet18")(tiny)
    assert history_of(get_model("resnet18")).origin.base == "registered/resnet18"
    assert type(get_model("torchvision/resnet18")).__name__ == "ResNet"


def test_a_name_is_given_once():
    register_model("tiny")(tiny)
    register_model("tiny")(tiny)

    def other():
        return nn.Linear(1, 1)

    with pytest.raises(OptionError) as caught:
        register_model(["new", "tiny"])(other)
    assert caught.value.summary == 'a model named "tiny" is registered already'
    assert caught.value.write == '@register_model("my_tiny")'
    assert REGISTERED.names() == ["tiny"]  # none of them was taken


@pytest.mark.parametrize("names", ["", "a b", "a/b", [], ["a", 3], "*", "-a", "a\n"])
def test_what_is_no_name(names):
    with pytest.raises(OptionError):
        register_model(names)
    assert REGISTERED.names() == []


def test_the_texts_of_what_is_no_builder():
    assert text(lambda: register_model("a/b")) == (
        "OptionError: the name of a model consists of letters, digits, '_', '.' and '-'\n"
        '  asked  register_model("a/b")\n'
        '  found  "a/b"\n'
        '  write  @register_model("my_model")'
    )
    assert text(lambda: register_model("net")(nn.Linear(1, 1).weight)) == (
        "OptionError: a builder is a function that returns a model\n"
        '  asked  register_model("net")\n'
        "  found  a Parameter\n"
        '  write  @register_model("net") before its def'
    )
    with pytest.raises(SourceError, match='no model of registered is named "registered/tiny"'):
        get_model("registered/tiny")


def test_a_builder_that_returns_no_model():
    register_model("none")(lambda: None)
    with pytest.raises(SourceError) as caught:
        get_model("none")
    assert caught.value.summary == 'the builder of "none" does not return a model'
    assert caught.value.found.startswith("a NoneType from <lambda at ")


def test_a_builder_that_edits_is_one_base():
    @register_model("edited")
    def edited(classes=4):
        return pipe(tiny(), swap_head(classes))

    model = get_model("edited")
    assert history_of(model).origin.base == "registered/edited"
    assert history_of(model).steps == ()
    assert history_of(pipe(model, swap_head(2))).steps == ("swap_head(2)",)


def test_what_belongs_before_a_model():
    register_model("tiny", preprocessing=str.upper)(tiny)
    register_model("bare")(tiny)
    assert REGISTERED.preprocessing("tiny") is str.upper
    assert REGISTERED.preprocessing("bare") is None


def test_an_entry_point_is_loaded_when_it_is_asked_for(package):
    package(
        {
            "of_package": "nets_of_a_package:build",
            "broken": "nets_of_nobody:build",
            "number": "nets_of_a_package:three",
        },
        "from torch import nn\nthree = 3\ndef build(width=2):\n    return nn.Linear(width, 1)\n",
    )
    assert list_models(source="registered") == (
        "registered/broken",
        "registered/number",
        "registered/of_package",
    )
    assert registry._TABLE == {}
    assert get_model("of_package", width=6).in_features == 6
    assert text(lambda: get_model("broken")) == (
        'SourceError: the model "broken" of the package nets cannot be loaded: '
        "ModuleNotFoundError: No module named 'nets_of_nobody'\n"
        '  asked  get_model("broken")\n'
        "  found  torchgraft.models: broken = nets_of_nobody:build"
    )
    with pytest.raises(SourceError, match="it is an int"):
        get_model("registered/number")


def test_an_entry_point_that_registers_itself(package):
    package(
        {"self_made": "own_of_a_package:build"},
        "from torch import nn\nfrom torchgraft.sources.registry import register_model\n"
        "@register_model('self_made', preprocessing=len)\ndef build():\n    return nn.Linear(1, 1)\n",
        name="own",
    )
    assert get_model("self_made").in_features == 1
    assert REGISTERED.preprocessing("self_made") is len


def test_one_name_of_two_packages(package):
    package({"twice": "a_of_a_package:build"}, "", name="a")
    package({"twice": "b_of_a_package:build"}, "", name="b")
    with pytest.raises(SourceError, match="two packages offer it"):
        get_model("twice")
    register_model("twice")(tiny)
    assert get_model("twice")[3].out_features == 3
