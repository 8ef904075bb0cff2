"""Weigh the losses of several tasks by learned uncertainties."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn


class UncertaintyWeight(nn.Module):
    """One total of `n` losses, each divided by a learned variance that has its price.

    form: "sit", ``L / (2 s^2) + log(1 + s^2)`` with s from 1 (Atito et al. 2021, arXiv 2104.03602, released code);
    its minimum over s is at ``s^2 = (L + sqrt(L^2 + 8 L)) / 4``. "kendall", ``L / (2 s^2) + log(s)`` with ``log(s^2)``
    from 0 (Kendall, Gal and Cipolla 2018, arXiv 1705.07115, equation 10); its minimum is at ``s^2 = L``, so that it
    falls without bound as a loss goes to 0, which the other does not.

    Raises ValueError for no loss or another form.
    """

    def __init__(self, n: int, form: Literal["sit", "kendall"] = "sit"):
        super().__init__()
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        if form not in ("sit", "kendall"):
            raise ValueError(f"form must be 'sit' or 'kendall', got {form!r}")
        self.form = form
        self.s = nn.Parameter(torch.ones(n) if form == "sit" else torch.zeros(n))  # s, or log(s^2)

    def variances(self) -> Float[Tensor, " n"]:
        """s^2 of each loss, kept between 1e-8 and 1e12 so that quotient and logarithm stay finite."""
        return (self.s.square() if self.form == "sit" else self.s.clamp(-18, 27).exp()).clamp(1e-8, 1e12)

    def forward(self, losses: Sequence[Float[Tensor, ""]]) -> Float[Tensor, ""]:
        """Raises ValueError for another number of losses."""
        if len(losses) != len(self.s):
            raise ValueError(f"losses must be {len(self.s)}, got {len(losses)}")
        variances = self.variances()
        price = torch.log1p(variances) if self.form == "sit" else variances.log() / 2
        return (torch.stack(list(losses)) / (2 * variances) + price).sum()
