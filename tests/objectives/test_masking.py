"""Corrupted blocks and random cells: exact masks, seeded, and ended for every grid."""

import pytest
import torch

from flambeau.objectives.masking import gmml_corrupt, random_cells


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(batch=64, channels=1, height=32, width=32):
    return 1 + torch.rand(batch, channels, height, width, generator=seeded(99))  # never 0


@pytest.mark.parametrize("shape", [(2, 1, 32, 32), (1, 3, 17, 40), (5, 2, 8, 8)])
@pytest.mark.parametrize("align", [1, 4, 8, 16])
@pytest.mark.parametrize("drop", [0.3, 0.5, 0.9])
def test_share_of_corrupted_pixels(shape, align, drop):
    x = images(*shape)
    height, width = shape[2:]
    for seed in range(5):
        _, mask = gmml_corrupt(x, drop=drop, align=align, alien=0, generator=seeded(seed))
        assert mask.shape == (shape[0], 1, height, width) and mask.dtype == torch.bool
        share = mask.float().mean((1, 2, 3))
        # Sides are rounded to multiples of align, so that the largest block may be a little larger than 0.3.
        side = [max(align, round(int(0.3 * pixels) / align) * align) / pixels for pixels in (height, width)]
        assert (share >= min(0.5, drop) - 1e-6).all()
        assert (share < drop + min(1, side[0]) * min(1, side[1]) + 1e-6).all()


def test_pixels_outside_of_the_mask_are_untouched_and_the_input_too():
    x = images(channels=3)
    before = x.clone()
    corrupted, mask = gmml_corrupt(x, kinds=("zeros", "noise", "shuffle"), generator=seeded())
    keep = ~mask.expand_as(x)
    assert torch.equal(corrupted[keep], x[keep]) and torch.equal(x, before)
    changed = (corrupted != x).any(1, keepdim=True)
    assert (changed <= mask).all() and (changed & mask).sum() > 0.95 * mask.sum()


def kind_of(row, x, corrupted, mask):
    """Which corruption image `row` shows, found from its pixels alone."""
    inside = mask[row].expand_as(x[row])
    values = corrupted[row][inside]
    if (values == 0).all():
        return "zeros"
    donors = [other for other in range(len(x)) if other != row and torch.equal(values, x[other][inside])]
    if donors:
        return "alien"
    return "shuffle" if torch.isin(values, x[row]).all() else "noise"


def test_kinds_are_equally_frequent():
    x = images(batch=400, height=12, width=12)
    corrupted, mask = gmml_corrupt(x, kinds=("zeros", "noise", "shuffle"), alien=0.3, generator=seeded(3))
    found = [kind_of(row, x, corrupted, mask) for row in range(len(x))]
    counts = [found.count(kind) for kind in ("zeros", "noise", "shuffle", "alien")]
    assert sum((count - 100) ** 2 / 100 for count in counts) < 11.34  # chi-squared with 3 degrees, 1 %
    # Alien blocks have a share of their own.
    share = mask.float().mean((1, 2, 3))
    alien = torch.tensor([kind == "alien" for kind in found])
    assert share[alien].mean() < 0.4 < share[~alien].min()


def test_noise_is_normal():
    corrupted, mask = gmml_corrupt(images(), kinds=("noise",), alien=0, generator=seeded(1))
    values = corrupted[mask]
    assert values.mean().abs() < 0.02 and (values.std() - 1).abs() < 0.02


def test_aligned_blocks_keep_patches_whole():
    _, mask = gmml_corrupt(images(height=24, width=32), align=4, generator=seeded(2))
    cells = mask.float().unfold(2, 4, 4).unfold(3, 4, 4).mean((-1, -2))
    assert ((cells == 0) | (cells == 1)).all()
    _, mask = gmml_corrupt(images(height=24, width=32), align=1, generator=seeded(2))
    cells = mask.float().unfold(2, 4, 4).unfold(3, 4, 4).mean((-1, -2))
    assert not ((cells == 0) | (cells == 1)).all()


@pytest.mark.parametrize("align", [1, 5, 16, 31, 64])
@pytest.mark.parametrize("max_block", [0.01, 0.3, 0.9])
def test_ends_for_every_alignment(align, max_block):
    x = images(batch=3, height=32, width=20)
    for kinds in (("zeros",), ("shuffle",)):
        _, mask = gmml_corrupt(
            x, drop=0.999, kinds=kinds, align=align, max_block=max_block, alien=0, generator=seeded(4)
        )
        assert (mask.float().mean((1, 2, 3)) >= 0.5).all()


def test_shuffled_blocks_come_from_the_same_image():
    x = torch.arange(2 * 24 * 24.0).view(2, 1, 24, 24)
    corrupted, mask = gmml_corrupt(x, kinds=("shuffle",), align=4, alien=0, generator=seeded(5))
    for row in range(2):
        assert torch.isin(corrupted[row], x[row]).all()
    # Whole cells are copied: neighbours within a cell stay neighbours.
    cells = corrupted.unfold(2, 4, 4).unfold(3, 4, 4)
    assert (cells[..., 1:] - cells[..., :-1] == 1).all()


def test_same_seed_same_corruption():
    x = images()
    first, second = (gmml_corrupt(x, generator=seeded(7)) for _ in range(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert not torch.equal(first[1], gmml_corrupt(x, generator=seeded(8))[1])
    torch.manual_seed(5)
    third = gmml_corrupt(x)
    torch.manual_seed(5)
    assert torch.equal(third[0], gmml_corrupt(x)[0])


def test_a_single_image_has_no_alien_blocks():
    corrupted, mask = gmml_corrupt(images(batch=1), kinds=("zeros", "alien"), generator=seeded())
    assert (corrupted[mask] == 0).all()
    with pytest.raises(ValueError, match="batch of 1"):
        gmml_corrupt(images(batch=1), kinds=("alien",))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop": 0.0}, "drop must lie in"),
        ({"drop": 1.0}, "drop must lie in"),
        ({"max_block": 1.5}, "max_block must lie in"),
        ({"alien": 1.0}, "alien must lie in"),
        ({"align": 0}, "align must be at least 1"),
        ({"kinds": ("snow",)}, "kinds must be some of .*snow"),
        ({"kinds": ()}, "kinds must be some of"),
    ],
)
def test_bad_corruptions(options, message):
    with pytest.raises(ValueError, match=message):
        gmml_corrupt(images(batch=2), **options)


def test_bad_images():
    with pytest.raises(ValueError, match="x must have shape"):
        gmml_corrupt(torch.rand(3, 8, 8))


@pytest.mark.parametrize("grid", [(16,), (6, 9), (3, 4, 5)])
def test_random_cells_are_exact_and_uniform(grid):
    visible = random_cells(500, grid, 5, seeded())
    assert visible.shape == (500, *grid) and visible.dtype == torch.bool
    assert (visible.flatten(1).sum(1) == 5).all()
    share = visible.float().mean(0)
    expected = 5 / share.numel()
    assert ((share - expected).abs() < 5 * (expected * (1 - expected) / 500) ** 0.5).all()
    assert torch.equal(visible, random_cells(500, grid, 5, seeded()))
    for keep in (0, share.numel()):
        with pytest.raises(ValueError, match="keep must lie strictly between"):
            random_cells(2, grid, keep)
