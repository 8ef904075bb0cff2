"""Files and digests: what goes in comes out, nothing is executed, and nothing outside the allow-list is named."""

import json
import math
import random
from functools import partial
from pathlib import Path

import pytest

from flambeau.symbolic import (
    DNA,
    SymbolicError,
    digest,
    floatv,
    from_json,
    from_yaml,
    intv,
    load,
    manyof,
    oneof,
    permutate,
    save,
    symbolize,
    to_json,
    to_yaml,
)


class Thing:
    """Something with arguments of any kind."""

    def __init__(self, a=None, b=1.0, *rest, c=(), **more):
        self.a, self.b, self.rest, self.c, self.more = a, b, rest, c, more


T = symbolize(Thing)


def random_value(rng, depth):
    kind = rng.randrange(13) if depth else rng.randrange(6)
    below = lambda: random_value(rng, depth - 1)  # noqa: E731
    if kind < 6:
        floats = [rng.random() * 10 ** rng.randint(-300, 300), -0.0, math.inf, -math.inf, math.nan]
        text = "a\n\u2028'\"\\é"
        return [rng.randrange(10**20), rng.choice(floats), text, None, rng.random() < 0.5, Path("x/y z")][kind]
    return [
        lambda: T(below(), rng.random(), below(), c=below(), d=below()),
        lambda: [below() for _ in range(rng.randrange(3))],
        lambda: tuple(below() for _ in range(rng.randrange(3))),
        lambda: {rng.choice(["x", "_y", "z w", 3, (1, 2)]): below()},
        lambda: rng.choice([oneof([below(), below()]), permutate([below()]), manyof(1, [below()], name="n")]),
        lambda: rng.choice([floatv(0, 1), intv(1, 5)]),
        lambda: rng.choice([Thing, T.partial(b=2.0), oneof]),
    ][kind - 6]()


def test_json_and_yaml_round_trips_keep_value_and_digest():
    for seed in range(200):
        value = T(random_value(random.Random(seed), 4))
        text = json.dumps(to_json(value), allow_nan=False)
        assert from_json(text) == value and digest(from_json(text)) == digest(value)
        if seed < 40:
            assert from_yaml(to_yaml(value)) == value


def values():
    """A few values of every kind, under fixed names."""
    linear = symbolize(__import__("torch").nn.Linear)
    return {
        "int": 1,
        "float": 0.1,
        "negative zero": -0.0,
        "text": "é",
        "containers": {"b": [1, (True, None)], "a": math.inf},
        "dna": DNA(None, [DNA(1, [DNA(0.5)])]),
        "linear": linear(3, 4, bias=False),
        "late": linear.partial(3),
        "hyper": oneof([1, manyof(2, [1.0, 2.0, 3.0])], name="x"),
    }


FIXED = {
    "int": "6b86b273ff34fce1",  # sha256 of the text 1
    "float": "9277d5bc3dd05e8b",
    "negative zero": "277f46b48a7f54e9",
    "text": "abc3932c9ec58f04",
    "containers": "c9a944becd52dac7",
    "dna": "4ba467e84ea1d240",
    "linear": "5670c7e36c409940",
    "late": "014da84b5b536943",
    "hyper": "039ff8c5350ea19f",
}


def test_digests_are_the_ones_of_every_other_process():
    assert {name: digest(value)[:16] for name, value in values().items()} == FIXED


def test_digests_tell_values_apart_by_type_but_not_by_spelling():
    distinct = [1, 1.0, True, "1", [1], (1,), {"a": 1}, None, 0.1, 0.1 + 2**-56, -0.0, 0.0, T(1), T(1.0), T.partial(1)]
    assert len({digest(v) for v in distinct}) == len(distinct)
    assert digest(T(1, 1.0)) == digest(T(1)) and digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda: T(a=[lambda: 1]), r"a\[0\]: a lambda cannot be written"),
        (lambda: T(c=oneof([1, lambda: 2])), r"c.candidates\[1\]: a lambda"),
        (lambda: T(a={"x": object()}), r"a\.x: <object.*cannot be written"),
        (lambda: T(a=partial(print, 1).__call__), "a: .*cannot be written"),
        (lambda: T(a=local()), "a: .*not importable under that name"),
    ],
)
def test_what_cannot_be_written_is_an_error_with_its_path(value, message):
    with pytest.raises(SymbolicError, match=message):
        to_json(value())


def local():
    def inner():
        return 1

    return inner


def test_lambdas_have_no_digest():
    with pytest.raises(SymbolicError, match=r"a\[0\]: a lambda"):
        digest(T(a=[lambda x: 1]))


def call(name, **args):
    return {"flambeau": 1, "value": {"_call": name, "args": args}}


@pytest.mark.parametrize(
    "name",
    [
        "os:system",
        "builtins:eval",
        "subprocess:run",
        "flambeau.files:os.system",
        "flambeau.files:write_bytes",
        "flambeau.symbolic.serialization:save",
        "flambeau.symbolic.serialization:importlib.import_module",
        "flambeau.symbolic.serialization:os",
        "flambeau.symbolic.serialization:pathlib.Path",
        "flambeau.symbolic.node:Symbol.__init__.__globals__",
        "flambeau.symbolic.node:Symbol.__call__",
        "flambeaux:run",
        "flambeau_evil:run",
        "torch:load",
        "torch.hub:load",
        "torch.nn.modules.module:torch.load",
        "torch.nn.modules.module:functools.partial",
        "torch.optim.optimizer:torch",
        "flambeau.nothing:x",
        "flambeau.symbolic:nothing",
        "flambeau.symbolic",
        ":x",
        "flambeau.symbolic:",
        "flambeau.symbolic.paths:LONGEST",
        "..flambeau:x",
        7,
        None,
        ["os:system"],
    ],
)
@pytest.mark.parametrize("form", [call, lambda name: {"flambeau": 1, "value": {"x": {"_ref": name}}}])
def test_names_outside_the_allow_list_are_refused(name, form):
    with pytest.raises(SymbolicError):
        from_json(form(name))


def test_parts_of_the_library_and_of_torch_are_allowed():
    torch = pytest.importorskip("torch")
    value = from_json(call("torch.nn.modules.linear:Linear", in_features=2, out_features=3))
    assert value.build().out_features == 3
    assert from_json({"flambeau": 1, "value": {"_ref": "torch.nn.functional:gelu"}}) is torch.nn.functional.gelu
    assert from_json(to_json([torch.float16])) == [torch.float16]


def test_others_need_trust_or_to_be_symbolised_here():
    name = "fractions:Fraction"
    with pytest.raises(SymbolicError, match="the root: fractions:Fraction is outside flambeau"):
        from_json(call(name, numerator=3, denominator=6))
    from fractions import Fraction

    assert from_json(call(name, numerator=3, denominator=6), trusted=True).build() == Fraction(1, 2)
    symbol = symbolize(Fraction)
    assert from_json(call(name, numerator=3, denominator=6)).build() == Fraction(1, 2)
    assert symbol.target is Fraction


CALLED = []


def record(a):
    """A function whose calls can be seen."""
    CALLED.append(a)


def test_reading_calls_nothing():
    symbol = symbolize(record)
    node = from_json(call(symbol.name, a=1))
    assert CALLED == []
    node.build()
    assert CALLED == [1]
    with pytest.raises(SymbolicError, match="not YAML"):
        from_yaml("flambeau: 1\nvalue: !!python/object/apply:os.system [echo]")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"flambeau": 2, "value": 1}, "format 2 is not known"),
        ({"value": 1}, "expected"),
        ("{", "not JSON"),
        ("[" * 10_000, "not JSON"),
        (7, "expected"),
        ({"flambeau": 1, "value": {"_what": 1}}, "not known to this version"),
        ({"flambeau": 1, "value": {"_tuple": 3}}, "not known"),
        ({"flambeau": 1, "value": {"_tuple": [], "x": 1}}, "stands alone"),
        ({"flambeau": 1, "value": {"_dict": [[[1], 2]]}}, "unhashable"),
        ({"flambeau": 1, "value": {"_float": "1e5"}}, "not known"),
        ({"flambeau": 1, "value": {"a": {"_call": "flambeau.symbolic.hyper:oneof", "args": [1]}}}, "a: a call is"),
        (call("flambeau.symbolic.hyper:oneof", kandidates=[1]), "kandidates: unknown .* did you mean candidates"),
        (call("flambeau.symbolic.hyper:oneof"), "candidates: oneof requires"),
        (call("flambeau.symbolic.hyper:oneof", candidates=[]), "at least one candidate"),
        (call("flambeau.symbolic.hyper:intv", lo="a", hi=3), "lo: expected int"),
        ({"flambeau": 1, "value": b"x"}, "not JSON"),
    ],
)
def test_malformed_data_is_refused(data, message):
    with pytest.raises(SymbolicError, match=message):
        from_json(data)


def test_size_and_depth_are_bounded():
    deep = current = []
    for _ in range(200):
        current.append([])
        current = current[0]
    with pytest.raises(SymbolicError, match="levels"):
        from_json({"flambeau": 1, "value": deep})
    with pytest.raises(SymbolicError, match="characters"):
        from_json(" " * (17 << 20))
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n"
    for here, before in zip("bcdefgh", "abcdefg"):
        bomb += f"{here}: &{here} [{','.join(['*' + before] * 9)}]\n"
    with pytest.raises(SymbolicError, match="at most 200000 values"):
        from_yaml("flambeau: 1\nvalue:\n" + "".join(f"  {line}\n" for line in bomb.splitlines()))
    with pytest.raises(SymbolicError):
        from_yaml("[" * 100_000)
    with pytest.raises(SymbolicError):
        from_yaml("&a [*a]")


def test_files(tmp_path):
    value = T(oneof([1, 2]), c=(1, 2))
    for name in ("x.json", "x.yaml", "x.yml"):
        save(value, tmp_path / name)
        assert load(tmp_path / name) == value
    save(T(2), tmp_path / "x.json")
    assert load(tmp_path / "x.json") == T(2)
    with pytest.raises(SymbolicError, match="lambda"):
        save(T(lambda: 1), tmp_path / "x.json")
    assert load(tmp_path / "x.json") == T(2), "a failed save leaves the file"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.json", "x.yaml", "x.yml"]
    (tmp_path / "bad.json").write_bytes(b"\xff{}")
    (tmp_path / "cut.json").write_text('{"flambeau": 1, "val')
    for name in ("bad.json", "cut.json"):
        with pytest.raises(SymbolicError, match=name):
            load(tmp_path / name)
    with pytest.raises(SymbolicError, match="ends in .json"):
        load(tmp_path / "x.pickle")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "absent.json")
