"""The Routing Transformer's models: causal, decoded exactly, trained to something, saved whole."""

import pytest
import torch
import torch.nn.functional as F

from flambeau.models.language.routing_image import RoutingImageModel
from flambeau.models.language.routing_transformer import (
    ENWIK8,
    PG19,
    WIKITEXT103,
    RoutingEncoderDecoder,
    RoutingTransformerLM,
)
from flambeau.nn import LocalAttention, LocalRoutingAttention, OnlineKMeans, RoutingAttention, collect_aux

SMALL = dict(local_heads=2, routing_heads=2, num_clusters=3, window=32, local_window=32)


def lm(seed=0, **arguments):
    torch.manual_seed(seed)
    model = RoutingTransformerLM(17, **{**dict(dim=64, depth=2, **SMALL), **arguments})
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def test_later_tokens_change_no_earlier_logit():
    model, tokens = lm(), torch.randint(17, (2, 130))
    changed = tokens.clone()
    changed[:, 90:] = torch.randint(17, (2, 40))
    with torch.no_grad():
        assert torch.equal(model(tokens)[:, :90], model(changed)[:, :90])


@pytest.mark.parametrize("arguments", [{}, dict(routing_heads=0), dict(local_heads=0), dict(routing_layers=1)])
def test_decoding_equals_the_full_pass_over_200_steps(arguments):
    model, tokens = lm(**arguments), torch.randint(17, (2, 220))
    with torch.no_grad():
        whole, cache = model(tokens), model.new_cache(2)
        parts = [model(tokens[:, :20], cache=cache)]
        parts += [model(tokens[:, t : t + 1], cache=cache) for t in range(20, 220)]
        last = model(tokens, keep=1)
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-5)
    assert torch.allclose(last, whole[:, -1:], atol=1e-6)


def test_training_lowers_the_loss_and_moves_the_centroids():
    torch.manual_seed(0)
    model = RoutingTransformerLM(17, dim=32, depth=2, commitment=0.01, token_dropout=0.1, dropout=0.1, **SMALL)
    tokens = torch.randint(17, (4, 20)).repeat(1, 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    before = [m.centroids.clone() for m in model.modules() if isinstance(m, OnlineKMeans)]
    losses = []
    for _ in range(30):
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()) + collect_aux(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    after = [m.centroids for m in model.modules() if isinstance(m, OnlineKMeans)]
    assert all(not torch.equal(a, b) for a, b in zip(after, before))


def test_a_saved_model_gives_the_same_logits(tmp_path):
    first, second = lm(0), lm(1)
    torch.save(first.state_dict(), tmp_path / "model.pt")
    second.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    tokens = torch.randint(17, (1, 70))
    with torch.no_grad():
        assert torch.equal(first(tokens), second(tokens))


def test_published_sizes_build():
    counts = {}
    for name, sizes in (("wikitext", WIKITEXT103), ("enwik8", ENWIK8), ("pg19", PG19)):
        with torch.device("meta"):
            model = RoutingTransformerLM(256, **sizes)
        counts[name] = [
            sum(isinstance(m, kind) for m in model.modules()) for kind in (RoutingAttention, LocalAttention)
        ]
    assert counts == {"wikitext": [14, 14], "enwik8": [12, 12], "pg19": [1, 22]}
    assert isinstance(model.stack.blocks[-1].attention, LocalRoutingAttention)
    assert isinstance(model.stack.blocks[0].attention, LocalAttention)


def test_encoder_decoder_is_causal_in_the_target_and_decodes_exactly():
    torch.manual_seed(0)
    model = RoutingEncoderDecoder(11, 13, dim=64, encoder_depth=2, decoder_depth=2, **SMALL).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    source, target = torch.randint(11, (2, 70)), torch.randint(13, (2, 75))
    source_mask = torch.arange(70)[None] < torch.tensor([70, 44])[:, None]
    with torch.no_grad():
        whole = model(source, target, source_mask)
        changed = target.clone()
        changed[:, 50:] = torch.randint(13, (2, 25))
        assert torch.allclose(model(source, changed, source_mask)[:, :50], whole[:, :50], atol=1e-6)
        hidden = source.masked_fill(~source_mask, 3)
        assert torch.allclose(model(hidden, target, source_mask), whole, atol=1e-5)
        memory, cache = model.encode(source, source_mask), model.new_cache(2)
        steps = [model.decode(target[:, t : t + 1], memory, source_mask, cache) for t in range(75)]
    assert torch.allclose(torch.cat(steps, 1), whole, atol=1e-5)
    assert not torch.allclose(model(source.flip(1), target, source_mask), whole, atol=1e-3)


def test_images_are_modelled_subpixel_by_subpixel():
    torch.manual_seed(0)
    model = RoutingImageModel((6, 5), channels=3, levels=8, dim=32, depth=2, **{**SMALL, "window": 16}).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    images = torch.randint(8, (2, 3, 6, 5))
    with torch.no_grad():
        logits = model(images)
        assert logits.shape == (2, 90, 8)
        changed = images.clone()
        changed[:, 1, 3, 2] = (changed[:, 1, 3, 2] + 1) % 8  # subpixel (3 * 5 + 2) * 3 + 1
        after = model(changed)
        assert torch.allclose(after[:, :53], logits[:, :53], atol=1e-6)
        assert (after[:, 53] - logits[:, 53]).abs().max() > 1e-4
        nll = -logits.log_softmax(-1).gather(2, images.permute(0, 2, 3, 1).reshape(2, 90, 1)).mean((1, 2))
        assert torch.allclose(model.bits_per_dim(images), nll / torch.log(torch.tensor(2.0)), atol=1e-5)


def test_image_samples_follow_the_model():
    """The sampler's caches: drawn greedily, a sample is the argmax of its own teacher-forced logits."""
    torch.manual_seed(0)
    model = RoutingImageModel((4, 4), channels=1, levels=4, dim=32, depth=2, **{**SMALL, "window": 8}).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    images = model.sample(3, temperature=1e-4, generator=torch.Generator().manual_seed(0))
    assert images.shape == (3, 1, 4, 4)
    assert torch.equal(model(images).argmax(-1), images.flatten(1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: lm(local_heads=0, routing_heads=0), "local_heads and routing_heads must be 0 or more"),
        (lambda: lm(routing_layers=3), r"routing_layers must lie in 0..depth \(2\), got 3"),
        (lambda: RoutingTransformerLM(1), "vocab must be at least 2"),
        (lambda: lm()(torch.zeros(1, 5)), "tokens must be integers"),
        (lambda: lm()(torch.full((1, 5), 17)), r"tokens must lie in 0..16, got 17..17"),
        (lambda: RoutingImageModel((0, 5)), "size and channels must be at least 1"),
        (lambda: RoutingEncoderDecoder(1, 5), "source_vocab must be at least 2"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_bad_images():
    model = RoutingImageModel((4, 4), channels=1, levels=4, dim=32, depth=1, **{**SMALL, "window": 8})
    with pytest.raises(ValueError, match="images must be integers"):
        model(torch.zeros(1, 3, 4, 4, dtype=torch.long))
    with pytest.raises(ValueError, match=r"images must lie in 0..3, got 9..9"):
        model(torch.full((1, 1, 4, 4), 9))
