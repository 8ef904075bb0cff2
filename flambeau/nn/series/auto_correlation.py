"""Auto-Correlation: lags found by the Wiener-Khinchin theorem, values rolled by them (Wu et al. 2021, section 3.2)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


def circular_correlation(
    queries: Float[Tensor, "batch time *dims"], keys: Float[Tensor, "batch time *dims"]
) -> Float[Tensor, "batch time *dims"]:
    """``R(lag) = sum_t q(t + lag) k(t)`` over time, indices modulo its length, in O(L log L) (equation 5)."""
    spectrum = torch.fft.rfft(queries, dim=1) * torch.fft.rfft(keys, dim=1).conj()
    return torch.fft.irfft(spectrum, n=queries.shape[1], dim=1)  # without n an odd length loses its last step


def delay_sum(
    values: Float[Tensor, "batch time *dims"], weights: Float[Tensor, "batch lags"], lags: Int[Tensor, "batch lags"]
) -> Float[Tensor, "batch time *dims"]:
    """``sum_i weights_i * roll(values, -lags_i)`` over time (equation 6).

    A sum of rolls is a circular correlation with the vector that holds the weights at their lags. By FFT its time and
    memory do not grow with the number of lags; :func:`delay_sum_gather` is the definition.
    """
    comb = values.new_zeros(values.shape[:2]).scatter_add(1, lags, weights.to(values.dtype))
    comb = comb.view(*comb.shape, *(1,) * (values.dim() - 2))
    spectrum = torch.fft.rfft(values, dim=1) * torch.fft.rfft(comb, dim=1).conj()
    return torch.fft.irfft(spectrum, n=values.shape[1], dim=1)


def delay_sum_gather(
    values: Float[Tensor, "batch time dim"], weights: Float[Tensor, "batch lags"], lags: Int[Tensor, "batch lags"]
) -> Float[Tensor, "batch time dim"]:
    """The definition of :func:`delay_sum` by one gather, with a copy of the values for every lag."""
    batch, length, dim = values.shape
    steps = (torch.arange(length, device=values.device) + lags.unsqueeze(-1)) % length
    rolled = values.gather(1, steps.view(batch, -1, 1).expand(-1, -1, dim)).view(batch, -1, length, dim)
    return torch.einsum("bk,bkld->bld", weights, rolled)


class AutoCorrelation(nn.Module):
    """Replace attention by a weighted sum of whole sub-series, rolled by the lags of the largest correlation.

    No causal mask, no scaling and no dropout, as published. The FFTs run in float32 under any autocast: in half
    precision they need power-of-two lengths.

    Args:
        factor: ``max(1, int(factor * ln L))`` lags are used for a length L. The published scripts use 3.
        align: ``"paper"`` rolls the values by ``-lag`` as in the published code. A peak at a lag says
            ``q(t) ~ k(t - lag)``, so that ``"lag"``, which rolls by ``+lag``, aligns a delayed series; the two agree
            where the correlation is symmetric.
        batch_lags: the lags are those of the correlation averaged over the batch (True) or of each series (False).
            None is as published: over the batch in training, per series in evaluation.
        full: lags and weights per head and channel instead of averaged over them; the slow variant for reference.

    Raises:
        ValueError: a factor that is not positive, or an unknown `align`.
    """

    def __init__(
        self,
        factor: float = 1,
        *,
        align: Literal["paper", "lag"] = "paper",
        batch_lags: bool | None = None,
        full: bool = False,
    ):
        super().__init__()
        if factor <= 0:
            raise ValueError(f"factor must be positive, got {factor}")
        if align not in ("paper", "lag"):
            raise ValueError(f"align must be 'paper' or 'lag', got {align!r}")
        self.factor, self.align, self.batch_lags, self.full = factor, align, batch_lags, full

    def lag_count(self, length: int) -> int:
        """The number of lags for a series of `length` steps."""
        return min(length, max(1, int(self.factor * math.log(length))))

    def select(
        self, queries: Float[Tensor, "batch time head dim"], keys: Float[Tensor, "batch keytime head dim"]
    ) -> tuple[Float[Tensor, "batch lags"], Int[Tensor, "batch lags"]]:
        """The weights (softmax of the correlation) and the lags in steps, largest correlation first."""
        return self._pick(self._correlation(queries.float(), _fit(keys, queries.shape[1]).float()))

    def forward(
        self,
        queries: Float[Tensor, "batch time head dim"],
        keys: Float[Tensor, "batch keytime head dim"],
        values: Float[Tensor, "batch keytime head vdim"],
        mask: Float[Tensor, "batch keytime"] | None = None,
    ) -> Float[Tensor, "batch time head vdim"]:
        """Aggregate `values`; a key length other than the query's is cut or padded by zeros at the end.

        Args:
            mask: 1 for keys that count and 0 for padding, which enters as zeros.
        """
        batch, length, heads, _ = queries.shape
        if mask is not None:
            keys, values = (x * mask[:, :, None, None].to(x.dtype) for x in (keys, values))
        with torch.autocast(queries.device.type, enabled=False):
            q, k, v = queries.float(), _fit(keys, length).float(), _fit(values, length).float()
            if self.full:
                q, k, v = (x.permute(0, 2, 3, 1).reshape(-1, length, 1, 1) for x in (q, k, v))
            weights, lags = self._pick(self._correlation(q, k))
            out = delay_sum(v, weights, lags if self.align == "paper" else (length - lags) % length)
            if self.full:
                out = out.view(batch, heads, -1, length).permute(0, 3, 1, 2)
        return out.to(values.dtype)

    def _correlation(self, q: Tensor, k: Tensor) -> Tensor:
        """The correlation averaged over heads and channels: the mean is taken before the inverse transform."""
        spectrum = (torch.fft.rfft(q, dim=1) * torch.fft.rfft(k, dim=1).conj()).mean(dim=(2, 3))
        return torch.fft.irfft(spectrum, n=q.shape[1], dim=1)

    def _pick(self, correlation: Tensor) -> tuple[Tensor, Tensor]:
        count = self.lag_count(correlation.shape[1])
        shared = (self.training if self.batch_lags is None else self.batch_lags) and not self.full
        ranked = correlation.mean(dim=0, keepdim=True) if shared else correlation
        lags = ranked.topk(count, dim=1).indices.expand(correlation.shape[0], -1)
        return correlation.gather(1, lags).softmax(dim=1), lags


def _fit(x: Tensor, length: int) -> Tensor:
    """Cut to `length` steps, or pad by zeros at the end."""
    if x.shape[1] >= length:
        return x[:, :length]
    return torch.cat([x, x.new_zeros(x.shape[0], length - x.shape[1], *x.shape[2:])], dim=1)
