import numpy as np
import pytest
import torch

from flambeau.data.clicks.encoded import encode_log
from flambeau.data.clicks.fields import Field, FieldSchema
from flambeau.data.clicks.logs import avazu, click_labels, click_log, criteo, kdd2012, movielens, split_parts
from flambeau.data.clicks.planted import planted_clicks


def write_csv(path, rows=300, test_only=None):
    rng = np.random.default_rng(0)
    lines = [f"{int(rng.random() < 0.3)},c{rng.integers(5)},{rng.normal():.4f},a|b" for _ in range(rows)]
    for row, city in (test_only or {}).items():
        lines[row] = lines[row].replace(lines[row].split(",")[1], city)
    path.write_text("clicked,city,price,tags\n" + "\n".join(lines) + "\n")
    return path


def read(log):
    chunks = list(log.chunks())
    columns = {name: [cell for chunk in chunks for cell in chunk.columns[name]] for name in chunks[0].columns}
    return columns, np.concatenate([chunk.labels for chunk in chunks])


def test_csv_in_chunks_is_the_whole_file(tmp_path):
    path = write_csv(tmp_path / "clicks.csv")
    whole, in_chunks = read(click_log(path, "clicked")), read(click_log(path, "clicked", chunk_rows=7))
    assert whole[0] == in_chunks[0] and (whole[1] == in_chunks[1]).all()
    assert set(whole[0]) == {"city", "price", "tags"} and len(whole[1]) == 300 and 0 < whole[1].mean() < 1


def test_parquet_has_sets_and_types(tmp_path):
    pandas = pytest.importorskip("pandas", reason="the extra flambeau[tabular] is not installed")
    pytest.importorskip("pyarrow", reason="the extra flambeau[tabular] is not installed")
    frame = pandas.DataFrame({"y": [True, False] * 50, "tags": [["a", "b"], []] * 50, "price": np.arange(100.0)})
    frame.to_parquet(tmp_path / "clicks.parquet")
    log = click_log(tmp_path / "clicks.parquet", "y", chunk_rows=30)
    schema = FieldSchema.fit((chunk.columns for chunk in log.chunks()), log.fields)
    assert [one.kind for one in schema.fields] == ["set", "numeric"]
    assert read(log)[1].mean() == 0.5


def test_libsvm_fields_by_place_and_by_name(tmp_path):
    (tmp_path / "a.svm").write_text("1 3:0.5 17:1 40:1\n0 3:2 18:1 41:0\n-1 3:1e3 17:1 40:1\n")
    columns, labels = read(click_log(tmp_path / "a.svm", "label"))
    assert columns == {"field_0": [0.5, 2, 1000], "field_1": ["#17", "#18", "#17"], "field_2": ["#40", None, "#40"]}
    assert labels.tolist() == [1, 0, 0]
    (tmp_path / "a.ffm").write_text("1 7:3:0.5 2:17:1\n0 2:18:1 7:3:0.25\n")
    assert read(click_log(tmp_path / "a.ffm", "label"))[0] == {"field_7": [0.5, 0.25], "field_2": ["#17", "#18"]}
    for text in ("1 3:0.5\n0 3:1 4:1\n", "1 3:x\n", "1 3:nan\n"):
        (tmp_path / "b.svm").write_text(text)
        with pytest.raises(ValueError, match="b.svm, row"):
            read(click_log(tmp_path / "b.svm", "label"))


def test_parts_are_stratified_and_the_same_at_every_reading(tmp_path):
    log = click_log(write_csv(tmp_path / "clicks.csv"), "clicked", chunk_rows=17)
    part = np.concatenate([part for _, part in split_parts(log, seed=1)])
    again = np.concatenate([part for _, part in split_parts(log, seed=1)])
    assert (part == again).all() and (part != np.concatenate([p for _, p in split_parts(log, seed=2)])).any()
    labels = read(log)[1]
    for label in (0, 1):
        counts = np.bincount(part[labels == label], minlength=10)
        assert counts.max() - counts.min() <= 1


def test_the_schema_is_fitted_to_training_rows_alone(tmp_path):
    """Whatever stands in rows of the validation and test parts, the fitted schema is the same."""
    log = click_log(write_csv(tmp_path / "a.csv"), "clicked")
    part = np.concatenate([part for _, part in split_parts(log, seed=0)])
    changed = {int(row): "elsewhere" for row in np.flatnonzero(part < 2)}
    other = click_log(write_csv(tmp_path / "b.csv", test_only=changed), "clicked")
    one, two = (encode_log(each, tmp_path / name) for each, name in ((log, "one"), (other, "two")))
    assert one.schema == two.schema and torch.equal(one.train.ids, two.train.ids)
    assert (two.test.ids[:, 0] == two.schema.first["city"] + 1).all()
    training = {int(np.flatnonzero(part >= 2)[0]): "elsewhere"}
    third = encode_log(click_log(write_csv(tmp_path / "c.csv", test_only=training), "clicked"), tmp_path / "three")
    assert third.schema != one.schema


def test_an_encoded_log_is_its_rows(tmp_path):
    log = click_log(write_csv(tmp_path / "clicks.csv"), "clicked", chunk_rows=11, fields=["city", Field("tags", "set")])
    data = encode_log(log, tmp_path / "encoded", seed=3)
    columns, labels = read(log)
    part = np.concatenate([part for _, part in split_parts(log, seed=3)])
    ids, values = data.schema.encode(columns)
    for rows, chosen in ((data.train, part > 1), (data.validation, part == 1), (data.test, part == 0)):
        assert torch.equal(rows.ids.long(), ids[chosen]) and torch.equal(rows.values, values[chosen])
        assert rows.labels.numpy().tolist() == labels[chosen].tolist()
    assert FieldSchema.load(tmp_path / "encoded" / "schema.json") == data.schema
    assert not list(tmp_path.glob(".encoded*"))


def criteo_line(label, numbers, categories):
    return "\t".join([str(label), *map(str, numbers), *categories])


def test_criteo(tmp_path):
    lines = [criteo_line(row % 2, [""] + [row] * 12, ["cat"] * 25 + [f"{row}"]) for row in range(40)]
    (tmp_path / "train.txt").write_text("\n".join(lines) + "\n")
    log = criteo(tmp_path / "train.txt")
    schema = FieldSchema.fit((chunk.columns for chunk in log.chunks()), log.fields)
    assert len(schema.fields) == 39 and set(schema.vocabularies["C1"]) == {"cat"} and not schema.vocabularies["C26"]
    values = schema.encode(next(log.chunks()).columns)[1]
    assert (values[:, 0] == 0).all()  # missing
    assert values[:5, 1].tolist() == [0, 1, 2, 1, 1] and values[20, 1] == 8  # floor(log(20)^2)


def test_kdd2012(tmp_path):
    (tmp_path / "training.txt").write_text("0\t1\tu\ta\tb\t2\t1\tq\tk\tt\td\t7\n3\t9\tu\ta\tb\t2\t1\tq\tk\tt\td\t8\n")
    assert len(kdd2012(tmp_path / "training.txt").fields) == 11
    (tmp_path / "userid_profile.txt").write_text("7\t1\t5\n")
    log = kdd2012(tmp_path / "training.txt")
    columns, labels = read(log)
    assert len(log.fields) == 13 and labels.tolist() == [0, 1] and columns["Age"] == ["5", ""]


def test_avazu(tmp_path):
    (tmp_path / "train.csv").write_text("id,click,hour,C1\n77,0,14102123,5\n78,1,14102207,5\n")
    log = avazu(tmp_path / "train.csv")
    assert [one.name for one in log.fields] == ["hour", "C1"] and read(log)[0]["hour"] == ["23", "07"]


def test_movielens(tmp_path):
    (tmp_path / "users.dat").write_text("1::F::1::10::48067\n2::M::56::16::70072\n")
    movies = "1::Toy Story (1995)::Animation|Comedy\n2::Fanfaron, Él (1953)::Drama\n"
    (tmp_path / "movies.dat").write_text(movies, encoding="latin-1")
    (tmp_path / "ratings.dat").write_text("1::1::5::100\n1::2::3::200\n2::2::2::300\n2::1::4::200\n")
    log = movielens(tmp_path)
    columns, labels = read(log)
    assert labels.tolist() == [1, 0, 1]  # the rating of 3 is left out
    assert columns["year"] == ["1995", "1950s", "1995"] and columns["genres"][0] == "Animation|Comedy"
    schema = FieldSchema.fit(columns, log.fields)
    assert len(schema.fields) == 7 and schema.encode(columns)[1][:, -1].tolist() == [0, 1, 0.5]


@pytest.mark.parametrize(
    ("text", "target", "message"),
    [
        ("y,a\n1,2\n", "z", "has no column 'z'; it has y, a"),
        ("y,a\n1,2\n,3\n", "y", "column 'y', row 1: the label is missing"),
        ("y,a\nnan,2\n", "y", "the label is missing"),
        ("y,a\n7,2\n", "y", "expected a label such as 0 or 1, got '7'"),
        ("y,a\n1,2,3\n", "y", "line 2: 3 cells, but the header has 2"),
        ("y,y\n1,2\n", "y", "distinct column names"),
        ("y,a\n", "y", "has no rows"),
        ('y,a\n1,"2\n', "y", "line 2|line 3"),
    ],
)
def test_bad_files_are_named(tmp_path, text, target, message):
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read(click_log(tmp_path / "bad.csv", target))


def test_labels():
    assert click_labels(["yes", "No", 1, 0.0, True]).tolist() == [1, 0, 1, 0, 1]
    assert click_labels(["buy", "leave"], positive="buy").tolist() == [1, 0]
    with pytest.raises(FileNotFoundError):
        click_log("nowhere.csv", "y")


def test_planted_clicks_follow_their_logit():
    clicks = planted_clicks(20_000, seed=3)
    assert clicks.pairs == {(0, 1), (2, 3), (2, 4), (3, 4), (6, 7), (6, 8), (7, 8)}
    rate = clicks.logits.sigmoid()
    for low, high in ((0, 0.3), (0.3, 0.6), (0.6, 1)):
        inside = (rate >= low) & (rate < high)
        assert abs(clicks.labels[inside].mean() - rate[inside].mean()) < 0.03
    again = planted_clicks(20_000, seed=3)
    assert torch.equal(again.labels, clicks.labels) and set(clicks.columns()) == {f"field_{n}" for n in range(10)}
    with pytest.raises(ValueError, match="at least 9 fields"):
        planted_clicks(10, fields=3)
