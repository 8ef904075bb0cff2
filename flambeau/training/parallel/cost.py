"""What a step on many accelerators takes, from sizes and rates alone."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True)
class Link:
    """A network: bytes a second that a rank sends in a ring, seconds a message takes to start, ranks it joins."""

    name: str
    bandwidth: float
    latency: float
    span: int


@dataclass(frozen=True)
class HardwareSpec:
    """An accelerator and its networks. Rates are per accelerator: flop/s, bytes/s, parameters/s; memory in bytes.

    links: from the fastest, narrowest to the slowest, widest. gemm_peak, gemm_half: a matrix product whose smallest
    side is x reaches the fraction ``gemm_peak * x / (x + gemm_half)`` of the peak. cpu_adam_rate: parameters a second
    that the host updates.
    """

    name: str
    peak_flops: Mapping[str, float]
    memory: float
    memory_bandwidth: float
    links: tuple[Link, ...]
    host_link: float
    ssd: float
    cpu_adam_rate: float
    gemm_peak: float
    gemm_half: float = 0.0

    def gemm_efficiency(self, m: int, n: int, k: int) -> float:
        """Fraction of the peak that an m x k by k x n product reaches."""
        smallest = min(m, n, k)
        return self.gemm_peak * smallest / (smallest + self.gemm_half)

    def link(self, ranks: int) -> Link:
        """The fastest network that joins so many neighbouring ranks. Raises ValueError if none is wide enough."""
        for link in self.links:
            if ranks <= link.span:
                return link
        raise ValueError(f"{self.name} joins at most {self.links[-1].span} ranks, got {ranks}")


# Peaks, memories and networks as their makers publish them; the fraction of the peak that products reach and the
# bandwidth of a ring are what the papers named measured.
V100_DGX2H = HardwareSpec(  # Shoeybi et al. 2019: 39 TFLOP/s of 125, eight 100 Gb/s adapters for 16 GPUs
    "V100-DGX2H", {"fp16": 125e12, "fp32": 15.7e12}, 32e9, 900e9,
    (Link("NVSwitch", 100e9, 5e-6, 16), Link("InfiniBand", 6.25e9, 15e-6, 4096)), 12e9, 3e9, 0.5e9, 39 / 125,
)  # fmt: skip
P100_ARIES = HardwareSpec(  # Piz Daint: one GPU a node
    "P100-Aries", {"fp16": 18.7e12, "fp32": 9.3e12}, 16e9, 732e9,
    (Link("Aries", 9e9, 2e-6, 5704),), 12e9, 1e9, 0.3e9, 0.5,
)  # fmt: skip
A100_SELENE = HardwareSpec(  # Narayanan et al. 2021, arXiv 2104.04473
    "A100-Selene", {"bf16": 312e12, "fp16": 312e12, "fp32": 19.5e12}, 80e9, 2039e9,
    (Link("NVSwitch", 230e9, 5e-6, 8), Link("InfiniBand", 23e9, 15e-6, 4480)), 25e9, 6e9, 1e9, 0.55, 128,
)  # fmt: skip
H100_GRAND_TETON = HardwareSpec(
    "H100-GrandTeton", {"fp8": 1979e12, "bf16": 989e12, "fp16": 989e12, "fp32": 67e12}, 80e9, 3350e9,
    (Link("NVSwitch", 370e9, 5e-6, 8), Link("RoCE", 46e9, 15e-6, 24576)), 50e9, 6e9, 1e9, 0.6, 256,
)  # fmt: skip
H200 = HardwareSpec(
    "H200", {"fp8": 1979e12, "bf16": 989e12, "fp16": 989e12, "fp32": 67e12}, 141e9, 4800e9,
    (Link("NVSwitch", 370e9, 5e-6, 8), Link("InfiniBand", 46e9, 15e-6, 24576)), 50e9, 6e9, 1e9, 0.8, 256,
)  # fmt: skip


def measured_cpu(ranks: int = 2) -> HardwareSpec:
    """This machine's CPU, from a matrix product and a memory copy; a ring is taken to copy through memory twice."""
    a = torch.randn(512, 512)
    copied = torch.empty(2**23)
    product = _seconds(lambda: a @ a)
    copy = _seconds(lambda: copied.clone())
    rate = 2 * 512**3 / product
    bandwidth = 2 * copied.numel() * 4 / copy
    links = (Link("gloo", bandwidth / 4, 1e-4, max(ranks, 1)),)
    return HardwareSpec("cpu-gloo", {"fp32": rate}, 4e9, bandwidth, links, bandwidth, 1e9, bandwidth / 16, 1.0)


def all_reduce_seconds(size: float, ranks: int, link: Link) -> float:
    """A ring all-reduce of `size` bytes: each rank sends 2 (n-1)/n of them in 2 (n-1) messages."""
    return 2 * gather_seconds(size, ranks, link)


def gather_seconds(size: float, ranks: int, link: Link) -> float:
    """A ring all-gather into, or reduce-scatter of, `size` bytes."""
    return (ranks - 1) / ranks * size / link.bandwidth + (ranks - 1) * link.latency


def all_to_all_seconds(size: float, ranks: int, link: Link) -> float:
    """Each rank sends all others their part of its `size` bytes."""
    return (ranks - 1) / ranks * size / link.bandwidth + (ranks - 1) * link.latency


def send_seconds(size: float, link: Link) -> float:
    """One message of `size` bytes."""
    return size / link.bandwidth + link.latency


@dataclass(frozen=True)
class TransformerSize:
    """The sizes of a GPT or BERT. hidden: width of the MLP, 4 times the width if None."""

    depth: int
    width: int
    heads: int
    length: int = 1024
    vocab: int = 51200
    hidden: int | None = None

    @property
    def parameters(self) -> int:
        """Parameters with a tied output embedding."""
        hidden = self.hidden or 4 * self.width
        block = 4 * self.width * (self.width + 1) + 2 * self.width * hidden + hidden + 5 * self.width
        return self.depth * block + (self.vocab + self.length + 2) * self.width

    def flops(self, batch: int, recompute: bool) -> float:
        """Floating-point operations of a step: matrix products of forward and backward, and of the recomputation.

        With an MLP of four times the width and recomputation it is Narayanan et al. 2021, arXiv 2104.04473, equation 3:
        96 B s l h^2 (1 + s/(6h) + V/(16 l h)).
        """
        tokens, hidden = batch * self.length, self.hidden or 4 * self.width
        block = 2 * tokens * (4 * self.width**2 + 2 * self.width * hidden + 2 * self.length * self.width)
        return (4 if recompute else 3) * self.depth * block + 3 * 2 * tokens * self.width * self.vocab


@dataclass(frozen=True)
class StepReport:
    """Seconds of a step, and what they consist of. efficiency: floating-point rate over that of the products alone."""

    compute: float
    tensor_communication: float
    data_communication: float
    flops: float

    @property
    def seconds(self) -> float:
        return self.compute + self.tensor_communication + self.data_communication

    @property
    def efficiency(self) -> float:
        return self.compute / self.seconds


def tensor_parallel_step(
    size: TransformerSize,
    hardware: HardwareSpec,
    *,
    tensor: int,
    data: int = 1,
    batch: int = 8,
    recompute: bool = True,
    dtype: Literal["fp16", "bf16", "fp32"] = "fp16",
) -> StepReport:
    """A step of a model split over `tensor` ranks, in `data` replicas of `batch` sequences each; nothing overlaps.

    A block's activations are summed over the ranks twice forward, twice backward and twice more if it is recomputed
    (Shoeybi et al. 2019, section 3); gradients are summed over the replicas once.
    """
    flops = size.flops(batch, recompute) / tensor
    rows, columns = batch * size.length, (size.hidden or 4 * size.width) // tensor
    rate = hardware.peak_flops[dtype] * hardware.gemm_efficiency(rows, columns, size.width)
    element = 4 if dtype == "fp32" else 2
    activations = rows * size.width * element
    sums = (6 if recompute else 4) * size.depth + 2
    between = sums * all_reduce_seconds(activations, tensor, hardware.link(tensor)) if tensor > 1 else 0.0
    gradients = size.parameters / tensor * element
    replicas = all_reduce_seconds(gradients, data, hardware.link(tensor * data)) if data > 1 else 0.0
    return StepReport(flops / rate, between, replicas, flops)


def _seconds(work: object) -> float:
    assert callable(work)
    work()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)
