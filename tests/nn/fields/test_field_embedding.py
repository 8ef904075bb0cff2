import pytest
import torch

from flambeau.nn.fields.embedding import FieldEmbedding


def embedding(**options):
    """Fields: a category of 4 ids, a number, a set of up to 3 out of 5 ids."""
    torch.manual_seed(0)
    return FieldEmbedding([0] * 4 + [1] + [2] * 5, (1, 1, 3), 6, std=1.0, **options)


def record(category=2, number=1.5, members=(5, 7, 9), weights=(1.0, 1.0, 1.0)):
    return torch.tensor([[category, 4, *members]]), torch.tensor([[1.0, number, *weights]])


def test_vectors_are_rows_numbers_scale_and_sets_average():
    embed = embedding()
    out = embed(*record(weights=(1.0, 2.0, 0.0)))[0]
    table = embed.table.weight
    torch.testing.assert_close(out[0], table[2])
    torch.testing.assert_close(out[1], 1.5 * table[4])
    torch.testing.assert_close(out[2], (table[5] + 2 * table[7]) / 3)


def test_a_number_is_linear_and_zero_is_exactly_zero():
    embed = embedding()
    one, two, none = (embed(*record(number=number))[0, 1] for number in (0.7, 1.4, 0.0))
    assert torch.equal(2 * one, two) and torch.equal(none, torch.zeros(6))


def test_sets_ignore_padding_and_order_and_may_be_empty():
    embed = embedding()
    plain = embed(*record(members=(5, 7, 9), weights=(1.0, 1.0, 0.0)))
    torch.testing.assert_close(embed(*record(members=(7, 5, 6), weights=(1.0, 1.0, 0.0))), plain, rtol=0, atol=1e-6)
    empty = embed(*record(weights=(0.0, 0.0, 0.0)))
    assert torch.equal(empty[0, 2], torch.zeros(6)) and not empty.isnan().any()
    empty.sum().backward()
    assert all(not parameter.grad.isnan().any() for parameter in embed.parameters() if parameter.grad is not None)


def test_a_field_may_have_vectors_of_its_own_length():
    embed = embedding(field_dims={2: 3})
    out = embed(*record(members=(5, 7, 9), weights=(1.0, 0.0, 0.0)))
    torch.testing.assert_close(out[0, 2], embed.bring["2"].weight @ embed.own["2"].weight[0])
    assert embed.own["2"].weight.shape == (5, 3) and embed.table.weight.shape == (5, 6) and embed.rows == 10
    torch.testing.assert_close(out[0, 0], embed.table.weight[2])


@pytest.mark.parametrize("own", [{}, {0: 3}])
def test_new_rows_start_like_known_ones(own):
    embed = embedding(field_dims=own)
    before = embed(*record())
    replaced = embed.grow([0] * 4 + [1] + [2] * 5 + [0, 2, 2], [1, 5, 6])
    assert embed.rows == 13 and torch.equal(embed(*record()), before)
    assert {new.shape[0] - old.shape[0] for old, new in replaced.items()} == ({1, 2} if own else {3})
    torch.testing.assert_close(embed(*record(category=10)), embed(*record(category=1)))
    torch.testing.assert_close(embed(*record(members=(11, 12, 9))), embed(*record(members=(5, 6, 9))))
    with pytest.raises(ValueError, match="keep the known rows"):
        embed.grow([1] * 13 + [0], [0])


def test_sparse_gradients_have_the_rows_looked_up():
    embed = embedding(sparse=True)
    embed(*record()).sum().backward()
    assert sorted(embed.table.weight.grad.coalesce().indices()[0].tolist()) == [2, 4, 5, 7, 9]


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="at least one row"):
        FieldEmbedding([0, 0, 2], (1, 1, 1))
    with pytest.raises(ValueError, match="slots must name"):
        FieldEmbedding([0], ())
    with pytest.raises(ValueError, match=r"must be \[batch, 5\], got \[1, 4\]"):
        embedding()(torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, 4))
