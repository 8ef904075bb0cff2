"""FlashRNN: recurrent networks with heads in one fused kernel, timed against what people use, and tracking a state.

On processors a layer of 64 units at batch 1 does not reach 1.3 times torch.nn.LSTM, forward and backward. Tried:
an eager path around the operator's dispatch, no signature reading per call, other panel orders, one product for dR. The
kernels take about 0.2 ms each way; the rest is Python's share of autograd.
"""

from __future__ import annotations

from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from flambeau.data.parity import parity
from flambeau.experiment import Claim, experiment
from flambeau.models.language.sequence_tagger import RecurrentTagger, TransformerTagger
from flambeau.ops.bench import interleaved, torch_threads
from flambeau.ops.flashrnn.benchmark import SHAPES, cases
from flambeau.symbolic import symbolize
from flambeau.training import Trainer

# fmt: off
CLAIMS = [
    Claim("speed_small", "forward and backward over a PyTorch step loop; batch 1, 256 steps, 64 units; one thread",
          paper="up to 50x (H100, batch 16, 1024 steps)", unit="x", at_least=20.0),
    Claim("speed_large", "the same at 256 units", paper="up to 50x (H100)", unit="x", at_least=4.0),
    Claim("speed_batch", "the same at batch 16, 64 steps, 512 units", paper="up to 50x (H100)", unit="x", at_least=1.8),
    Claim("lstm_small", "forward and backward over torch.nn.LSTM, each with its input projection; batch 1, 64 units",
          unit="x", at_least=1.3),
    Claim("lstm_everywhere", "the same, the worst of the three shapes", unit="x", at_least=0.7),
    Claim("parity_lstm", "accuracy on steps 129-256 of running parity, trained on 2-40 steps", at_least=0.99),
    Claim("parity_slstm", "the same with sLSTM", at_least=0.99),
    Claim("parity_gru", "the same with GRU", at_least=0.99),
    Claim("parity_elman", "the same with Elman", at_least=0.99),
    Claim("parity_transformer", "accuracy of a 2-layer causal transformer at a length it was trained on (40), "
          "second half", at_most=0.60),
    Claim("gpu_speed", "forward and backward over the step loop; bfloat16, batch 16, 1024 steps, 12 heads of 64",
          paper="up to 50x", unit="x", at_least=20.0, needs="gpu"),
    Claim("gpu_cudnn", "forward and backward over torch.nn.LSTM (cuDNN); bfloat16, batch 16, 1024 steps, 128 units",
          unit="x", at_least=1.0, needs="gpu"),
]
ADAM = symbolize(torch.optim.Adam)
PRESETS = {
    "smoke": {"shapes": [[1, 16, 1, 16]], "repeats": 1, "training.steps": 5, "elman.steps": 5, "transformer.steps": 5},
    "paper": {"shapes": [[16, 1024, 48, 16], [16, 1024, 12, 64], [16, 1024, 6, 128], [16, 1024, 1, 768]],
              "hidden": 64, "training.steps": 2000, "elman.steps": 2000, "transformer.steps": 2000},
}
# fmt: on
LONG, LONGEST_TRAINED, BATCH = 256, 40, 64


@experiment("flashrnn", claims=CLAIMS, presets=PRESETS)
def run(
    run: Any,
    *,
    shapes: list[list[int]] = [list(s) for s in SHAPES],  # noqa: B006
    repeats: int = 7,
    hidden: int = 32,
    training: Trainer = symbolize(Trainer)(steps=600, optimizer=ADAM.partial(lr=1e-2)),
    elman: Trainer = symbolize(Trainer)(steps=600, optimizer=ADAM.partial(lr=3e-3)),
    transformer: Trainer = symbolize(Trainer)(steps=600, optimizer=ADAM.partial(lr=1e-3)),
) -> None:
    """Time the fused kernels on one thread, and train every cell and a transformer to track the parity of bits.

    shapes: what is timed, as [batch, time, heads, dim] each; put your own here.
    repeats: interleaved turns, of which each way of computing keeps its best.
    hidden: units of the recurrent networks that track parity.
    training: the loop for LSTM, sLSTM and GRU.
    elman: the loop for Elman, which needs a smaller rate.
    transformer: the loop for the transformer.
    """
    speed = _time(run, [(b, t, n, d) for b, t, n, d in shapes], repeats)
    standard = [list(s) for s in SHAPES]
    for index, name in enumerate(["speed_small", "speed_large", "speed_batch"]):
        if list(shapes) == standard:
            _ratio(run, name, speed[index, "step loop"])
    if list(shapes) == standard:
        against = {index: speed[index, "torch.nn.LSTM"] for index in range(len(shapes))}
        _ratio(run, "lstm_small", against[0])
        _ratio(run, "lstm_everywhere", min(against.values(), key=lambda pair: pair[1] / pair[0]))
    else:
        for name in ("speed_small", "speed_large", "speed_batch", "lstm_small", "lstm_everywhere"):
            run.unmeasured(name, why="set on the standard shapes; this run timed others")
    _time_gpu(run, repeats)

    curves = {}
    for cell in ("lstm", "slstm", "gru", "elman"):
        torch.manual_seed(run.seed)
        model = RecurrentTagger(2, 2, hidden, cell).to(run.device)
        curves[cell] = _track(run, cell, model, elman if cell == "elman" else training)
        right = curves[cell][LONG // 2 :].mean().item()
        run.measure(f"parity_{cell}", ours=right, value=right)
    torch.manual_seed(run.seed)
    curves["transformer"] = _track(run, "transformer", TransformerTagger(2, 2, 2 * hidden).to(run.device), transformer)
    right = curves["transformer"][LONGEST_TRAINED // 2 : LONGEST_TRAINED].mean().item()
    run.measure("parity_transformer", ours=curves["lstm"][:LONGEST_TRAINED].mean().item(), baseline=right, value=right)
    run.figure("parity", _draw(curves))


def _ratio(run: Any, name: str, seconds: tuple[float, float]) -> None:
    ours, theirs = seconds
    run.measure(name, ours=1e3 * ours, baseline=1e3 * theirs, value=theirs / ours)


def _time(
    run: Any, shapes: list[tuple[int, int, int, int]], repeats: int
) -> dict[tuple[int, str], tuple[float, float]]:
    """(shape's index, other way) -> CPU seconds (ours, theirs) of forward and backward; both passes go to a table."""
    speed, rows = {}, []
    with torch_threads(1), run.progress("timing", 2 * len(shapes)) as task:
        for index, shape in enumerate(shapes):
            for backward in (False, True):
                for case in cases([shape], backward):
                    timings = interleaved(case.functions, repeats)
                    ours = timings["flashrnn"].cpu
                    for label, timing in list(timings.items())[1:]:
                        if backward:
                            speed[index, label] = ours, timing.cpu
                        passes = "forward and backward" if backward else "forward"
                        rows.append({"shape": case.name, "passes": passes, "other": label,
                                     "ours, ms": 1e3 * ours, "other, ms": 1e3 * timing.cpu,
                                     "ratio": timing.cpu / ours})  # fmt: skip
                task.advance()
    run.table("speed", rows)
    return speed


def _time_gpu(run: Any, repeats: int) -> None:
    if run.device.type != "cuda":
        run.unmeasured("gpu_speed", why="no GPU")
        run.unmeasured("gpu_cudnn", why="no GPU")
        return
    for name, shape, which in [("gpu_speed", (16, 1024, 12, 64), 0), ("gpu_cudnn", (16, 1024, 1, 128), 1)]:
        case = cases([shape], True, str(run.device), torch.bfloat16)[which]
        ours, theirs = interleaved(case.functions, repeats, torch.cuda.synchronize).values()
        _ratio(run, name, (ours.wall, theirs.wall))


def _track(run: Any, name: str, model: nn.Module, trainer: Trainer) -> Tensor:
    """Train on parity of 2 to 40 bits; returns the accuracy at each of 256 steps."""

    def data(step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        time = int(torch.randint(2, LONGEST_TRAINED + 1, (), generator=generator))
        return parity(BATCH, time, generator)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0].to(run.device)).flatten(0, 1), batch[1].to(run.device).flatten())

    trainer.fit(model, loss, data, folder=run.folder / "train" / name, progress=run.progress, seed=run.seed)
    bits, answers = parity(256, LONG, torch.Generator().manual_seed(10_000 + run.seed))
    with torch.no_grad():
        return (model.eval()(bits.to(run.device)).argmax(-1).cpu() == answers).float().mean(0)


def _draw(curves: dict[str, Tensor]) -> Figure:
    figure = Figure(figsize=(7, 3.2))
    axes = figure.add_subplot()
    for name, curve in curves.items():
        axes.plot(range(1, LONG + 1), curve, label=name)
    axes.axvspan(1, LONGEST_TRAINED, alpha=0.1, label="lengths trained on")
    axes.set(xlabel="step", ylabel="accuracy", title="running parity", ylim=(0.4, 1.02))
    axes.legend(loc="center right")
    return figure
