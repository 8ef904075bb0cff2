"""The experiment on made-up heads, and on a user's folders, lists and MedMNIST files."""

import numpy as np
import pytest
from PIL import Image

from flambeau.experiment import run_experiment
from flambeau.papers.medical_ssl import CLAIMS, run

FAST = [
    "size=16", "encoder.widths=(4, 8)", "fractions=(0.5, 1.0)", "fine_tuning.steps=2", "repeats=0",
    "fine_tuning_batch=4",
    *[f"{name}.training.steps=2" for name in ("spark", "simclr", "moco", "byol", "swav")],
    *[f"{name}.batch_size=8" for name in ("spark", "simclr", "moco", "byol", "swav")],
]  # fmt: skip


def outcomes(tmp_path, *overrides, preset="cpu"):
    result = run_experiment(run.experiment, preset=preset, overrides=overrides, out=tmp_path / "run", seed=0, threads=1)
    return result, {claim["name"]: claim for claim in result["claims"]}


def pictures(folder, count=12):
    rng = np.random.default_rng(0)
    for kind in ("lesion", "none"):
        (folder / kind).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(rng.integers(0, 256, (20, 20), dtype=np.uint8)).save(folder / kind / f"{number}.png")


def test_smoke_measures_every_claim_or_says_why(tmp_path):
    result, claims = outcomes(tmp_path, preset="smoke")
    assert set(claims) == {claim.name for claim in CLAIMS}
    for name, claim in claims.items():
        assert claim["value"] is not None or claim["why"]
        assert (claim["value"] is None) == (name == "gpu_step")
    assert {row["method"] for row in result["tables"]["labels"]} == {"spark", "simclr", "scratch"}
    assert all((tmp_path / "run" / figure).stat().st_size > 5000 for figure in result["figures"])


def test_a_users_folders_with_every_method(tmp_path):
    pictures(tmp_path / "scans")
    methods = "methods=(spark, simclr, moco, byol, swav, scratch)"
    folders = [f"unlabelled={tmp_path / 'scans'}", f"labelled={tmp_path / 'scans'}"]
    result, claims = outcomes(tmp_path, *FAST, *folders, methods, "keep_below=0.99")
    assert {row["method"] for row in result["tables"]["labels"]} == {
        "spark", "simclr", "moco", "byol", "swav", "scratch"
    }  # fmt: skip
    assert claims["few_labels"]["value"] is not None and claims["contrastive"]["value"] is not None
    assert claims["gate"]["value"] is None and "come with flambeau" in claims["gate"]["why"]
    assert any("of 24 unlabelled images were near-duplicates" in note for note in result["notes"])


def test_a_list_with_patients_and_a_medmnist_file(tmp_path):
    pictures(tmp_path / "scans")
    lines = [f"{kind}/{n}.png,{kind},{kind}{n // 2}" for kind in ("lesion", "none") for n in range(12)]
    (tmp_path / "scans" / "list.csv").write_text("\n".join(["image,label,patient", *lines]))
    rng, arrays = np.random.default_rng(0), {}
    for part in ("train", "val", "test"):
        arrays[f"{part}_images"] = rng.integers(0, 256, (8, 28, 28), dtype=np.uint8)
        arrays[f"{part}_labels"] = np.arange(8)[:, None] % 2
    np.savez(tmp_path / "small.npz", **arrays)
    sources = [f"unlabelled={tmp_path / 'small.npz'}", f"labelled={tmp_path / 'scans' / 'list.csv'}"]
    _, claims = outcomes(tmp_path, *FAST, *sources, "methods=(spark, scratch)", "fine_tuning.select=max", "frozen=0.5")
    assert claims["few_labels"]["value"] is not None and claims["contrastive"]["why"]


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["unlabelled=x"], ValueError, "give both, or neither"),
        (["unlabelled=x", "labelled=x"], FileNotFoundError, "x does not exist"),
        (["methods=(spark, mocco)", "counts=(32, 64)"], ValueError, "methods must be some of spark, simclr, moco"),
        (["size=44", "counts=(32, 64)"], ValueError, "44 x 44 is not divisible by the network's stride, 8"),
    ],
)
def test_bad_use_is_said_clearly(tmp_path, overrides, error, message):
    with pytest.raises(error, match=message):
        outcomes(tmp_path, *overrides)
