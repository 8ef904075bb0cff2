"""What attention layers cost: products, bytes kept for the backward, and seconds, over the length of the sequence."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flambeau.experiment.attention import figures
from flambeau.nn.attention import DenseAttention, RoutingAttention
from flambeau.ops.bench import interleaved
from flambeau.ops.saved_tensors import SavedTensors


def routing_products(time: int, dim: int, clusters: int, window: int, selection: str, dense: bool = False) -> int:
    """Multiply-adds of one head's routing, by hand: T k d to score, and T span d to compare and T span (d + 1) to mix,
    where a chunk spans its cluster (balanced: k w in all, not T) or itself and the chunk before (causal). With `dense`,
    2 T^2 d, of full attention."""
    if dense:
        return 2 * time**2 * dim
    rows, span = (clusters * window, window) if selection == "balanced" else (time, 2 * window)
    return time * clusters * dim + rows * span * (2 * dim + 1)


def counted_products(layer: nn.Module, x: Tensor) -> int:
    """Multiply-adds of a layer's attention alone, without its projections, as PyTorch counts them in one forward.

    In training mode routing also counts T k d to move its centroids.
    Nothing is computed: the count is made on the meta device, where no fused kernel hides products from the counter.
    """
    layer = copy.deepcopy(layer).to("meta")
    queries, keys, values = layer.project(x.to("meta"))
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        layer.attend(queries, keys, values)
    return counter.get_total_flops() // 2


def saved_bytes(layer: nn.Module, x: Tensor) -> int:
    """Bytes that a layer's attention keeps for its backward, its queries, keys and values not counted."""
    parts = [part.detach().requires_grad_() for part in layer.project(x)]
    if layer.projections.key is None:
        parts[1] = parts[0]
    with SavedTensors(exclude=parts) as saved:
        layer.attend(*parts)
    return saved.bytes


def square_root_routing(time: int, dim: int, heads: int, selection: Literal["causal", "balanced"]) -> RoutingAttention:
    """Routing with as many clusters as tokens in a cluster, about sqrt(T), the optimum of the paper's section 4.1."""
    clusters = 2 ** (time.bit_length() // 2)
    return RoutingAttention(dim, heads, clusters, max(1, time // clusters), selection=selection)


def cost_rows(
    layers: Callable[[int], Mapping[str, nn.Module]],
    lengths: Sequence[int],
    *,
    dim: int,
    batch: int = 1,
    repeats: int = 3,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> list[dict[str, Any]]:
    """A row for every length and layer; the seconds of forward and backward are the best of interleaved turns.

    layers: of a length, the layers by name, the baseline first.
    """
    rows = []
    for time in lengths:
        built = {name: layer.to(device, dtype) for name, layer in layers(time).items()}
        x = torch.randn(batch, time, dim, device=device, dtype=dtype)
        wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
        steps = {name: partial(_step, layer, x) for name, layer in built.items()}
        seconds = interleaved(steps, repeats, synchronize=wait)
        baseline = next(iter(built))
        for name, layer in built.items():
            products = counted_products(layer.eval(), x)
            rows.append(
                {
                    "tokens": time,
                    "attention": name,
                    "million products": products / 1e6,
                    "MB for backward": saved_bytes(layer, x) / 1e6,
                    "ms": 1e3 * seconds[name].wall,
                    "times faster than full": seconds[baseline].wall / seconds[name].wall,
                }
            )
    return rows


def _step(layer: nn.Module, x: Tensor) -> None:
    layer.train()
    layer(x)[0].sum().backward()


def measure_cost(run: Any, lengths: Sequence[int]) -> None:
    """The cost of full attention and of both selections, as a table, a picture and two claims of the longest."""

    def layers(time: int) -> dict[str, nn.Module]:
        return {
            "full": DenseAttention(64, 1),
            "causal": square_root_routing(time, 64, 1, "causal"),
            "balanced": square_root_routing(time, 64, 1, "balanced"),
        }

    rows = cost_rows(layers, lengths, dim=64, repeats=2, device=run.device)
    run.table("cost of attention, one head of 64", rows)
    run.figure("cost", figures.cost_figure(rows))
    full, causal, _ = rows[-3:]
    run.measure("seconds", ours=causal["ms"], baseline=full["ms"], value=full["ms"] / causal["ms"])
    ours, theirs = causal["MB for backward"], full["MB for backward"]
    run.measure("bytes", ours=ours, baseline=theirs, value=ours / theirs)
    if run.device.type != "cuda":
        run.unmeasured("gpu_speed", why="no GPU")
        return

    def long(time: int) -> dict[str, nn.Module]:
        return {"full": DenseAttention(512, 8), "causal": RoutingAttention(512, 8, time // 512, 512)}

    rows = cost_rows(long, (8192, 16384, 32768), dim=512, device=run.device, dtype=torch.bfloat16)
    run.table("cost on the GPU, 8 heads of 64, bfloat16", rows)
    full, causal = rows[-2:]
    run.measure("gpu_speed", ours=causal["ms"], baseline=full["ms"], value=full["ms"] / causal["ms"])
