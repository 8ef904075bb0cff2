import pytest
import torch

from flambeau.data import ByteTokenizer, pydoc_text
from flambeau.data.text.masked_language import MaskedPairs

TOKENIZER = ByteTokenizer()
TOKENS = TOKENIZER.encode(pydoc_text()[:20_000])


def pairs(**changes):
    arguments = {"length": 64, "batch_size": 16, "vocab": 256} | changes
    return MaskedPairs(TOKENS, TOKENIZER.word_begins(TOKENS), **arguments)


def test_rows_are_two_segments_of_the_text_with_whole_words_hidden():
    batch = pairs()(3, torch.Generator().manual_seed(0))
    assert {name: list(t.shape) for name, t in batch.items()} == {
        "tokens": [16, 64], "targets": [16, 64], "segments": [16, 64], "order": [16],
    }  # fmt: skip
    tokens, targets, segments = batch["tokens"], batch["targets"], batch["segments"]
    assert (tokens[:, 0] == 256).all() and (tokens[:, -1] == 257).all() and ((tokens == 257).sum(1) == 2).all()
    text = bytes(TOKENS.tolist())
    for row in range(16):
        original = torch.where(targets[row] != -100, targets[row], tokens[row])
        marks = (original == 257).nonzero().flatten().tolist()
        a, b = original[1 : marks[0]], original[marks[0] + 1 : -1]
        first, second = (b, a) if batch["order"][row] else (a, b)
        assert bytes(torch.cat([first, second]).tolist()) in text
        assert segments[row].tolist() == [0] * (len(a) + 2) + [1] * (len(b) + 1)
        # A word is hidden whole: the letters beside a hidden letter inside a word are hidden too.
        hidden, begins = targets[row] != -100, TOKENIZER.word_begins(original)
        inside = ~begins[2 : marks[0]]
        assert (hidden[2 : marks[0]] == hidden[1 : marks[0] - 1])[inside].all()


def test_shares():
    batch = pairs(batch_size=400)(0, torch.Generator().manual_seed(0))
    hidden = batch["targets"] != -100
    assert hidden.float().mean().item() == pytest.approx(0.15, abs=0.04)
    assert (batch["tokens"][hidden] == 258).float().mean().item() == pytest.approx(0.8, abs=0.03)
    assert batch["order"].float().mean().item() == pytest.approx(0.5, abs=0.1)


def test_a_batch_is_a_function_of_the_step():
    data, generator = pairs(), torch.Generator().manual_seed(4)
    first = data(1, generator)
    torch.rand(3, generator=generator)
    again, other = data(1, generator), data(2, generator)
    assert torch.equal(first["tokens"], again["tokens"]) and not torch.equal(first["tokens"], other["tokens"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": 5}, "length must lie in 8"),
        ({"share": 0.0}, "share must lie"),
        ({"batch_size": 0}, "batch_size and"),
    ],
)
def test_bad_input(changes, message):
    with pytest.raises(ValueError, match=message):
        pairs(**changes)
