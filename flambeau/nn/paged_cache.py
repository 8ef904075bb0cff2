"""Key/value cache in pages that rows take and give back, read by ``lean_decode`` through a block table."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flambeau.nn.kv_cache import Append


class PagedKVCache:
    """Pages [pages, kv heads, page, head dim] per layer, shared by all rows; a row owns only the pages it fills.

    The contract is that of ``KVCache``: a forward calls `begin` once, `write` in every layer and `commit` at the end;
    `truncate` cuts rows back and frees their last pages, `release` frees a finished row for another sequence. `begin`
    allocates the pages; a page may hold any number of tokens. `write` stores only: attention reads the pages through
    `block_table` and `lengths`, as ``lean_decode(q, *cache.read(layer), append.lengths, cache.block_table)`` does.

    layers, batch: number of layers and rows. pages: pages in the pool. page: tokens of a page.
    capacity: most tokens of one row, by default all of the pool.
    Raises ValueError when a size is below 1, an append does not fit, or an index is out of range.
    """

    def __init__(self, layers: int, batch: int, pages: int, page: int = 16, capacity: int | None = None):
        capacity = pages * page if capacity is None else capacity
        sizes = {"layers": layers, "batch": batch, "pages": pages, "page": page, "capacity": capacity}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.page, self.capacity = page, capacity
        self.lengths = torch.zeros(batch, dtype=torch.long, device="cpu")  # kept on the CPU: decoders decide on it
        self.block_table = torch.zeros(batch, -(-capacity // page), dtype=torch.int32, device="cpu")
        self._held = [0] * batch  # pages of each row
        self._free = list(range(pages - 1, -1, -1))
        self._keys: list[Tensor | None] = [None] * layers
        self._values: list[Tensor | None] = [None] * layers
        self._pages = pages

    @property
    def batch(self) -> int:
        return self.lengths.shape[0]

    @property
    def layers(self) -> int:
        return len(self._keys)

    @property
    def free_pages(self) -> int:
        """Pages no row owns."""
        return len(self._free)

    def pages_of(self, row: int) -> list[int]:
        """Pages a row owns, in the order of its tokens."""
        return self.block_table[row, : self._held[row]].tolist()

    def begin(
        self, new: int, device: torch.device | str = "cpu", *, counts: Int[Tensor, " batch"] | None = None
    ) -> Append:
        """Plan an append of `new` tokens to every row, allocating the pages it needs.

        counts: how many of the `new` tokens each row really takes (0..new); the others are not stored.
        The returned plan's `slots` are positions in the pool (page * tokens of a page + offset), -1 where nothing is
        stored; its mask is None: the newest tokens see each other causally, as in ``lean_decode``.
        Raises ValueError, and allocates nothing, when the pool or a row's capacity is exhausted.
        """
        counts = torch.full((self.batch,), new) if counts is None else counts.cpu().long()
        if counts.shape != (self.batch,) or bool((counts < 0).any()) or bool((counts > new).any()):
            raise ValueError(f"counts must be {self.batch} numbers in 0..{new}, got {counts.tolist()}")
        lengths = self.lengths + counts
        if int(lengths.max()) > self.capacity:
            raise ValueError(f"rows of capacity {self.capacity} cannot grow to {int(lengths.max())} tokens")
        needed = [max(0, -(-length // self.page) - held) for length, held in zip(lengths.tolist(), self._held)]
        if sum(needed) > len(self._free):
            raise ValueError(f"{sum(needed)} more pages of {self.page} tokens are needed, {len(self._free)} are free")
        for row, count in enumerate(needed):
            for _ in range(count):
                self.block_table[row, self._held[row]] = self._free.pop()
                self._held[row] += 1
        steps = torch.arange(new)
        positions = self.lengths[:, None] + steps
        blocks = (positions // self.page).clamp(max=self.block_table.shape[1] - 1)
        slots = self.block_table.long().gather(1, blocks) * self.page + positions % self.page
        slots = torch.where(steps < counts[:, None], slots, -1)
        span, first = int(lengths.max()), not bool(self.lengths.any())
        return Append(slots.to(device), 0, span, None, first, positions.to(device), lengths)

    def write(
        self,
        layer: int,
        keys: Float[Tensor, "batch kv_heads new key_dim"],
        values: Float[Tensor, "batch kv_heads new value_dim"],
        append: Append,
    ) -> tuple[Tensor, Tensor]:
        """Store one layer's new keys and values; returns its pages [pages, kv heads, page, dim]."""
        if append.slots is None:
            raise ValueError("append has no slots; expected one from this cache's begin")
        stored_keys, stored_values = self._keys[layer], self._values[layer]
        if stored_keys is None or stored_values is None:
            stored_keys = keys.new_zeros(self._pages, keys.shape[1], self.page, keys.shape[3])
            stored_values = values.new_zeros(self._pages, values.shape[1], self.page, values.shape[3])
            self._keys[layer], self._values[layer] = stored_keys, stored_values
        kept = append.slots >= 0
        slots = append.slots[kept]
        at = slots // self.page, slice(None), slots % self.page
        stored_keys[at] = keys.transpose(1, 2)[kept]
        stored_values[at] = values.transpose(1, 2)[kept]
        return stored_keys, stored_values

    def commit(self, append: Append) -> None:
        """Count what a forward appended, once every layer has written it."""
        self.lengths = append.lengths

    def truncate(self, lengths: Int[Tensor, " batch"] | int) -> None:
        """Forget everything from token `lengths[row]` on, row by row, and free the pages that become empty."""
        lengths = torch.as_tensor(lengths, dtype=torch.long).cpu().expand(self.batch)
        if bool((lengths < 0).any()) or bool((lengths > self.lengths).any()):
            raise ValueError(
                f"lengths must lie in 0..current length, got {lengths.tolist()} for {self.lengths.tolist()}"
            )
        self.lengths = lengths.clone()
        for row, length in enumerate(lengths.tolist()):
            kept = -(-length // self.page)
            self._free += reversed(self.block_table[row, kept : self._held[row]].tolist())
            self.block_table[row, kept : self._held[row]] = 0
            self._held[row] = kept

    def release(self, row: int) -> None:
        """Free every page of a row, for the next sequence."""
        if not 0 <= row < self.batch:
            raise ValueError(f"row must lie in 0..{self.batch - 1}, got {row}")
        lengths = self.lengths.clone()
        lengths[row] = 0
        self.truncate(lengths)

    def read(self, layer: int) -> tuple[Tensor, Tensor]:
        """Pages of one layer [pages, kv heads, page, dim]; slots no row owns are meaningless."""
        keys, values = self._keys[layer], self._values[layer]
        if keys is None or values is None:
            raise ValueError(f"layer {layer} has not been written")
        return keys, values

    @property
    def token_bytes(self) -> int:
        """Bytes one token occupies over all layers."""
        stored = [buffer for buffer in (*self._keys, *self._values) if buffer is not None]
        return sum(buffer.shape[1] * buffer.shape[3] * buffer.element_size() for buffer in stored)

    @property
    def used_bytes(self) -> int:
        """Bytes that hold committed tokens."""
        return int(self.lengths.sum()) * self.token_bytes

    @property
    def allocated_bytes(self) -> int:
        """Bytes of the pages."""
        return self._pages * self.page * self.token_bytes
