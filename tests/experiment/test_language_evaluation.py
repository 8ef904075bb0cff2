import json
import math

import pytest
import torch
from torch import nn

from flambeau.data import ByteTokenizer
from flambeau.experiment import language_evaluation as evaluation
from flambeau.models.language import BERT, GPT

TOKENIZER = ByteTokenizer()


class Uniform(GPT):
    def forward(self, tokens, positions=None):
        return torch.zeros(*tokens.shape, self.vocab)


class Spells(GPT):
    """Expects the letter that follows in the alphabet; a space behind "a", and "b" behind a space."""

    def forward(self, tokens, positions=None):
        expected = torch.where(tokens == ord("a"), ord(" "), torch.where(tokens == ord(" "), ord("b"), tokens + 1))
        return nn.functional.one_hot(expected, 256).float()


def test_perplexity_is_per_word_of_the_original_and_counts_each_token_once():
    text = "a well @-@ known text , of which the words ( all ) count .\n" * 5
    plain = evaluation.plain_text(text)
    assert plain.startswith("a well-known text, of which the words (all) count.")
    tokens, words = len(TOKENIZER.encode(plain)) - 1, len(text.strip().split(" "))
    for length, stride in ((32, 7), (32, 32), (64, 64), (1000, 5)):
        found = evaluation.wikitext_perplexity(Uniform(256, length, 8, 1, 2), TOKENIZER, text, stride=stride, batch=3)
        assert found == pytest.approx(math.exp(math.log(256) * tokens / words), rel=1e-4)


def test_overlap_gives_context():
    torch.manual_seed(0)
    model, text = GPT(256, 16, 16, 1, 2), "some text that is longer than the model's window by far"
    tokens = TOKENIZER.encode(text)
    expected, stride = 0.0, 4
    with torch.no_grad():
        model.eval()
        losses = model.token_losses(tokens[None, :16], tokens[None, 1:17])[0]
        expected += float(losses.sum())
        for end in [*range(20, len(tokens) - 1, stride), len(tokens) - 1]:
            new = min(stride, end - 16) if end % 4 == 0 else (end - 16) % 4 or 4
            expected += float(
                model.token_losses(tokens[None, end - 16 : end], tokens[None, end - 15 : end + 1])[0, -new:].sum()
            )
    found = evaluation.wikitext_perplexity(model, TOKENIZER, text, stride=stride)
    assert math.log(found) * len(text.split(" ")) == pytest.approx(expected, rel=1e-5)


def test_last_words_count_when_every_token_is_right(tmp_path):
    model = Spells(256, 64, 8, 1, 2)
    passages = ["xyz a bcde", "a bcdf", "a bc"]
    assert evaluation.cloze_accuracy(model, TOKENIZER, passages) == pytest.approx(2 / 3)
    path = tmp_path / "lambada.jsonl"
    path.write_text('{"text": "one two"}\n{"txt": 1}\n')
    with pytest.raises(ValueError, match="line 2: expected"):
        evaluation.read_cloze(path)
    path.write_text('{"text": "one two"}\n')
    assert evaluation.read_cloze(path) == ["one two"]
    with pytest.raises(ValueError, match="at least two words"):
        evaluation.cloze_accuracy(model, TOKENIZER, ["word"])


def race_file(folder, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "article": "The sky is blue. " * 20,
        "questions": ["The sky is _ .", "What is blue?"],
        "options": [["red", "blue", "green", "loud"], ["sky", "sea", "sun", "sand"]],
        "answers": ["B", "A"],
    } | changes
    (folder / "1.txt").write_text(json.dumps(content))


def test_race_is_read_and_answered(tmp_path):
    race_file(tmp_path / "high")
    rows = evaluation.read_race(tmp_path, TOKENIZER, 48)
    assert rows["tokens"].shape == (2, 4, 48) and rows["labels"].tolist() == [1, 0]
    first = rows["tokens"][0, 1]
    end = (first == 257).nonzero().flatten().tolist()
    assert first[0] == 256 and bytes(first[end[0] + 1 : end[1]].tolist()) == b"The sky is blue ."
    assert bytes(rows["tokens"][1, 2][end[0] + 1 :][:6].tolist()).decode(errors="ignore")
    assert rows["segments"][0, 1, end[0] + 1 : end[1] + 1].all() and not rows["segments"][0, 1, : end[0] + 1].any()
    torch.manual_seed(0)
    model = evaluation.MultipleChoice(BERT(259, 48, 16, 1, 2, dropout=0.0))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        evaluation.choice_loss(model, rows).backward()
        optimizer.step()
    assert evaluation.choice_accuracy(model, rows) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"answers": ["B", "Z"]}, "not a file of RACE"), ({"options": [["a"] * 4, ["b"] * 3]}, "4 options, got 3")],
)
def test_bad_race_files(tmp_path, changes, message):
    race_file(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        evaluation.read_race(tmp_path, TOKENIZER, 48)
    with pytest.raises(ValueError, match="no .txt files"):
        evaluation.read_race(tmp_path / "none", TOKENIZER, 48)
