"""Rates that fall with depth, and a part that is frozen at first, under plans that spread or shard a copy."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import fine_tune_workers as w

from flambeau.training.parallel import run_processes


def test_fine_tuning_under_a_plan_is_that_of_one_process():
    for outcomes in run_processes(w.under_plans, 2):
        for (plan, frozen), (losses, weights) in zip(w.CASES, outcomes, strict=True):
            expected_losses, expected_weights = w.fine_tuned(None, frozen)
            assert losses == pytest.approx(expected_losses, abs=1e-9), (plan, frozen)
            torch.testing.assert_close(weights, expected_weights, atol=1e-9, rtol=0)
