"""Checkpoints in the layout of the authors' first program."""

import argparse

import pytest
import torch

from flambeau.models.vision import ViT
from flambeau.training.self_supervised.sit import SiT
from flambeau.training.self_supervised.sit_checkpoint import sit_from_v1_checkpoint


def published(model):
    """The weights of `model` under the names of Sara-Ahmed/SiT, commit 23723e4."""
    state = {}
    for name, value in model.state_dict().items():
        for ours, theirs in (
            ("student.backbone.", "backbone."),
            ("student.con_head.", "contr_head.mlp."),
            ("rot_head.", "rot_head.mlp."),
            ("rec_head.pixels.", "rec_head.convTrans."),
        ):
            if name.startswith(ours):
                name = theirs + name.removeprefix(ours)
                break
        state[f"module.{name}"] = value
    tokens = state.pop("module.backbone.cls_token")
    state["module.backbone.cls_token1"], state["module.backbone.cls_token2"] = tokens[:, :1], tokens[:, 1:]
    scale = state.pop("module.weights.s")
    state |= {f"module.{head}_w": scale[i : i + 1] for i, head in enumerate(("rec", "contr", "rot"))}
    return {"SiT_model": state, "epoch": 3, "args": argparse.Namespace(lr=0.1)}


def test_round_trip(tmp_path):
    torch.manual_seed(0)
    model = SiT(ViT((8, 12), 4, 64, 2, 1, class_tokens=2), 1, out=7)
    model.weights.s.data = torch.tensor([1.5, 2.5, 0.5])
    torch.save(published(model), tmp_path / "checkpoint.pth")
    read = sit_from_v1_checkpoint(tmp_path / "checkpoint.pth", (8, 12))
    assert model.state_dict().keys() == read.state_dict().keys()
    for name, value in read.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    x = torch.rand(2, 3, 8, 12)
    assert torch.equal(read.backbone.tokens(x), model.backbone.tokens(x))


def test_bad_files(tmp_path):
    torch.save({"model": {}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="no checkpoint of the first SiT: it lacks backbone.cls_token1"):
        sit_from_v1_checkpoint(tmp_path / "other.pth")
    saved = published(SiT(ViT((8, 12), 4, 64, 1, 1, class_tokens=2), 1))
    torch.save(saved, tmp_path / "checkpoint.pth")
    with pytest.raises(ValueError, match="image_size is needed: 6 positions"):
        sit_from_v1_checkpoint(tmp_path / "checkpoint.pth")
    with pytest.raises(ValueError, match="does not fit"):
        sit_from_v1_checkpoint(tmp_path / "checkpoint.pth", (8, 8))
