import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from flambeau.experiment import Claim, experiment, run_experiment
from flambeau.experiment.definition import Experiment
from flambeau.experiment.runner import all_hold, contract, unfinished
from flambeau.files import read_json, write_bytes, write_json
from flambeau.symbolic import oneof, symbolize

CLAIMS = [Claim("sum", "adds up", unit="x", at_least=3.0), Claim("gpu", "fast on a GPU", needs="gpu")]


class Scale:
    def __init__(self, factor: float = 1.0):
        self.factor = factor


@experiment("sjd", claims=CLAIMS, presets={"smoke": {"scale.factor": 0.1}, "paper": {"count": 100}})
def toy(run, *, count: int = 3, scale: Scale = symbolize(Scale)(factor=2.0), fail: str = ""):
    with run.progress("adding", count) as task:
        total = 0.0
        for step in range(count):
            total += scale.factor
            run.log(step, total=total)
            task.advance(total=total)
    if fail == "interrupt":
        raise KeyboardInterrupt
    if fail:
        raise RuntimeError(fail)
    run.measure("sum", ours=total, baseline=3.0, value=total)
    run.unmeasured("gpu", why="no GPU")
    run.table("steps", [{"noise": torch.rand(()), "total": total}])
    run.note("It adds.")


toy_experiment: Experiment = toy.experiment


@experiment("sjd", claims=CLAIMS, presets={})
def twice(run, *, name: str = "sum"):
    run.measure("sum", value=1.0)
    run.measure(name, value=2.0)


def test_a_run_leaves_its_configuration_metrics_and_result(tmp_path):
    result = run_experiment(toy_experiment, out=tmp_path / "a", overrides=["count=2"])
    assert [(c["name"], c["value"], c["holds"]) for c in result["claims"]] == [("sum", 4.0, True), ("gpu", None, None)]
    assert all_hold(result)
    assert set(contract(result)) == {
        "paper",
        "preset",
        "seed",
        "seconds",
        "commit",
        "environment",
        "claims",
        "artifacts",
    }
    assert read_json(tmp_path / "a" / "run.json") == json.loads(json.dumps(result))
    assert len((tmp_path / "a" / "metrics.jsonl").read_text().splitlines()) == 2
    assert json.loads((tmp_path / "a" / "progress.jsonl").read_text().splitlines()[-1])["done"] == 2
    assert "count" in (tmp_path / "a" / "config.json").read_text()


def test_presets_overrides_and_defaults_apply_in_that_order(tmp_path):
    smoke = run_experiment(toy_experiment, out=tmp_path / "a", preset="smoke")
    assert smoke["claims"][0]["value"] == pytest.approx(0.3) and smoke["claims"][0]["holds"] is None
    changed = run_experiment(toy_experiment, out=tmp_path / "b", preset="smoke", overrides=["scale.factor=0.5"])
    assert changed["claims"][0]["value"] == 1.5
    assert run_experiment(toy_experiment, out=tmp_path / "c")["claims"][0]["value"] == 6.0


def test_a_failed_claim_is_a_failed_claim(tmp_path):
    result = run_experiment(toy_experiment, out=tmp_path / "a", overrides=["count=1"])
    assert result["claims"][0]["holds"] is False and not all_hold(result)


def test_the_seed_decides_everything(tmp_path):
    noise = [
        run_experiment(toy_experiment, out=tmp_path / str(i), seed=s)["tables"]["steps"]
        for i, s in enumerate((4, 4, 5))
    ]
    assert noise[0] == noise[1] != noise[2]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["cuont=3"], "count"),
        (["count=three"], "count"),
        (["scale.factr=1"], "factor"),
        (["count"], "count"),
        (["count=oneof([1, 2])"], "search"),
    ],
)
def test_bad_overrides_name_what_is_wrong(tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        run_experiment(toy_experiment, out=tmp_path / "a", overrides=overrides)


def test_unknown_preset_and_device(tmp_path):
    with pytest.raises(ValueError, match="smoke"):
        run_experiment(toy_experiment, out=tmp_path / "a", preset="smok")
    with pytest.raises(ValueError, match="not available"):
        run_experiment(toy_experiment, out=tmp_path / "a", device="tpu")


@pytest.mark.parametrize(
    ("fail", "error", "status"), [("interrupt", KeyboardInterrupt, "interrupted"), ("broken", RuntimeError, "failed")]
)
def test_an_unfinished_folder_is_taken_up_by_the_same_run_only(tmp_path, fail, error, status):
    folder = tmp_path / "a"
    with pytest.raises(error):
        run_experiment(toy_experiment, out=folder, overrides=[f"fail={fail}"])
    assert read_json(folder / "run.json")["status"] == status
    with pytest.raises(ValueError, match="other parameters"):
        run_experiment(toy_experiment, out=folder)
    with pytest.raises(ValueError, match="other seed"):
        run_experiment(toy_experiment, out=folder, overrides=[f"fail={fail}"], seed=1)
    assert unfinished(tmp_path, toy_experiment, toy_experiment.tree("cpu", [f"fail={fail}"]), "cpu", 0) == folder
    assert unfinished(tmp_path, toy_experiment, toy_experiment.tree(), "cpu", 0) is None


def test_a_finished_folder_is_kept(tmp_path):
    run_experiment(toy_experiment, out=tmp_path / "a")
    with pytest.raises(ValueError, match="finished run"):
        run_experiment(toy_experiment, out=tmp_path / "a")


def test_a_choice_left_open_by_a_default_is_refused(tmp_path):
    @experiment("sjd", claims=CLAIMS, presets={})
    def open_choice(run, *, count: int = oneof([1, 2])):
        run.measure("sum", value=count)

    with pytest.raises(ValueError, match="flambeau search"):
        run_experiment(open_choice.experiment, out=tmp_path / "a")


def test_claims_are_measured_once_and_only_if_declared(tmp_path):
    with pytest.raises(ValueError, match="before"):
        run_experiment(twice.experiment, out=tmp_path / "a")
    with pytest.raises(ValueError, match="no claim 'smu'"):
        run_experiment(twice.experiment, out=tmp_path / "b", overrides=["name=smu"])


def test_declarations_are_checked():
    with pytest.raises(ValueError, match="distinct"):
        experiment("sjd", claims=[CLAIMS[0], CLAIMS[0]], presets={})
    with pytest.raises(TypeError, match="name=default"):
        experiment("sjd", claims=CLAIMS, presets={})(lambda run, count: None)


def test_files_are_whole_or_absent(tmp_path, monkeypatch):
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError):
        write_json(path, {"a": float("nan")})
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="space"):
        write_bytes(path, b"{")
    assert read_json(path) == {"a": 1} and list(tmp_path.iterdir()) == [path]
    path.write_text('{"a": ')
    with pytest.raises(ValueError, match="not a whole JSON"):
        read_json(path)
    with pytest.raises(ValueError, match="more than"):
        read_json(path, limit=3)


CHILD = """
import sys, time, torch
from functools import partial
from flambeau.data import Batches
from flambeau.experiment import Claim, experiment, run_experiment
from flambeau.training import Trainer

def slow(model, batch):
    time.sleep(float(sys.argv[2]))
    return (model(batch[0]) - batch[1]).square().mean()

@experiment("sjd", claims=[Claim("loss", "falls")], presets={})
def run(run, *, steps: int = 60):
    generator = torch.Generator().manual_seed(run.seed)
    x = torch.randn(64, 4, generator=generator)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1))
    for part in ("first", "second"):
        trainer = Trainer(steps=steps, save_every=5)
        data = Batches((x, x.sum(1, keepdim=True)), 8)
        trainer.fit(model, slow, data, folder=run.folder / "train" / part, seed=run.seed)
    run.measure("loss", value=sum(p.detach().double().abs().sum() for p in model.parameters()))

print(run_experiment(run.experiment, out=sys.argv[1])["claims"][0]["value"].hex())
"""


def test_a_run_killed_at_any_moment_ends_as_an_uninterrupted_one(tmp_path):
    script = tmp_path / "child.py"
    script.write_text(CHILD)

    def start(folder: Path, delay: float) -> subprocess.Popen:
        command = [sys.executable, str(script), str(folder), str(delay)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    whole = start(tmp_path / "whole", 0.0).communicate()[0]
    killed = start(tmp_path / "killed", 0.03)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed" / "train").glob("second/*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.4)
    killed.send_signal(signal.SIGKILL)
    assert killed.communicate()[0] == "" and killed.returncode == -signal.SIGKILL
    assert read_json(tmp_path / "killed" / "run.json")["status"] == "running"
    assert start(tmp_path / "killed", 0.0).communicate()[0] == whole != ""


@experiment("sjd", claims=CLAIMS, presets={})
def silent(run):
    """Measures nothing."""


def test_claims_that_a_run_left_out_say_why(tmp_path):
    claims = run_experiment(silent.experiment, out=tmp_path / "a")["claims"]
    assert [claim["why"] for claim in claims] == ["not measured by this run", "not measured here: needs gpu"]
    assert all(claim["holds"] is None and claim["value"] is None for claim in claims)
