"""SiT does not know of plans, and under one it has the losses of a single process."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import sit_plan_workers as w

from flambeau.training.parallel import run_processes


@pytest.fixture(scope="module")
def outcomes():
    return run_processes(w.both_plans, 2)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("plan", ["dp2", "cp2"])
def test_losses_are_those_of_one_process(plan, version, outcomes):
    tasks = {1: ("rec", "con", "rot"), 2: ("rec",) if plan == "dp2" else ("rec", "con")}[version]
    alone = w.losses(None, version, tasks, None)
    assert abs(alone[-1]["loss"] - alone[0]["loss"]) > 1e-3  # it learns, so that later losses test the gradients
    for outcome in outcomes:
        for found, expected in zip(outcome[plan][version], alone, strict=True):
            assert found == pytest.approx(expected, abs=1e-6)
