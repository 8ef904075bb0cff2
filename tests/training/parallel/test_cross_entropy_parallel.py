"""The cross entropy over a split vocabulary is PyTorch's."""

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent))
import parallel_workers as workers

from flambeau.ops.saved_tensors import SavedTensors
from flambeau.training.parallel import cross_entropy
from flambeau.training.parallel.cross_entropy import padded_vocab, vocab_parallel_cross_entropy, vocab_part

CASES = [
    f"{size} {smoothing} {scale}"
    for size in ("11 11", "11 16", "12 12")
    for smoothing in (0.0, 0.1)
    for scale in ("1", "10000")
]


@pytest.fixture(scope="module")
def ranks():
    return workers.two()


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_are_torchs(ranks, case):
    for rank in ranks:
        loss, gradient, padding, ignored, finite = rank["cross_entropy"][case]
        assert loss <= 1e-12 and gradient <= 1e-12
        assert padding == 0 and ignored == 0 and finite == 1


def test_gradient_has_the_type_of_the_logits(ranks):
    assert ranks[0]["cross_entropy"]["bf16"] == ["torch.bfloat16"]


def test_parts_of_a_vocabulary():
    assert [vocab_part(53, rank, 4) for rank in range(4)] == [(0, 14), (14, 28), (28, 42), (42, 53)]
    assert [vocab_part(5, rank, 4) for rank in range(4)] == [(0, 2), (2, 4), (4, 5), (5, 5)]
    assert padded_vocab(50257, 8) == 51200 and padded_vocab(1024, 8) == 1024


@pytest.fixture
def fake_two():
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_bad_input(fake_two):
    targets = torch.zeros(2, 3).long()
    with pytest.raises(ValueError, match=r"columns 0..5 of 11 on rank 0 of 2, got 11 columns \(these are gathered"):
        vocab_parallel_cross_entropy(torch.zeros(2, 3, 11), targets, fake_two, 11)
    with pytest.raises(ValueError, match=r"targets must have shape \[2, 3\], got \[6\]"):
        vocab_parallel_cross_entropy(torch.zeros(2, 3, 6), targets.view(-1), fake_two, 11)
    with pytest.raises(IndexError, match=r"targets must lie in \[0, 11\), got \[11, 11\]"):
        bad = targets.clone()
        bad[0, 0] = 11
        vocab_parallel_cross_entropy(torch.zeros(2, 3, 6), bad, fake_two, 11)
    with pytest.raises(ValueError, match="label_smoothing"):
        vocab_parallel_cross_entropy(torch.zeros(2, 3, 6), targets, fake_two, 11, label_smoothing=1.0)
    with pytest.raises(ValueError, match="padded must be at least vocab"):
        vocab_parallel_cross_entropy(torch.zeros(2, 3, 6), targets, fake_two, 11, padded=10)


@pytest.fixture
def fake_one():
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=1, store=FakeStore())
    yield
    dist.destroy_process_group()


def test_only_the_logits_and_numbers_a_token_are_kept_for_the_backward(fake_one):
    logits, targets = torch.randn(64, 500, requires_grad=True), torch.randint(500, (64,))
    with SavedTensors(exclude=[logits]) as saved:
        vocab_parallel_cross_entropy(logits, targets, dist.group.WORLD, 500)
    assert saved.bytes <= 64 * 20  # a float, an index and two flags a token
    with SavedTensors(exclude=[logits]) as saved:
        F.cross_entropy(logits, targets)
    assert saved.bytes >= 64 * 500 * 4  # PyTorch keeps the log-softmax


def test_chunks_change_nothing(monkeypatch, fake_one):
    logits, targets = torch.randn(7, 5, dtype=torch.float64, requires_grad=True), torch.randint(5, (7,))
    monkeypatch.setattr(cross_entropy, "_CHUNK", 10)
    vocab_parallel_cross_entropy(logits, targets, dist.group.WORLD, 5, label_smoothing=0.2).sum().backward()
    expected = logits.detach().clone().requires_grad_()
    F.cross_entropy(expected, targets, reduction="sum", label_smoothing=0.2).backward()
    torch.testing.assert_close(logits.grad, expected.grad)
