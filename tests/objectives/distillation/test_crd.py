"""Contrastive distillation: the sampler's law, the estimate against NumPy, the memory and what is saved of it."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from flambeau.objectives.distillation import AliasSampler, CRDLoss

N, DIM, K, B = 20, 6, 7, 8


def test_alias_sampler_draws_by_weight():
    weights = torch.rand(50, generator=torch.Generator().manual_seed(0)) ** 3 * 40
    weights[[3, 17]] = 0
    sampler = AliasSampler(weights)
    draws = 100_000
    counts = torch.bincount(sampler.draw(100, 1000, generator=torch.Generator().manual_seed(1)).flatten(), minlength=50)
    expected = draws * weights / weights.sum()
    assert counts[[3, 17]].sum() == 0
    some = expected > 0
    statistic = ((counts - expected)[some] ** 2 / expected[some]).sum().item()
    assert chi2.sf(statistic, int(some.sum()) - 1) > 0.001


def test_alias_table_is_exact():
    weights = torch.rand(50, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    sampler = AliasSampler(weights)
    chances = sampler.probability.double() / 50
    chances.index_add_(0, sampler.alias, (1 - sampler.probability.double()) / 50)
    torch.testing.assert_close(chances, weights / weights.sum(), rtol=1e-5, atol=1e-8)


def test_alias_sampler_is_seeded_and_saved():
    sampler, other = AliasSampler(torch.arange(5)), AliasSampler(torch.ones(5))
    other.load_state_dict(sampler.state_dict())
    draws = [s.draw(4, 3, generator=torch.Generator().manual_seed(0)) for s in (sampler, other)]
    assert torch.equal(*draws) and draws[0].shape == (4, 3)
    torch.manual_seed(5)
    first = sampler.draw(10)
    torch.manual_seed(5)
    assert torch.equal(first, sampler.draw(10))


@pytest.mark.parametrize("weights", [[], [0.0, 0.0], [1.0, -1.0], [1.0, float("nan")], [[1.0]]])
def test_alias_sampler_refuses(weights):
    with pytest.raises(ValueError, match="weights"):
        AliasSampler(torch.tensor(weights))


def batch(seed):
    generator = torch.Generator().manual_seed(seed)
    vectors = [torch.randn(B, DIM, generator=generator, dtype=torch.float64) for _ in range(2)]
    student, teacher = (torch.nn.functional.normalize(x, dim=1) for x in vectors)
    return student, teacher, torch.randperm(N, generator=generator)[:B], torch.randint(N, (B, K), generator=generator)


def numpy_step(memory, z, student, teacher, index, negatives):
    """One step of noise-contrastive estimation; changes memory and z."""
    total, picked = 0.0, np.concatenate([index[:, None], negatives], 1)
    for side, anchors, other in (("student", student, "teacher"), ("teacher", teacher, "student")):
        score = np.exp(np.einsum("bkd,bd->bk", memory[other][picked], anchors) / 0.07)
        if side not in z:
            z[side] = score.mean() * N
        p, noise = score / z[side], negatives.shape[1] / N
        true = np.log(p[:, 0] / (p[:, 0] + noise + 1e-7))
        false = np.log(noise / (p[:, 1:] + noise + 1e-7))
        total -= (true.sum() + false.sum()) / B
    for side, vectors in (("student", student), ("teacher", teacher)):
        mixed = 0.5 * memory[side][index] + 0.5 * vectors
        memory[side][index] = mixed / np.linalg.norm(mixed, axis=1, keepdims=True)
    return total


def test_steps_follow_the_estimate():
    torch.manual_seed(0)
    loss = CRDLoss(N, DIM, negatives=K).double()
    memory = {"student": loss.memory_student.numpy().copy(), "teacher": loss.memory_teacher.numpy().copy()}
    z, constants = {}, []
    for seed in range(3):
        tensors = batch(seed)
        expected = numpy_step(memory, z, *(x.numpy() for x in tensors))
        np.testing.assert_allclose(loss(*tensors).item(), expected, rtol=1e-6)
        constants.append((loss.z_student.item(), loss.z_teacher.item()))
    np.testing.assert_allclose(loss.memory_student.numpy(), memory["student"], rtol=1e-6)
    np.testing.assert_allclose(loss.memory_teacher.numpy(), memory["teacher"], rtol=1e-6)
    # the constants are set by the first batch and never again
    assert constants[0] == constants[1] == constants[2]
    np.testing.assert_allclose(constants[0], (z["student"], z["teacher"]), rtol=1e-6)


def test_more_negatives_than_samples():
    torch.manual_seed(0)
    loss = CRDLoss(N, DIM).double()
    student, teacher, index, _ = batch(0)
    negatives = torch.randint(N, (B, 3 * N))
    memory, z = {"student": loss.memory_student.numpy().copy(), "teacher": loss.memory_teacher.numpy().copy()}, {}
    tensors = (student.requires_grad_(), teacher, index, negatives)
    value = loss(*tensors)
    value.backward()
    expected = numpy_step(memory, z, *(x.detach().numpy() for x in tensors))
    np.testing.assert_allclose(value.item(), expected, rtol=1e-6)


def test_memory_starts_with_vectors_of_about_length_one():
    memory = CRDLoss(200, 128).memory_student
    assert abs(memory.square().sum(1).mean().item() - 1) < 0.05 and memory.abs().max() <= math.sqrt(3 / 128)


def test_evaluation_changes_nothing():
    loss = CRDLoss(N, DIM, negatives=K).eval()
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    assert loss(*batch(0)).isfinite()
    assert all(torch.equal(value, before[name]) for name, value in loss.state_dict().items())


def test_state_is_saved_and_restored():
    torch.manual_seed(0)
    loss, restored = CRDLoss(N, DIM, negatives=K), CRDLoss(N, DIM, negatives=K)
    loss(*batch(0))
    assert {"memory_student", "memory_teacher", "z_student", "z_teacher"} < loss.state_dict().keys()
    restored.load_state_dict(loss.state_dict())
    student, teacher, index, _ = batch(1)
    values = [x(student, teacher, index, generator=torch.Generator().manual_seed(2)) for x in (loss, restored)]
    assert torch.equal(*values)
    assert all(torch.equal(a, b) for a, b in zip(loss.buffers(), restored.buffers()))
    assert all(x.device.type == "meta" for x in loss.to("meta").buffers())


def test_gradient_reaches_both_sides():
    torch.manual_seed(0)
    loss = CRDLoss(N, DIM, negatives=K).double()
    student, teacher, index, negatives = batch(0)
    loss(student, teacher, index, negatives)  # sets the constants
    loss.eval()
    inputs = (student.requires_grad_(), teacher.requires_grad_())
    assert torch.autograd.gradcheck(lambda s, t: loss(s, t, index, negatives), inputs)
    loss.train()
    loss(*inputs, index, negatives).backward()  # although the memory changes before the backward pass
    assert student.grad.abs().sum() > 0 and teacher.grad.abs().sum() > 0


def test_bad_input():
    for wrong in (
        dict(num_samples=0),
        dict(dim=0),
        dict(negatives=0),
        dict(temperature=0.0),
        dict(momentum=1.0),
        dict(eps=0.0),
        dict(weights=torch.ones(3)),
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            CRDLoss(**{"num_samples": N, **wrong})
    loss = CRDLoss(N, DIM, negatives=K)
    student, teacher, index, negatives = batch(0)
    with pytest.raises(ValueError, match=r"\[8, 6\] and teacher \[8, 5\]"):
        loss(student, teacher[:, :5], index)
    with pytest.raises(ValueError, match=r"expected \[batch, 6\]"):
        loss(student[:, :5], teacher[:, :5], index)
    with pytest.raises(ValueError, match=r"index: got \[3\]"):
        loss(student, teacher, index[:3])
    with pytest.raises(ValueError, match=r"from .* to 20, expected \[0, 20\)"):
        loss(student, teacher, index.clone().fill_(N))
    with pytest.raises(ValueError, match=r"negative_index: got \[7\]"):
        loss(student, teacher, index, negatives[0])
    with pytest.raises(ValueError, match="negative_index: got values from -1"):
        loss(student, teacher, index, negatives - negatives.min() - 1)
