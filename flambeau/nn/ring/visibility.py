"""Which keys a query may look at, given where both stand in the whole sequence."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor


@dataclass(frozen=True)
class Visibility:
    """A rule on positions, so that it holds for any part of queries and keys, wherever they are.

    causal: keys up to the query's own position. window: keys less than `window` positions away. lengths: keys at
    positions below it, one value for each sequence of the batch. documents: cumulative lengths of documents packed
    into the sequence, starting with 0; a query sees keys of its own document.
    """

    causal: bool = False
    window: int | None = None
    lengths: Int64[Tensor, " batch"] | None = None
    documents: Int64[Tensor, " documents_plus_one"] | None = None

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise ValueError(f"window must be at least 1, got {self.window}")
        if self.documents is not None:
            ends = self.documents
            if ends.ndim != 1 or len(ends) < 2 or ends[0] != 0 or not bool((ends.diff() >= 0).all()):
                raise ValueError(
                    f"cu_seqlens must be increasing lengths [documents + 1] that start with 0, got {ends.tolist()}"
                )

    def pairs(
        self, queries: Int64[Tensor, " q"], keys: Int64[Tensor, " k"], device: torch.device | str = "cpu"
    ) -> bool | Bool[Tensor, "#batch 1 1 q k"]:
        """True if all pairs are visible, False if none is, otherwise which are, on `device`.

        Positions, lengths and documents are on the CPU: their extremes decide most parts without a mask.
        """
        first, last, start, end = (int(x) for x in (queries.min(), queries.max(), keys.min(), keys.max()))
        causal = self.causal and end > first
        window = self.window is not None and max(last - start, end - first) >= self.window
        lengths = self.lengths is not None and end >= int(self.lengths.min())
        if (
            (self.causal and start > last)
            or (self.window is not None and (start - last >= self.window or first - end >= self.window))
            or (self.lengths is not None and start >= int(self.lengths.max()))
        ):
            return False
        documents = None
        if self.documents is not None:
            ends = self.documents[1:].contiguous()
            documents = [torch.bucketize(positions, ends, right=True) for positions in (queries, keys)]
            (q_first, q_last), (k_first, k_last) = [(int(part.min()), int(part.max())) for part in documents]
            if q_last < k_first or k_last < q_first:
                return False
            if q_first == q_last == k_first == k_last:
                documents = None
        visible: Tensor | None = None
        rows, columns = queries.to(device)[:, None], keys.to(device)
        if causal:
            visible = columns <= rows
        if window:
            near = (rows - columns).abs() < self.window
            visible = near if visible is None else visible & near
        if documents is not None:
            same = documents[0].to(device)[:, None] == documents[1].to(device)
            visible = same if visible is None else visible & same
        if visible is not None:
            visible = visible[None, None, None]
        if lengths:
            assert self.lengths is not None
            valid = columns < self.lengths.to(device)[:, None, None, None, None]
            visible = valid if visible is None else visible & valid
        return True if visible is None else visible

    def any(self, queries: Int64[Tensor, " q"], keys: Int64[Tensor, " k"]) -> bool:
        """Whether some pair is visible."""
        visible = self.pairs(queries, keys)
        return visible if isinstance(visible, bool) else bool(visible.any())
