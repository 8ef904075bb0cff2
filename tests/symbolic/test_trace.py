"""Dynamic evaluation: a plain program has the space of the static template, and runs as decided."""

import threading

import pytest

from flambeau.symbolic import SymbolicError, floatv, intv, manyof, oneof, permutate, template, trace


def program():
    """A plain program with decisions."""
    width = oneof([8, 16], name="width")
    kind = oneof([lambda: {"rate": oneof([0.1, 0.2])}, "plain"])
    order = manyof(2, ["a", "b", "c"], sorted=True)
    again = oneof([8, 16], name="width")
    return width, kind, list(order), again, floatv(0, 1), intv(3, 5), list(permutate([1, 2]))


STATIC = [
    oneof([8, 16], name="width"),
    oneof([lambda: {"rate": oneof([0.1, 0.2])}, "plain"]),
    manyof(2, ["a", "b", "c"], sorted=True),
    floatv(0, 1),
    intv(3, 5),
    permutate([1, 2]),
]


def test_trace_has_the_spec_of_the_static_template_and_the_same_programs():
    space, static = trace(program), template(STATIC)
    assert space.spec == static.spec and space.spec.digest() == static.spec.digest()
    assert space.value == (8, {"rate": 0.1}, ["a", "b"], 8, 0.0, 3, [1, 2])
    for numbers in ([1, 0, 1, 0, 2, 0.5, 2, 1, 0], [0, 1, 1, 2, 0.25, 0, 0, 1]):
        dna = space.spec.from_numbers(numbers)
        width, kind, order, again, rate, integer, permuted = space.run(dna)
        assert [width, kind, order, rate, integer, permuted] == static.decode(dna) and again == width
        assert space.encode(space.decode(dna)) == dna


def test_decisions_apply_only_inside_the_context_and_the_thread():
    space = trace(lambda: oneof([1, 2]))
    seen = []
    with space.decode(space.spec.from_numbers([1]))():
        assert oneof([1, 2]) == 2
        thread = threading.Thread(target=lambda: seen.append(oneof([1, 2])))
        thread.start()
        thread.join()
    assert seen[0] == oneof([1, 2]) and oneof([1, 2]).candidates == [1, 2]


def test_a_program_that_takes_another_course_is_refused():
    space = trace(lambda: oneof([1, 2]))
    with space.decode(space.spec.first())(), pytest.raises(SymbolicError, match="decision 0: expected"):
        oneof([1, 2, 3])
    with space.decode(space.spec.first())():
        oneof([1, 2])
        with pytest.raises(SymbolicError, match="decision 1: expected none"):
            oneof([1, 2])


def test_unequal_decisions_of_one_name_are_refused():
    with pytest.raises(SymbolicError, match="name of another decision"):
        trace(lambda: (oneof([1, 2], name="x"), oneof([1, 3], name="x")))
    assert oneof([1, 2]).candidates == [1, 2], "the failed trace is over"
