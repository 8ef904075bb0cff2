"""Images made of a few patches are tokenised without loss, in raster order."""

import pytest
import torch

from flambeau.nn.patch_tokenizer import PatchTokenizer


def test_images_of_known_patches_come_back_exactly():
    generator = torch.Generator().manual_seed(0)
    patches = torch.rand(6, 3, 4, 4, generator=generator)
    tokens = torch.randint(0, 6, (20, 2, 3), generator=generator)
    images = torch.cat([torch.cat([patches[tokens[:, r, c]] for c in range(3)], 3) for r in range(2)], 2)
    tokenizer = PatchTokenizer(codes=6, patch=4, channels=3)
    tokenizer.fit(images, generator)
    found = tokenizer.encode(images)
    assert found.shape == (20, 6)
    assert torch.allclose(tokenizer.decode(found, (2, 3)), images, atol=1e-5)
    relabel = dict(zip(tokens.flatten().tolist(), found.flatten().tolist()))
    assert [relabel[t] for t in tokens.flatten().tolist()] == found.flatten().tolist()


def test_fit_lowers_the_error_and_is_reproducible():
    images = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    errors = []
    for codes in (2, 32):
        runs = []
        for _ in range(2):
            tokenizer = PatchTokenizer(codes, 4)
            tokenizer.fit(images, torch.Generator().manual_seed(3))
            runs.append(tokenizer.decode(tokenizer.encode(images), (2, 2)))
        assert torch.equal(runs[0], runs[1])
        errors.append((runs[0] - images).pow(2).mean())
    assert errors[1] < errors[0]


def test_bad_images():
    tokenizer = PatchTokenizer(4, 4)
    with pytest.raises(ValueError, match=r"images must be \[batch, 1"):
        tokenizer.encode(torch.rand(1, 3, 8, 8))
    with pytest.raises(ValueError, match="multiples of 4"):
        tokenizer.encode(torch.rand(1, 1, 8, 9))
    with pytest.raises(ValueError, match="holds 6 tokens, got 5"):
        tokenizer.decode(torch.zeros(1, 5, dtype=torch.long), (2, 3))
