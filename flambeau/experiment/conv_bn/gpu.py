"""Peak memory and step time of ResNet-50 with fixed statistics on a GPU, in eval and tune mode, eager and compiled."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from flambeau.deployment.rewriting import tune_mode
from flambeau.deployment.rewriting.inductor import disable_inductor_pass, enable_inductor_pass
from flambeau.models.vision import resnet50
from flambeau.ops.bench import interleaved


def measure_resnet50(run: Any) -> None:
    """The claims about a GPU: ResNet-50 in tune mode over eval mode, in float32 and under bfloat16 autocast."""
    if run.device.type != "cuda" or run.preset == "smoke":
        for name in ("gpu_memory", "gpu_memory_bf16", "gpu_time", "gpu_time_bf16"):
            run.unmeasured(name, why="no GPU" if run.device.type != "cuda" else "not in the smoke preset")
        return
    rows = resnet50_costs(run.device)
    run.table("ResNet-50 on the GPU", rows)
    of = {(row["precision"], row["way"]): row for row in rows}
    for precision, end in (("fp32", ""), ("bf16", "_bf16")):
        for claim, column in (("gpu_memory", "peak GB"), ("gpu_time", "ms")):
            ours, baseline = of[precision, "tune"][column], of[precision, "eval"][column]
            run.measure(claim + end, ours=ours, baseline=baseline, value=ours / baseline)


def resnet50_costs(device: torch.device, batch: int = 64, size: int = 224, repeats: int = 10) -> list[dict[str, Any]]:
    """Rows of (precision, way, peak GB over the weights, milliseconds) for forward and backward passes.

    The ways are "eval" and "tune", eager, and "compiled" and "compiled, inductor's pass", which start from eval.
    """
    x = torch.randn(batch, 3, size, size, device=device)
    rows = []
    for precision in ("fp32", "bf16"):
        steps, peaks = {}, {}
        for way in ("eval", "tune", "compiled", "compiled, inductor's pass"):
            torch.manual_seed(0)
            model = resnet50().to(device).eval()
            if way == "tune":
                tune_mode(model)
            network: Any = model
            if way.startswith("compiled"):
                enable_inductor_pass()  # for the mended formula; whether the pass runs is said to each compilation
                flag = way == "compiled, inductor's pass"
                network = torch.compile(model, options={"efficient_conv_bn_eval_fx_passes": flag})
            step = partial(_step, network, model, x, precision)
            step()  # compiles; gradients exist from here on
            disable_inductor_pass()
            model.zero_grad(set_to_none=True)
            torch.cuda.synchronize(device)
            before = torch.cuda.memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
            step()
            torch.cuda.synchronize(device)
            peaks[way] = torch.cuda.max_memory_allocated(device) - before
            model.zero_grad(set_to_none=True)
            steps[way] = step
        times = interleaved(steps, repeats, lambda: torch.cuda.synchronize(device))
        rows += [
            {"precision": precision, "way": way, "peak GB": peaks[way] / 1e9, "ms": 1e3 * times[way].wall}
            for way in steps
        ]
    return rows


def _step(network: Any, model: nn.Module, x: Tensor, precision: str) -> None:
    model.zero_grad(set_to_none=True)
    with torch.autocast("cuda", torch.bfloat16) if precision == "bf16" else nullcontext():
        loss = network(x).float().square().mean()
    loss.backward()
