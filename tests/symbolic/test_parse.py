"""Values from the command line."""

import sys
import types

import pytest

from flambeau.symbolic import Node, SymbolicError, parse_value, patch, symbolize


@pytest.fixture
def room(monkeypatch):
    """A room with two public parts."""
    module = types.ModuleType("flambeau.generation")

    class Sampler:
        def __init__(self, steps: int = 3, inner=None):
            self.steps, self.inner = steps, inner

    def walk(start: float):
        return start

    for part in (Sampler, walk):
        part.__module__ = "flambeau.generation"
        part.__qualname__ = part.__name__
        setattr(module, part.__name__, part)
    module.sys = sys
    monkeypatch.setitem(sys.modules, "flambeau.generation", module)
    for name in ("data", "nn", "models", "objectives", "training", "search"):
        monkeypatch.setitem(sys.modules, f"flambeau.{name}", types.ModuleType(f"flambeau.{name}"))
    return module


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-3", -3),
        ("1e-3", 1e-3),
        ("-.5", -0.5),
        ("True", True),
        ("true", True),
        ("false", False),
        ("None", None),
        ("null", None),
        ("'a b'", "a b"),
        ("[1, 'x', [2.5]]", [1, "x", [2.5]]),
        ("(1, 2)", (1, 2)),
        ("64,32", (64, 32)),
        ("{'a': [1]}", {"a": [1]}),
        ("[relu, tanh]", ["relu", "tanh"]),
        ("", ""),
        ("relu", "relu"),
        ("load.csv", "load.csv"),
        ("mnist/", "mnist/"),
        ("hf:gpt2/x", "hf:gpt2/x"),
        ("a b", "a b"),
        ("a-b", "a-b"),
        ("x < 3", "x < 3"),
        ("...", "..."),
        ("f'{x}'", "f'{x}'"),
        ("1 + 1", "1 + 1"),
        ("lambda: 1", "lambda: 1"),
        ("x.pt@3", "x.pt@3"),
        ("3rd", "3rd"),
        ("~/data", "~/data"),
        ("(" * 300, "(" * 300),
    ],
)
def test_literals_and_strings(text, value):
    parsed = parse_value(text)
    assert parsed == value and isinstance(parsed, type(value))


def test_calls_of_public_parts(room):
    value = parse_value("Sampler(steps=4, inner=[walk(0.5), generation.Sampler(), flambeau.generation.walk(1)])")
    assert isinstance(value, Node) and value.target is room.Sampler
    assert value.build().inner[0] == 0.5 and value.build().inner[2] == 1.0
    space = parse_value("oneof([Sampler(1), Sampler(steps=intv(2, 5))], name='s')")
    assert space.candidates[1].steps.lo == 2 and space.label == "s"
    assert parse_value("floatv(1e-4, 1, 'log')").scale == "log" and parse_value("manyof(2, [a, b, c])").k == 2


def test_torch_parts_by_their_full_name():
    torch = pytest.importorskip("torch")
    late = parse_value("partial(torch.optim.SGD, lr=0.1)")
    assert late.build().keywords["lr"] == 0.1 and late.late and late.target is torch.optim.SGD
    assert parse_value("torch.nn.Linear(3, 4)").build().out_features == 4
    assert parse_value("torch.nn.ReLU") is torch.nn.ReLU
    assert parse_value("[torch.nn.functional.relu]")[0] is torch.nn.functional.relu


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Sampel(3)", "Sampel: there is no part of that name; did you mean Sampler"),
        ("sys.exit(1)", "sys.exit: there is no room 'sys'"),
        ("generation.sys.exit(1)", "no room"),
        ("generation.Samplr()", "did you mean Sampler"),
        ("sys(1)", "no part of that name"),
        ("__import__('os').system('x')", "not the name of a part"),
        ("[__import__('os')]", "no part of that name"),
        ("eval('1')", "no part of that name"),
        ("Sampler(stepz=3)", "unknown argument 'stepz'; did you mean steps"),
        ("Sampler(steps='x')", "Sampler.steps: expected int"),
        ("Sampler(*[1])", r"\* and \*\*"),
        ("Sampler(**{'steps': 1})", r"\* and \*\*"),
        ("walk()", "walk: missing start"),
        ("[1 + 1]", "not a literal"),
        ("[lambda: 1]", "not a literal"),
        ("{1: [x for x in y]}", "not a literal"),
        ("torch.load('x')", "only classes and functions of torch.nn"),
        ("torch.nn.Linaer(3, 4)", "no such class or function; did you mean Linear"),
        ("torch.nn.modules.module.torch.load('x')", "no such class|belongs to"),
        ("torch.optim.Adam.__init__()", "no such class"),
        ("partial()", "partial needs"),
        ("partial(3)", "partial needs"),
        ("oneof([])", "at least one candidate"),
        ("oneof(1, 2, 3, 4)", "positional"),
        ("floatv(2, 1)", "lo < hi"),
        ("-'x'", "not a literal"),
        ("Sampler(" * 90 + ")" * 90, "nested|Sampler"),
        ("x" * 20_001, "at most 20000 characters"),
    ],
)
def test_what_means_nothing_is_refused_with_the_nearest_names(room, text, message):
    pytest.importorskip("torch")
    with pytest.raises(SymbolicError, match=message):
        value = parse_value(text)
        assert not isinstance(value, Node) or value.build() is None  # the 90 samplers fit into one another


class Loop:
    """Something with a typed parameter of each kind."""

    def __init__(
        self,
        steps: int = 1,
        rate: float = 0.1,
        name: str = "x",
        kind: int | str = 0,
        parts: list[str] | None = None,
    ):
        self.steps, self.rate, self.name, self.kind, self.parts = steps, rate, name, kind, parts


def experiment(run, *, training=symbolize(Loop)(), seed: int = 0, layers: list[int] = [1, 2], more=None):  # noqa: B006
    """The kind of function whose parameters are patched."""
    return training, seed, layers, more


def test_patch_reads_paths_and_values():
    tree = symbolize(experiment).partial()
    texts = ["training.steps=5", "training.rate=1", "training.name=3", "training.kind=3", "seed = 7", "layers[1]=9"]
    assert patch(tree, texts) is tree
    assert tree.training == symbolize(Loop)(5, 1.0, "3", 3) and tree.seed == 7 and tree["layers"] == [1, 9]
    patch(tree, ["layers=oneof([[1], [2, 3]])", "training.parts=[a, b]", "more=x=y"])
    assert tree.layers.candidates[1] == [2, 3] and tree.training.parts == ["a", "b"] and tree.more == "x=y"
    patch(tree, {"training.steps": 9, "more": [symbolize(Loop)()]})
    assert tree.training.steps == 9 and tree.more[0].parent is tree.more


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training.step=5", "training.step: .*did you mean steps"),
        ("trainin.steps=5", "trainin: .*did you mean training"),
        ("training.steps=five", "training.steps: expected int, got 'five'"),
        ("training.steps=2.5", "training.steps: expected int, got 2.5"),
        ("training.rate=oneof([0.1, x])", r"training.rate.candidates\[1\]: expected float, got 'x'"),
        ("layers[7]=1", r"layers\[7\]: no item"),
        ("more=Lop()", "more: Lop: there is no part"),
        ("seed", "expected path=value"),
        ("=3", "expected path=value"),
        ("training..x=3", "not a path"),
    ],
)
def test_patches_that_do_not_fit_change_nothing(room, text, message):
    tree = symbolize(experiment).partial()
    before = tree.clone()
    with pytest.raises(SymbolicError, match=message):
        patch(tree, ["seed=3", text])
    assert tree == before
