"""Sharded checkpoints between plans and numbers of processes."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

sys.path.insert(0, str(Path(__file__).parent))
import plan_workers as w

from flambeau.training.checkpoint import CheckpointError
from flambeau.training.parallel import run_processes
from flambeau.training.parallel.checkpoint import load_sharded, save_sharded


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded") / "step-2"
    return folder, run_processes(w.save_under, 4, "fsdp4", str(folder))[0]


def test_two_replicas_read_what_four_shards_wrote_and_go_on_alike(written):
    folder, saved = written
    assert len(list(folder.glob("*.safetensors"))) == 4
    for outcome in run_processes(w.load_under, 2, "dp2", str(folder)):
        assert all(torch.equal(outcome["loaded"][name], value) for name, value in saved["saved"].items())
        for name, value in saved["after"].items():
            torch.testing.assert_close(outcome["after"][name], value, rtol=1e-5, atol=1e-5)


def test_a_plain_model_reads_it_without_a_group(written):
    folder, saved = written
    model = w.model()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    load_sharded(folder, model, optimizer)
    assert all(torch.equal(value, saved["saved"][name]) for name, value in model.state_dict().items())
    assert all(state["step"] == 2 for state in optimizer.state.values())


def test_the_files_are_safetensors_and_nothing_else(written):
    for path in written[0].iterdir():
        with safe_open(path, "pt") as file:
            assert list(file.keys())


def test_damage_and_other_models_are_named(written, tmp_path):
    import shutil

    model = w.model()
    with pytest.raises(CheckpointError, match="no checkpoint folder"):
        load_sharded(tmp_path / "nothing", model)
    with pytest.raises(CheckpointError, match="lacks"):
        load_sharded(written[0], torch.nn.Linear(2, 2))
    with pytest.raises(CheckpointError, match=r"embedding.weight has shape \[61, 16\]"):
        load_sharded(written[0], w.GPT(61, 32, 16, 2, 4))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for number, path in enumerate(sorted(written[0].iterdir())):
        broken = tmp_path / f"broken{number}"
        shutil.copytree(written[0], broken)
        (broken / path.name).write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(CheckpointError, match="cannot be read|lacks"):
            load_sharded(broken, model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_checkpoint_is_never_overwritten(written):
    with pytest.raises(FileExistsError):
        save_sharded(written[0], w.model())
