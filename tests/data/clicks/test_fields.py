import json

import numpy as np
import pytest
import torch

from flambeau.data.clicks.fields import Field, FieldSchema, category, found_kind

ROWS = {
    "colour": ["red", "blue", "red", None, "green", "red"],
    "price": [1.0, 2.0, float("nan"), 4.0, 5.0, 8.0],
    "tags": [["a", "b"], ["b"], [], None, ["a", "a", "c"], {"b": 3.0, "c": 1.0}],
}
FIELDS = [Field("colour", min_count=2), Field("price", "numeric"), Field("tags", "set", members=4)]


@pytest.fixture
def schema():
    return FieldSchema.fit(ROWS, FIELDS)


def test_rare_missing_and_unknown_categories_have_their_ids(schema):
    ids, _ = schema.encode({**{k: v[:4] for k, v in ROWS.items()}, "colour": ["red", "blue", None, "violet"]})
    first = schema.first["colour"]
    assert ids[:, 0].tolist() == [schema.vocabularies["colour"]["red"], first + 1, first, first + 1]
    assert set(schema.vocabularies["colour"]) == {"red"}  # blue and green were seen once, below the threshold of 2
    assert schema.rows == len(schema.row_field) and sorted(set(schema.row_field.tolist())) == [0, 1, 2]


def test_threshold_is_the_count_that_is_kept():
    column = ["often"] * 11 + ["rare"] * 10
    assert set(FieldSchema.fit({"c": column}, [Field("c", min_count=11)]).vocabularies["c"]) == {"often"}


def test_numbers_are_standardised_and_missing_ones_are_zero(schema):
    _, values = schema.encode(ROWS)
    prices = np.array([1, 2, 4, 5, 8.0])
    np.testing.assert_allclose(values[[0, 1, 3, 4, 5], 1], (prices - prices.mean()) / prices.std(), rtol=1e-6)
    assert values[2, 1] == 0


@pytest.mark.parametrize(
    ("scale", "expected"), [("minmax", [0, 0.1, 1.0]), ("none", [1, 10, 100]), ("log2", [1, 5.0, 21.0])]
)
def test_scales(scale, expected):
    column = {"x": [1, 10, 100]}
    values = FieldSchema.fit(column, [Field("x", "numeric", scale=scale)]).encode(column)[1]
    np.testing.assert_allclose(values[:, 0], expected, atol=0.01 if scale == "minmax" else 0)


def test_every_number_has_a_vector_of_its_own():
    schema = FieldSchema.fit({"a": [1.0, 2.0], "b": [1.0, 2.0]})
    assert schema.encode({"a": [1.0], "b": [1.0]})[0].tolist() == [[0, 1]] and schema.embedding(4).rows == 2


def test_sets_are_padded_with_no_weight(schema):
    ids, values = schema.encode(ROWS)
    assert values[:, 2:].tolist() == [[1, 1, 0, 0], [1, 0, 0, 0], [0] * 4, [0] * 4, [1, 1, 1, 0], [3, 1, 0, 0]]
    a, b = (schema.vocabularies["tags"][name] for name in "ab")
    assert ids[0, 2:4].tolist() == [a, b]
    texts = FieldSchema.fit({"t": ["x|y", "y", ""]}, [Field("t", "set")])
    assert texts.encode({"t": ["y|x|x", ""]})[1][:, :4].tolist() == [[1, 1, 1, 0], [0, 0, 0, 0]]


def test_a_schema_of_chunks_is_that_of_the_whole_table(schema):
    parts = [{name: cells[start : start + 2] for name, cells in ROWS.items()} for start in (0, 2, 4)]
    in_parts = FieldSchema.fit(iter(parts), FIELDS)
    assert in_parts.vocabularies == schema.vocabularies and in_parts.rows == schema.rows
    np.testing.assert_allclose(in_parts.scales["price"], schema.scales["price"])


def test_frames_and_columns_give_the_same(schema):
    pandas = pytest.importorskip("pandas", reason="the extra flambeau[tabular] is not installed")
    for one, other in zip(schema.encode(pandas.DataFrame(ROWS)), schema.encode(ROWS)):
        assert torch.equal(one, other)


def test_one_category_however_it_is_typed():
    assert category(3) == category(3.0) == category("3") == category(np.int64(3)) == "3"
    assert category(float("nan")) is category(None) is category(" NA ") is None


def test_kinds_are_found():
    assert found_kind("price", [1.5, None, 2]) == "numeric"
    assert found_kind("user_id", [17, 18]) == "categorical" and found_kind("bid", [17, 18]) == "numeric"
    assert found_kind("city", ["Rome", "Oslo"]) == "categorical" and found_kind("flag", [True]) == "categorical"
    assert found_kind("tags", [None, ["a"]]) == "set"


def test_hashing_is_stable_and_bounded():
    schema = FieldSchema.fit({"q": ["a", "b"]}, [Field("q", buckets=50)])
    ids, _ = schema.encode({"q": [f"query {n}" for n in range(2000)] + [None]})
    assert ids.min() == 0 and ids.max() == 50 == schema.rows - 1 and len(ids.unique()) == 51
    assert ids[-1, 0] == 0 and ids[0, 0] == 14  # the hash must never change: saved models depend on it


def test_growing_appends_ids_and_changes_none(schema):
    grown = schema.grow({**ROWS, "colour": ["violet", "violet", "red", "red", "once", None], "tags": [["z"]] * 6})
    assert grown.vocabularies["colour"] == {**schema.vocabularies["colour"], "violet": schema.rows}
    assert grown.rows == schema.rows + 2 and grown.vocabularies["tags"]["z"] == schema.rows + 1
    assert torch.equal(grown.row_field[: schema.rows], schema.row_field) and grown.scales == schema.scales
    for one, other in zip(grown.encode(ROWS), schema.encode(ROWS)):
        assert torch.equal(one, other)


def test_a_saved_schema_encodes_the_same(schema, tmp_path):
    schema.save(tmp_path / "schema.json")
    assert FieldSchema.load(tmp_path / "schema.json") == schema


@pytest.mark.parametrize("change", [{"rows": 3}, {"first": {}}, {"fields": 3}, {"format": 2}, {"other": 1}])
def test_a_damaged_schema_is_refused(schema, tmp_path, change):
    schema.save(tmp_path / "schema.json")
    saved = json.loads((tmp_path / "schema.json").read_text())
    (tmp_path / "schema.json").write_text(json.dumps(saved | change))
    with pytest.raises(ValueError, match="no schema of fields"):
        FieldSchema.load(tmp_path / "schema.json")


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"color": ["red"]}, {}, r"no column 'colour' \(did you mean 'color'\?\)"),
        ({**ROWS, "price": ["cheap"] * 6}, {}, "column 'price', row 0: expected a finite number, got 'cheap'"),
        ({**ROWS, "price": [float("inf")] * 6}, {}, "expected a finite number"),
        ({**ROWS, "price": [1]}, {}, "columns differ in length"),
        ({**ROWS, "colour": ["rad"] * 6}, {"strict": True}, "'rad' is not in the vocabulary .did you mean 'red'"),
        ({**ROWS, "tags": [{"a": -1.0}] * 6}, {}, "weights of a set must be finite and at least 0"),
    ],
)
def test_bad_rows_are_named(schema, columns, options, message):
    with pytest.raises(ValueError, match=message):
        schema.encode(columns, **options)


def test_bad_fields_are_named():
    with pytest.raises(ValueError, match="kind of 'a' must be"):
        Field("a", "number")
    with pytest.raises(ValueError, match="must be at least 2"):
        Field("a", "set", members=1)
    with pytest.raises(ValueError, match="distinct"):
        FieldSchema.fit(ROWS, ["price", "price"])
    with pytest.raises(ValueError, match="no rows"):
        FieldSchema.fit(iter([]))
