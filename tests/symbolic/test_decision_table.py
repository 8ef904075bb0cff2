"""The summary of a space."""

import math

from flambeau.symbolic import evolve, floatv, intv, manyof, oneof, summary, template, trace


def test_one_row_a_decision_with_its_condition_and_size():
    nested = oneof([1, oneof(["x", "y"], name="kind")])
    space = template({"a": nested, "b": manyof(2, [1, 2, 3], sorted=True), "c": intv(1, 9)})
    table = summary(space)
    assert [(r.decision, r.depth, r.condition, r.kind, r.size) for r in table.rows] == [
        ("a", 0, "", "one of 2", 3),
        ("kind", 1, "a=1", "one of 2", 2),
        ("b", 0, "", "2 of 3, distinct, sorted", 3),
        ("c", 0, "", "one of 9", 9),
    ]
    assert table.size == space.space_size == 81 and not table.cut
    assert "size of the space: 81" in str(table) and "kind (if a=1)" in str(table)
    assert table._repr_html_().count("<tr>") == 5


def test_infinite_and_endless_spaces():
    def endless():
        return oneof([0, lambda: [floatv(1e-3, 1, "log"), endless()]])

    table = summary(template(endless()), limit=7)
    assert table.cut and len(table.rows) == 7 and table.size == math.inf
    assert "float, log" in str(table) and "<lambda>() when chosen" in str(table) and "infinite" in table.to_html()


def test_values_are_escaped_and_every_source_of_a_space_is_taken():
    assert "<b>" not in summary(template(oneof(["<b>", 2]))).to_html()
    assert summary(trace(lambda: oneof([1, 2]))).size == summary(template(oneof([1, 2])).spec).size == 2
    assert summary(template(evolve([1], lambda value, rng: value))).rows[0].kind == "program"
