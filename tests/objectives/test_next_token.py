"""Next-token loss on a model whose probabilities are known."""

import pytest
import torch

from flambeau.models.language import Decoder
from flambeau.objectives.next_token import next_token_loss, next_token_nll


def test_uniform_model_costs_log_vocab_and_a_trained_one_less():
    torch.manual_seed(0)
    model = Decoder(5, 8, 16, 1, 2)
    tokens = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2]]).repeat(4, 1)
    torch.nn.init.zeros_(model.head.weight)
    assert next_token_nll(model, tokens).shape == (4, 7)
    assert next_token_loss(model, tokens).item() == pytest.approx(torch.log(torch.tensor(5.0)).item(), abs=1e-6)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(40):
        optimizer.zero_grad()
        next_token_loss(model, tokens).backward()
        optimizer.step()
    assert next_token_loss(model, tokens).item() < 0.1
