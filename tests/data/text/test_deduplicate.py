import pytest

from flambeau.data import pydoc_topics
from flambeau.data.text.deduplicate import duplicates, without_duplicates, without_overlap

TEXTS = list(pydoc_topics().values())[:20]


def test_copies_with_changes_are_found_and_nothing_else():
    changed = [TEXTS[3].replace("the", "this"), TEXTS[7] + " And so on.", "  " + TEXTS[7].upper()]
    alone = duplicates(TEXTS)
    assert duplicates(TEXTS + changed) == sorted([*alone, [3, 20], [7, 21, 22]])
    assert without_duplicates(TEXTS + changed) == without_duplicates(TEXTS)


def test_similarity_decides():
    words = [f"w{i}" for i in range(400)]
    near, far = words[:380] + ["x"] * 20, words[:200] + [f"y{i}" for i in range(200)]
    texts = [" ".join(part) for part in (words, near, far)]
    assert duplicates(texts) == [[0, 1]]
    assert duplicates(texts, threshold=0.99) == []


def test_overlap_with_a_test_set():
    kept = "a text about something else entirely, of more than eight words in all"
    held_out = ["The quick brown fox jumps over the lazy dog, twice."]
    leaked = "He said: 'quick BROWN fox jumps over the lazy dog' and left"
    short = "quick brown fox jumps over the lazy"
    assert without_overlap([kept, leaked, short], held_out) == [kept, short]
    assert without_overlap([kept, leaked, short], held_out, words=7) == [kept]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"threshold": 1.0}, "threshold must lie"), ({"bands": 0}, "bands must be"), ({"shingle": 0}, "shingle must be")],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        duplicates(["a"], **arguments)
    with pytest.raises(ValueError, match="words must be at least 1"):
        without_overlap([], [], words=0)
