"""Key/value cache whose rows may have different lengths."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Append:
    """Where the keys of one forward land and what its queries see; the same for every layer.

    slots: cache slots written, [batch, new], or None when every row writes the slice start:start+new.
    span: slots that attention reads (0..span-1).
    mask: True where a query may look, broadcastable to [batch, 1, new, span]; None means `causal` decides alone.
    causal: the cache is empty and the new tokens see each other causally.
    positions: sequence positions of the new tokens, [batch or 1, new].
    lengths: length of every row afterwards.
    """

    slots: Tensor | None
    start: int
    span: int
    mask: Tensor | None
    causal: bool
    positions: Tensor
    lengths: Tensor


class KVCache:
    """Static buffers [batch, kv heads, capacity, head dim] per layer, with one length per row.

    A forward calls `begin` once, `write` in every layer and `commit` at the end; a decoder then cuts rows back
    with `truncate`, keeps one path of a tree with `gather`, or forks and drops rows with `select`. Buffers are
    allocated at a layer's first write, from the shape and dtype of what is written.

    Classifier-free guidance uses a second block of rows of the same cache, never a second cache.

    layers, batch: number of layers and rows. capacity: slots per row.
    Raises ValueError when an append does not fit or an index is out of range.
    """

    def __init__(self, layers: int, batch: int, capacity: int):
        for name, value in (("layers", layers), ("batch", batch), ("capacity", capacity)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.capacity = capacity
        self.lengths = torch.zeros(batch, dtype=torch.long, device="cpu")  # kept on the CPU: decoders decide on it
        self._keys: list[Tensor | None] = [None] * layers
        self._values: list[Tensor | None] = [None] * layers

    @property
    def batch(self) -> int:
        return self.lengths.shape[0]

    @property
    def layers(self) -> int:
        return len(self._keys)

    def begin(
        self,
        new: int,
        device: torch.device | str = "cpu",
        *,
        slots: Int[Tensor, "batch new"] | None = None,
        start: int | None = None,
        mask: Bool[Tensor, ...] | None = None,
    ) -> Append:
        """Plan an append of `new` tokens to every row.

        slots: explicit slots (for example raster cells fed in another order); needs a mask over the whole capacity.
        mask: True where a query may look: [new, new] or [batch, new, new] among the new tokens (a tree), with the
        whole committed prefix visible; or [.., new, capacity] together with `slots`. Default: causal.
        start: the slot from which every row is written, at most its length; what lies there is overwritten. The new
        tokens then see all slots before them and each other, or what a mask [.., new, start + new] says of these.
        """
        if start is not None:
            return self._overwrite(new, device, start, mask)
        if slots is not None:
            if mask is None or mask.shape[-2:] != (new, self.capacity):
                got = None if mask is None else tuple(mask.shape)
                raise ValueError(f"slots need a mask [.., {new}, {self.capacity}] over the capacity, got {got}")
            if slots.shape != (self.batch, new):
                raise ValueError(f"slots must be [{self.batch}, {new}], got {tuple(slots.shape)}")
            if int(slots.min()) < 0 or int(slots.max()) >= self.capacity:
                raise ValueError(
                    f"slots must lie in 0..{self.capacity - 1}, got {int(slots.min())}..{int(slots.max())}"
                )
            # Scattered rows count up to their furthest slot; the mask says which of them hold something.
            lengths = torch.maximum(self.lengths, slots.amax(1).cpu() + 1)
            slots = slots.to(device)
            return Append(slots, 0, self.capacity, _four_axes(mask).to(device), False, slots, lengths)

        shortest, longest = int(self.lengths.min()), int(self.lengths.max())
        span = longest + new
        if span > self.capacity:
            raise ValueError(f"cache of capacity {self.capacity} cannot take {new} tokens after {longest}")
        lengths = self.lengths + new
        steps = torch.arange(new, device=device)
        if shortest == longest:
            positions = (steps + longest)[None]
            if mask is not None:
                visible = torch.cat([mask.new_ones(*mask.shape[:-1], longest), mask], -1)
                return Append(None, longest, span, _four_axes(visible).to(device), False, positions, lengths)
            if new == 1 or longest == 0:
                return Append(None, longest, span, None, new > 1, positions, lengths)
            visible = torch.arange(span, device=device) <= positions[..., None]
            return Append(None, longest, span, visible[:, None], False, positions, lengths)

        starts = self.lengths.to(device)[:, None]
        positions = starts + steps
        columns = torch.arange(span, device=device)
        if mask is None:
            visible = columns <= positions[..., None]
        else:
            # A row's new tokens sit in slots start..start+new-1, a different place in every row.
            among = columns - starts
            inside = (among >= 0) & (among < new)
            pick = among.clamp(0, new - 1)[:, None, :].expand(-1, new, -1)
            tree = mask.to(device).expand(self.batch, new, new).gather(2, pick)
            visible = (columns < starts)[:, None, :] | (inside[:, None, :] & tree)
        return Append(positions, 0, span, visible[:, None], False, positions, lengths)

    def _overwrite(self, new: int, device: torch.device | str, start: int, mask: Tensor | None) -> Append:
        shortest, span = int(self.lengths.min()), start + new
        if not 0 <= start <= shortest:
            raise ValueError(f"start must lie in 0..{shortest}, the length of the shortest row, got {start}")
        if span > self.capacity:
            raise ValueError(f"cache of capacity {self.capacity} cannot take {new} tokens after {start}")
        if mask is not None and mask.shape[-2:] != (new, span):
            raise ValueError(f"a mask behind slot {start} must be [.., {new}, {span}], got {tuple(mask.shape)}")
        visible = None if mask is None else _four_axes(mask).to(device)
        positions = torch.arange(start, span, device=device)[None]
        return Append(None, start, span, visible, False, positions, self.lengths.clamp(min=span))

    def write(
        self,
        layer: int,
        keys: Float[Tensor, "batch kv_heads new key_dim"],
        values: Float[Tensor, "batch kv_heads new value_dim"],
        append: Append,
    ) -> tuple[Tensor, Tensor]:
        """Store one layer's new keys and values; returns the spans [batch, kv heads, span, dim] to attend to."""
        stored_keys, stored_values = self._keys[layer], self._values[layer]
        if stored_keys is None or stored_values is None:
            stored_keys = keys.new_zeros(self.batch, keys.shape[1], self.capacity, keys.shape[3])
            stored_values = values.new_zeros(self.batch, values.shape[1], self.capacity, values.shape[3])
            self._keys[layer], self._values[layer] = stored_keys, stored_values
        if append.slots is None:
            stored_keys[:, :, append.start : append.span] = keys
            stored_values[:, :, append.start : append.span] = values
        else:
            rows = torch.arange(self.batch, device=keys.device)[:, None]
            stored_keys[rows, :, append.slots] = keys.transpose(1, 2)
            stored_values[rows, :, append.slots] = values.transpose(1, 2)
        return stored_keys[:, :, : append.span], stored_values[:, :, : append.span]

    def commit(self, append: Append) -> None:
        """Count what a forward appended, once every layer has written it."""
        self.lengths = append.lengths

    def truncate(self, lengths: Int[Tensor, " batch"] | int) -> None:
        """Forget everything from slot `lengths[row]` on, row by row."""
        lengths = torch.as_tensor(lengths, dtype=torch.long).cpu().expand(self.batch)
        if bool((lengths < 0).any()) or bool((lengths > self.lengths).any()):
            raise ValueError(
                f"lengths must lie in 0..current length, got {lengths.tolist()} for {self.lengths.tolist()}"
            )
        self.lengths = lengths.clone()

    def gather(
        self, starts: Int[Tensor, " batch"], path: Int[Tensor, "batch depth"], counts: Int[Tensor, " batch"]
    ) -> None:
        """Keep one path of a tree: node path[row, j] moves from slot starts+path to starts+j, the rest is forgotten.

        starts: length of each row before the tree was appended. path: increasing node numbers within the tree.
        counts: how many entries of each row's path are kept (0..depth).
        """
        starts, path, counts = starts.cpu(), path.cpu(), counts.cpu()
        steps = torch.arange(path.shape[1])
        used = steps < counts[:, None]
        if bool(((starts[:, None] + path >= self.lengths[:, None]) & used).any()) or bool((path[used] < 0).any()):
            raise ValueError(f"path must name appended nodes, got {path.tolist()} after {starts.tolist()}")
        if bool((counts < 0).any()) or bool((counts > path.shape[1]).any()):
            raise ValueError(f"counts must lie in 0..{path.shape[1]}, got {counts.tolist()}")
        source = starts[:, None] + torch.where(used, path, steps)
        target = starts[:, None] + steps
        source, target = source.clamp(max=self.capacity - 1), target.clamp(max=self.capacity - 1)
        rows = torch.arange(self.batch)[:, None]
        for stored in (*self._keys, *self._values):
            if stored is not None:
                stored[rows, :, target] = stored[rows, :, source]
        self.lengths = starts + counts

    def select(self, rows: Int[Tensor, " kept"]) -> None:
        """Keep these rows in this order; a row may be named several times (fork) or not at all (drop)."""
        self._keys = [None if stored is None else stored[rows.to(stored.device)] for stored in self._keys]
        self._values = [None if stored is None else stored[rows.to(stored.device)] for stored in self._values]
        self.lengths = self.lengths[rows.cpu()]

    def clone_prefix(self, length: int, copies: int = 1) -> KVCache:
        """A new cache holding the first `length` slots of every row, each row `copies` times in a block."""
        if not 0 <= length <= int(self.lengths.min()):
            raise ValueError(f"length must lie in 0..{int(self.lengths.min())}, got {length}")
        clone = KVCache(self.layers, self.batch * copies, self.capacity)
        for theirs, ours in ((clone._keys, self._keys), (clone._values, self._values)):
            for layer, stored in enumerate(ours):
                if stored is not None:
                    fresh = torch.zeros_like(stored).repeat_interleave(copies, 0)
                    fresh[:, :, :length] = stored[:, :, :length].repeat_interleave(copies, 0)
                    theirs[layer] = fresh
        clone.lengths = torch.full((clone.batch,), length)
        return clone

    def read(self, layer: int) -> tuple[Tensor, Tensor]:
        """Whole buffers of one layer; slots from a row's length on are meaningless."""
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
        """Bytes of the buffers."""
        return self.batch * self.capacity * self.token_bytes


def _four_axes(mask: Tensor) -> Tensor:
    """[new, span] or [batch, new, span] as [batch or 1, 1, new, span]."""
    return mask[None, None] if mask.ndim == 2 else mask[:, None]
