"""``lean_decode``: checks, choice of backend and schedule, and the call."""

import functools
import warnings

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from flambeau.ops.lean_attention import operators
from flambeau.ops.lean_attention.plan import choose_schedule, default_tile, default_workers, pieces


def lean_decode(
    q: Float[Tensor, "batch *queries heads dim"],
    k: Float[Tensor, "batch kv_heads keys dim"],
    v: Float[Tensor, "batch kv_heads keys dim"],
    lengths: Int[Tensor, " batch"] | None = None,
    block_table: Int[Tensor, "batch blocks"] | None = None,
    layout: str = "bhld",
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    schedule: str = "auto",
    workers: int | None = None,
    return_lse: bool = False,
    *,
    starts: Int[Tensor, " batch"] | None = None,
    slopes: Float[Tensor, "*batch heads"] | None = None,
    sinks: Float[Tensor, " heads"] | None = None,
    tail_mask: Bool[Tensor, "*batch queries queries"] | None = None,
    tile: int | None = None,
    two_pass: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of one or a few new tokens over a key/value cache; every key and value is read once.

    Source: Sanovar et al., "Lean Attention" (2024), sections 3 and 4. The result is that of softmax(q k^T scale) v, up
    to float32 rounding; float64 runs the reference. For inference: there is no gradient.

    Args:
        q: queries [batch, heads, dim], or [batch, queries, heads, dim]: the newest tokens of each row, of which each
            sees itself and everything before.
        k, v: the cache: [batch, kv heads, keys, dim] for layout ``"bhld"``, [batch, keys, kv heads, dim] for
            ``"blhd"``; with a block table, pages in place of batch and the slots of a page in place of keys. Any
            strides but the last, which must be 1. Head h of q reads head h // (heads / kv heads).
        lengths: keys of each row, the newest tokens included; all of the cache when absent. A row of length 0 gives
            zeros. On a GPU the values stay on the device (for CUDA graphs) and are clamped instead of checked.
        block_table: page of every ``page`` consecutive keys of a row; needs ``lengths``.
        scale: of the products; dim ** -0.5 when absent.
        window: how many keys a query sees, itself included.
        softcap: scores become softcap * tanh(score / softcap).
        schedule: ``"lean"``: equal ranges of tiles; ``"split(n)"``: n equal pieces of every row and head;
            ``"per_head"``: one piece; ``"auto"``: per_head if that keeps all workers equally busy, else lean.
        workers: threads (CPU, ``torch.get_num_threads()`` when absent), or programs (GPU, one a multiprocessor).
        return_lse: also return the log of the sum of exponentiated scores, [batch, (queries,) heads] float32, with
            which ``merge_states`` joins the results over parts of a cache.
        starts: first key of each row (left padding).
        slopes: ALiBi: slope * (query's position - key's position) is subtracted from the scores.
        sinks: a score for each head that takes part in the softmax with a value of zero.
        tail_mask: which of the newest tokens each of them sees, in place of "those before": a draft tree. ``window``
            and ``slopes`` count slots, not depth in the tree.
        tile: keys of one LeanTile; 256 for heads up to 64, 128 up to 128, else 64.
        two_pass: combine partial results in a second GPU kernel instead of by whoever arrives last.
        backend: ``"cpu"`` (compiled), ``"triton"``, ``"reference"``, or ``"auto"``: the fastest that can run this.

    Returns:
        Attention shaped and typed like ``q``, and the log-sum-exp if asked for (-inf over no keys).

    Raises:
        ValueError: a shape, dtype, stride, length, page or option does not fit, or an input requires a gradient.
        TypeError: dtypes the chosen backend cannot run.
    """
    single = q.ndim == 3
    if single:
        q = q[:, None]
    if layout not in ("bhld", "blhd"):
        raise ValueError(f"layout is {layout!r}; expected bhld or blhd")
    if layout == "blhd" and k.ndim == v.ndim == 4:
        k, v = k.transpose(1, 2), v.transpose(1, 2)
    _check(q, k, v, block_table)
    batch, queries, heads, dim = q.shape
    kv_heads, device = k.shape[1], q.device
    span = k.shape[2] * (1 if block_table is None else block_table.shape[1])
    if scale is None:
        scale = dim**-0.5
    for name, option in (("window", window), ("softcap", softcap), ("workers", workers), ("tile", tile)):
        if option is not None and not option > 0:
            raise ValueError(f"{name} is {option}; expected a positive number or None")
    on_host = device.type == "cpu" and not torch.compiler.is_compiling()
    full = lengths is None
    if lengths is None:
        if block_table is not None:
            raise ValueError("lengths is None; a paged cache (block_table) needs the length of every row")
        lengths = torch.full((batch,), span, dtype=torch.int64, device=device)
    lengths = _whole("lengths", lengths, (batch,), device, torch.int64)
    if starts is not None:
        starts = _whole("starts", starts, (batch,), device, torch.int64)
    if block_table is not None:
        block_table = _whole("block_table", block_table, (batch, block_table.shape[1]), device, torch.int32)
    if slopes is not None:
        slopes = _real("slopes", slopes, (batch, heads), device)
    if sinks is not None:
        sinks = _real("sinks", sinks, (heads,), device)
    if tail_mask is not None:
        if tail_mask.dtype != torch.bool or tail_mask.shape not in ((queries, queries), (batch, queries, queries)):
            expected = f"bool [{queries}, {queries}] or [{batch}, {queries}, {queries}]"
            raise ValueError(f"tail_mask is {tail_mask.dtype} {tuple(tail_mask.shape)}; expected {expected}")
        tail_mask = tail_mask.to(device).expand(batch, queries, queries).contiguous()

    tile = default_tile(dim) if tile is None else tile
    backend = _backend(backend, q, k)
    values = [span] * batch if full else lengths.tolist() if on_host else None
    if values is not None:
        if not full and values and not 0 <= min(values) <= max(values) <= span:
            raise ValueError(f"lengths run from {min(values)} to {max(values)}; expected 0 to {span}, the cache's keys")
        if block_table is not None:
            _check_pages(block_table, values, k.shape)
        threads = torch.get_num_threads() if workers is None else workers
        seen = [min(length, window + queries - 1) for length in values] if window else values
        if schedule == "auto":
            schedule = choose_schedule(seen, kv_heads, threads)
        if workers is None:
            workers = default_workers(sum(-(-length // tile) for length in seen) * kv_heads, threads)
    cut = pieces("lean" if schedule == "auto" else schedule)
    out, lse = operators.run(
        q, k, v, lengths, block_table, starts, slopes, sinks, tail_mask, float(scale), int(window or 0),
        float(softcap or 0.0), tile, cut, int(workers or 0), two_pass, backend,
    )  # fmt: skip
    if single:
        out, lse = out[:, 0], lse[:, 0]
    return (out, lse) if return_lse else out


def _check(q: Tensor, k: Tensor, v: Tensor, block_table: Tensor | None) -> None:
    if q.ndim != 4:
        raise ValueError(f"q has {q.ndim - 1} axes; expected [batch, heads, dim] or [batch, queries, heads, dim]")
    for name, x in (("k", k), ("v", v)):
        if x.ndim != 4:
            raise ValueError(f"{name} has shape {tuple(x.shape)}; expected 4 axes: batch or pages, heads and keys, dim")
        if x.dtype != q.dtype:
            raise ValueError(f"{name} is {x.dtype}; expected {q.dtype}, as q")
        if x.device != q.device:
            raise ValueError(f"{name} is on {x.device}, q on {q.device}")
        if x.shape[-1] != q.shape[-1]:
            raise ValueError(f"{name} has head size {x.shape[-1]}; expected {q.shape[-1]}, as q")
        if block_table is None and x.shape[0] != q.shape[0]:
            raise ValueError(f"{name} has a batch of {x.shape[0]}; expected {q.shape[0]}, as q")
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.stride(-1) != 1 and x.shape[-1] > 1:
            raise ValueError(f"{name} has stride {x.stride(-1)} on its last axis; expected 1 (call .contiguous())")
        if x.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{name} requires a gradient; lean_decode is for inference (detach it, or torch.no_grad)")
    if not q.is_floating_point():
        raise TypeError(f"q is {q.dtype}; expected a floating-point dtype")
    if k.shape != v.shape:
        raise ValueError(f"v has shape {tuple(v.shape)}; expected {tuple(k.shape)}, as k")
    if 0 in q.shape[1:] or k.shape[1] < 1 or q.shape[2] % k.shape[1]:
        raise ValueError(f"q has {q.shape[2]} heads and k {k.shape[1]}; expected a multiple, every axis at least 1")
    if block_table is not None and (block_table.ndim != 2 or block_table.shape[0] != q.shape[0] or not k.shape[2]):
        shape = tuple(block_table.shape)
        raise ValueError(f"block_table has shape {shape}; expected [{q.shape[0]}, blocks], of pages of 1 slot or more")


def _check_pages(block_table: Tensor, lengths: list[int], shape: torch.Size) -> None:
    used = torch.arange(block_table.shape[1]) * shape[2] < torch.tensor(lengths)[:, None]
    pages = block_table[used]
    if pages.numel() and not 0 <= int(pages.min()) <= int(pages.max()) < shape[0]:
        raise ValueError(f"block_table names pages {int(pages.min())} to {int(pages.max())}; there are {shape[0]}")


def _whole(name: str, x: Tensor, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        raise ValueError(f"{name} is {x.dtype}; expected whole numbers")
    if x.shape != shape:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; expected {shape}")
    return x.to(device, dtype).contiguous()


def _real(name: str, x: Tensor, shape: tuple[int, ...], device: torch.device) -> Tensor:
    if x.shape not in (shape, shape[-1:]):
        raise ValueError(f"{name} has shape {tuple(x.shape)}; expected {shape[-1:]}, one a head")
    return x.detach().to(device, torch.float32).expand(shape).contiguous()


def _backend(backend: str, q: Tensor, k: Tensor) -> str:
    if backend not in ("auto", "reference", "cpu", "triton"):
        raise ValueError(f"backend is {backend!r}; expected auto, reference, cpu or triton")
    if backend == "reference":
        return backend
    fused = "triton" if q.is_cuda else "cpu"
    wanted = fused if backend == "auto" else backend
    obstacle = operators.obstacle(wanted, q, k)
    if backend == "auto":
        if obstacle is None and wanted == "cpu":
            return "auto"  # the compiled kernel, if there is a compiler: found out when it runs, not when it is traced
        if obstacle is not None and wanted == "triton" and q.dtype != torch.float64:
            _warn_once(obstacle)
        return wanted if obstacle is None else "reference"
    if obstacle is None:
        return wanted
    raise (TypeError if "float32" in obstacle else ValueError)(f"backend {wanted!r} cannot run this: {obstacle}")


@functools.cache
def _warn_once(obstacle: str) -> None:
    warnings.warn(f"lean_decode: using the PyTorch reference, the Triton kernel cannot run: {obstacle}", stacklevel=4)
