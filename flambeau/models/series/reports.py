"""What a trained forecaster looked at: the lags its layers chose, and the parts it split a window into."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flambeau.models.series.autoformer import Autoformer
from flambeau.nn.series.auto_correlation import AutoCorrelation
from flambeau.nn.series.decomposition import SeriesDecomposition


def lag_report(model: nn.Module, window: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """The lags that every Auto-Correlation of `model` selects for some windows.

    Args:
        window: ``x``, ``x_mark`` and ``y_mark`` as in the model's forward.

    Returns:
        Module name -> (lags in steps, weights that sum to 1), each ``[batch, lag]``, largest weight first. In
        the decoder a lag counts over the window's end and the forecast.
    """
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def watch(name: str, module: nn.Module) -> Callable[..., None]:
        def record(module: AutoCorrelation, inputs: tuple[Tensor, ...], out: Tensor) -> None:
            weights, lags = module.select(*inputs[:2])
            found[name] = (lags, weights)

        return record

    _run(model, window, AutoCorrelation, watch)
    return found


def decomposition_report(model: Autoformer, window: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Seasonal part and trend after every decomposition of `model`, each ``[batch, time, channel]``.

    The last entry, ``"forecast"``, has those of the forecast itself, ``[batch, pred, c_out]``, for a point forecast.
    """
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def watch(name: str, module: nn.Module) -> Callable[..., None]:
        def record(module: nn.Module, inputs: Any, out: tuple[Tensor, Tensor] | Tensor) -> None:
            found[name] = out if isinstance(out, tuple) else (out, out)

        return record

    forecast = _run(model, window, (SeriesDecomposition,), watch, also={"projection": model.projection})
    seasonal = found.pop("projection")[0][:, -forecast.shape[1] :]
    found["forecast"] = (seasonal, forecast - seasonal)
    return found


@torch.no_grad()
def share_with_lag(
    parts: Iterable[Iterable[Mapping[str, Tensor]]], lags: Sequence[int], *, factor: float, slack: int = 1
) -> float:
    """Share of windows for which Auto-Correlation of the first raw channel selects one of `lags`, within `slack` steps.

    Args:
        parts: of windows in batches, each with ``x [batch, time, channel]``.
        factor: of the number of lags, see :class:`~flambeau.nn.AutoCorrelation`.
    """
    mechanism, wanted = AutoCorrelation(factor).eval(), torch.tensor(lags)
    found = []
    for batch in (window["x"][:, :, :1, None] for part in parts for window in part):
        _, selected = mechanism.select(batch, batch)
        found.append(((selected.unsqueeze(-1) - wanted).abs() <= slack).any(dim=2).any(dim=1))
    return float(torch.cat(found).float().mean())


@torch.no_grad()
def _run(
    model: nn.Module,
    window: Mapping[str, Tensor],
    kind: type | tuple[type, ...],
    watch: Callable[[str, nn.Module], Callable[..., None]],
    also: Mapping[str, nn.Module] | None = None,
) -> Tensor:
    watched = {name: module for name, module in model.named_modules() if isinstance(module, kind)} | dict(also or {})
    handles = [module.register_forward_hook(watch(name, module)) for name, module in watched.items()]
    training = model.training
    try:
        return model.eval()(window["x"], window["x_mark"], window["y_mark"])
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
