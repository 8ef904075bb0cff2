"""Sentences and pairs of sentences of the GLUE benchmark, from its own files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

MAX_BYTES = 1 << 30
# task: columns of the text, column of the label, classes (Wang et al. 2018, arXiv 1804.07461); numbers where the files
# have no header
TASKS: dict[str, tuple[tuple[str | int, ...], str | int, tuple[str, ...]]] = {
    "cola": ((3,), 1, ("0", "1")),
    "sst2": (("sentence",), "label", ("0", "1")),
    "mrpc": (("#1 String", "#2 String"), "Quality", ("0", "1")),
    "qqp": (("question1", "question2"), "is_duplicate", ("0", "1")),
    "mnli": (("sentence1", "sentence2"), "gold_label", ("entailment", "neutral", "contradiction")),
    "qnli": (("question", "sentence"), "label", ("entailment", "not_entailment")),
    "rte": (("sentence1", "sentence2"), "label", ("entailment", "not_entailment")),
    "wnli": (("sentence1", "sentence2"), "label", ("0", "1")),
}


class GlueTask(Dataset):
    """Item i is what a model of transformers takes, padded to one length: ``input_ids``, ``attention_mask`` and others.

    Args:
        path: a labelled file, ``train.tsv`` or ``dev.tsv``.
        task: one of :data:`TASKS`.
        tokenizer: name or folder of a tokenizer of transformers.
        max_length: tokens; longer texts are cut off.

    Raises:
        ValueError: an unknown task, a missing column, a row without its columns or with another label; the message
            names file and line.
        FileNotFoundError: no such file.
        ModuleNotFoundError: transformers is not installed.
    """

    def __init__(self, path: str | Path, task: str, tokenizer: str, max_length: int = 128):
        if task not in TASKS:
            raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
        try:
            from transformers import AutoTokenizer
        except ModuleNotFoundError:
            raise ModuleNotFoundError("GLUE needs transformers: pip install 'flambeau[hf]'") from None
        texts, labels = read_glue(Path(path).expanduser(), task)
        encode = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
        columns = [list(column) for column in zip(*texts)]
        self.encoded: dict[str, Tensor] = dict(
            encode(*columns, padding="max_length", truncation=True, max_length=max_length, return_tensors="pt")
        )
        self.labels = torch.tensor(labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {name: values[row] for name, values in self.encoded.items()} | {"labels": self.labels[row]}


def read_glue(path: Path, task: str) -> tuple[list[tuple[str, ...]], list[int]]:
    """Texts (one or two a row) and class numbers of a file of `task`; the errors are those of :class:`GlueTask`."""
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path}: {path.stat().st_size} bytes, more than the {MAX_BYTES} that are read")
    wanted, label, classes = TASKS[task]
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    first, positions = 0, [*wanted, label]
    if isinstance(label, str):
        header = lines[0].rstrip("\r").split("\t")
        missing = [name for name in positions if name not in header]
        if missing:
            raise ValueError(f"{path} has no column {missing[0]!r}, which {task} needs; it has {', '.join(header)}")
        first, positions = 1, [header.index(str(name)) for name in positions]
    columns = [int(position) for position in positions]
    texts, labels = [], []
    for number, line in enumerate(lines[first:], first + 1):
        if not line.strip():
            continue
        fields = line.rstrip("\r").split("\t")  # quotation marks are part of the text
        if len(fields) <= max(columns):
            raise ValueError(f"{path} line {number}: {len(fields)} columns, expected at least {max(columns) + 1}")
        if fields[columns[-1]] not in classes:
            raise ValueError(
                f"{path} line {number}: the label is {fields[columns[-1]]!r}, expected {', '.join(classes)}"
            )
        texts.append(tuple(fields[column] for column in columns[:-1]))
        labels.append(classes.index(fields[columns[-1]]))
    if not texts:
        raise ValueError(f"{path} holds no rows")
    return texts, labels
