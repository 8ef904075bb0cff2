import math
import sys

import pytest
import torch

from flambeau.data import Table, breast_cancer, diabetes, iris, read_table, wine


def write(tmp_path, text, name="table.csv"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_embedded_tables():
    assert breast_cancer().features.shape == (569, 30) and breast_cancer().classes == ["malignant", "benign"]
    assert iris().features.shape == (150, 4) and wine().target.bincount().tolist() == [59, 71, 48]
    ages = diabetes()
    assert ages.features.shape == (442, 10) and ages.classes is None and ages.target.dtype == torch.float32
    assert ages.features[:, 0].min() == 19, "features are in their own units"


def test_kinds_missing_values_and_categories(tmp_path):
    path = write(tmp_path, 'age;city;code;sold\n31;"Lyon; centre";1;yes\n;Nantes;2;no\n4.5e1;?;1;yes\n\n')
    table = read_table(path, "sold", categorical=["code"])
    assert table.names == ["age", "city", "code"] and table.kinds == ["numeric", "categorical", "categorical"]
    assert table.categories == {"city": ["Lyon; centre", "Nantes"], "code": ["1", "2"]}
    assert table.features[:, 2].tolist() == [0, 1, 0] and table.features[:2, 1].tolist() == [0, 1]
    assert table.features[0, 0] == 31 and table.features[2, 0] == 45
    assert math.isnan(table.features[1, 0]) and math.isnan(table.features[2, 1])
    assert table.classes == ["no", "yes"] and table.target.tolist() == [1, 0, 1]


def test_targets(tmp_path):
    path = write(tmp_path, "x,y,z\n" + "".join(f"{i},{i % 3 + 5},{i / 7}\n" for i in range(30)))
    classes = read_table(path, "y")
    assert classes.classes == ["5", "6", "7"] and classes.target.tolist() == [i % 3 for i in range(30)]
    assert read_table(path, "y", task="regression").target[:3].tolist() == [5.0, 6.0, 7.0]
    assert read_table(path, "z").classes is None and read_table(path, "x").classes is None
    assert len(read_table(path, "x", task="classification").classes) == 30


def test_wrong_cells_are_named_by_line_and_column(tmp_path):
    rows = [f"{i},{i * 2},a" for i in range(40)]
    rows[17] = "17,12;5,a"
    path = write(tmp_path, "x,y,label\n" + "\n".join(rows))
    with pytest.raises(ValueError, match=r"table.csv, line 19, column 'y': expected a number .*got '12;5'"):
        read_table(path, "label")
    quoted = write(tmp_path, 'name,x,y\n"two\nlines",1,2\nb,3\n')
    with pytest.raises(ValueError, match="line 4: 2 cells, but the header has 3"):
        read_table(quoted, "y")


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "table.csv is empty"),
        ("x,y\n", "has no rows below its header"),
        ("x,x\n1,2\n", "line 1: two columns are named 'x'"),
        ("x,,y\n1,2,3\n", "line 1: column 2 has no name"),
        ("x,y\n1,2\n3,\n", "line 3, column 'y': the target has no value"),
        ("x,z\n1,2\n", "has no column 'y'; it has x, z"),
        ("y\n1\n", "has no column beside the target 'y'"),
        ('x,y\n1,"2\n', "line 2: unexpected end of data"),
        ("x,y\n" + "1,2\n" * 20 + "inf,2\n", "line 22, column 'x': expected a number"),
    ],
)
def test_malformed_files_are_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_table(write(tmp_path, text), "y")


def test_bytes_that_are_no_utf8_are_named(tmp_path):
    (tmp_path / "latin.csv").write_bytes("x,y\n1,2\n3,caf\u00e9\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin.csv, line 3, column 6: byte 0xe9 is not UTF-8"):
        read_table(tmp_path / "latin.csv", "y")


def test_parquet_equals_csv(tmp_path):
    pandas = pytest.importorskip("pandas", reason="needs flambeau[series]")
    pytest.importorskip("pyarrow", reason="needs flambeau[series]")
    frame = pandas.DataFrame({"a": [1.5, None, 3.0], "b": ["x", "y", None], "y": [0, 1, 1]})
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_parquet(tmp_path / "t.parquet")
    one, other = read_table(tmp_path / "t.csv", "y"), read_table(tmp_path / "t.parquet", "y")
    assert torch.equal(one.features.nan_to_num(-9), other.features.nan_to_num(-9))
    assert torch.equal(one.target, other.target) and one.kinds == other.kinds and one.categories == other.categories
    pandas.DataFrame({"a": [[1], [2]], "y": [0, 1]}).to_parquet(tmp_path / "nested.parquet")
    with pytest.raises(ValueError, match="nested.parquet, column 'a': expected numbers or text, got list"):
        read_table(tmp_path / "nested.parquet", "y")
    frame["y"] = [1.0, None, 2.0]
    frame.to_parquet(tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="row 2, column 'y': the target has no value"):
        read_table(tmp_path / "t.parquet", "y")
    (tmp_path / "no.parquet").write_text("x,y\n1,2\n")
    with pytest.raises(ValueError, match="no.parquet is no Parquet file"):
        read_table(tmp_path / "no.parquet", "y")


def test_missing_pyarrow_names_the_pip_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'flambeau\[tabular\]'"):
        read_table(tmp_path / "t.parquet", "y")


def test_splits_are_stratified_and_reproducible():
    table = breast_cancer()
    train, test = table.split((0.75, 0.25), seed=1)
    assert len(train) + len(test) == 569
    assert abs(train.target.float().mean() - test.target.float().mean()) < 0.01
    assert torch.equal(train.features, table.split((0.75, 0.25), seed=1)[0].features)
    assert not torch.equal(train.features, table.split((0.75, 0.25), seed=2)[0].features)
    rows = torch.cat((train.features, test.features))
    assert rows.unique(dim=0).shape == table.features.unique(dim=0).shape
    values = diabetes().split((0.5, 0.5))
    assert len(values[0]) == len(values[1]) == 221
    with pytest.raises(ValueError, match="would be empty"):
        table[:4].split((0.9, 0.1))


def test_bad_tables_are_named():
    with pytest.raises(ValueError, match=r"target must have shape \[2\], got \[3\]"):
        Table(torch.zeros(2, 1), torch.zeros(3), ["a"], ["numeric"])
    with pytest.raises(ValueError, match="one entry for each of 2 columns, got 1 and 1"):
        Table(torch.zeros(2, 2), torch.zeros(2), ["a"], ["numeric"])
