"""First guesses for tokens of an image that is generated row by row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from flambeau.nn.order import Order

KINDS = ("random", "repeat_h", "repeat_v", "sample_h", "sample_v")


@dataclass(frozen=True)
class SpatialInit:
    """How a new window slot gets its first token (speculative Jacobi decoding, arXiv 2410.01699, section 4.3).

    kind: "random" is uniform over `vocabulary`. "repeat_h" copies the token to the left, "repeat_v" the one above;
    "sample_h" and "sample_v" draw from the distribution last computed for that neighbour. A cell without the neighbour
    is random. Whatever the kind, the token counts as drawn from a point mass, which keeps sampling exact.
    grid: (height, width) in tokens; required by all kinds but "random". eol_id: token that closes every row, when rows
    are interleaved with end-of-line tokens. prefix: generated tokens before the image. vocabulary: (low, high) of
    image tokens, by default the model's whole vocabulary. order: must be raster.
    """

    kind: Literal["random", "repeat_h", "repeat_v", "sample_h", "sample_v"] = "random"
    grid: tuple[int, int] | None = None
    eol_id: int | None = None
    prefix: int = 0
    vocabulary: tuple[int, int] | None = None
    order: Order | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.grid is None and (self.kind != "random" or self.eol_id is not None):
            raise ValueError(f"kind={self.kind!r} with eol_id={self.eol_id} needs grid=(height, width)")
        if self.grid is not None and (len(self.grid) != 2 or min(self.grid) < 1):
            raise ValueError(f"grid must be (height, width) of at least one cell, got {self.grid}")
        if self.order is not None and not self.order.is_raster:
            raise ValueError("order must be raster: neighbours are found by counting back along rows")
        if self.prefix < 0:
            raise ValueError(f"prefix must be at least 0, got {self.prefix}")

    def check(self, max_new_tokens: int, vocab: int) -> None:
        """Raise ValueError unless grid and tokens fit the generation."""
        if self.grid is not None:
            height, width = self.grid
            expected = self.prefix + height * (width + (self.eol_id is not None))
            if expected != max_new_tokens:
                raise ValueError(
                    f"grid {self.grid} with prefix {self.prefix} and eol_id {self.eol_id} holds {expected} tokens, "
                    f"max_new_tokens is {max_new_tokens}"
                )
        low, high = self.vocabulary or (0, vocab)
        if not 0 <= low < high <= vocab:
            raise ValueError(f"vocabulary must lie in 0..{vocab}, got {(low, high)}")
        if self.eol_id is not None and not 0 <= self.eol_id < vocab:
            raise ValueError(f"eol_id must lie in 0..{vocab - 1}, got {self.eol_id}")

    def fill(
        self,
        source: Int[Tensor, "batch tokens"],
        starts: Int[Tensor, " batch"],
        stops: Int[Tensor, " batch"],
        slots: int,
        uniform: Callable[[Tensor], Tensor],
        vocab: int,
    ) -> None:
        """Write first tokens into positions starts..stops-1 of `source`, in place; at most `slots` a row.

        source: what a neighbour offers at each generated position: its token, or for "sample_*" a token drawn from
        its distribution. Its last column is scratch. uniform: noise for positions [batch, slots].
        """
        positions = starts[:, None] + torch.arange(slots, device=starts.device)
        targets = torch.where(positions < stops[:, None], positions, source.shape[1] - 1)
        low, high = self.vocabulary or (0, vocab)
        tokens = low + (uniform(positions) * (high - low)).long()
        if self.grid is None or (self.kind == "random" and self.eol_id is None):
            source.scatter_(1, targets, tokens)
            return
        row_length = self.grid[1] + (self.eol_id is not None)
        rows = torch.div(positions - self.prefix, row_length, rounding_mode="floor")
        columns = (positions - self.prefix) % row_length
        back = {"random": 0, "repeat_h": 1, "sample_h": 1}.get(self.kind, row_length)
        has_neighbour = (rows >= 0) & (columns > 0) if back == 1 else (rows > 0) & (back > 0)
        for slot in range(slots):  # one after the other: a neighbour may itself be new
            token = tokens[:, slot]
            if back:
                copied = source.gather(1, (positions[:, slot] - back).clamp(0, source.shape[1] - 1)[:, None])[:, 0]
                token = torch.where(has_neighbour[:, slot], copied, token)
            if self.eol_id is not None:
                ends = (rows[:, slot] >= 0) & (columns[:, slot] == self.grid[1])
                token = torch.where(ends, self.eol_id, token)
            source.scatter_(1, targets[:, slot, None], token[:, None])
