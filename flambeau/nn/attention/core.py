"""Where the tokens of a sequence meet, without projections: a module of its own, so that it can be exchanged."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from flambeau.nn.linformer import linformer_attention


class AttentionCore(nn.Module):
    """softmax(queries keys' / sqrt(head_dim)) values: the only place where tokens of a sequence meet.

    A parallel plan puts another module here (keys and values that travel around a ring, say); the rest of a model
    works on each token by itself.
    """

    def __init__(self, causal: bool, dropout: float):
        super().__init__()
        self.causal, self.dropout = causal, dropout

    def forward(
        self,
        queries: Float[Tensor, "batch heads time head_dim"],
        keys: Float[Tensor, "batch heads time head_dim"],
        values: Float[Tensor, "batch heads time head_dim"],
        mask: Bool[Tensor, "batch time"] | None = None,
    ) -> Float[Tensor, "batch heads time head_dim"]:
        """mask: True for tokens that may be looked at, False for padding."""
        visible = None if mask is None else mask[:, None, None, :]
        if visible is not None and self.causal:
            time = queries.shape[2]
            visible = visible & visible.new_ones(time, time).tril()
        return F.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=visible,
            is_causal=self.causal and visible is None,
            dropout_p=self.dropout if self.training else 0.0,
        )


class WindowCore(AttentionCore):
    """Attention to tokens less than `window` positions away."""

    def __init__(self, window: int, causal: bool, dropout: float):
        super().__init__(causal, dropout)
        self.window = window

    def forward(
        self,
        queries: Float[Tensor, "batch heads time head_dim"],
        keys: Float[Tensor, "batch heads time head_dim"],
        values: Float[Tensor, "batch heads time head_dim"],
        mask: Bool[Tensor, "batch time"] | None = None,
    ) -> Float[Tensor, "batch heads time head_dim"]:
        """mask: True for tokens that may be looked at, False for padding."""
        rows = torch.arange(queries.shape[2], device=queries.device)
        visible = (rows[:, None] - rows).abs() < self.window
        if self.causal:
            visible = visible & (rows[:, None] >= rows)
        if mask is not None:
            visible = visible & mask[:, None, None, :]
        dropout = self.dropout if self.training else 0.0
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=visible, dropout_p=dropout)


class LinformerCore(nn.Module):
    """Attention to `rank` learned combinations of up to `length` tokens, the same for all heads.

    context: set by a parallel plan; returns the process group and the positions of this rank's tokens.
    """

    def __init__(self, rank: int, length: int, dropout: float):
        super().__init__()
        self.dropout = dropout
        self.keys = nn.Parameter(torch.randn(rank, length) * rank**-0.5)
        self.values = nn.Parameter(torch.randn(rank, length) * rank**-0.5)
        self.context: Callable[[], tuple[Any, Tensor]] | None = None

    def forward(
        self,
        queries: Float[Tensor, "batch heads time head_dim"],
        keys: Float[Tensor, "batch heads time head_dim"],
        values: Float[Tensor, "batch heads time head_dim"],
        mask: Bool[Tensor, "batch time"] | None = None,
    ) -> Float[Tensor, "batch heads time head_dim"]:
        """mask: True for tokens that may be looked at, False for padding."""
        group, positions = (None, None) if self.context is None else self.context()
        return linformer_attention(
            queries,
            keys,
            values,
            self.keys,
            self.values,
            group=group,
            positions=positions,
            key_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
        )


@dataclass(frozen=True)
class AttentionSpec:
    """Which attention a transformer uses.

    kind: "dense", "window" (Beltagy et al. 2020, arXiv 2004.05150) or "linformer" (Wang et al. 2020, arXiv
    2006.04768). size: of the window, or the number of combinations of keys.
    Raises ValueError for another kind, or a size that is missing, below 1, or not asked for.
    """

    kind: Literal["dense", "window", "linformer"] = "dense"
    size: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("dense", "window", "linformer"):
            raise ValueError(f"attention must be dense, window:W or linformer:K, got {self.kind!r}")
        if (self.kind == "dense") != (self.size is None) or (self.size is not None and self.size < 1):
            raise ValueError(
                f"attention {self.kind} needs {'no size' if self.kind == 'dense' else 'a size of at least 1'}"
            )

    @classmethod
    def from_string(cls, text: str) -> AttentionSpec:
        """Read ``"dense"``, ``"window:128"`` or ``"linformer:256"``. Raises ValueError for anything else."""
        match = re.fullmatch(r"(dense|window|linformer)(?::(\d+))?", text)
        if match is None:
            raise ValueError(f"attention must be dense, window:W or linformer:K, got {text!r}")
        return cls(match[1], int(match[2]) if match[2] else None)  # type: ignore[arg-type]

    def apply(self, model: nn.Module, length: int) -> None:
        """Put this attention into a model that has dense ones, in place. length: longest sequence.

        Raises ValueError if the model has no `AttentionCore`, or a causal one is to become a Linformer, which mixes
        all tokens.
        """
        owners = [m for m in model.modules() if isinstance(getattr(m, "core", None), AttentionCore)]
        if not owners:
            raise ValueError(f"{type(model).__name__} has no AttentionCore that could be replaced")
        for owner in owners:
            dense = owner.core
            if self.size is None:
                continue
            if self.kind == "window":
                owner.core = WindowCore(self.size, dense.causal, dense.dropout)
            else:
                if dense.causal:
                    raise ValueError("attention linformer mixes all tokens: the model must not be causal")
                weight = next(owner.parameters())
                owner.core = LinformerCore(self.size, length, dense.dropout).to(weight.device, weight.dtype)
