import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flambeau.app.cli import main
from flambeau.files import read_json

FLAMBEAU = [sys.executable, "-m", "flambeau"]


def flambeau(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
    return subprocess.run([*FLAMBEAU, *arguments], capture_output=True, text=True, cwd=cwd, stdin=subprocess.DEVNULL)


def test_list_show_and_help_answer_on_stdout():
    shown = json.loads(flambeau("list", "--json").stdout)
    assert len(shown) == 74 and {"key", "title", "authors", "year", "arxiv", "code", "family", "runs"} == set(shown[0])
    assert "sjd" in flambeau("list").stdout
    assert all(p["family"] == "search" for p in json.loads(flambeau("list", "--family", "search", "--json").stdout))
    assert "Claims" in flambeau("show", "autoformer").stdout
    assert json.loads(flambeau("show", "autoformer", "--json").stdout)["claims"]
    for command in ("run", "show", "list", "search", "bench", "board", "doctor", "record", "study"):
        help_text = flambeau(command, "--help")
        assert help_text.returncode == 0 and len(help_text.stdout) > 100, command


def test_run_prints_one_json_object_and_writes_a_report(tmp_path):
    done = flambeau("run", "prototype_reasoning", "--preset", "smoke", "--json", "--out", "here", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert set(result) == {"paper", "preset", "seed", "seconds", "commit", "environment", "claims", "artifacts"}
    assert all(
        {"name", "statement", "paper", "ours", "baseline", "value", "unit", "target", "holds"} <= set(c)
        for c in result["claims"]
    )
    assert all(c["holds"] is None and c["why"] for c in result["claims"])
    report = (tmp_path / "here" / "report.html").read_text()
    assert "data:image/png;base64," in report and "Claims" in report
    assert 'src="http' not in report and "<script src" not in report


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "autofromer"], "autoformer"),
        (["run", "prototype_reasoning", "prototyps=3"], "prototypes"),
        (["run", "prototype_reasoning", "prototypes=three"], "prototypes"),
        (["run", "prototype_reasoning", "training.epoch=3"], "epochs"),
        (["run", "prototype_reasoning", "--preset", "tiny"], "smoke"),
        (["run", "prototype_reasoning", "--device", "cuda:99"], "cuda:99"),
        (["run", "prototype_reasoning", "--seed", "-1"], "seed"),
        (["run", "autoformer", "data=absent.csv"], "absent.csv"),
        (["show", "nothing_like_it"], "nothing_like_it"),
        (["list", "--family", "cooking"], "cooking"),
        (["run"], "KEY"),
        (["frobnicate"], "frobnicate"),
    ],
)
def test_bad_usage_is_one_clear_line_and_exit_code_2(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["flambeau", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    printed = capsys.readouterr()
    assert end.value.code == 2 and message in printed.err and printed.out == "", printed


def test_a_run_killed_by_sigkill_goes_on_with_resume(tmp_path):
    changes = ["training.epochs=6", "training.save_every=2"]
    whole = flambeau(
        "run", "prototype_reasoning", "--preset", "smoke", "--json", "--out", "whole", *changes, cwd=tmp_path
    )
    command = [*FLAMBEAU, "run", "prototype_reasoning", "--preset", "smoke", "--json", *changes]
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("runs/*/*/train/*/*")) and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    (state,) = tmp_path.glob("runs/*/*/run.json")
    assert read_json(state)["status"] == "running"
    resumed = flambeau("run", "prototype_reasoning", "--preset", "smoke", "--resume", "--json", *changes, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert read_json(state)["status"] == "finished"
    values = [[(c["name"], c["value"]) for c in json.loads(done.stdout)["claims"]] for done in (whole, resumed)]
    assert values[0] == values[1]


def test_doctor_says_what_is_missing_and_how_to_get_it():
    checks = json.loads(flambeau("doctor", "--json").stdout)
    assert {"python", "torch", "C++ compiler", "GPU", "browser"} <= {check["name"] for check in checks}
    assert all(check["works"] or check["fix"] for check in checks)
