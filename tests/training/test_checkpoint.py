"""Checkpoint folders: whole or absent, verified, and never more than data."""

import errno
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import time
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flambeau.training import CheckpointError, checkpoint


def state(value: float = 1.0) -> dict:
    weight = torch.full((50, 7), value)
    return {
        "model": {"layer.weight": weight, "layer.bias": torch.tensor([value], dtype=torch.bfloat16)},
        "optimizer": {"state": {3: {"step": torch.tensor(2.0), "history": [weight[0], None]}}, "betas": (0.9, 0.999)},
        "progress": {"step": int(value), "best": None, "name": "x/y", "rate": 0.1 + 0.2, "limit": float("inf")},
    }


def same(first, second) -> bool:
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return list(first) == list(second) and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return type(first) is type(second) and len(first) == len(second) and all(map(same, first, second))
    return first == second


def test_a_state_comes_back_as_it_was(tmp_path):
    path = checkpoint.save(tmp_path, 7, state(), keep=2)
    assert path.name == "step-00000007" and same(checkpoint.load(path), state())
    assert set(load_file(path / "model.safetensors")) == {"layer.weight", "layer.bias"}, (
        "plain names for other programs"
    )
    assert not list(tmp_path.glob(".writing*"))


def test_views_and_shared_tensors_are_saved_by_value(tmp_path):
    whole = torch.arange(12.0).view(3, 4)
    tensors = {"model": {"whole": whole, "same": whole, "row": whole[1], "turned": whole.T, "empty": torch.empty(0)}}
    assert same(checkpoint.load(checkpoint.save(tmp_path, 1, tensors, keep=1)), tensors)
    assert (tmp_path / "step-00000001" / "model.safetensors").stat().st_size < 1000


def test_only_the_newest_are_kept_and_newest_comes_first(tmp_path):
    for step in (1, 2, 10, 100):
        checkpoint.save(tmp_path, step, state(step), keep=3)
    assert [path.name for path, _ in checkpoint.newest(tmp_path)] == ["step-00000100", "step-00000010", "step-00000002"]
    assert next(checkpoint.newest(tmp_path))[1]["progress"]["step"] == 100
    assert list(checkpoint.newest(tmp_path / "nowhere")) == []


@pytest.mark.parametrize("step", ["_sync", "_write_files", "_save_tensors", "_sha256"])
def test_a_failure_at_any_point_leaves_what_was_there(tmp_path, monkeypatch, step):
    """Each of the functions that write fails at its first call, then at its second, ... until a save gets through."""
    checkpoint.save(tmp_path, 1, state(1), keep=5)
    real = getattr(checkpoint, step)
    for allowed in range(20):
        calls = []

        def fails(*arguments, calls=calls, allowed=allowed):
            calls.append(1)
            if len(calls) > allowed:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*arguments)

        monkeypatch.setattr(checkpoint, step, fails)
        saved = True
        try:
            checkpoint.save(tmp_path, 2, state(2), keep=5)
        except OSError:
            saved = False
        monkeypatch.setattr(checkpoint, step, real)
        if saved:
            break
        found = [path.name for path, loaded in checkpoint.newest(tmp_path) if same(loaded, state(int(path.name[5:])))]
        assert found in (["step-00000001"], ["step-00000002", "step-00000001"]), "all that is there is whole"
        assert not list(tmp_path.glob(".writing*")), "the space is given back"
        shutil.rmtree(tmp_path / "step-00000002", ignore_errors=True)
    assert allowed >= 1 and same(checkpoint.load(tmp_path / "step-00000002"), state(2))


def test_a_disk_that_is_really_full(tmp_path):
    if os.geteuid() or shutil.which("mount") is None:
        pytest.skip("needs root to mount a small tmpfs")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("this machine does not allow to mount a small tmpfs")
    try:
        saved = []
        with pytest.raises(OSError) as caught:
            for step in range(1, 20):
                checkpoint.save(disk, step, {"model": {"w": torch.full((50_000,), float(step))}}, keep=20)
                saved.append(step)
        assert caught.value.errno == errno.ENOSPC and saved
        found = [int(loaded["model"]["w"][0]) for _, loaded in checkpoint.newest(disk)]
        assert found == saved[::-1] and not list(disk.glob(".writing*"))
        shutil.rmtree(disk / f"step-{saved[0]:08d}")
        checkpoint.save(disk, 99, {"model": {"w": torch.full((50_000,), 99.0)}}, keep=20)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.filterwarnings("error::UserWarning")
def test_a_kill_while_saving_never_leaves_a_broken_newest(tmp_path):
    """A process does nothing but save; it is killed at random moments."""
    rng = random.Random(0)
    reached = 0
    for _ in range(8):
        child = os.fork()
        if child == 0:
            try:
                for step in range(reached + 1, reached + 1000):
                    checkpoint.save(tmp_path, step, state(step), keep=2)
            finally:
                os._exit(1)
        time.sleep(rng.uniform(0.05, 0.3))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for path, loaded in checkpoint.newest(tmp_path):  # a damaged one would warn, and warnings fail this test
            assert same(loaded, state(int(path.name[5:])))
        steps = [int(path.name[5:]) for path, _ in checkpoint.newest(tmp_path)]
        assert steps == sorted(steps, reverse=True) and (not steps or steps[0] >= reached)
        reached = steps[0] if steps else 0
        checkpoint.clean(tmp_path)
        assert all(path.name.startswith("step-") for path in tmp_path.iterdir())
    assert reached > 3


# ---- files that nobody vouches for


@pytest.fixture
def saved(tmp_path) -> Path:
    return checkpoint.save(tmp_path, 1, state(), keep=1)


def sign(path: Path) -> None:
    """Rewrite the manifest so that it fits the files, as someone who alters them would."""
    files = [file for file in path.iterdir() if file.name != "manifest.json"]
    entries = {file.name: {"bytes": file.stat().st_size, "sha256": checkpoint._sha256(file)} for file in files}
    (path / "manifest.json").write_text(json.dumps({"format": 1, "files": entries}))


class Evil:
    def __reduce__(self):
        return (os.system, ("touch pwned",))


def test_a_pickle_is_not_opened(saved, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (saved / "model.safetensors").write_bytes(pickle.dumps(Evil()))
    sign(saved)
    with pytest.raises(CheckpointError, match="model.safetensors cannot be read"):
        checkpoint.load(saved)
    (saved / "model.pt").write_bytes(pickle.dumps(Evil()))
    sign(saved)
    with pytest.raises(CheckpointError, match="unexpected file 'model.pt'"):
        checkpoint.load(saved)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    "skeleton",
    [
        "[]",
        "3",
        '{"model": {"tensor": "nowhere"}}',
        '{"model": {"spell": []}}',
        '{"model": {"dict": 3}}',
        '{"model": {"items": [[[], 1]]}}',
        '{"model": {"items": [1]}}',
        '{"model": {}}',
        '{"model": ' + "[" * 100_000 + "]" * 100_000 + "}",
        "\xff",
    ],
)
def test_malformed_states_are_errors(saved, skeleton):
    (saved / "state.json").write_text(skeleton, encoding="latin-1")
    sign(saved)
    with pytest.raises(CheckpointError, match=r"state\.json"):
        checkpoint.load(saved)


@pytest.mark.parametrize("manifest", ["", "[]", "{}", '{"format": 2, "files": {}}', '{"format": 1, "files": []}'])
def test_malformed_manifests_are_errors(saved, manifest):
    (saved / "manifest.json").write_text(manifest)
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        checkpoint.load(saved)


def test_sizes_and_places_are_bounded(saved, monkeypatch):
    entry = {"bytes": 1, "sha256": ""}
    (saved / "manifest.json").write_text(json.dumps({"format": 1, "files": {"../../secret.json": entry}}))
    with pytest.raises(CheckpointError, match="unexpected file"):
        checkpoint.load(saved)
    (saved / "manifest.json").write_text(json.dumps({"format": 1, "files": {}}))
    with pytest.raises(CheckpointError, match=r"has no state\.json"):
        checkpoint.load(saved)
    sign(saved)
    monkeypatch.setattr(checkpoint, "MAX_JSON_BYTES", 10)
    with pytest.raises(CheckpointError, match="exceeds"):
        checkpoint.load(saved)


def test_only_plain_data_can_be_saved(tmp_path):
    for value in (object(), {1, 2}, os.getcwd, 1j):
        with pytest.raises(TypeError, match=r"model/x is a \w+; a checkpoint holds plain data and tensors only"):
            checkpoint.save(tmp_path, 1, {"model": {"x": value}}, keep=1)
    with pytest.raises(TypeError, match="two tensors of the state have the name model/a/b"):
        checkpoint.save(tmp_path, 1, {"model": {"a/b": torch.ones(1), "a": {"b": torch.ones(1)}}}, keep=1)
    assert list(tmp_path.iterdir()) == []
    checkpoint.save(tmp_path, 1, {"model": OrderedDict(x=torch.ones(1))}, keep=1)
