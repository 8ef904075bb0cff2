import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import launch_workers as w

from flambeau.training.parallel import ContextSpec, MeshSpec, ParallelPlan, Rule, run_processes


def test_every_rank_runs_the_function_in_one_group():
    results = run_processes(w.meshes, 4, 7)
    assert [r["rank"] for r in results] == [0, 1, 2, 3]
    assert all(r["argument"] == 7 for r in results)
    # dp_shard=-1 takes what tp=2 leaves; neighbours along tp are neighbouring ranks.
    assert [r["tp"] for r in results] == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert [r["batch"] for r in results] == [[0, 2], [1, 3], [0, 2], [1, 3]]


def test_one_process_makes_a_group_of_one():
    assert run_processes(w.meshes_of_one, 1) == [1]


def test_an_error_of_one_rank_is_raised_and_the_others_are_stopped():
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="process 1 failed.*\n(.*\n)*.*the second rank does not like this"):
        run_processes(w.second_fails, 2)
    assert time.monotonic() - began < 60


def test_processes_that_hang_are_stopped():
    with pytest.raises(TimeoutError, match=r"processes \[0, 1\] still ran after 6 s"):
        run_processes(w.hang, 2, timeout=6)


def test_bad_numbers_are_named():
    with pytest.raises(ValueError, match="processes must be at least 1, got 0"):
        run_processes(w.hang, 0)
    with pytest.raises(ValueError, match="mesh.tp must be an integer of at least 1, got 0"):
        MeshSpec(tp=0)
    with pytest.raises(ValueError, match="6 processes cannot be divided"):
        MeshSpec(dp_shard=-1, tp=4).resolve(6)
    with pytest.raises(ValueError, match=r"the mesh cp=2 x tp=2 needs 4 processes, there are 2"):
        MeshSpec(cp=2, tp=2).resolve(2)


@pytest.mark.parametrize(
    "text, plan",
    [
        ("fsdp2 x tp2", ParallelPlan(MeshSpec(dp_shard=2, tp=2))),
        ("dp2xcp4 zigzag", ParallelPlan(MeshSpec(dp_replicate=2, cp=4), context=ContextSpec(balance="zigzag"))),
        ("fsdp, tp4 megatron_sp", ParallelPlan(MeshSpec(dp_shard=-1, tp=4), "megatron_sp")),
        ("", ParallelPlan()),
    ],
)  # fmt: skip
def test_a_plan_reads_from_text_and_goes_through_json(text, plan):
    assert ParallelPlan.from_string(text) == plan
    assert ParallelPlan.from_json(plan.to_json()) == plan


def test_rules_go_through_json():
    plan = ParallelPlan(MeshSpec(tp=2), (Rule("blocks.*.up", "column"), Rule("blocks.*.down", "row")))
    assert ParallelPlan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(
    "text, message",
    [
        ("tp", "cannot read 'tp'"),
        ("tp2 tp4", "tp is given twice"),
        ("xp2", "cannot read 'xp2'"),
        ("tp0", "mesh.tp must be an integer of at least 1"),
    ],
)
def test_a_bad_plan_names_the_word(text, message):
    with pytest.raises(ValueError, match=message):
        ParallelPlan.from_string(text)


@pytest.mark.parametrize("text", ["", "[]", '{"mesh": 3}', '{"mesh": {"xp": 2}}', '{"placements": "all"}', '{"a": 1}'])
def test_bad_json_is_no_plan(text):
    with pytest.raises(ValueError):
        ParallelPlan.from_json(text)
