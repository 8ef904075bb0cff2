import torch

from flambeau.data.parity import parity
from flambeau.experiment import run_experiment
from flambeau.models.language.sequence_tagger import TransformerTagger
from flambeau.papers import load


def test_smoke(tmp_path):
    result = run_experiment(load("flashrnn"), preset="smoke", out=tmp_path, seed=0)
    claims = result["claims"]
    assert len(claims) == 12
    assert all(claim["value"] is not None or claim["why"] for claim in claims)
    measured = {claim["name"] for claim in claims if claim["value"] is not None}
    assert {"parity_lstm", "parity_slstm", "parity_gru", "parity_elman", "parity_transformer"} <= measured


def test_parity_is_a_running_sum():
    bits, answers = parity(4, 9, torch.Generator().manual_seed(0))
    for t in range(9):
        assert torch.equal(answers[:, t], bits[:, : t + 1].sum(1) % 2)


def test_the_transformer_does_not_see_the_future():
    torch.manual_seed(0)
    model = TransformerTagger(2, 2, 16).eval()
    bits, _ = parity(2, 8, torch.Generator().manual_seed(0))
    changed = bits.clone()
    changed[:, 5:] = 1 - changed[:, 5:]
    torch.testing.assert_close(model(bits)[:, :5], model(changed)[:, :5])
    assert not torch.allclose(model(bits)[:, 5:], model(changed)[:, 5:])
