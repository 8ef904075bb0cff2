"""What a grid is generated from: a class or features of a text, or nothing."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


class ClassCondition(nn.Module):
    """One token per sample: the embedding of its class, or of the null class of guidance (Ho and Salimans 2022).

    classes: without the null class; 0 for an unconditional model, which has that one alone. drop: share of labels
    replaced by the null class in training.
    """

    tokens = 1

    def __init__(self, classes: int, width: int, drop: float = 0.1):
        super().__init__()
        if classes < 0:
            raise ValueError(f"classes must be at least 0, got {classes}")
        if not 0 <= drop < 1:
            raise ValueError(f"drop must lie in [0, 1), got {drop}")
        self.classes, self.drop = classes, drop
        self.embedding = nn.Embedding(classes + 1, width)

    def forward(self, labels: Int[Tensor, " batch"]) -> Float[Tensor, "batch 1 width"]:
        """Raises ValueError for labels of another shape or outside the classes (`classes` itself is the null class)."""
        if labels.ndim != 1:
            raise ValueError(f"condition must be labels [batch], got {list(labels.shape)}")
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) <= self.classes:
            raise ValueError(
                f"condition must hold labels 0..{self.classes}, got {int(labels.min())}..{int(labels.max())}"
            )
        if self.training and self.drop:
            dropped = torch.rand(len(labels), device=labels.device) < self.drop
            labels = labels.masked_fill(dropped, self.classes)
        return self.embedding(labels)[:, None]

    def null(self, batch: int) -> Int[Tensor, " batch"]:
        """The condition of guidance's unconditional half."""
        return torch.full((batch,), self.classes, device=self.embedding.weight.device)


class TextCondition(nn.Module):
    """As many tokens as the text has features, through a two-layer perceptron (LlamaGen, arXiv 2406.06525).

    dim: size of a feature (2048 of Flan-T5 XL). tokens: features per text; shorter texts are padded and masked.
    drop: share of texts replaced by the learned null text in training.
    """

    def __init__(self, dim: int, width: int, tokens: int = 120, drop: float = 0.1):
        super().__init__()
        if tokens < 1:
            raise ValueError(f"tokens must be at least 1, got {tokens}")
        if not 0 <= drop < 1:
            raise ValueError(f"drop must lie in [0, 1), got {drop}")
        self.dim, self.tokens, self.drop = dim, tokens, drop
        self.fc1 = nn.Linear(dim, width, bias=False)
        self.fc2 = nn.Linear(width, width, bias=False)
        self.null_text = nn.Parameter(torch.randn(tokens, dim) / dim**0.5)

    def forward(self, features: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens width"]:
        """Raises ValueError for another number or size of features."""
        if features.shape[1:] != (self.tokens, self.dim):
            raise ValueError(f"condition must be [batch, {self.tokens}, {self.dim}], got {list(features.shape)}")
        if self.training and self.drop:
            dropped = torch.rand(len(features), 1, 1, device=features.device) < self.drop
            features = torch.where(dropped, self.null_text, features)
        return self.fc2(F.gelu(self.fc1(features), approximate="tanh"))

    def null(self, batch: int) -> Float[Tensor, "batch tokens dim"]:
        """The condition of guidance's unconditional half."""
        return self.null_text.detach().expand(batch, -1, -1)
