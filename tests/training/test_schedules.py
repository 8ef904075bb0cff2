import math

import pytest

from flambeau.training import OneCycle, StepHalving, WarmupCosine, WarmupLinear, constant


def rates(schedule, total):
    return [schedule(step, total) for step in range(total)]


def test_constant():
    assert rates(constant, 3) == [1.0, 1.0, 1.0]


def test_warmup_is_linear_then_a_line():
    values = rates(WarmupLinear(warmup=4, floor=0.1), 14)
    assert values[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert values[3:] == pytest.approx([1 - 0.09 * i for i in range(11)])
    with pytest.raises(ValueError, match="warmup must not be negative"):
        WarmupLinear(warmup=-1)


def test_warmup_is_linear_then_half_a_cosine():
    values = rates(WarmupCosine(warmup=4, floor=0.1), 14)
    assert values[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert values[4:] == pytest.approx([0.1 + 0.45 * (1 + math.cos(math.pi * i / 10)) for i in range(1, 11)])
    assert rates(WarmupCosine(warmup=0.4), 10) == pytest.approx(rates(WarmupCosine(warmup=4), 10))


def test_without_warmup_the_first_rate_is_full_and_the_last_the_floor():
    values = rates(WarmupCosine(warmup=0), 11)
    assert values[0] == 1 and values[5] == pytest.approx(0.5) and values[-1] == pytest.approx(0)


def test_one_cycle_rises_and_falls_as_in_torch():
    import torch

    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=50, cycle_momentum=False)
    expected = []
    for _ in range(50):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    # torch's final_div_factor counts from the initial rate: 1 / 25 / 1e4
    assert rates(OneCycle(rise=0.3, start=25, end=25e4), 50) == pytest.approx(expected, abs=1e-9)


def test_halving():
    assert rates(StepHalving(every=2), 6) == [1, 1, 0.5, 0.5, 0.25, 0.25]
    assert rates(StepHalving(every=0.5, factor=0.1), 4) == pytest.approx([1, 1, 0.1, 0.1])


@pytest.mark.parametrize("schedule", [WarmupCosine(), WarmupCosine(0.5), WarmupCosine(7), OneCycle(), StepHalving()])
@pytest.mark.parametrize("total", [1, 2, 3, 10, 1000])
def test_any_length_gives_factors_in_the_unit_interval(schedule, total):
    assert all(0 <= value <= 1 for value in rates(schedule, total))


@pytest.mark.parametrize("make", [lambda: WarmupCosine(-1), lambda: OneCycle(rise=1.0), lambda: StepHalving(0)])
def test_bad_arguments_are_named(make):
    with pytest.raises(ValueError, match=r"(warmup|rise|every) must .* got"):
        make()
