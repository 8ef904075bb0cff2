"""The experiment runs end to end: on digits on textures, and on a user's folder of pictures."""

import numpy
import pytest
from PIL import Image

from flambeau.experiment import run_experiment
from flambeau.papers.sit import CLAIMS, run


def outcomes(result):
    return {claim["name"]: claim for claim in result["claims"]}


def test_smoke(tmp_path):
    result = run_experiment(run.experiment, preset="smoke", out=tmp_path / "run", seed=0, threads=1)
    found = outcomes(result)
    assert set(found) == {claim.name for claim in CLAIMS}
    for claim in found.values():
        assert claim["value"] is not None or claim["why"]
    assert found["gpu_bf16"]["value"] is None
    assert result["figures"] == [f"figures/{name}.png" for name in ("reconstruction", "attention", "losses")]
    assert all((tmp_path / "run" / figure).stat().st_size > 1000 for figure in result["figures"])


def pictures(folder, labelled):
    generator = numpy.random.default_rng(0)
    for name in ("cat", "dog") if labelled else ("",):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(15):
            pixels = generator.integers(0, 255, (20, 24, 3), dtype=numpy.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.mark.parametrize("labelled", [True, False])
def test_own_pictures(tmp_path, labelled):
    overrides = [
        f"data={pictures(tmp_path / 'pictures', labelled)}",
        "size=(8, 12)",
        "vit.patch=4",
        "vit.heads=2",
        "vit.width=16",
        "vit.depth=1",
        "mae.width=16",
        "mae.depth=1",
        "batch_size=4",
        "labels_per_class=4",
        "training.steps=25",
        "fine_tuning.steps=2",
        "version=1",
        "tasks=('rec', 'rot')",
        "not_square=half",
    ]
    result = run_experiment(run.experiment, preset="paper", overrides=[*overrides, "training.epochs=None"],
                            out=tmp_path / "run", seed=0, threads=1)  # fmt: skip
    found = outcomes(result)
    assert found["reconstruction"]["value"] is not None
    for name in ("linear_probe", "fine_tuning", "against_mae", "against_cnn"):
        assert (found[name]["value"] is not None) == labelled
        assert labelled or "no labels" in found[name]["why"]
    assert "scikit-learn" in found["digits"]["why"]


def test_ablations(tmp_path):
    overrides = ["ablations=true", "training.steps=20", "batch_size=4", "fine_tuning.steps=1", "vit.width=16"]
    overrides += ["vit.depth=1", "probe_cases=40", "hidden=16", "draws=1"]
    result = run_experiment(run.experiment, preset="smoke", overrides=overrides, out=tmp_path / "run", threads=1)
    kinds, tasks = result["tables"]["corruption kinds"], result["tables"]["tasks"]
    assert [row["corruption"] for row in kinds] == ["zeros", "noise", "alien", "all"]
    assert [row["tasks"] for row in tasks] == ["rec only", "con only", "both", "version 1, three tasks"]
    assert all(0 <= row["fine-tuned"] <= 100 and 0 < row["linear probe"] <= 100 for row in kinds + tasks)


def test_bad_parameters(tmp_path):
    for overrides, message in (
        (["vit.patch=5"], "not divisible into patches"),
        (["corrupt.drop=1.0"], "drop must lie in"),
        (["tasks=('rot',)"], "tasks of version 2"),
        (["labels_per_class=2000"], "2000 are wanted"),
    ):
        with pytest.raises(ValueError, match=message):
            run_experiment(run.experiment, preset="smoke", overrides=overrides, out=tmp_path / message[:3], threads=1)
