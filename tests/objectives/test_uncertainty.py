"""Learned weights of several losses: where their minimum is, and that they stay finite."""

import numpy as np
import pytest
import torch

from flambeau.objectives.uncertainty import UncertaintyWeight


@pytest.mark.parametrize("loss", [0.1, 1.0, 7.0])
@pytest.mark.parametrize("form", ["sit", "kendall"])
def test_gradient_vanishes_at_the_optimum(form, loss):
    s = np.linspace(0.05, 5, 400_000)
    values = loss / (2 * s**2) + (np.log(1 + s**2) if form == "sit" else np.log(s))
    numeric = s[values.argmin()]
    closed = np.sqrt((loss + np.sqrt(loss**2 + 8 * loss)) / 4) if form == "sit" else np.sqrt(loss)
    assert closed == pytest.approx(numeric, abs=1e-4)
    weigh = UncertaintyWeight(1, form).double()
    weigh.s.data.fill_(closed if form == "sit" else np.log(closed**2))
    total = weigh([torch.tensor(loss, dtype=torch.float64)])
    total.backward()
    assert total.item() == pytest.approx(values.min(), abs=1e-6)
    assert abs(weigh.s.grad.item()) < 1e-8


def test_first_total():
    losses = [torch.tensor(2.0), torch.tensor(4.0)]
    assert UncertaintyWeight(2)(losses).item() == pytest.approx(1 + 2 + 2 * np.log(2))
    assert UncertaintyWeight(2, "kendall")(losses).item() == pytest.approx(1 + 2)


@pytest.mark.parametrize("form", ["sit", "kendall"])
@pytest.mark.parametrize("s", [-1e30, -1e3, 0.0, 1e3, 1e30])
def test_finite_for_every_parameter(form, s):
    weigh = UncertaintyWeight(1, form)
    weigh.s.data.fill_(s)
    total = weigh([torch.tensor(3.0)])
    total.backward()
    assert total.isfinite() and weigh.s.grad.isfinite().all()


def test_bad_arguments():
    with pytest.raises(ValueError, match="n must be at least 1"):
        UncertaintyWeight(0)
    with pytest.raises(ValueError, match="form must be"):
        UncertaintyWeight(2, "softmax")
    with pytest.raises(ValueError, match="losses must be 2, got 1"):
        UncertaintyWeight(2)([torch.tensor(1.0)])
