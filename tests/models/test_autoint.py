import pytest
import torch

from flambeau.data.clicks.fields import Field, FieldSchema
from flambeau.data.clicks.planted import planted_clicks
from flambeau.models.tabular import (
    AFM,
    DCN,
    DNN,
    HOFM,
    NFM,
    AutoInt,
    AutoIntPlus,
    DeepCrossing,
    DeepFM,
    FactorizationMachine,
    LogisticRegression,
    XDeepFM,
)
from flambeau.models.tabular.explanation import agreement, mean_attention, pair_importance, strongest_pairs

ROWS = {
    "city": ["a", "b", "c", "a", None],
    "price": [1.0, 2.0, -1.0, None, 5.0],
    "tags": [["x"], ["x", "y"], [], ["y"], ["z", "x"]],
}
SCHEMA = FieldSchema.fit(ROWS, [Field("city", dim=4), Field("price", "numeric"), Field("tags", "set", members=3)])
MODELS = [
    LogisticRegression, FactorizationMachine, HOFM, AFM, NFM, DNN, DeepFM, DCN, XDeepFM, DeepCrossing, AutoInt,
    AutoIntPlus,
]  # fmt: skip


def criteo_schema():
    numbers = [Field(f"I{n}", "numeric") for n in range(13)]
    fields = [*numbers, *[Field(f"C{n}") for n in range(26)]]
    return FieldSchema.fit({one.name: [1, 2] for one in fields}, fields)


@pytest.mark.parametrize("model", MODELS)
def test_every_model_takes_encoded_fields_and_learns(model):
    torch.manual_seed(0)
    net = model(SCHEMA).train()
    encoded = SCHEMA.encode(ROWS)
    labels = torch.tensor([1.0, 0, 1, 0, 1])
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        logits = net(*encoded)
        assert logits.shape == (5,) and torch.isfinite(logits).all()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses) < 0.3 < losses[0]
    assert all(parameter.grad is not None for parameter in net.parameters())
    torch.testing.assert_close(net.eval()(**dict(zip(("ids", "values"), encoded))), net(*encoded))


def test_parameters_of_the_published_criteo_network():
    net = AutoInt(criteo_schema())
    layers = sum(p.numel() for module in (net.layers, net.output) for p in module.parameters())
    assert layers == 4 * (16 * 64 + 64) + 2 * 4 * (64 * 64 + 64) + 3 * 128 + 39 * 64 + 1


def test_permuting_the_fields_and_the_output_weights_changes_nothing():
    torch.manual_seed(0)
    clicks = planted_clicks(32)
    names = list(clicks.columns())
    order = torch.tensor([3, 1, 4, 0, 5, 9, 2, 6, 8, 7])
    schema = FieldSchema.fit(clicks.columns(), [Field(name) for name in names])
    other = FieldSchema.fit(clicks.columns(), [Field(names[place]) for place in order])
    net, permuted = AutoInt(schema, width=32), AutoInt(other, width=32)
    state = net.state_dict()
    state["output.weight"] = state["output.weight"].view(10, 32)[order].reshape(1, -1)
    ids, values = schema.encode(clicks.columns())
    moved = torch.empty(schema.rows, dtype=torch.int64)  # new id -> old id
    new_ids, _ = other.encode(clicks.columns())
    moved[new_ids.flatten()] = ids[:, order].flatten()
    for name in names:
        moved[other.first[name]], moved[other.first[name] + 1] = schema.first[name], schema.first[name] + 1
    state["embedding.table.weight"] = state["embedding.table.weight"][moved]
    permuted.load_state_dict(state)
    torch.testing.assert_close(permuted(new_ids, values), net(ids, values), rtol=0, atol=1e-6)


def test_autoint_plus_without_its_perceptron_is_autoint():
    torch.manual_seed(0)
    plus, plain = AutoIntPlus(SCHEMA).eval(), AutoInt(SCHEMA).eval()
    plain.load_state_dict({name: value for name, value in plus.state_dict().items() if not name.startswith("mlp.")})
    encoded = SCHEMA.encode(ROWS)
    assert not torch.equal(plus(*encoded), plain(*encoded))
    for parameter in plus.mlp.parameters():
        torch.nn.init.zeros_(parameter)
    assert torch.equal(plus(*encoded), plain(*encoded))


def test_without_attention_over_numbers_there_is_no_interaction():
    """Zero layers are additive in the fields; layers are not. The measure of pair importance tells them apart."""
    torch.manual_seed(0)
    clicks = planted_clicks(200)
    schema = FieldSchema.fit(clicks.columns(), [Field(name) for name in clicks.columns()])
    encoded = schema.encode(clicks.columns())
    additive, mixing = AutoInt(schema, layers=0).eval(), AutoInt(schema, width=16).eval()
    for net in (additive, mixing):
        torch.nn.init.normal_(net.embedding.table.weight)
    with torch.no_grad():
        none = pair_importance(additive, *encoded, schema.slots)
        some = pair_importance(mixing, *encoded, schema.slots)
    assert none.max() < 1e-5 < 1e-3 < some.max()
    assert torch.equal(some, some.T) and (some.diagonal() == 0).all()


def test_pair_importance_finds_the_pairs_of_a_known_function():
    clicks = planted_clicks(2000, seed=1)

    def truth(ids, values):
        q = (ids > 10).double()
        return 2 * q[:, 0] * q[:, 1] + q[:, 2] * q[:, 3] * q[:, 4] + 5 * q[:, 6]

    importance = pair_importance(truth, clicks.categories, torch.ones(2000, 10), (1,) * 10)
    assert strongest_pairs(importance, 1) == [(0, 1)]
    assert set(strongest_pairs(importance, 4)) == {(0, 1), (2, 3), (2, 4), (3, 4)}
    assert importance[6].max() == 0
    assert agreement(importance, importance) == pytest.approx(1)


def test_mean_attention_is_a_distribution_over_fields():
    torch.manual_seed(0)
    net = AutoInt(SCHEMA, dropout=(0.5, 0.5, 0.5)).train()
    encoded = SCHEMA.encode(ROWS)
    attention = mean_attention(net, *encoded, layer=2)
    torch.testing.assert_close(attention.sum(1), torch.ones(3))
    assert net.training and net.attention(*encoded).shape == (5, 3, 2, 3, 3)
    with pytest.raises(ValueError, match="layer must lie in 0 ... 2, got 3"):
        mean_attention(net, *encoded, layer=3)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="width must be divisible by heads"):
        AutoInt(SCHEMA, width=30, heads=4)
    with pytest.raises(ValueError, match="three rates"):
        AutoInt(SCHEMA, dropout=(0.1, 0.2))
    with pytest.raises(ValueError, match="order"):
        HOFM(SCHEMA, order=1)
