"""Next-token generation: exact, independent of padding, batching and length."""

import torch

from flambeau.generation import Sampler, generate
from flambeau.generation.enumeration import TableModel, chi_square, exact_joint, sequence_index
from flambeau.models.language import Decoder


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def tiny():
    torch.manual_seed(0)
    model = Decoder(11, 40, 16, 2, 2, conditions=1).double().eval()
    for parameter in model.parameters():
        parameter.data.mul_(4)
    return model


def test_samples_follow_the_exact_joint():
    model, prompt = TableModel(4, 4, seed=0), torch.full((40_000, 1), 4)
    joint = exact_joint(model, prompt[:1], 4, Sampler(1.3, 3))
    assert abs(float(joint.sum()) - 1) < 1e-12
    out = generate(model, prompt, 4, temperature=1.3, top_k=3, generator=seeded(0))
    counts = torch.bincount(sequence_index(out.tokens[:, 1:], 4), minlength=256).double()
    assert chi_square(counts, joint) > 1e-3
    wrong = exact_joint(model, prompt[:1], 4, Sampler(1.25, 3))
    assert chi_square(counts, wrong) < 1e-6


def test_left_padding_changes_nothing():
    model, prompt = tiny(), torch.randint(0, 11, (3, 6), generator=seeded(1))
    mask = torch.ones(3, 6, dtype=torch.bool)
    mask[1, :4] = mask[2, :1] = False
    padded = torch.where(mask, prompt, -100)
    out = generate(model, padded, 15, prompt_mask=mask, generator=seeded(2))
    for row in range(3):
        alone = generate(model, prompt[row, mask[row]][None], 15, generator=seeded(2), rows=torch.tensor([row]))
        assert torch.equal(alone.tokens[0, -15:], out.tokens[row, -15:])
    assert torch.equal(out.tokens[:, :6], padded)


def test_rows_may_end_early_and_one_prompt_length_serves_guidance_of_another():
    model, prompt = tiny(), torch.randint(0, 11, (40, 4), generator=seeded(3))
    free = generate(model, prompt, 25, generator=seeded(4)).tokens
    out = generate(model, prompt, 25, eos_id=5, pad_id=0, generator=seeded(4))
    for row in range(40):
        length = int(out.stats.lengths[row])
        assert torch.equal(out.tokens[row, : 4 + length], free[row, : 4 + length])
        assert (out.tokens[row, 4 + length :] == 0).all()
        assert int(out.stats.nfe[row]) == length
    assert (out.stats.lengths < 25).any()
    assert out.stats.compression == 1.0
    guided = generate(model, prompt, 8, cfg_scale=2.0, uncond_ids=torch.full((40, 1), 11), temperature=0)
    sequence = prompt
    for _ in range(8):
        uncond = torch.cat([torch.full((40, 1), 11), sequence[:, 4:]], 1)
        logits = model(uncond)[:, -1] + 2.0 * (model(sequence)[:, -1] - model(uncond)[:, -1])
        sequence = torch.cat([sequence, logits.argmax(-1, keepdim=True)], 1)
    assert torch.equal(guided.tokens, sequence)
