import gzip
import json

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from flambeau.experiment import run_experiment
from flambeau.papers import load

QUICK = ["training.epochs=2", "batch_size=16", "prototypes=3"]


def run(tmp_path, *overrides, preset="smoke"):
    experiment = load("prototype_reasoning")
    return run_experiment(experiment, preset=preset, out=tmp_path / "run", overrides=overrides, seed=0, threads=1)


def measured_on_other_data(result):
    claims = {claim["name"]: claim for claim in result["claims"]}
    measured = {name for name, claim in claims.items() if claim["value"] is not None}
    assert all("digits" in claim["why"] for name, claim in claims.items() if name not in measured)
    return measured


def test_smoke_measures_every_claim_and_leaves_the_reports(tmp_path):
    result = run(tmp_path)
    assert all(claim["value"] is not None or claim["why"] for claim in result["claims"])
    assert len(result["claims"]) == 10 and all(claim["value"] is not None for claim in result["claims"])
    folder = tmp_path / "run"
    assert result["figures"][0] == "figures/prototypes.png" and len(result["figures"]) == 3
    assert all((folder / figure).stat().st_size > 1000 for figure in result["figures"])
    assert "data:image/png" in (folder / "explanation.html").read_text()
    with safe_open(folder / "prototype_net.safetensors", framework="pt") as file:
        index = file.get_tensor("training_index")
    assert [row["nearest_case"] for row in result["tables"]["prototypes"]] == index.tolist()
    assert {row["net"] for row in result["tables"]["nets"]} == {
        "prototypes", "fixed_class", "uniform", "without_r1", "without_r2",
    }  # fmt: skip
    tumours = result["tables"]["breast cancer prototypes"]
    assert all(5 < row["mean radius"] < 30 for row in tumours), "radii of tumours are 7 to 28"
    json.dumps(result)


def test_a_folder_of_class_folders(tmp_path):
    generator = np.random.default_rng(0)
    for name, level in (("dark", 40), ("light", 200)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(20):
            pixels = np.clip(generator.normal(level, 20, (12, 12, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{i}.png")
    result = run(tmp_path, f"data={tmp_path / 'data'}", "size=12", *QUICK)
    assert measured_on_other_data(result) == {"against_linear_head", "prototypes_are_cases"}


def test_a_csv_file_with_prototypes_in_its_units_and_a_bank(tmp_path):
    rows = [f"{150 + i},{'a' if i % 2 else 'b'},{'tall' if i > 29 else 'short'}" for i in range(60)]
    (tmp_path / "people.csv").write_text("height,group,label\n" + "\n".join(rows) + "\n")
    data = [f"data={tmp_path / 'people.csv'}", "target=label"]
    result = run(tmp_path, *data, "loss.r1_pool=bank", "training.epochs=40", *QUICK[1:])
    assert measured_on_other_data(result) == {"against_linear_head", "prototypes_are_cases"}
    units = result["tables"]["prototypes in the table's units"]
    assert list(units[0]) == ["height", "group=a", "group=b"]
    assert all(120 < row["height"] < 240 for row in units)


def test_mnist_files_with_the_recipe_of_the_paper(tmp_path):
    folder = tmp_path / "mnist"
    folder.mkdir()
    for part, count in (("train", 40), ("t10k", 20)):
        images = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        for name, array in (("images-idx3", images), ("labels-idx1", (np.arange(count) % 10).astype(np.uint8))):
            header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
            with gzip.open(folder / f"{part}-{name}-ubyte.gz", "wb") as file:
                file.write(header + array.tobytes())
    path = folder / "train-images-idx3-ubyte.gz"
    result = run(tmp_path, f"data={path}", "training.epochs=1", "batch_size=20", preset="paper")
    assert measured_on_other_data(result) == {"against_linear_head", "prototypes_are_cases"}
    with safe_open(tmp_path / "run" / "prototype_net.safetensors", framework="pt") as file:
        assert file.get_tensor("prototype_layer.prototypes").shape == (15, 40)
        assert file.get_tensor("encoder.layers.0.weight").std() < 0.03


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data=nowhere/"], "does not exist"),
        (["w_mode=tied"], "w_mode"),
        (["init=zeros"], "init"),
        (["augment=rotate"], "augment"),
        (["prototypes=5", "w_mode=fixed_class"], "num_prototypes: got 5 for 10 classes"),
    ],
)
def test_bad_parameters(tmp_path, overrides, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(tmp_path, *overrides)
