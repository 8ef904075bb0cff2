"""What differs between two programs."""

from flambeau.symbolic import MISSING, changed_lines, diff, oneof, symbolize


class Layer:
    """A part."""

    def __init__(self, width=1, inner=None, **more):
        self.width, self.inner, self.more = width, inner, more


L = symbolize(Layer)


def entries(left, right):
    return [(d.kind, d.path, d.left, d.right) for d in diff(left, right)]


def test_equal_programs_have_no_difference():
    assert not diff(L(1, [L(2)]), L(1, [L(2)])) and str(diff(1, 1)) == "no difference"
    assert "no difference" in diff([1], [1]).to_html()


def test_arguments_keys_and_items():
    assert entries(L(1, {"a": 1, "b": (1, 2)}), L(2, {"b": (1, 3), "c": 4})) == [
        ("changed", "width", 1, 2),
        ("removed", "inner.a", 1, MISSING),
        ("changed", "inner.b[1]", 2, 3),
        ("added", "inner.c", MISSING, 4),
    ]
    assert entries(L(1), L(1.0)) == [("changed", "width", 1, 1.0)]
    assert entries(L(1, x=2), L(1)) == [("removed", "x", 2, MISSING)]


def test_an_inserted_item_is_one_difference():
    left = L(inner=[L(1), L(2), L(3)])
    right = L(inner=[L(0), L(1), L(2), L(3)])
    assert entries(left, right) == [("added", "inner[0]", MISSING, L(0))]
    assert entries(right, left) == [("removed", "inner[0]", L(0), MISSING)]
    assert entries(left, L(inner=[L(1), L(5), L(3)])) == [("changed", "inner[1].width", 2, 5)]


def test_text_and_html():
    found = diff(L(1, "<b>"), L(oneof([1, 2]), L(3)))
    assert str(found) == "~ width: 1 -> oneof(candidates=[1, 2])\n~ inner: '<b>' -> Layer(width=3)"
    html = found.to_html()
    assert "&lt;b&gt;" in html and "<b>" not in html and html.count("<tr") == 3 and found._repr_html_() == html
    assert left_alone()


def left_alone():
    part = L(1)
    whole = L(inner=part)
    diff(part, L(2))
    return part.parent is whole


def test_changed_lines():
    static = "def f():\n    a = Linear(64)\n    return a\n"
    space = "def f():\n    a = Linear(oneof([32, 64]))\n\n    return a\n"
    assert changed_lines(static, space) == 1
    assert changed_lines(static, static) == 0
    assert changed_lines("a\nb\nc", "a\nx\ny\nc\nd") == 3
