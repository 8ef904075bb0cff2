"""One vector for each field of a record: categories looked up, numbers multiplied on, sets averaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class FieldEmbedding(nn.Module):
    """Embeds sparse records, fields side by side (AutoInt, section 4.2 and equations 2 to 4).

    A record is `ids` and `values` over *slots*. A field of one slot is ``value * table[id]``: a category has value 1, a
    number has the id of its field and itself as value, a missing one has value 0 and so a zero vector. A field of
    several slots is a set: the mean of its members' vectors weighted by their values, of which padding has none; the
    empty set is a zero vector.

    Args:
        row_field: [rows] the field that each row of the table belongs to.
        slots: number of slots of each field.
        dim: length of the vectors.
        field_dims: field -> length of that field's own vectors, which a linear map then brings to `dim`.
        std: standard deviation of the vectors at the start.
        sparse: gradients with the looked-up rows only, for :class:`~flambeau.training.optimizers.lazy_adam.LazyAdam`.

    Raises:
        ValueError: no fields, a field without slots or rows, or a field in `row_field` that does not exist.
    """

    local: Tensor
    slot_field: Tensor
    several: Tensor

    def __init__(
        self,
        row_field: Sequence[int] | Tensor,
        slots: Sequence[int],
        dim: int = 16,
        *,
        field_dims: Mapping[int, int] | None = None,
        std: float = 0.01,
        sparse: bool = False,
    ):
        super().__init__()
        self.slots = tuple(slots)
        self.dim = dim
        self.field_dims = dict(field_dims or {})
        self.sparse = sparse
        if not self.slots or min(self.slots) < 1:
            raise ValueError(f"slots must name at least one slot for each field, got {self.slots}")
        if dim < 1 or min(self.field_dims.values(), default=1) < 1:
            raise ValueError(f"dim and field_dims must be at least 1, got {dim} and {self.field_dims}")
        row_field = torch.as_tensor(row_field, dtype=torch.int64)
        rows = torch.bincount(row_field, minlength=len(self.slots)).tolist()
        if len(rows) != len(self.slots) or 0 in rows:
            raise ValueError(f"row_field must give each of {len(self.slots)} fields at least one row, got {rows}")
        if not set(self.field_dims) <= set(range(len(self.slots))):
            raise ValueError(f"field_dims names fields beyond the {len(self.slots)} there are: {self.field_dims}")
        shared = sum(count for field, count in enumerate(rows) if field not in self.field_dims)
        self.table = nn.Embedding(max(1, shared), dim, sparse=sparse)
        self.own = nn.ModuleDict(
            {str(field): nn.Embedding(rows[field], own, sparse=sparse) for field, own in self.field_dims.items()}
        )
        self.bring = nn.ModuleDict(
            {str(field): nn.Linear(own, dim, bias=False) for field, own in self.field_dims.items()}
        )
        for table in (self.table, *self.own.values()):
            nn.init.normal_(table.weight, std=std)
        slot_field = torch.arange(len(self.slots)).repeat_interleave(torch.tensor(self.slots))
        self.register_buffer("slot_field", slot_field, persistent=False)
        self.register_buffer("several", torch.tensor(self.slots) > 1, persistent=False)
        self.register_buffer("local", self._local(row_field), persistent=False)

    @property
    def rows(self) -> int:
        """How many ids there are."""
        return len(self.local)

    def forward(
        self, ids: Int[Tensor, "batch slots"], values: Float[Tensor, "batch slots"]
    ) -> Float[Tensor, "batch fields dim"]:
        """Vectors of the fields. Ids are below :attr:`rows`; values of sets are weights of at least 0."""
        if ids.shape[-1] != len(self.slot_field) or values.shape != ids.shape:
            wanted = f"[batch, {len(self.slot_field)}]"
            raise ValueError(f"ids and values must be {wanted}, got {list(ids.shape)} and {list(values.shape)}")
        values = values.to(self.table.weight.dtype)
        if len(self.slots) == len(self.slot_field):
            return self._vectors(ids) * values.unsqueeze(-1)
        member = nn.functional.one_hot(self.slot_field, len(self.slots)).to(values)
        total = values @ member
        mean = torch.where(self.several, torch.where(total > 0, 1 / total.clamp_min(1e-30), 0.0), 1.0)
        weights = values * mean.index_select(1, self.slot_field)
        return torch.einsum("bsd,sm->bmd", self._vectors(ids) * weights.unsqueeze(-1), member)

    def grow(self, row_field: Sequence[int] | Tensor, like: Sequence[int] | Tensor) -> dict[nn.Parameter, nn.Parameter]:
        """Append rows for new ids, in place.

        Args:
            row_field: [rows + new] the field of each row; the known rows come first, unchanged.
            like: [new] for each new id the known id whose vector it starts with.

        Returns:
            Replaced parameter -> the parameter in its place, for an optimiser that has state about them.

        Raises:
            ValueError: known rows that changed field, or a row that starts like one of another field.
        """
        row_field, like = (torch.as_tensor(given, dtype=torch.int64) for given in (row_field, like))
        known = self.rows
        if len(row_field) != known + len(like) or (like >= known).any():
            raise ValueError(f"got {len(row_field)} rows and {len(like)} to start from; {known} are known")
        local = self._local(row_field)
        if not torch.equal(local[:known], self.local.cpu()) or not torch.equal(row_field[known:], row_field[like]):
            raise ValueError("row_field must keep the known rows, and a new row must start like one of its own field")
        replaced = {}
        for key, table in {None: self.table, **dict(self.own.items())}.items():
            new = [
                int(source)
                for source, field in zip(like, row_field[known:])
                if (str(int(field)) if int(field) in self.field_dims else None) == key
            ]
            if not new:
                continue
            source = self.local[torch.tensor(new, device=self.local.device)]
            weight = nn.Parameter(torch.cat([table.weight.detach(), table.weight.detach()[source]]))
            replaced[table.weight] = weight
            table.weight, table.num_embeddings = weight, len(weight)
        self.local = local.to(self.local.device)
        return replaced

    def _local(self, row_field: Tensor) -> Tensor:
        """Position of each id in the table that holds it."""
        local = torch.empty_like(row_field)
        apart = torch.zeros(len(row_field), dtype=torch.bool)
        for field in self.field_dims:
            rows = row_field == field
            local[rows] = torch.arange(int(rows.sum()))
            apart |= rows
        local[~apart] = torch.arange(int((~apart).sum()))
        return local

    def _vectors(self, ids: Tensor) -> Tensor:
        ids = ids.long()
        if not self.field_dims:
            return self.table(ids)
        ids = self.local[ids]
        columns = torch.split(ids, self.slots, dim=1)
        return torch.cat(
            [
                self.bring[str(field)](self.own[str(field)](column)) if field in self.field_dims else self.table(column)
                for field, column in enumerate(columns)
            ],
            dim=1,
        )
