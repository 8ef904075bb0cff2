"""Patching by key, path, type, value and member."""

from flambeau.symbolic import (
    patch_on_key,
    patch_on_member,
    patch_on_path,
    patch_on_type,
    patch_on_value,
    symbolize,
)


class Layer:
    """A part."""

    def __init__(self, width=1, rate=0.5, inner=None):
        self.width, self.rate, self.inner = width, rate, inner


class Wide(Layer):
    """A part that is a Layer too."""


L, W = symbolize(Layer), symbolize(Wide)


def net():
    return L(1, inner=[W(2), {"width": 3, "x": L(4)}])


def test_on_key():
    assert patch_on_key(net(), "width", 9) == L(9, inner=[W(9), {"width": 9, "x": L(9)}])
    assert patch_on_key(net(), "wid", 9) == net(), "the whole key must match"


def test_on_path():
    patched = patch_on_path(net(), r"inner\[\d\].width", lambda old: old + 10)
    assert patched == L(1, inner=[W(12), {"width": 13, "x": L(4)}])


def test_on_type():
    assert patch_on_type(net(), W, L(7)) == L(1, inner=[L(7), {"width": 3, "x": L(4)}])
    assert patch_on_type(net(), Layer, None) == L(1, inner=[None, {"width": 3, "x": None}])
    assert patch_on_type(net(), float, lambda old: old / 2).get("inner[0].rate") == 0.25


def test_on_value():
    assert patch_on_value(net(), 2, 20) == L(1, inner=[W(20), {"width": 3, "x": L(4)}])
    assert patch_on_value(net(), 2.0, 20) == net(), "2 and 2.0 differ"
    assert patch_on_value(net(), L(4), "four").get("inner[1].x") == "four"


def test_on_member():
    patched = patch_on_member(net(), Layer, "width", lambda old: old * 10)
    assert patched == L(10, inner=[W(20), {"width": 3, "x": L(40)}])
    assert patch_on_member(net(), W, "rate", 0.1) == L(1, inner=[W(2, 0.1), {"width": 3, "x": L(4)}])
