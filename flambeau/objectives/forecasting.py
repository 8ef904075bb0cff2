"""What forecasters minimise and are judged by: point, Student-t and quantile forecasts; MSE, MAE and MASE."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def masked_mean(values: Tensor, seen: Tensor | None) -> Tensor:
    """Mean over what was seen (1) of all values; missing truths do not count."""
    return values.mean() if seen is None else (values * seen).sum() / seen.sum().clamp(min=1)


class PointForecast:
    """One value for each step, trained by the squared error."""

    outputs = 1

    def loss(
        self, out: Float[Tensor, "batch pred c"], y: Float[Tensor, "batch pred c"], seen: Tensor | None = None
    ) -> Float[Tensor, ""]:
        return masked_mean((out - y).square(), seen)

    def point(self, out: Float[Tensor, "batch pred c"]) -> Float[Tensor, "batch pred c"]:
        """The forecast itself."""
        return out

    def quantiles(self, out: Tensor, levels: Sequence[float]) -> Tensor:
        raise ValueError("a point forecast has no quantiles: use StudentTForecast() or QuantileForecast()")


class StudentTForecast:
    """A Student-t distribution a step: location, scale and degrees of freedom (above 2), by maximum likelihood."""

    outputs = 3

    def distribution(self, out: Float[Tensor, "batch pred c 3"]) -> torch.distributions.StudentT:
        """The distribution that the three outputs stand for."""
        location, scale, freedom = out.float().unbind(-1)
        return torch.distributions.StudentT(2 + F.softplus(freedom), location, F.softplus(scale) + 1e-4)

    def loss(
        self, out: Float[Tensor, "batch pred c 3"], y: Float[Tensor, "batch pred c"], seen: Tensor | None = None
    ) -> Float[Tensor, ""]:
        return masked_mean(-self.distribution(out).log_prob(y), seen)

    def point(self, out: Float[Tensor, "batch pred c 3"]) -> Float[Tensor, "batch pred c"]:
        """The mean, which is the location."""
        return out[..., 0]

    def quantiles(
        self, out: Float[Tensor, "batch pred c 3"], levels: Sequence[float]
    ) -> Float[Tensor, "batch pred c q"]:
        """Values that are not exceeded with the probabilities `levels`."""
        from scipy.stats import t

        d = self.distribution(out.detach().cpu())
        standard = [torch.from_numpy(t.ppf(level, d.df.double().numpy())) for level in _checked_levels(levels)]
        return torch.stack([(d.loc + d.scale * s).float() for s in standard], dim=-1).to(out.device)


class QuantileForecast:
    """The quantiles at `levels`, by the pinball loss; they cannot cross: each adds a positive step to the median.

    Args:
        levels: increasing, an odd number, with 0.5 in the middle.
    """

    def __init__(self, levels: Sequence[float] = (0.1, 0.25, 0.5, 0.75, 0.9)):
        self.levels = tuple(_checked_levels(levels))
        if len(levels) % 2 == 0 or not math.isclose(self.levels[len(levels) // 2], 0.5):
            raise ValueError(f"levels must be increasing with 0.5 in the middle, got {tuple(levels)}")

    @property
    def outputs(self) -> int:
        return len(self.levels)

    def spread(self, out: Float[Tensor, "batch pred c q"]) -> Float[Tensor, "batch pred c q"]:
        """The quantiles, increasing: the first output is the median, the others are steps away from it."""
        half = len(self.levels) // 2
        median, below, above = out[..., :1], out[..., 1 : half + 1], out[..., half + 1 :]
        up = F.softplus(above).cumsum(-1)
        down = F.softplus(below).cumsum(-1).flip(-1)
        return torch.cat([median - down, median, median + up], dim=-1)

    def loss(
        self, out: Float[Tensor, "batch pred c q"], y: Float[Tensor, "batch pred c"], seen: Tensor | None = None
    ) -> Float[Tensor, ""]:
        error = y.unsqueeze(-1) - self.spread(out)
        levels = error.new_tensor(self.levels)
        pinball = torch.maximum(levels * error, (levels - 1) * error).sum(-1)
        return masked_mean(pinball, seen)

    def point(self, out: Float[Tensor, "batch pred c q"]) -> Float[Tensor, "batch pred c"]:
        """The median."""
        return out[..., 0]

    def quantiles(
        self, out: Float[Tensor, "batch pred c q"], levels: Sequence[float]
    ) -> Float[Tensor, "batch pred c q"]:
        """The learned quantiles at `levels`.

        Raises:
            ValueError: a level that was not learned.
        """
        missing = [level for level in levels if level not in self.levels]
        if missing:
            raise ValueError(f"levels {missing} were not learned; there are {self.levels}")
        return self.spread(out)[..., [self.levels.index(level) for level in levels]]


def _checked_levels(levels: Sequence[float]) -> Sequence[float]:
    if not levels or any(not 0 < level < 1 for level in levels) or any(a >= b for a, b in zip(levels, levels[1:])):
        raise ValueError(f"levels must be increasing and lie strictly between 0 and 1, got {tuple(levels)}")
    return levels


Output = PointForecast | StudentTForecast | QuantileForecast


def mse(forecast: Tensor, truth: Tensor, seen: Tensor | None = None) -> Tensor:
    """Mean squared error."""
    return masked_mean((forecast - truth).square(), seen)


def mae(forecast: Tensor, truth: Tensor, seen: Tensor | None = None) -> Tensor:
    """Mean absolute error."""
    return masked_mean((forecast - truth).abs(), seen)


def mase(forecast: Tensor, truth: Tensor, scale: Tensor, seen: Tensor | None = None) -> Tensor:
    """Mean absolute error over `scale`, the in-sample error of the seasonal naive forecast (Hyndman and Koehler 2006).

    1 is as good as that forecast one step of a season ahead in the training part. Targets without a scale are left out.
    """
    usable = (scale.isfinite() & (scale > 0)).to(truth.dtype).expand_as(truth)
    return masked_mean(
        (forecast - truth).abs() / torch.where(usable > 0, scale, 1.0), usable if seen is None else usable * seen
    )
