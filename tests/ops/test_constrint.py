import itertools
import random
import re

import pytest

from flambeau.ops import constrint
from flambeau.ops.constrint import ConstraintError, parse, satisfied, solve

# What a fused GPU schedule asks of its tiling, after the paper's section 5 (sizes of one LSTM step on an H100).
GPU_SYSTEM = """
head_dim == 768; gates == 4; batch == 16; multiprocessors == 132; heads == 1;  # the network and the device
tile_gate * blocks_gate == head_dim * gates;  # gates over blocks
tile_hidden * blocks_hidden == head_dim; tile_batch * blocks_batch == batch;
blocks_gate * blocks_hidden * blocks_batch * heads <= multiprocessors;
tile_gate % 16 == 0; tile_hidden % 16 == 0; tile_batch in [8, 16, 32];
warps_gate * warp_gate == tile_gate; warps_gate * warps_hidden <= 32; warps_hidden * warp_hidden == tile_hidden;
warp_gate % 8 == 0; warp_hidden % 16 == 0;
(register_cache + shared_cache == warp_gate * warp_hidden); register_cache % 64 == 0;
register_cache * 2 <= 32 * 4 * 96 * 4;  # bytes of registers for R a warp
shared_cache * 2 * warps_gate * warps_hidden <= 200 * 1024;
"""


def brute_force(text, limits, order):
    """All solutions, in the order of preference."""
    system = parse(text)
    found = [
        dict(zip(limits, values))
        for values in itertools.product(*(range(low, high + 1) for low, high in limits.values()))
        if satisfied(system, dict(zip(limits, values)))
    ]
    return sorted(found, key=lambda s: [(-1 if d == "largest" else 1) * s[v] for v, d in order])


def random_term(rng, names, depth=2):
    if depth == 0 or rng.random() < 0.4:
        return rng.choice(names) if rng.random() < 0.7 else str(rng.randint(0, 12))
    a, b = (random_term(rng, names, depth - 1) for _ in range(2))
    operator = rng.choice("++**-%^")
    return f"({a})^{rng.randint(0, 2)}" if operator == "^" else f"({a} {operator} {b})"


def random_constraint(rng, names, depth=1):
    if depth and rng.random() < 0.3:
        joint = rng.choice([" | ", "; "])
        return "(" + joint.join(random_constraint(rng, names, depth - 1) for _ in range(2)) + ")"
    if rng.random() < 0.2:
        return f"{random_term(rng, names)} in [{', '.join(str(rng.randint(0, 15)) for _ in range(3))}]"
    operator = rng.choice(["==", "<=", ">=", "<", ">", "!="])
    return f"{random_term(rng, names)} {operator} {random_term(rng, names)}"


@pytest.mark.parametrize("seed", range(200))
def test_equals_brute_force(seed):
    rng = random.Random(seed)
    names = ["A", "B", "C"][: rng.randint(1, 3)]
    text = "; ".join([random_constraint(rng, names) for _ in range(rng.randint(1, 3))] + [f"{v} > 0" for v in names])
    limits = {v: (low := rng.randint(1, 3), low + rng.randint(0, 8)) for v in names}
    order = [(v, rng.choice(["smallest", "largest"])) for v in rng.sample(names, len(names))]
    exact = brute_force(text, limits, order)
    found = solve(text, prefer=order, n=None, bounds=limits)
    assert found == exact, text
    assert solve(text, prefer=order, n=1, bounds=limits) == exact[:1]
    if exact:
        assert solve(text, prefer=order, n=None, bounds=limits, exclude=[exact[0]]) == exact[1:]


def test_the_gpu_tiling_system():
    prefer = [("blocks_gate", "largest"), ("register_cache", "largest")]
    (solution,) = solve(GPU_SYSTEM, prefer=prefer)
    assert satisfied(parse(GPU_SYSTEM), solution)
    assert solution["blocks_gate"] * solution["blocks_hidden"] * solution["blocks_batch"] <= 132
    (other,) = solve(GPU_SYSTEM, prefer=prefer, exclude=[solution])
    assert other != solution and satisfied(parse(GPU_SYSTEM), other)


def test_language():
    assert solve("A*B==C; C<=64; C%8==0", prefer=[("A", "largest")]) == [{"A": 64, "B": 1, "C": 64}]
    assert solve("A == 2 ; (A == 2 ; B == 3 | B == 4) # brackets hold", n=None) == [{"A": 2, "B": 3}, {"A": 2, "B": 4}]
    assert solve("(A == 1 ; B == 1) | (A == 2 ; B == 2)", n=None) == [{"A": 1, "B": 1}, {"A": 2, "B": 2}]
    assert solve("2 * (A + 1) == 10") == [{"A": 4}]
    assert solve("2 * A + 1 == 10") == []
    assert solve("A ^ 2 == 49") == [{"A": 7}]
    assert solve("A in [8, 16, 32]; A > 8", n=None) == [{"A": 16}, {"A": 32}]
    assert solve("7 % A == 1", n=None) == [{"A": 2}, {"A": 3}, {"A": 6}]
    assert solve("1 == 2") == [] and solve("1 == 1") == [{}]
    assert solve("A * A == 1000000000000 - 1 + 1", prefer=[("A", "largest")]) == [{"A": 1_000_000}]


@pytest.mark.parametrize(
    "text, message",
    [
        ("A == ", "line 1, column 6: expected a variable, an integer or '(', got 'the end'"),
        ("A == 1;\nB ? 2", "line 2, column 3: unexpected character '?'"),
        ("A + 1", "line 1, column 6: expected '=='"),
        ("(A == 1", "line 1, column 8: expected"),
        ("A == 1)", "line 1, column 7: unexpected ')'"),
        ("A in [1, x]", "line 1, column 10: expected an integer, got 'x'"),
        ("()", "line 1, column 2: expected a variable"),
        ("A == 1 B == 2", "column 8: expected ';'"),
        ("A ^ 99 == 1", "exponent 99 above 16"),
        ("A == " + "(" * 60 + "1" + ")" * 60, "nested deeper than 50"),
        ("A == " + "9" * 30, "more than 18 digits"),
        ("A" * 200_000, "expected at most 100000"),
    ],
)
def test_errors_say_where(text, message):
    with pytest.raises(ConstraintError, match=re.escape(message)):
        solve(text)


def test_bad_arguments():
    with pytest.raises(ValueError, match="'X' is no variable of the system; it has A"):
        solve("A == 1", prefer=[("X", "largest")])
    with pytest.raises(ValueError, match="the 'biggest' A; expected smallest or largest"):
        solve("A == 1", prefer=[("A", "biggest")])
    with pytest.raises(ValueError, match="bounds of A are 3 to 2"):
        solve("A == 1", bounds={"A": (3, 2)})
    with pytest.raises(ValueError, match="n is 0"):
        solve("A == 1", n=0)


def test_cache_is_json_and_checked(tmp_path, monkeypatch):
    monkeypatch.setenv("FLAMBEAU_CACHE", str(tmp_path))
    assert solve("A * A == 49", cache=True) == [{"A": 7}]
    (path,) = (tmp_path / "constrint").iterdir()
    assert path.read_text() == '[{"A": 7}]'
    monkeypatch.setattr(constrint, "_search", lambda *a: iter([{"A": 9}]))
    assert solve("A * A == 49", cache=True) == [{"A": 7}]  # from the file
    path.write_text('[{"A": 8}]')
    assert solve("A * A == 49", cache=True) == [{"A": 9}]  # a file that does not satisfy the system is not believed
