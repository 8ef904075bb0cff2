"""Data parallelism, sharding, and the training loop under a plan, in real processes over gloo."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import plan_workers as w

from flambeau.training import Trainer
from flambeau.training.parallel import run_processes


def test_gradients_are_those_of_one_process():
    plans = ["dp4", "fsdp4", "dp2 x fsdp2"]
    for outcome, held in zip(run_processes(w.gradients_of, 4, plans)[3], (1.0, 0.25, 0.5), strict=True):
        assert abs(outcome["loss"]) < 1e-6 and abs(outcome["evaluated"]) < 1e-6
        assert abs(outcome["norm"]) < 1e-6
        assert outcome["gradient"] < 2e-6
        assert outcome["held"] == pytest.approx(held, abs=0.02)
        assert outcome["any"] == [True, False]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fits")
    return folder, run_processes(w.fits, 2, str(folder))


@pytest.fixture(scope="module")
def alone():
    return w.fit(None)


def equal(a, b):
    return all(torch.equal(a["weights"][name], b["weights"][name]) for name in a["weights"])


@pytest.mark.parametrize("plan", ["dp2", "fsdp2"])
def test_a_training_under_a_plan_is_that_of_one_process(two, alone, plan):
    ours = two[1][0][plan]
    assert ours["losses"] == pytest.approx(alone["losses"], abs=1e-5)
    assert ours["held_out"] == pytest.approx(alone["held_out"], abs=1e-5)
    for name, weight in alone["weights"].items():
        torch.testing.assert_close(ours["weights"][name], weight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("plan", ["dp2", "fsdp2"])
def test_every_process_ends_with_the_whole_model(two, plan):
    first, second = (outcome[plan] for outcome in two[1])
    assert first["plain"] and second["plain"] and equal(first, second)


@pytest.mark.parametrize("plan", ["dp2", "fsdp2"])
def test_a_signal_to_one_process_stops_all_and_the_same_call_continues_bit_for_bit(two, plan):
    folder, outcomes = two
    for outcome in outcomes:
        assert "after step 5 of 8" in outcome[f"{plan} stopped"]["interrupted"]
        for later in ("continued", "finished"):
            assert outcome[f"{plan} {later}"]["losses"] == outcome[plan]["losses"]
            assert equal(outcome[f"{plan} {later}"], outcome[plan])
    assert (folder / plan / "model.safetensors").exists()


def test_random_numbers_of_all_processes_are_resumed(two):
    for outcome in two[1]:
        assert outcome["dropout continued"]["losses"] == outcome["dropout"]["losses"]
        assert equal(outcome["dropout continued"], outcome["dropout"])


def test_one_process_continues_what_two_began(two, alone):
    ours = w.fit(None, str(two[0] / "half"))
    assert ours["losses"] == pytest.approx(alone["losses"], abs=1e-5)


def test_a_plan_that_does_not_fit_says_so(two):
    assert two[1][1]["too many"] == "the mesh dp_replicate=4 needs 4 processes, there are 2"
    assert "shape [7, 17] cannot be divided over 2" in two[1][0]["uneven"]


def test_a_plan_outside_a_group_says_how_to_start_one():
    with pytest.raises(RuntimeError, match="torchrun"):
        Trainer(steps=1, parallel="dp2").fit(w.model(), w.loss, lambda step, generator: w.tokens())


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    pytest.importorskip("transformers", reason="needs the extra hf: pip install 'flambeau[hf]'")
    folder = tmp_path_factory.mktemp("splits")
    return folder, run_processes(w.splits, 2, str(folder))


@pytest.mark.parametrize("plan", ["tp2", "cp2"])
@pytest.mark.parametrize("kind", ["ours", "hub"])
def test_split_layers_and_split_sequences_train_as_one_process(split, kind, plan):
    folder, outcomes = split
    alone = w.fit_split(None, kind)
    for outcome in outcomes:
        ours, continued = outcome[f"{kind} {plan}"], outcome[f"{kind} {plan} continued"]
        assert ours["losses"] == pytest.approx(alone["losses"], abs=1e-4)
        for name, weight in alone["weights"].items():
            torch.testing.assert_close(ours["weights"][name], weight, rtol=1e-2, atol=1e-3)
        assert continued["losses"] == ours["losses"]
        assert all(torch.equal(continued["weights"][name], weight) for name, weight in ours["weights"].items())
    # One process continues what two began, layers whole and in the model's own layout.
    half = w.fit_split(None, kind, str(folder / f"{kind}-{plan}-half"))
    assert half["losses"] == pytest.approx(alone["losses"], abs=1e-4)
