"""The files of GLUE tasks."""

import pytest

from flambeau.data.text.glue import GlueTask, read_glue


def test_files_with_and_without_header(tmp_path):
    (tmp_path / "cola.tsv").write_text('gj04\t1\t\tHe said "no.\nks08\t0\t*\tCats the.\n')
    texts, labels = read_glue(tmp_path / "cola.tsv", "cola")
    assert texts == [('He said "no.',), ("Cats the.",)] and labels == [1, 0]
    (tmp_path / "rte.tsv").write_text("index\tsentence1\tsentence2\tlabel\r\n0\ta b\tc\tnot_entailment\r\n")
    assert read_glue(tmp_path / "rte.tsv", "rte") == ([("a b", "c")], [1])


def test_bad_files_are_named_with_their_line(tmp_path):
    file = tmp_path / "x.tsv"
    for text, task, message in [
        ("index\tsentence1\n", "rte", "x.tsv has no column 'sentence2', which rte needs"),
        ("sentence\tlabel\nfine\t1\nbad\t7\n", "sst2", r"x.tsv line 3: the label is '7', expected 0, 1"),
        ("a\t1\n", "cola", "x.tsv line 1: 2 columns, expected at least 4"),
        ("", "cola", "x.tsv holds no rows"),
    ]:
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_glue(file, task)
    with pytest.raises(ValueError, match="task must be one of cola, .* got 'stsb'"):
        GlueTask(file, "stsb", "x")
