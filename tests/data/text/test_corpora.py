"""Files laid out as enwik8, WikiText-103 and PG-19, written small."""

import pytest

from flambeau.data.text import corpora
from flambeau.data.text.corpora import corpus


def test_bytes_are_split_like_enwik8(tmp_path):
    (tmp_path / "enwik8").write_bytes(bytes(range(200)) * 10)
    got = corpus(tmp_path / "enwik8")
    assert [len(part) for part in (got.train, got.validation, got.test)] == [1800, 100, 100]
    assert got.train[:5].tolist() == [0, 1, 2, 3, 4] and got.test[-1] == 199 and (got.vocab, got.unit) == (256, "byte")


def test_wikitext_words_and_unknown_words(tmp_path):
    for part, text in (("train", " = A = \n\n the cat <unk> \n"), ("valid", "the dog \n"), ("test", "cat cat the\n")):
        (tmp_path / f"wiki.{part}.tokens").write_text(text)
    got = corpus(tmp_path)
    numbers = {"<unk>": 0, "<eos>": 1, "=": 2, "A": 3, "the": 4, "cat": 5}
    assert got.train.tolist() == [numbers[w] for w in "= A = <eos> <eos> the cat <unk> <eos>".split()]
    assert got.validation.tolist() == [4, 0, 1] and got.test.tolist() == [5, 5, 4, 1]
    assert (got.vocab, got.unit, got.test_words) == (6, "word", 4)


def test_books_follow_each_other_by_name(tmp_path):
    for name, text in (
        ("train/b.txt", "two"),
        ("train/a.txt", "one"),
        ("validation/a.txt", "v"),
        ("test/a.txt", "t u"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    got = corpus(tmp_path)
    assert bytes(got.train.numpy()) == b"onetwo" and got.test_words == 2 and got.test.tolist() == list(b"t u")
    (tmp_path / "test" / "a.txt").write_text("")
    with pytest.raises(ValueError, match="holds no .txt file with any text"):
        corpus(tmp_path)


def test_bad_paths(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="neither wiki.train.tokens"):
        corpus(tmp_path)
    with pytest.raises(FileNotFoundError):
        corpus(tmp_path / "missing")
    (tmp_path / "short").write_bytes(b"abc")
    with pytest.raises(ValueError, match="at least 100"):
        corpus(tmp_path / "short")
    monkeypatch.setattr(corpora, "MAX_BYTES", 2)
    with pytest.raises(ValueError, match="at most 2 are read"):
        corpus(tmp_path / "short")
    for part in ("train", "valid", "test"):
        (tmp_path / f"wiki.{part}.tokens").write_bytes(b"\xff\n")
    monkeypatch.setattr(corpora, "MAX_BYTES", 1 << 20)
    with pytest.raises(ValueError, match="is not UTF-8"):
        corpus(tmp_path)
