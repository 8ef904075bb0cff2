"""How well a language model does: WikiText perplexity, LAMBADA's last words, RACE's questions.

As Shoeybi et al. 2019, arXiv 1909.08053, section 5.3 and appendix E.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from flambeau.models.language import BERT, GPT

MAX_LINES = 1_000_000
_SPACED = (
    (r" @([-,.])@ ", r"\1"),
    (r" ([,.;:!?%)\]])", r"\1"),
    (r"([(\[$]) ", r"\1"),
    (r" ('s|'re|'ve|'ll|'d|'m|n't)\b", r"\1"),
)


def plain_text(wikitext: str) -> str:
    """WikiText's tokens as ordinary text: its spaces around punctuation and its ``@-@`` undone."""
    for pattern, replacement in _SPACED:
        wikitext = re.sub(pattern, replacement, wikitext)
    return re.sub(r'" ([^"\n]*?) "', r'"\1"', wikitext)


@torch.no_grad()
def wikitext_perplexity(model: GPT, tokenizer: Any, wikitext: str, *, stride: int = 32, batch: int = 8) -> float:
    """exp of the summed loss over the *words* of the text as it was distributed, whatever the model's tokens are.

    A window of the model's length moves by `stride` tokens, and its last `stride` predictions count (the first
    window's all do). Dividing by the words of the original (split at spaces) makes models with different tokenizers
    comparable.

    Args:
        tokenizer: has ``encode``.
        wikitext: the test file as it is.
        batch: windows at a time.

    Raises:
        ValueError: a text of fewer than two tokens, or a stride outside 1..length.
    """
    if not 1 <= stride <= model.length:
        raise ValueError(f"stride must lie in 1..{model.length}, got {stride}")
    tokens, words = tokenizer.encode(plain_text(wikitext)), len(wikitext.strip().split(" "))
    if len(tokens) < 2:
        raise ValueError(f"the text must have at least 2 tokens, got {len(tokens)}")
    model.eval()
    device = next(model.parameters()).device
    length = min(model.length, len(tokens) - 1)
    ends = [length, *range(length + stride, len(tokens) - 1, stride)]
    if ends[-1] != len(tokens) - 1:
        ends.append(len(tokens) - 1)
    total, counted = 0.0, 0
    for first in range(0, len(ends), batch):
        chosen = ends[first : first + batch]
        windows = torch.stack([tokens[end - length : end + 1] for end in chosen]).to(device)
        losses = model.token_losses(windows[:, :-1], windows[:, 1:])
        for row, end in zip(losses, chosen, strict=True):
            total += float(row[length - (end - counted) :].double().sum())
            counted = end
    return math.exp(total / words)


def read_cloze(path: str | Path) -> list[str]:
    """The ``text`` of each JSON line. Raises ValueError naming the line that has none."""
    texts = []
    with Path(path).open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if number > MAX_LINES:
                raise ValueError(f"{path}: at most {MAX_LINES} lines are read")
            try:
                texts.append(str(json.loads(line)["text"]))
            except (json.JSONDecodeError, KeyError, TypeError):
                raise ValueError(f'{path}, line {number}: expected {{"text": ...}}, got {line[:60]!r}') from None
    return texts


@torch.no_grad()
def cloze_accuracy(model: GPT, tokenizer: Any, passages: Sequence[str]) -> float:
    """Share of passages whose last word's tokens are all the likeliest ones, each behind the true ones before it.

    Raises ValueError for no passage, or one of a single word.
    """
    if not passages:
        raise ValueError("passages must not be empty")
    model.eval()
    device = next(model.parameters()).device
    right = 0
    for passage in passages:
        context, _, word = passage.strip().rpartition(" ")
        if not context:
            raise ValueError(f"a passage must have at least two words, got {passage!r}")
        target = tokenizer.encode(" " + word)
        tokens = torch.cat([tokenizer.encode(context), target])[-model.length - 1 :].to(device)
        predicted = model(tokens[None, :-1])[0].argmax(-1)[-len(target) :]
        right += bool((predicted == tokens[-len(target) :]).all())
    return right / len(passages)


def read_race(folder: str | Path, tokenizer: Any, length: int) -> dict[str, Tensor]:
    """RACE's questions as rows for `MultipleChoice`, from all its .txt files below `folder`.

    A row is ``[start] article [end] question option [end]``; the article's beginning is cut if that is too long, and a
    ``_`` in the question is replaced by the option.

    Returns:
        ``tokens``, ``segments`` and ``mask`` [questions, 4, length]; ``labels`` [questions].

    Raises:
        ValueError: no such files, or one that is not RACE's JSON; the message names it.
    """
    start, end = tokenizer.vocab_size, tokenizer.vocab_size + 1
    rows: dict[str, list[Tensor]] = {"tokens": [], "segments": [], "mask": [], "labels": []}
    files = sorted(Path(folder).rglob("*.txt"))
    if not files:
        raise ValueError(f"{folder} holds no .txt files of RACE")
    for file in files:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            article = tokenizer.encode(content["article"])
            entries = list(zip(content["questions"], content["options"], content["answers"], strict=True))
            labels = ["ABCD".index(answer) for _, _, answer in entries]
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file} is not a file of RACE: {error}") from None
        for (question, options, _), label in zip(entries, labels, strict=True):
            if len(options) != 4:
                raise ValueError(f"{file}: a question must have 4 options, got {len(options)}")
            asked = [question.replace("_", option) if "_" in question else f"{question} {option}" for option in options]
            parts = [_pair(article, tokenizer.encode(text), length, start, end) for text in asked]
            for name, values in zip(("tokens", "segments", "mask"), zip(*parts, strict=True), strict=True):
                rows[name].append(torch.stack(values))
            rows["labels"].append(torch.tensor(label))
    return {name: torch.stack(values) for name, values in rows.items()}


def _pair(article: Tensor, question: Tensor, length: int, start: int, end: int) -> tuple[Tensor, Tensor, Tensor]:
    question = question[: length - 4]
    article = article[: length - 3 - len(question)]
    marks = torch.tensor([start, end])
    tokens = torch.cat([marks[:1], article, marks[1:], question, marks[1:]])
    segments = torch.cat([torch.zeros(len(article) + 2), torch.ones(len(question) + 1)]).long()
    padding = length - len(tokens)
    mask = torch.ones(len(tokens), dtype=torch.bool)
    return F.pad(tokens, (0, padding)), F.pad(segments, (0, padding)), F.pad(mask, (0, padding))


class MultipleChoice(nn.Module):
    """A BERT that scores each of several continuations by its first token, for fine-tuning."""

    def __init__(self, bert: BERT):
        super().__init__()
        self.bert = bert
        self.score = nn.Linear(bert.pooler.out_features, 1)

    def forward(
        self,
        tokens: Int[Tensor, "batch choices time"],
        segments: Int[Tensor, "batch choices time"],
        mask: Bool[Tensor, "batch choices time"],
    ) -> Float[Tensor, "batch choices"]:
        batch, choices, _ = tokens.shape
        encoded = self.bert.encode(tokens.flatten(0, 1), mask.flatten(0, 1), segments.flatten(0, 1))
        return self.score(torch.tanh(self.bert.pooler(encoded[:, 0]))).view(batch, choices)


def choice_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Cross entropy over the choices of a batch of `read_race`."""
    return F.cross_entropy(model(batch["tokens"], batch["segments"], batch["mask"]), batch["labels"])


@torch.no_grad()
def choice_accuracy(model: nn.Module, questions: Mapping[str, Tensor], batch: int = 8) -> float:
    """Share of `questions`, rows of `read_race`, whose right choice scores highest."""
    model.eval()
    device = next(model.parameters()).device
    right = 0
    for first in range(0, len(questions["labels"]), batch):
        part = {name: values[first : first + batch].to(device) for name, values in questions.items()}
        scores = model(part["tokens"], part["segments"], part["mask"])
        right += int((scores.argmax(-1) == part["labels"]).sum())
    return right / len(questions["labels"])
