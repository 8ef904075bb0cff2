"""SiT's tasks and their losses, its teacher, its heads, and the two recipes."""

import copy
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent))
import sit_workers as w

from flambeau.data.augment import rotate_quarter
from flambeau.models.vision import ViT
from flambeau.objectives.contrastive import info_nce, nt_xent
from flambeau.objectives.masking import gmml_corrupt
from flambeau.training.parallel import run_processes
from flambeau.training.self_supervised.sit import ReconstructionHead, SiT, SiTClassifier


def small_vit(class_tokens=1, size=(8, 8), channels=1, **options):
    torch.manual_seed(0)
    return ViT(size, 4, 16, 2, 2, in_channels=channels, class_tokens=class_tokens, **options)


def sit(version=2, **options):
    torch.manual_seed(1)
    return SiT(small_vit(3 - version), version, hidden=12, out=6, **options)


def two_views(batch=4, size=(8, 8), channels=1):
    generator = torch.Generator().manual_seed(2)
    return [torch.rand(batch, channels, *size, generator=generator) for _ in range(2)]


def corrupted(views, seed=3):
    generator = torch.Generator().manual_seed(seed)
    pairs = [gmml_corrupt(view, generator=generator) for view in views]
    return [x for x, _ in pairs], [mask for _, mask in pairs]


def test_version_2_is_its_definition():
    model, clean = sit(lambda_rec=5.0), two_views()
    views, masks = corrupted(clean)
    out = model(views, clean, masks)
    assert set(out) == {"loss", "rec", "con"}
    tokens = model.backbone.tokens(torch.cat(views))
    pixels = model.rec_head(tokens[:, 1:], (2, 2))
    hidden = torch.cat(masks).expand_as(pixels)
    assert out["rec"].item() == pytest.approx((pixels - torch.cat(clean))[hidden].abs().mean().item(), rel=1e-6)
    # Before the first step the teacher is the student; both views share one batch of the head's norms.
    first, second = model.student["con_head"](tokens[:, 0]).chunk(2)
    keys_first, keys_second = model.student["con_head"](model.backbone.tokens(torch.cat(clean))[:, 0]).chunk(2)
    logits = [
        F.normalize(q, dim=1) @ F.normalize(k, dim=1).T / 0.2 for q, k in ((first, keys_second), (second, keys_first))
    ]
    expected = sum(2 * 0.2 * F.cross_entropy(score, torch.arange(4)) for score in logits)
    assert out["con"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert out["loss"].item() == pytest.approx((out["con"] + 5 * out["rec"]).item(), rel=1e-6)


def test_version_1_is_its_definition():
    model, upright = sit(version=1), two_views()
    turns = [torch.tensor([0, 1, 2, 3]), torch.tensor([3, 3, 0, 1])]
    clean = [rotate_quarter(view, k) for view, k in zip(upright, turns)]
    views, masks = corrupted(clean)
    out = model(views, clean, masks, turns)
    assert set(out) == {"loss", "rec", "con", "rot"} and model.teacher is None
    tokens = model.backbone.tokens(torch.cat(views))
    rotation = F.cross_entropy(model.rot_head(tokens[:, 0]), torch.cat(turns))
    contrast = nt_xent(*model.student["con_head"](tokens[:, 1]).chunk(2), temperature=0.5)
    assert out["rot"].item() == pytest.approx(rotation.item(), rel=1e-6)
    assert out["con"].item() == pytest.approx(contrast.item(), rel=1e-6)
    # With s = 1, half of each loss and the price of three uncertainties.
    halves = (out["rec"] + out["con"] + out["rot"]).item() / 2
    assert out["loss"].item() == pytest.approx(halves + 3 * torch.tensor(2.0).log().item(), rel=1e-6)


@pytest.mark.parametrize(
    ("version", "tasks"), [(2, ("rec",)), (2, ("con",)), (1, ("rot",)), (1, ("rec", "rot")), (1, ("con", "rec"))]
)
@pytest.mark.parametrize("weighting", ["fixed", "sit", "kendall"])
def test_any_tasks(version, tasks, weighting):
    model = sit(version, tasks=tasks, weighting=weighting)
    out = model(two_views())
    assert set(out) == {"loss", *tasks}
    out["loss"].backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_one_view_suffices_without_the_contrastive_task():
    for model in (sit(tasks=("rec",)), sit(1, tasks=("rec", "rot"))):
        model(two_views()[0])["loss"].backward()


def test_loss_over_all_pixels():
    model, clean = sit(tasks=("rec",), rec_over="all"), two_views()
    views, masks = corrupted(clean)
    expected = (model.reconstruct(torch.cat(views)) - torch.cat(clean)).abs().mean()
    assert model(views, clean, masks)["rec"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_corruption_and_turns_come_from_the_global_generator():
    model, views = sit(version=1), two_views()
    torch.manual_seed(4)
    first = model(views)["loss"]
    torch.manual_seed(4)
    assert torch.equal(first, model(views)["loss"])
    assert not torch.equal(first, model(views)["loss"])


def test_views_are_turned_before_they_are_corrupted():
    seen = []

    def corrupt(x):
        seen.append(x)
        return gmml_corrupt(x)

    model, views = sit(1, tasks=("rot",), corrupt=corrupt), two_views()
    model(views)
    for view, turned in zip(views, seen):
        for image, other in zip(view, turned):
            assert any(torch.equal(torch.rot90(image, k, (1, 2)), other) for k in range(4))


def test_teacher_follows_in_closed_form_and_gets_no_gradient():
    model = sit(momentum=0.9)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.5)
    expected = {name: value.double() for name, value in model.student.state_dict().items()}
    for step in range(4):
        before = {name: value.double() for name, value in model.student.state_dict().items()}
        expected = {name: 0.9 * value + 0.1 * before[name] for name, value in expected.items()}
        model(two_views(batch=6))["loss"].backward()
        assert all(p.grad is None for p in model.teacher.parameters())
        # What it has now is the average of the students before each step, buffers of the norms included.
        for name, value in model.teacher.module.state_dict().items():
            if value.is_floating_point():
                torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-7, msg=f"{step} {name}")
        optimizer.step()
        optimizer.zero_grad()
    assert any("running_mean" in name for name in expected)
    moved = model.teacher.module["con_head"][1].running_mean
    assert moved.abs().max() > 0
    teacher = copy.deepcopy(model.teacher.state_dict())
    with torch.no_grad():
        model(two_views())
    model.eval()(two_views())
    for name, value in model.teacher.state_dict().items():
        assert torch.equal(value, teacher[name]) or "num_batches" in name


def test_two_processes_are_one_on_the_joined_batch():
    outcomes = run_processes(w.losses_of_halves, 2)
    for version in (1, 2):
        alone = w.alone(version)
        found = sum(outcome[version] for outcome in outcomes) / 2
        assert found == pytest.approx(alone, abs=1e-6)
        assert [outcome[f"{version} without"] for outcome in outcomes] != pytest.approx([found, found], abs=1e-3)


@pytest.mark.parametrize("plan", ["dp2", "cp2"])
def test_trains_under_a_plan(plan, trained_in_processes):
    for outcome in trained_in_processes:
        for version in (1, 2):
            found, alone = outcome[f"{plan} {version}"], outcome[f"alone {version}"]
            if plan == "cp2":  # parts of the sequence; halves of the batch have norms of their own
                torch.testing.assert_close(found["weights"], alone["weights"], rtol=1e-6, atol=1e-7)
            assert torch.isfinite(found["weights"]).all()
            assert not torch.equal(found["weights"], outcome[f"before {version}"])
    first, second = trained_in_processes
    for version in (1, 2):
        assert torch.equal(first[f"{plan} {version}"]["weights"], second[f"{plan} {version}"]["weights"])


@pytest.fixture(scope="module")
def trained_in_processes():
    return run_processes(w.train_under_plans, 2)


@pytest.mark.parametrize(("grid", "patch", "channels"), [((2, 5), (4, 4), 1), ((3, 3), (2, 6), 7)])
def test_reconstruction_head_is_linear_and_fold(grid, patch, channels):
    head = ReconstructionHead(10, channels, patch)
    tokens = torch.randn(2, grid[0] * grid[1], 10)
    out = head(tokens, grid)
    assert out.shape == (2, channels, grid[0] * patch[0], grid[1] * patch[1])
    columns = head.mlp(tokens) @ head.pixels.weight.flatten(1)
    expected = F.fold(columns.transpose(1, 2), out.shape[2:], patch, stride=patch)
    torch.testing.assert_close(out, expected + head.pixels.bias.view(1, -1, 1, 1))


def test_any_size_and_channels():
    torch.manual_seed(0)
    model = SiT(ViT((8, 12), (4, 2), 16, 1, 2, in_channels=5), hidden=12, out=6)
    views = two_views(size=(8, 12), channels=5)
    assert model.reconstruct(views[0]).shape == (4, 5, 8, 12)
    model(views)["loss"].backward()
    larger = torch.rand(2, 5, 16, 6)
    assert model.reconstruct(larger).shape == larger.shape


def test_positions_at_native_size_are_themselves():
    vit = small_vit(size=(8, 12))
    assert vit.positions((2, 3)) is vit.pos_embed
    fixed, native = vit.pos_embed[:, :1], vit.pos_embed[:, 1:].unflatten(1, (2, 3)).permute(0, 3, 1, 2)
    same = F.interpolate(native, (2, 3), mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
    torch.testing.assert_close(torch.cat([fixed, same], 1), vit.pos_embed)


def test_views_that_are_not_square_and_rotations():
    torch.manual_seed(0)
    vit = small_vit(class_tokens=2, size=(8, 12))
    with pytest.raises(ValueError, match="rotation needs square images"):
        SiT(vit, 1, hidden=8)(two_views(size=(8, 12)))
    for not_square in ("half", "pad"):
        SiT(vit, 1, hidden=8, not_square=not_square)(two_views(size=(8, 12)))["loss"].backward()


def test_classifiers():
    for class_tokens in (1, 2):
        network = SiTClassifier(small_vit(class_tokens), 7)
        x = two_views()[0]
        network(x).sum().backward()
        assert network(x).shape == (4, 7)
        assert all(p.grad is not None for p in network.parameters())
    tokens = network.backbone.tokens(x)
    parts = (tokens[:, 0], tokens[:, 1], tokens[:, 2:].mean(1))
    expected = sum(head(part) for head, part in zip(network.head, parts)) / 3
    torch.testing.assert_close(network(x), expected)
    with pytest.raises(ValueError, match="1 or 2 class tokens"):
        SiTClassifier(small_vit(0), 7)


def test_scale_of_the_contrastive_loss_with_the_temperature():
    model, clean = sit(tasks=("con",), temperature=0.7), two_views()
    views, masks = corrupted(clean)
    tokens = model.student["con_head"](model.backbone.tokens(torch.cat(views))[:, 0]).chunk(2)
    keys = model.student["con_head"](model.backbone.tokens(torch.cat(clean))[:, 0]).chunk(2)
    plain = info_nce(tokens[0], keys[1], temperature=0.7) + info_nce(tokens[1], keys[0], temperature=0.7)
    assert model(views, clean, masks)["con"].item() == pytest.approx(1.4 * plain.item(), rel=1e-5)


def test_bad_arguments():
    for options, message in (
        ({"version": 3}, "version must be 1 or 2"),
        ({"tasks": ("rot",)}, "tasks of version 2"),
        ({"tasks": ()}, "tasks of version 2"),
        ({"version": 1}, "class_tokens=2, got 1"),
        ({"weighting": "learned"}, "form must be"),
        ({"rec_over": "none"}, "rec_over must be"),
    ):
        with pytest.raises(ValueError, match=message):
            SiT(small_vit(), **options)
    model, views = sit(), two_views()
    for bad, message in (
        ([views[0]], "needs two views, got 1"),
        ([view[:1] for view in views], "at least two images, got a batch of 1"),
        ([views[0], views[1][:2]], "images of one shape"),
        ([F.pad(view, (0, 1)) for view in views], "not divisible into patches"),
        ([view.expand(-1, 3, -1, -1) for view in views], r"images must be \[batch, 1"),
    ):
        with pytest.raises(ValueError, match=message):
            model(bad)
    nothing = [torch.zeros(4, 1, 8, 8, dtype=torch.bool)] * 2
    with pytest.raises(ValueError, match="hides nothing"):
        model(views, views, nothing)
    with pytest.raises(ValueError, match="both clean and masks"):
        model(views, clean=views)
    with pytest.raises(ValueError, match="turns are needed"):
        sit(1)(views, views, [torch.ones(4, 1, 8, 8, dtype=torch.bool)] * 2)
    with pytest.raises(ValueError, match="drop must lie in"):
        sit(corrupt=partial(gmml_corrupt, drop=1.0))(views)
    with pytest.raises(ValueError, match="needs the task 'rec'"):
        sit(tasks=("con",)).reconstruct(views[0])
