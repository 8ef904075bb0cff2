"""A decoder for any generation order: each cell is predicted by a query of its own."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from flambeau.models.language.decoder import Block
from flambeau.models.token_grid.conditions import ClassCondition
from flambeau.models.token_grid.grid_model import GridModel, initialise
from flambeau.models.token_grid.slots import group_mask
from flambeau.nn.kv_cache import KVCache
from flambeau.nn.order import Order
from flambeau.nn.rotary import Rotary, grid_coordinates


class QueryDecoder(GridModel):
    """Group-parallel autoregression in any order, by two streams (as XLNet, arXiv 1906.08237, section 2.3).

    Known tokens and one query a cell share all weights: a query knows its place, attends to the condition, the tokens
    of earlier groups and itself, and gives the logits of its cell. What a model that feeds cells to their neighbours
    (NAR) or to the next cell (raster order) is compared with when only the order is to differ.

    order: groups of cells. The other arguments are those of `NAR`. Raises ValueError when sizes do not fit.
    """

    def __init__(
        self,
        vocab: int,
        order: Order,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        *,
        classes: int = 0,
        hidden: int | None = None,
        dropout: float = 0.0,
        condition_drop: float = 0.1,
    ):
        super().__init__()
        if width % heads:
            raise ValueError(f"width must be divisible by heads, got {width} and {heads}")
        hidden = -(-8 * width // 48) * 16 if hidden is None else hidden
        self.vocab, self.order = vocab, order
        self.condition = ClassCondition(classes, width, condition_drop if classes else 0.0)
        self.embedding = nn.Embedding(vocab, width)
        self.query = nn.Parameter(torch.empty(width))
        coordinates = grid_coordinates(self.grid, self.condition.tokens)
        self.rotary = Rotary(width // heads, torch.cat([coordinates, coordinates[self.condition.tokens :]]))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, heads, hidden, False, dropout) for _ in range(depth))
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.output = nn.Linear(width, vocab, bias=False)
        self.register_buffer("mask", group_mask(order, self.condition.tokens, queries=True), persistent=False)
        self.apply(initialise)
        nn.init.normal_(self.query, std=0.02)
        for name, weight in self.named_parameters():
            if name.endswith("out.weight"):
                nn.init.normal_(weight, std=0.02 / (2 * depth) ** 0.5)

    def forward(
        self, tokens: Int[Tensor, "batch ..."], condition: Tensor | None = None
    ) -> Float[Tensor, "batch ... vocab"]:
        """Logits of every cell given the groups before its own. Raises ValueError as `NAR.forward`."""
        self.check_tokens(tokens)
        flat = tokens.flatten(1)
        x = torch.cat(
            [self.embed_condition(condition, len(flat)), self.embedding(flat), self.query.expand(*flat.shape, -1)], 1
        )
        rows = torch.arange(x.shape[1], device=x.device)
        y = self._run(self.dropout(x), rows, self.mask, None)
        return self.output(y[:, -flat.shape[1] :]).unflatten(1, self.grid)

    def new_cache(self, rows: int) -> KVCache:
        """For `begin` and `advance`."""
        return KVCache(len(self.blocks), rows, self.mask.shape[0])

    def begin(
        self, cache: KVCache, condition: Tensor, condition_mask: Bool[Tensor, "batch conditions"] | None = None
    ) -> Float[Tensor, "batch first vocab"]:
        """Feed the condition and the first group's queries; logits of that group."""
        return self._step(
            cache,
            self.embed_condition(condition, cache.batch),
            torch.arange(self.condition.tokens),
            self.order.groups[0],
        )

    def advance(
        self,
        cache: KVCache,
        steps: range,
        tokens: Int[Tensor, "batch cells"],
        condition_mask: Bool[Tensor, "batch conditions"] | None = None,
    ) -> Float[Tensor, "batch next vocab"]:
        """Feed the groups `steps` and the queries of those behind them; their logits. As `NAR.advance`."""
        cells = torch.cat([self.order.groups[step] for step in steps])
        following = [self.order.groups[step + 1] for step in steps if step + 1 < self.order.steps]
        wanted = torch.cat(following) if following else cells[:0]
        return self._step(cache, self.embedding(tokens), cells + self.condition.tokens, wanted)

    def _step(self, cache: KVCache, content: Tensor, slots: Tensor, wanted: Tensor) -> Tensor:
        queries = self.query.expand(len(content), len(wanted), -1)
        cells = math.prod(self.grid)
        rows = torch.cat([slots, wanted + self.condition.tokens + cells]).to(self.mask.device)
        y = self._run(torch.cat([content, queries], 1), rows, self.mask[rows], cache)
        return self.output(y[:, content.shape[1] :])

    def _run(self, x: Tensor, rows: Tensor, mask: Tensor, cache: KVCache | None) -> Tensor:
        append = None
        if cache is not None:
            append = cache.begin(len(rows), x.device, slots=rows.expand(len(x), -1), mask=mask)
        angles = self.rotary(rows[None]).to(x.dtype)
        for layer, block in enumerate(self.blocks):
            x = block(x, angles, mask[None, None], cache, layer, append)
        if cache is not None and append is not None:
            cache.commit(append)
        return self.norm(x)
