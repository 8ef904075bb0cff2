"""Replacing constructors inside a scope."""

import inspect
import threading

import pytest

from flambeau.symbolic import detour, symbolize


class Old:
    """What code constructs."""

    def __init__(self, x):
        self.x = x


class New(Old):
    """A subclass, with the argument changed."""

    def __init__(self, x):
        super().__init__(10 * x)


class Other:
    """An unrelated class with a ``__new__``."""

    def __new__(cls, x):
        self = super().__new__(cls)
        self.made = x
        return self


def code():
    return Old(1)


def test_a_class_is_replaced_inside_the_scope_only():
    with detour({Old: New}):
        assert type(code()) is New and code().x == 10
        assert New(3).x == 30, "subclasses are constructed as ever"
    assert type(code()) is Old and code().x == 1


@pytest.mark.parametrize(
    ("replacement", "check"),
    [
        (Other, lambda made: type(made) is Other and made.made == 1),
        (lambda x: Old(x + 4), lambda made: type(made) is Old and made.x == 5),
        (lambda x: New(x), lambda made: type(made) is New and made.x == 10),
        (lambda x: "text", lambda made: made == "text"),
        (symbolize(New), lambda made: type(made) is New and made.x == 10),
    ],
)
def test_replacements_of_any_kind(replacement, check):
    for _ in range(2):
        with detour({Old: replacement}):
            assert check(code()) and check(Old(1))
        assert type(code()) is Old and code().x == 1 and New(2).x == 20
    with detour({Other: lambda x: Other(x * 2)}):
        assert Other(3).made == 6
    assert Other(3).made == 3


def test_inner_scopes_win_and_errors_end_them():
    with detour({Old: New}):
        with pytest.raises(ZeroDivisionError), detour({Old: lambda x: 1 / 0}):
            code()
        assert type(code()) is New
    assert type(code()) is Old


def test_other_threads_are_not_affected():
    seen = []
    with detour({Old: New}):
        thread = threading.Thread(target=lambda: seen.append(type(code())))
        thread.start()
        thread.join()
    assert seen == [Old]


def test_the_signature_of_the_class_stays():
    before = inspect.signature(Old)
    with detour({Old: New}):
        assert inspect.signature(Old) == before
    assert inspect.signature(Old) == before and symbolize(Old)(x=3).build().x == 3
    with pytest.raises(TypeError):
        Old()


def test_torch_modules_are_replaced_in_code_that_knows_nothing_of_it():
    torch = pytest.importorskip("torch")
    layer = torch.nn.TransformerEncoderLayer
    with detour({torch.nn.LayerNorm: lambda size, *rest, **named: torch.nn.Identity()}):
        block = layer(8, 2, 16)
    assert isinstance(block.norm1, torch.nn.Identity) and isinstance(layer(8, 2, 16).norm1, torch.nn.LayerNorm)


@pytest.mark.parametrize("replacements", [{int: float}, {3: Old}, {Old: 3}])
def test_what_cannot_be_detoured_is_refused(replacements):
    with pytest.raises(TypeError, match="detour"), detour(replacements):
        pass
