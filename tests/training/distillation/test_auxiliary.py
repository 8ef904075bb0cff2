"""Modules beside a model: what they compute, that they read and extend the record, and that they are saved."""

import numpy as np
import pytest
import torch
from torch import nn

from flambeau.objectives.distillation import CRDLoss, HierarchicalContextLoss, PADL2Loss, SRDLoss, VIDLoss
from flambeau.training.distillation.auxiliary import (
    AttentionBasedFusion,
    Auxiliary,
    CCKDHead,
    ConvAdapter,
    CRDHead,
    EmptyModule,
    KnowledgeReview,
    Paraphraser,
    SRDProjector,
    SSHead,
    Translator,
    VarianceBranch,
    VIDRegressor,
)
from flambeau.training.distillation.path_loss import PathLoss


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def io_of(**features):
    return {path: {"input": None, "output": value} for path, value in features.items()}


def test_auxiliary_reads_and_extends_the_record():
    regressor, head = ConvAdapter(3, 5, norm=True), CCKDHead(5 * 16, 8)
    auxiliary = Auxiliary({"regressor": regressor, "head": head}, {"regressor": "layer1:output", "head": "regressor"})
    feature = torch.randn(2, 3, 4, 4)
    io = io_of(layer1=feature)
    auxiliary.secondary_forward(io)
    assert set(io) == {"layer1", "regressor", "head"}
    assert io["regressor"]["input"] is feature and io["regressor"]["output"].shape == (2, 5, 4, 4)
    assert io["head"]["input"] is io["regressor"]["output"] and io["head"]["output"].shape == (2, 8)
    io["head"]["output"].sum().backward()
    assert all(p.grad is not None for p in auxiliary.parameters())


def test_auxiliary_state_goes_round():
    make = lambda: Auxiliary({"a": VIDRegressor(3, 5), "b": ConvAdapter(3, 5, norm=True)}, {"a": "x", "b": "x"})  # noqa: E731
    first, second = make(), make()
    x = torch.randn(2, 3, 4, 4)
    first.secondary_forward(io_of(x=x))  # running statistics
    second.load_state_dict(first.state_dict())
    records = []
    for auxiliary in (first.eval(), second.eval()):
        records.append(io_of(x=x))
        auxiliary.secondary_forward(records[-1])
    assert torch.equal(records[0]["a"]["output"][0], records[1]["a"]["output"][0])
    assert torch.equal(records[0]["b"]["output"], records[1]["b"]["output"])


def test_losses_find_what_auxiliaries_record():
    maps = [torch.randn(6, c, 4, 4) for c in (3, 5)]
    vectors = [torch.randn(6, d, 1, 1) for d in (8, 8)]
    student, teacher = (io_of(layer1=m, pool=v) for m, v in zip(maps, vectors))
    Auxiliary(
        {"vid": VIDRegressor(3, 5), "variance": VarianceBranch(8), "head": CRDHead(8, 4)},
        {"vid": "layer1", "variance": "pool", "head": "pool"},
    ).secondary_forward(student)
    Auxiliary({"head": CRDHead(8, 4)}, {"head": "pool"}).secondary_forward(teacher)
    index = torch.arange(6)
    crd = CRDLoss(10, 4, negatives=5).eval()
    torch.manual_seed(1)
    bound = PathLoss(crd, "head:output", "head:output")(student, teacher, None, {"index": index})
    torch.manual_seed(1)
    assert torch.equal(bound, crd(student["head"]["output"], teacher["head"]["output"], index))
    vid = PathLoss(VIDLoss(), "vid:output", "layer1:output")(student, teacher)
    assert torch.equal(vid, VIDLoss()(student["vid"]["output"], maps[1]))
    pad = PathLoss(PADL2Loss(), ["pool:output", "variance:output"], "pool:output")(student, teacher)
    assert torch.equal(pad, PADL2Loss()((vectors[0], student["variance"]["output"]), vectors[1]))


def test_auxiliary_refuses():
    with pytest.raises(ValueError, match=r"inputs: got \['b'\], expected one for each of the modules \['a'\]"):
        Auxiliary({"a": nn.Identity()}, {"b": "x"})
    with pytest.raises(ValueError, match="layer1:outputs"):
        Auxiliary({"a": nn.Identity()}, {"a": "layer1:outputs"})
    auxiliary = Auxiliary({"a": nn.Identity()}, {"a": "layer2:output"})
    with pytest.raises(ValueError, match=r"layer1:output.*expected a recorded layer2:output"):
        auxiliary.secondary_forward({"layer1": {"output": torch.zeros(1)}})
    with pytest.raises(ValueError, match="name 'a'"):
        auxiliary.secondary_forward(io_of(layer2=torch.zeros(1), a=torch.zeros(1)))


def test_empty_module_gives_back_what_it_got():
    x = torch.zeros(1)
    assert EmptyModule()(x) is x
    assert EmptyModule()(x, 3) == (x, 3)


@pytest.mark.parametrize("norm", [True, False])
def test_paraphraser_and_translator(norm):
    paraphraser = Paraphraser(8, 0.5, norm=norm)
    x = torch.randn(2, 8, 5, 7)
    assert paraphraser(x).shape == x.shape
    second = Paraphraser(8, 0.5, norm=norm, decode=False).eval()
    second.load_state_dict(paraphraser.state_dict())
    assert torch.equal(second(x), paraphraser.eval().encoder(x))
    assert second(x).shape == Translator(3, 4, norm=norm)(torch.randn(2, 3, 5, 7)).shape
    assert sum(isinstance(m, nn.BatchNorm2d) for m in paraphraser.modules()) == (6 if norm else 0)
    with pytest.raises(ValueError, match="rate"):
        Paraphraser(8, 0.1)


def test_vid_regressor_starts_with_its_variance():
    mean, variance = VIDRegressor(3, 5, 7, variance=5.0)(torch.randn(2, 3, 4, 4))
    assert mean.shape == (2, 5, 4, 4) and variance.shape == (1, 5, 1, 1)
    torch.testing.assert_close(variance, torch.full_like(variance, 5.0))
    regressor = VIDRegressor(3, 5)
    with torch.no_grad():
        regressor.raw_variance.fill_(-200.0)
    assert VIDLoss()(regressor(torch.randn(2, 3, 4, 4)), torch.randn(2, 5, 4, 4)).isfinite()
    with pytest.raises(ValueError, match="variance"):
        VIDRegressor(3, 5, variance=1e-6)


def test_vid_regressor_learns_the_noise():
    """Of a target with noise of variance 0.25 the regressor finds mean and variance."""
    x = torch.randn(64, 2, 4, 4)
    target = x.flip(1) + 0.5 * torch.randn(x.shape)
    regressor = VIDRegressor(2, 2, 16)
    optimizer = torch.optim.Adam(regressor.parameters(), 0.02)
    for _ in range(300):
        loss = VIDLoss()(regressor(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (regressor(x)[1].flatten() - 0.25).abs().max() < 0.05


def test_heads():
    x = torch.randn(4, 6, 1, 1)
    torch.testing.assert_close(CRDHead(6, 3)(x).norm(dim=1), torch.ones(4))
    assert CCKDHead(6, 3)(x).shape == (4, 3)
    assert SSHead(6)(x).shape == (4, 6)
    log_variance = VarianceBranch(6)(x)
    torch.testing.assert_close(log_variance.mean(0), torch.zeros(6), atol=1e-6, rtol=0)  # BatchNorm bounds it
    assert PADL2Loss()((x, log_variance), torch.randn(4, 6, 1, 1)).isfinite()


def test_srd_projector():
    student, teacher = SRDProjector(3, 5), SRDProjector(5)
    a, b = student(torch.randn(4, 3, 2, 2)), teacher(torch.randn(4, 5, 3, 3))
    for z in (a, b):
        torch.testing.assert_close(z.mean(0), torch.zeros(5), atol=1e-5, rtol=0)
    assert not list(teacher.parameters())
    assert SRDLoss()(a, b).isfinite()


def test_attention_based_fusion_against_numpy():
    fusion = AttentionBasedFusion(3, 5, 4).eval().double()
    x, residual = torch.randn(2, 3, 4, 4).double(), torch.randn(2, 4, 2, 2).double()
    output, fused = fusion(x, residual)
    reduced = fusion.reduce(x).detach().numpy()
    enlarged = residual.numpy().repeat(2, 2).repeat(2, 3)
    kernel, bias = (p.detach().numpy() for p in fusion.attention.parameters())
    logits = np.einsum("oc,bchw->bohw", kernel[:, :, 0, 0], np.concatenate([reduced, enlarged], 1))
    weights = 1 / (1 + np.exp(-(logits + bias[None, :, None, None])))
    np.testing.assert_allclose(fused.detach(), reduced * weights[:, :1] + enlarged * weights[:, 1:], rtol=1e-6)
    torch.testing.assert_close(output, fusion.expand(fused))
    with pytest.raises(ValueError, match="residual: got none"):
        fusion(x)
    with pytest.raises(ValueError, match="fuse=False"):
        AttentionBasedFusion(3, 5, 4, fuse=False)(x, residual)


def test_knowledge_review_chains_from_deep_to_shallow():
    stages = {"pool": (8, 1), "layer2": (8, 2), "layer1": (4, 4)}
    fusions = [AttentionBasedFusion(c, c + 1, 6, fuse=i > 0) for i, (c, _) in enumerate(stages.values())]
    review = KnowledgeReview(fusions, [f"{name}:output" for name in stages])
    io = io_of(**{name: torch.randn(2, c, size, size, requires_grad=True) for name, (c, size) in stages.items()})
    review.secondary_forward(io)
    for i, (c, size) in enumerate(stages.values()):
        assert io[f"fusions.{i}"]["output"].shape == (2, c + 1, size, size)
    HierarchicalContextLoss()(io["fusions.2"]["output"], torch.randn(2, 5, 4, 4)).backward()
    assert io["pool"]["output"].grad.abs().sum() > 0  # deep stages are reviewed through shallow ones
    assert len(review.state_dict()) == sum(len(f.state_dict()) for f in fusions)
    with pytest.raises(ValueError, match="inputs: got 1"):
        KnowledgeReview(fusions, ["layer1"])
    with pytest.raises(ValueError, match="recorded pool:output"):
        review.secondary_forward(io_of(layer1=torch.zeros(1)))


def test_conv_adapter():
    assert len(ConvAdapter(3, 5)) == 1 and ConvAdapter(3, 5)[0].bias is not None
    adapter = ConvAdapter(3, 5, kernel_size=3, norm=True, relu=True)
    y = adapter(torch.randn(2, 3, 4, 6))
    assert y.shape == (2, 5, 4, 6) and (y >= 0).all() and adapter[0].bias is None
    with pytest.raises(ValueError, match="kernel_size"):
        ConvAdapter(3, 5, kernel_size=2)
