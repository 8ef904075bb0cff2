"""What a decoder did: forwards, accepted drafts, time."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass
class Statistics:
    """Counts per row, filled while decoding.

    nfe: forwards of each row until it ended, [batch]. lengths: tokens generated, [batch].
    from_draft: which generated tokens were accepted drafts, [batch, max_new_tokens].
    accepted: drafts accepted in each forward, one [batch] tensor a forward, -1 for rows that had ended.
    seconds: wall time in the model and in everything else. window: tokens fed per forward at most.
    kv_bytes: allocated cache. calibration: rows of `calibrate`, when the window was chosen by it.
    """

    nfe: Int[Tensor, " batch"]
    lengths: Int[Tensor, " batch"]
    from_draft: Bool[Tensor, "batch tokens"]
    accepted: list[Tensor] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: {"model": 0.0, "other": 0.0})
    window: int = 1
    kv_bytes: int = 0
    calibration: list[dict[str, float]] | None = None

    @classmethod
    def empty(cls, batch: int, max_new_tokens: int) -> Statistics:
        zeros = torch.zeros(batch, dtype=torch.long)
        return cls(zeros, zeros.clone(), torch.zeros(batch, max_new_tokens, dtype=torch.bool))

    def record(self, rows: Tensor, starts: Tensor, accepted: Tensor, committed: Tensor) -> None:
        """Note one forward: `accepted` drafts lead the `committed` tokens that begin at `starts`. All on the CPU."""
        kept = torch.minimum(accepted, committed)
        self.nfe[rows] += 1
        self.lengths[rows] += committed
        all_rows = torch.full_like(self.nfe, -1)
        all_rows[rows] = kept
        self.accepted.append(all_rows)
        if int(kept.max()):
            columns = torch.arange(self.from_draft.shape[1])
            drafted = (columns >= starts[:, None]) & (columns < (starts + kept)[:, None])
            self.from_draft[rows] |= drafted

    @property
    def compression(self) -> float:
        """Tokens per forward of a row, over all rows."""
        return float(self.lengths.sum()) / float(self.nfe.sum())

    def histogram(self) -> dict[int, int]:
        """How often each number of drafts was accepted."""
        counts = torch.stack(self.accepted).flatten()
        values, how_often = counts[counts >= 0].unique(return_counts=True)
        return dict(zip(values.tolist(), how_often.tolist()))

    def acceptance_map(
        self, grid: tuple[int, int], prefix: int = 0, eol: bool = False
    ) -> Float[Tensor, "height width"]:
        """Share of rows whose token at each cell was an accepted draft."""
        height, width = grid
        share = self.from_draft.float().mean(0)[prefix : prefix + height * (width + eol)]
        return share.view(height, width + eol)[:, :width]


@dataclass(frozen=True)
class Generation:
    """tokens: prompts followed by what was generated, [batch, prompt + max_new_tokens]; padded behind an end."""

    tokens: Int[Tensor, "batch length"]
    stats: Statistics
