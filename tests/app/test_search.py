import os
import signal
import subprocess
import sys
import time

import pytest

from flambeau.app.cli import main
from flambeau.search import Study

SPACE = ["prototypes=oneof([3, 4, 5])", "training.optimizer.lr=floatv(1e-3, 1e-2, scale='log')"]
COMMAND = [
    sys.executable,
    "-m",
    "flambeau",
    "search",
    "prototype_reasoning",
    "data=iris()",
    "training.epochs=2",
    *SPACE,
]
SEARCH = [*COMMAND, "--preset", "smoke", "--metric", "against_linear_head", "--trials", "4", "--algorithm"]
ALGORITHM = "RegularizedEvolution(population=2, tournament=2)"


def outcome(folder):
    return [(trial.dna, trial.reward) for trial in Study(folder / "study.db", "prototype_reasoning").trials()]


def test_a_search_killed_by_sigkill_goes_on_and_ends_as_an_uninterrupted_one(tmp_path):
    whole = subprocess.run([*SEARCH, ALGORITHM, "--out", "whole"], cwd=tmp_path, capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr
    assert "flambeau run prototype_reasoning" in whole.stdout and (tmp_path / "whole" / "best.json").exists()
    killed = subprocess.Popen([*SEARCH, ALGORITHM, "--out", "killed"], cwd=tmp_path, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("killed/trials/*"))) < 2 and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert any(reward is None for _, reward in outcome(tmp_path / "killed"))
    resumed = [sys.executable, "-m", "flambeau", "study", "resume", "killed/study.db"]
    subprocess.run(resumed, cwd=tmp_path, check=True, capture_output=True)
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")
    best = [sys.executable, "-m", "flambeau", "run", "prototype_reasoning", "--preset", "smoke", "--out", "best"]
    done = subprocess.run([*best, "--config", "whole/best.json"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_bad_searches_are_one_clear_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for arguments, message in [
        ([], "nothing to choose"),
        ([SPACE[0], "--algorithm", "Evolutoin()"], "Evolution"),
        ([SPACE[0], "--metric", "speed"], "accuracy"),
        ([SPACE[0], "--backend", "cloud"], "backend"),
    ]:
        monkeypatch.setattr(sys, "argv", [*COMMAND[2:5], *arguments, "--preset", "smoke", "--out", "s"])
        with pytest.raises(SystemExit) as end:
            main()
        printed = capsys.readouterr()
        assert end.value.code == 2 and message in printed.err and printed.err.count("\n") == 1, printed.err
