"""Hide parts of images: corrupted blocks of pixels, and random cells of a grid."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

KINDS = ("zeros", "noise", "shuffle", "alien")


def random_cells(
    batch: int, grid: Sequence[int], keep: int, generator: torch.Generator | None = None
) -> Bool[Tensor, batch * grid]:
    """Exactly `keep` visible cells (True) a sample, every choice of them equally likely; on the CPU.

    grid: cells along each axis, of any number of axes. generator: on the CPU; None draws from the global one.

    Raises:
        ValueError: a batch or grid without a cell, or a mask that would hide none or all of them.
    """
    cells = math.prod(grid)
    if batch < 1 or not grid or min(grid) < 1:
        raise ValueError(f"batch and grid must be at least 1, got {batch} and {tuple(grid)}")
    if not 0 < keep < cells:
        raise ValueError(f"keep must lie strictly between 0 and the {cells} cells of the grid, got {keep}")
    chosen = torch.rand(batch, cells, generator=generator).argsort(1)[:, :keep]
    return torch.zeros(batch, cells, dtype=torch.bool).scatter_(1, chosen, True).view(batch, *grid)


def gmml_corrupt(
    x: Float[Tensor, "batch channels height width"],
    drop: float = 0.5,
    kinds: Sequence[str] = ("zeros", "noise"),
    align: int = 1,
    max_block: float = 0.3,
    alien: float = 0.3,
    generator: torch.Generator | None = None,
) -> tuple[Float[Tensor, "batch channels height width"], Bool[Tensor, "batch 1 height width"]]:
    """Corrupt random blocks of images: group masked model learning (GMML, Atito et al. 2021, arXiv 2104.03602).

    Blocks are drawn until they cover a share of the image that is itself drawn from [min(0.5, drop), drop]. Each image
    has one kind of corruption, all kinds being equally likely: "zeros"; "noise", normal with variance 1; "shuffle",
    every block copied from another place of the image; "alien", blocks copied from one other image of the batch, at
    the same coordinates.

    Args:
        x: any channels and value range; not changed.
        drop: largest share of an image that is targeted. The last block may exceed it.
        kinds: see above.
        align: blocks begin at multiples of it and have sides of multiples of it, but for those cut at the border; the
            size of a patch keeps patches whole, 1 lets blocks cut them.
        max_block: largest side of a block, as a share of the image's; never below `align`.
        alien: `drop` of the kind "alien", which it adds to `kinds`; 0 adds nothing. A batch of one image goes without.
        generator: on the CPU; the same state gives the same corruption on every device. None draws from the global one.

    Returns:
        The corrupted images, and True where they are corrupted.

    Raises:
        ValueError: not a batch of images, shares outside (0, 1), an unknown kind or none, or alien blocks alone for a
            batch of one image.
    """
    if x.ndim != 4 or 0 in x.shape:
        raise ValueError(f"x must have shape [batch, channels, height, width], got {list(x.shape)}")
    for name, share in (("drop", drop), ("max_block", max_block)):
        if not 0 < share < 1:
            raise ValueError(f"{name} must lie in (0, 1), got {share}")
    if not 0 <= alien < 1:
        raise ValueError(f"alien must lie in [0, 1), got {alien}")
    if align < 1:
        raise ValueError(f"align must be at least 1, got {align}")
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise ValueError(f"kinds must be some of {', '.join(KINDS)}, got {unknown or 'none'}")
    names = [kind for kind in KINDS if kind in kinds or (kind == "alien" and alien)]
    batch, _, height, width = x.shape
    if batch == 1 and "alien" in names:
        names.remove("alien")
        if not names:
            raise ValueError("kinds: alien blocks come from another image, got a batch of 1")

    of_image = torch.randint(len(names), (batch,), generator=generator)
    largest = torch.tensor([alien if name == "alien" and alien else drop for name in names])[of_image]
    smallest = largest.clamp(max=0.5)
    target = smallest + (largest - smallest) * torch.rand(batch, generator=generator)
    mask, source = _blocks(target, height, width, align, max_block, generator)

    fill = torch.zeros_like(x)
    index = of_image.to(x.device).view(-1, 1, 1, 1)
    if "noise" in names:
        noise = torch.randn(x.shape, generator=generator).to(x)
        fill = torch.where(index == names.index("noise"), noise, fill)
    if "shuffle" in names:
        copied = x.flatten(2).gather(2, source.to(x.device).flatten(1)[:, None].expand(-1, x.shape[1], -1)).view_as(x)
        fill = torch.where(index == names.index("shuffle"), copied, fill)
    if "alien" in names:
        donor = (torch.arange(batch) + torch.randint(1, batch, (batch,), generator=generator)) % batch
        fill = torch.where(index == names.index("alien"), x[donor.to(x.device)], fill)
    mask = mask[:, None].to(x.device)
    return torch.where(mask, fill, x), mask


def _blocks(
    target: Float[Tensor, " batch"],
    height: int,
    width: int,
    align: int,
    max_block: float,
    generator: torch.Generator | None,
) -> tuple[Bool[Tensor, "batch height width"], Int64[Tensor, "batch height width"]]:
    """Union of random blocks of at least `target` of each image, and for each pixel one that a copy of it comes from.

    Everything is counted in cells of `align` pixels, of which the last in a row or column may be cut.
    """
    batch = len(target)
    rows, columns = -(-height // align), -(-width // align)
    row = torch.arange(rows)[None, :, None]
    column = torch.arange(columns)[None, None, :]
    cell_area = (height - row * align).clamp(max=align) * (width - column * align).clamp(max=align)
    wanted = target * height * width
    mask = torch.zeros(batch, rows, columns, dtype=torch.bool)
    source = torch.arange(rows * columns).view(1, rows, columns).repeat(batch, 1, 1)

    def sides(pixels: int, cells: int) -> Tensor:
        # Sides are drawn in pixels and rounded, at least one cell, also where a cell is larger than the largest block.
        most = max(align, math.floor(max_block * pixels))
        drawn = torch.randint(align, most + 1, (batch, 1, 1), generator=generator)
        return (drawn / align).round().long().clamp(1, cells)

    # From where on blocks begin at a cell that is still whole: chance alone would need long for the last few.
    patience = 8 * math.ceil(4 / max_block**2)
    number = 0
    while (open_ := (mask * cell_area).sum((1, 2)) < wanted).any():
        top = torch.randint(rows, (batch, 1, 1), generator=generator)
        left = torch.randint(columns, (batch, 1, 1), generator=generator)
        if number >= patience:
            first = (torch.rand(batch, rows * columns, generator=generator) - mask.flatten(1).float()).argmax(1)
            top, left = (first // columns).view(-1, 1, 1), (first % columns).view(-1, 1, 1)
        high, wide = sides(height, rows), sides(width, columns)
        block = (row >= top) & (row < top + high) & (column >= left) & (column < left + wide) & open_.view(-1, 1, 1)
        # The copied region lies inside the image and, where there is room for one, elsewhere.
        from_row = (torch.rand(batch, 1, 1, generator=generator) * (rows - high + 1)).long()
        from_column = (torch.rand(batch, 1, 1, generator=generator) * (columns - wide + 1)).long()
        copied = (from_row + row - top) * columns + from_column + column - left
        source = torch.where(block, copied, source)
        mask |= block
        number += 1

    up = (torch.arange(height) // align)[:, None], (torch.arange(width) // align)[None]
    cell = source[:, up[0], up[1]]
    within = (torch.arange(height) % align)[:, None], (torch.arange(width) % align)[None]
    pixel_row = (cell // columns * align + within[0]).clamp(max=height - 1)
    pixel_column = (cell % columns * align + within[1]).clamp(max=width - 1)
    return mask[:, up[0], up[1]], pixel_row * width + pixel_column
