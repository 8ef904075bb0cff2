"""NAR: next-neighbour prediction over a grid of tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from flambeau.models.language.decoder import Block
from flambeau.models.token_grid.conditions import ClassCondition, TextCondition
from flambeau.models.token_grid.grid_model import GridModel, initialise
from flambeau.models.token_grid.slots import group_mask, hide_padding
from flambeau.nn.kv_cache import KVCache
from flambeau.nn.order import Order, diagonal
from flambeau.nn.rotary import Rotary, grid_coordinates

Mix = Literal["logits", "probabilities", "gate", "single"]


class Head(nn.Module):
    """Predicts the neighbour in one direction: further blocks on the trunk's output, a norm and a matrix."""

    def __init__(self, blocks: Sequence[Block], width: int, vocab: int, gate: bool):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.output = nn.Linear(width, vocab, bias=False)
        self.gate = nn.Linear(width, 1) if gate else None


class Way(NamedTuple):
    """Where a feed of groups goes.

    rows: of the mask and the rotary table, of the cells fed. start: their first slot of the cache. parents: for every
    direction the places among the cells fed, and among the `following` cells behind them, which those predict.
    """

    rows: Tensor
    start: int
    parents: list[tuple[Tensor, Tensor]]
    following: int


class NAR(GridModel):
    """Neighbouring autoregressive model (He et al. 2025, arXiv 2503.10696).

    All cells of equal Manhattan distance from the origin are predicted in one forward, from the cells before: each
    cell has one head for each axis, which predicts the next cell along it, and a cell's logits are the mean of those
    that its neighbours towards the origin predict for it. A cell attends to the condition and to all cells not further
    from the origin than itself. The first cell is predicted by all heads at the last condition token. Given the
    distances before, the cells of one distance are independent, so the likelihood is exact and normalised.

    vocab: tokens. grid: (height, width), (frames, height, width), or any number of axes. width, depth, heads: of the
    trunk; grouped queries and others as in `flambeau.models.language.Decoder`. classes: of a class condition (0 for
    none); text_dim: size of text features instead, condition_tokens of them. extra_blocks: blocks of every head but
    that of the last axis, which reads the trunk. mix: what is averaged over a cell's neighbours: "logits" (the paper),
    "probabilities", logits with a learned "gate", or "single", one head for all directions, whose extra blocks lengthen
    the trunk (the paper's ablation without heads). origin: cell from which distances count, the first corner by
    default; an inner one needs a second head for every axis that it divides. condition_drop: share of conditions
    replaced by the null condition in training. mute_condition: queries and keys of condition tokens are zero, as in
    LlamaGen's released weights.

    Raises ValueError when sizes do not fit.
    """

    def __init__(
        self,
        vocab: int,
        grid: Sequence[int] = (16, 16),
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        *,
        classes: int = 0,
        text_dim: int | None = None,
        condition_tokens: int = 120,
        extra_blocks: int = 1,
        mix: Mix = "logits",
        origin: Sequence[int] | None = None,
        hidden: int | None = None,
        dropout: float = 0.0,
        condition_drop: float = 0.1,
        mute_condition: bool = False,
    ):
        super().__init__()
        if vocab < 1 or depth < 1 or extra_blocks < 0:
            raise ValueError(
                f"vocab and depth must be positive, extra_blocks not negative; got {vocab}, {depth}, {extra_blocks}"
            )
        if width % heads:
            raise ValueError(f"width must be divisible by heads, got {width} and {heads}")
        if mix not in ("logits", "probabilities", "gate", "single"):
            raise ValueError(f"mix must be logits, probabilities, gate or single, got {mix!r}")
        if classes and text_dim is not None:
            raise ValueError("give classes or text_dim, not both")
        hidden = -(-8 * width // 48) * 16 if hidden is None else hidden

        def blocks(count: int) -> list[Block]:
            return [Block(width, heads, heads, hidden, False, dropout) for _ in range(count)]

        self.vocab, self.order, self.mix = vocab, diagonal(tuple(grid), origin), mix
        if text_dim is None:
            self.condition: nn.Module = ClassCondition(classes, width, condition_drop if classes else 0.0)
        else:
            self.condition = TextCondition(text_dim, width, condition_tokens, condition_drop)
        self.embedding = nn.Embedding(vocab, width)
        self.dropout = nn.Dropout(dropout)
        conditions = self.condition.tokens
        self.rotary = Rotary(width // heads, grid_coordinates(self.grid, conditions))
        if mute_condition:
            self.rotary.table[:conditions] = 0
        directions = _directions(self.order)
        single = mix == "single"
        self.blocks = nn.ModuleList(blocks(depth + (extra_blocks if single else 0)))
        self.heads = nn.ModuleList(
            Head(blocks(0 if number == 0 or single else extra_blocks), width, vocab, mix == "gate")
            for number in range(1 if single else len(directions))
        )
        self.register_buffer("mask", group_mask(self.order, conditions), persistent=False)
        # Parents: a cell `source` has a head that predicts the cell `target`.
        self._sources, self._targets = [s for s, _ in directions], [t for _, t in directions]
        self._ways: dict[tuple[range, torch.device], Way] = {}
        self.apply(initialise)
        for name, weight in self.named_parameters():
            if name.endswith("out.weight"):
                nn.init.normal_(weight, std=0.02 / (2 * depth) ** 0.5)

    def forward(
        self,
        tokens: Int[Tensor, "batch ..."],
        condition: Tensor | None = None,
        condition_mask: Bool[Tensor, "batch conditions"] | None = None,
    ) -> Float[Tensor, "batch ... vocab"]:
        """Logits of every cell given those nearer to the origin.

        condition: labels [batch] or text features [batch, conditions, dim]; None is the null condition.
        condition_mask: False on padded text features.
        Raises ValueError for tokens outside the vocabulary, another grid, or a condition that does not fit.
        """
        self.check_tokens(tokens)
        flat = tokens.flatten(1)
        x = torch.cat([self.embed_condition(condition, len(flat)), self.embedding(flat)], 1)
        rows = torch.arange(x.shape[1], device=x.device)
        states = self._states(self.dropout(x), rows, hide_padding(self.mask, condition_mask, rows), None, None)
        first = self.condition.tokens
        root = self._mixed([(s[:, first - 1 : first], [0]) for s in states], 1)
        directions = self._per_direction(states)
        rest = self._mixed(
            [(s[:, first + source], target) for (s, source, target) in zip(directions, self._sources, self._targets)],
            flat.shape[1],
        )
        rest = rest.index_copy(1, self.order.groups[0].to(x.device), root)
        return rest.unflatten(1, self.grid)

    def new_cache(self, rows: int) -> KVCache:
        """For `begin` and `advance`: one slot a condition token and cell, cells in the order's sequence."""
        layers = len(self.blocks) + sum(len(head.blocks) for head in self.heads)
        return KVCache(layers, rows, self.mask.shape[0])

    def begin(
        self, cache: KVCache, condition: Tensor, condition_mask: Bool[Tensor, "batch conditions"] | None = None
    ) -> Float[Tensor, "batch first vocab"]:
        """Feed the condition; logits of the first group, which is the origin."""
        rows = torch.arange(self.condition.tokens, device=self.mask.device)
        mask = None if len(rows) == 1 else self._visible(rows, len(rows), condition_mask)
        states = self._states(self.embed_condition(condition, cache.batch), rows, mask, cache, 0)
        return self._mixed([(s[:, -1:], [0]) for s in states], 1)

    def advance(
        self,
        cache: KVCache,
        steps: range,
        tokens: Int[Tensor, "batch cells"],
        condition_mask: Bool[Tensor, "batch conditions"] | None = None,
    ) -> Float[Tensor, "batch next vocab"]:
        """Feed the groups `steps`, their cells in the order's sequence; logits of all groups behind each of them.

        Several groups, one behind the other, are fed in one forward when their tokens are known, or drafts to be
        verified; feeding a group again overwrites it. The last group has none behind it: the logits of a feed that ends
        there lack it.
        """
        way = self._way(steps, self.mask.device)
        # One group sees everything that the cache holds up to its own end, which needs no mask.
        alone = len(steps) == 1 and condition_mask is None
        mask = None if alone else self._visible(way.rows, way.start + len(way.rows), condition_mask)
        states = self._per_direction(self._states(self.embedding(tokens), way.rows, mask, cache, way.start))
        parts = [(state.index_select(1, fed), target) for state, (fed, target) in zip(states, way.parents)]
        return self._mixed(parts, way.following)

    def _way(self, steps: range, device: torch.device) -> Way:
        """Made once for every feed that occurs: it costs as much as a small model's forward."""
        if (steps, device) not in self._ways:
            cells = torch.cat([self.order.groups[step] for step in steps])
            following = [self.order.groups[step + 1] for step in steps if step + 1 < self.order.steps]
            wanted = torch.cat(following) if following else cells[:0]
            place, found = torch.full((2, math.prod(self.grid)), -1).unbind(0)
            place[cells] = torch.arange(len(cells))
            found[wanted] = torch.arange(len(wanted))
            start = self.condition.tokens + sum(len(group) for group in self.order.groups[: steps[0]])
            parents = []
            for source, target in zip(self._sources, self._targets):
                here = place[source] >= 0
                parents.append((place[source[here]].to(device), found[target[here]].to(device)))
            rows = (cells + self.condition.tokens).to(device)
            self._ways[steps, device] = Way(rows, start, parents, len(wanted))
        return self._ways[steps, device]

    def _states(
        self, x: Tensor, rows: Tensor, mask: Tensor | None, cache: KVCache | None, start: int | None
    ) -> list[Float[Tensor, "batch rows width"]]:
        """Normalised hidden states of every head; with a cache, of rows that are written from slot `start` on."""
        append = None if cache is None else cache.begin(len(rows), x.device, start=start, mask=mask)
        angles = self.rotary(rows[None]).to(x.dtype)
        if mask is not None:
            mask = mask[None, None] if mask.ndim == 2 else mask[:, None]
        layer = 0
        for block in self.blocks:
            x = block(x, angles, mask, cache, layer, append)
            layer += 1
        states = []
        for head in self.heads:
            y = x
            for block in head.blocks:
                y = block(y, angles, mask, cache, layer, append)
                layer += 1
            states.append(head.norm(y))
        if cache is not None and append is not None:
            cache.commit(append)
        return states

    def _per_direction(self, states: list[Tensor]) -> list[Tensor]:
        return states * len(self._sources) if self.mix == "single" else states

    def _mixed(
        self, parts: Sequence[tuple[Tensor, Tensor | list[int]]], count: int
    ) -> Float[Tensor, "batch count vocab"]:
        """Average what the heads predict for each of `count` cells; parts: hidden states, and the cell of each."""
        batch, like = parts[0][0].shape[0], parts[0][0]
        total, weight = like.new_zeros(batch, count, self.vocab), like.new_zeros(1, count, 1)
        for number, (state, target) in enumerate(parts):
            head = self.heads[0 if self.mix == "single" else number]
            index = torch.as_tensor(target, device=state.device)
            logits = head.output(state)
            if self.mix == "probabilities":
                logits = logits.softmax(-1)
            share = logits.new_ones(1, len(index), 1)
            if head.gate is not None:
                share = head.gate(state).exp()
                logits, weight = share * logits, weight.expand(batch, -1, -1)
            total, weight = total.index_add(1, index, logits), weight.index_add(1, index, share)
        mixed = total / weight.clamp(min=1e-12)
        return mixed.clamp(min=1e-30).log() if self.mix == "probabilities" else mixed

    def _visible(self, rows: Tensor, span: int, condition_mask: Tensor | None) -> Tensor:
        """The mask of these rows over the first slots of the cache, which holds cells in the order's sequence."""
        conditions = torch.arange(self.condition.tokens)
        columns = torch.cat([conditions, self.condition.tokens + self.order.sequence])[:span].to(self.mask.device)
        return hide_padding(self.mask[rows], condition_mask, rows)[..., columns]


def _directions(order: Order) -> list[tuple[Tensor, Tensor]]:
    """(sources, targets) of every head: the cells that have a neighbour further from the origin along one way.

    The last axis comes first, each axis away from the origin forwards and then backwards.
    """
    cells, origin = order.coordinates, order.coordinates[order.groups[0][0]]
    strides = [math.prod(order.grid[axis + 1 :]) for axis in range(len(order.grid))]
    found = []
    for axis in reversed(range(len(order.grid))):
        for sign in (1, -1):
            beyond = cells[:, axis] * sign >= origin[axis] * sign
            inside = cells[:, axis] < order.grid[axis] - 1 if sign > 0 else cells[:, axis] > 0
            sources = (beyond & inside).nonzero()[:, 0]
            if len(sources):
                found.append((sources, sources + sign * strides[axis]))
    if not found:  # a grid of one cell
        found.append((torch.zeros(0, dtype=torch.long),) * 2)
    return found
