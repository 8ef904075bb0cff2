"""Point, Student-t and quantile forecasts, and the metrics."""

import pytest
import torch
from scipy import stats

from flambeau.objectives.forecasting import PointForecast, QuantileForecast, StudentTForecast, mae, mase, mse


def test_missing_truths_do_not_count():
    forecast, truth = torch.tensor([[[1.0], [5.0]]]), torch.tensor([[[3.0], [0.0]]])
    seen = torch.tensor([[[1.0], [0.0]]])
    assert mse(forecast, truth, seen) == 4 and mae(forecast, truth, seen) == 2 and mse(forecast, truth) == (4 + 25) / 2
    assert PointForecast().loss(forecast, truth, seen) == 4


def test_mase_is_one_for_the_seasonal_naive_error():
    truth = torch.randn(3, 6, 2, generator=torch.Generator().manual_seed(0))
    scale = torch.tensor([0.5, 2.0])
    assert mase(truth + scale, truth, scale).item() == pytest.approx(1)
    unusable = torch.tensor([0.5, float("nan")])
    assert mase(truth + torch.tensor([0.5, 9.0]), truth, unusable).item() == pytest.approx(1)


def test_student_t_is_that_of_scipy():
    out = torch.tensor([[[[1.0, 0.3, 2.0]]]])
    output = StudentTForecast()
    df, scale = (
        2 + torch.nn.functional.softplus(torch.tensor(2.0)).item(),
        torch.nn.functional.softplus(torch.tensor(0.3)).item() + 1e-4,
    )
    assert output.loss(out, torch.tensor([[[2.5]]])).item() == pytest.approx(
        -stats.t.logpdf(2.5, df, 1, scale), abs=1e-5
    )
    found = output.quantiles(out, [0.1, 0.5, 0.9]).flatten().tolist()
    assert found == pytest.approx(stats.t.ppf([0.1, 0.5, 0.9], df, 1, scale), abs=1e-5)
    assert output.point(out).item() == 1


def test_student_t_learns_the_distribution_of_its_data():
    torch.manual_seed(0)
    y = torch.from_numpy(stats.t.rvs(5, loc=3, scale=2, size=(4000, 1, 1), random_state=0)).float()
    out = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.Adam([out], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        StudentTForecast().loss(out.expand(4000, 1, 1, 3), y).backward()
        optimizer.step()
    d = StudentTForecast().distribution(out.detach())
    assert d.loc.item() == pytest.approx(3, abs=0.15) and d.scale.item() == pytest.approx(2, abs=0.2)


def test_quantiles_do_not_cross_and_learn_those_of_their_data():
    output = QuantileForecast((0.1, 0.5, 0.9))
    noise = torch.randn(50, 4, 2, 3, generator=torch.Generator().manual_seed(0)) * 5
    assert (output.spread(noise).diff(dim=-1) >= 0).all()
    y = torch.randn(4000, 1, 1, generator=torch.Generator().manual_seed(1))
    out = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.Adam([out], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        output.loss(out.expand(4000, 1, 1, 3), y).backward()
        optimizer.step()
    found = output.quantiles(out.detach().view(1, 1, 1, 3), (0.1, 0.9)).flatten().tolist()
    assert found == pytest.approx([-1.28, 1.28], abs=0.1)


def test_bad_levels():
    for levels in ((0.1, 0.9), (0.5, 0.1, 0.9), (0.0, 0.5, 1.0), ()):
        with pytest.raises(ValueError, match="levels must be increasing"):
            QuantileForecast(levels)
    with pytest.raises(ValueError, match=r"levels \[0.2\] were not learned"):
        QuantileForecast().quantiles(torch.zeros(1, 1, 1, 5), [0.2])
    with pytest.raises(ValueError, match="a point forecast has no quantiles"):
        PointForecast().quantiles(torch.zeros(1, 1, 1), [0.5])
