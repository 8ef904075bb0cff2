import pytest

from flambeau.data.token_grids import TokenGrids, moving_digits, write_codes
from flambeau.experiment.runner import run_experiment
from flambeau.papers import load


def test_the_smoke_run_measures_every_claim(tmp_path):
    result = run_experiment(load("nar"), preset="smoke", out=tmp_path, threads=1)
    for claim in result["claims"]:
        assert claim["value"] is not None or claim["why"]
    (forwards,) = [claim for claim in result["claims"] if claim["name"] == "forwards"]
    assert forwards["value"] == pytest.approx(64 / 15)
    assert [row["model"] for row in result["tables"]["models"]] == [
        "nar",
        "raster",
        "chunks",
        "random groups",
        "one head",
    ]
    assert (tmp_path / "figures" / "samples.png").exists()


def test_it_runs_on_a_users_codes_of_clips(tmp_path):
    clips = moving_digits(40, frames=2, size=8, levels=3)
    write_codes(tmp_path / "codes.npz", TokenGrids(clips.tokens[:, :, ::2, ::2], 3))
    overrides = [f"data={tmp_path / 'codes.npz'}", "test=10", "width=12", "heads=2", "batch_size=16"]
    result = run_experiment(load("nar"), preset="smoke", overrides=overrides, out=tmp_path / "run", threads=1)
    (forwards,) = [claim for claim in result["claims"] if claim["name"] == "forwards"]
    assert forwards["value"] == pytest.approx(2 * 4 * 4 / (2 + 4 + 4 - 2))


def test_data_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.npz"):
        run_experiment(load("nar"), preset="smoke", overrides=["data=nothing.npz"], out=tmp_path)
