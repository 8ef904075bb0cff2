import json
import math

import pytest

from flambeau.experiment.claims import Claim, judge, unmeasured


@pytest.mark.parametrize(
    ("bounds", "value", "holds"),
    [
        (dict(at_least=1.5), 1.5, True),
        (dict(at_least=1.5), 1.49, False),
        (dict(at_most=0.6), 0.6, True),
        (dict(at_most=0.6), 0.61, False),
        (dict(at_least=0.0, at_most=1.0), 2.0, False),
        (dict(at_least=0.0, at_most=1.0), 0.5, True),
        (dict(at_least=1.5), math.nan, False),
        (dict(), 3.0, None),
    ],
)
def test_a_claim_holds_just_within_its_bounds(bounds, value, holds):
    assert Claim("speed", "faster", **bounds).holds(value) is holds


def test_the_target_is_readable():
    assert Claim("a", "b", unit="x", at_least=1.5).target == ">= 1.5 x"
    assert Claim("a", "b", at_least=0, at_most=1).target == ">= 0 and <= 1"
    assert Claim("a", "b").target is None


def test_a_smoke_run_shows_the_value_and_concludes_nothing():
    outcome = judge(Claim("a", "b", at_least=1.0), value=0.5, judged=False)
    assert outcome.value == 0.5 and outcome.holds is None and "smoke" in outcome.why


def test_outcomes_are_json_with_null_for_what_json_lacks():
    outcome = judge(Claim("a", "b", at_least=1.0), value=math.nan, ours=math.inf, baseline=2)
    shown = json.loads(json.dumps(outcome.to_json(), allow_nan=False))
    assert shown["value"] is None and shown["ours"] is None and shown["baseline"] == 2 and shown["holds"] is False
    assert "why" not in shown and unmeasured(Claim("a", "b"), "no GPU").to_json()["why"] == "no GPU"
