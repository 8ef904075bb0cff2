"""Train a forecaster on windows and judge it on all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flambeau.data.series import Windows
from flambeau.objectives.forecasting import Output, PointForecast, mae, mase, mse
from flambeau.training.progress import Progress
from flambeau.training.trainer import Fit, Trainer

POINT = PointForecast()


def forecaster_for(windows: Windows, model: Callable[..., nn.Module], output: Output = POINT) -> nn.Module:
    """Build ``model(c_in, c_out, seq_len=, label_len=, pred_len=, marks=, outputs=)`` for the shape of some windows."""
    return model(
        windows.channels,
        windows.targets,
        seq_len=windows.seq_len,
        label_len=windows.label_len,
        pred_len=windows.pred_len,
        marks=windows.marks.shape[1],
        outputs=output.outputs,
    )


def call(model: nn.Module, window: Mapping[str, Tensor]) -> Tensor:
    """The model's output for windows from :class:`~flambeau.data.series.Windows`, on the model's device."""
    device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    x, x_mark, y_mark = (window[name].to(device) for name in ("x", "x_mark", "y_mark"))
    return model(x, x_mark, y_mark)


@dataclass(frozen=True)
class ForecastLoss:
    """The loss of an output over the values that were seen, as ``loss(model, batch)``."""

    output: Output = POINT

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        return self.output.loss(call(model, batch), batch["y"], batch["y_seen"])


def fit_windows(
    model: nn.Module,
    train: Windows,
    validation: Windows,
    trainer: Trainer,
    *,
    output: Output = POINT,
    batch_size: int = 32,
    folder: Path | None = None,
    progress: Progress | None = None,
    seed: int = 0,
) -> Fit:
    """Train `model` in place on `train`; with ``select="min"`` the trainer keeps what does best on all of `validation`.

    A model without parameters (a naive forecast) is left as it is.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        return Fit()
    return trainer.fit(
        model,
        ForecastLoss(output),
        train.batches(batch_size),
        evaluate=partial(validation_loss, windows=validation, output=output),
        folder=folder,
        progress=progress,
        seed=seed,
    )


def validation_loss(model: nn.Module, windows: Windows, output: Output = POINT) -> dict[str, float]:
    """The loss over all windows, each seen value counted once."""
    out, y, seen = _outputs(model, windows)
    return {"validation": float(output.loss(out, y, seen))}


def forecast(model: nn.Module, windows: Windows, output: Output = POINT) -> Float[Tensor, "window pred c"]:
    """Point forecasts of all windows, scaled."""
    return output.point(_outputs(model, windows)[0])


def score(model: nn.Module, windows: Windows, output: Output = POINT) -> dict[str, float]:
    """MSE and MAE (scaled) and MASE over all windows and targets; missing truths do not count."""
    out, y, seen = _outputs(model, windows)
    errors = torch.stack([torch.from_numpy(s.scaler.seasonal_error).float() for s in windows.series])
    scale = errors[windows.owner].unsqueeze(1)
    point = output.point(out)
    return {
        "MSE": float(mse(point, y, seen)),
        "MAE": float(mae(point, y, seen)),
        "MASE": float(mase(point, y, scale, seen)),
    }


@torch.no_grad()
def _outputs(model: nn.Module, windows: Windows) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, truths and what was seen of them, of every window in order, on the CPU."""
    training = model.training
    model.eval()
    collected: list[tuple[Any, ...]] = []
    for window in windows.all():
        collected.append((call(model, window).cpu(), window["y"], window["y_seen"]))
    model.train(training)
    out, y, seen = (torch.cat(parts) for parts in zip(*collected))
    return out, y, seen
