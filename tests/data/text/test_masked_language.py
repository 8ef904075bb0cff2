import pytest
import torch

from flambeau.data.text.masked_language import MaskedLanguage, mask_tokens


def test_shares_of_masked_tokens():
    tokens = torch.randint(0, 256, (64, 1000), generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    inputs, targets = mask_tokens(tokens, mask_token=300, vocab=256, generator=generator)
    chosen = targets != -100
    count = chosen.sum().item()
    assert torch.equal(inputs[~chosen], tokens[~chosen]) and torch.equal(targets[chosen], tokens[chosen])
    for share, expected, total in (
        (count / tokens.numel(), 0.15, tokens.numel()),
        ((inputs[chosen] == 300).float().mean().item(), 0.8, count),
        ((inputs[chosen] == tokens[chosen]).float().mean().item(), 0.1 + 0.1 / 256, count),
    ):
        assert abs(share - expected) < 4 * (expected * (1 - expected) / total) ** 0.5
    only = torch.zeros_like(tokens, dtype=torch.bool)
    only[3, 5] = True
    _, targets = mask_tokens(tokens, mask_token=300, vocab=256, generator=generator, maskable=only)
    assert ((targets != -100) == only).all()


def test_batches_depend_on_seed_and_step_only():
    stream = torch.arange(50).repeat(20)
    data = MaskedLanguage(stream, 17, 8, vocab=50)
    first, again = (data(3, torch.Generator().manual_seed(2)) for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = data(4, torch.Generator().manual_seed(2))
    assert not torch.equal(first["tokens"], other["tokens"])


def test_sentence_order():
    stream = torch.arange(1000)
    data = MaskedLanguage(stream, 12, 200, vocab=1000)
    batch = data(0, torch.Generator().manual_seed(0))
    assert set(batch["order"].tolist()) == {0, 1}
    known = torch.where(batch["targets"] == -100, batch["tokens"], batch["targets"])
    assert (known[:, 0] == 1000).all() and (batch["targets"][:, 0] == -100).all()
    for row, order, segments in zip(known[:, 1:], batch["order"], batch["segments"][:, 1:]):
        pieces = [row[segments == segment] for segment in (0, 1)]
        assert all((piece.diff() == 1).all() for piece in pieces)
        # in order the second piece goes on where the first ends; swapped, the other way around
        first, second = pieces if order == 0 else reversed(pieces)
        assert second[0] == first[-1] + 1


def test_bad_arguments():
    stream = torch.arange(20)
    for arguments, message in (
        ((stream, 2, 1), "length must be at least 3"),
        ((stream, 10, 0), "batch_size"),
        ((stream, 30, 1), "at least 30 tokens"),
        ((stream, 10, 1, 10), r"tokens in \[0, 10\)"),
    ):
        with pytest.raises(ValueError, match=message):
            MaskedLanguage(*arguments)
    options = dict(mask_token=300, vocab=256, generator=torch.Generator())
    with pytest.raises(ValueError, match="rate"):
        mask_tokens(stream[None], rate=0.0, **options)
    with pytest.raises(ValueError, match="maskable"):
        mask_tokens(stream[None], maskable=torch.zeros(1, 20, dtype=torch.bool), **options)
