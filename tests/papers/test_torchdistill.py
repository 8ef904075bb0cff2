"""The experiment end to end, the user's own config and data, and the ready configs."""

from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from flambeau.experiment import run_experiment
from flambeau.models.vision import ConvNet
from flambeau.papers.torchdistill import CLAIMS, run
from flambeau.training.distillation.weights import write_weights

GPU = {"hook_time", "bf16"}


def measured(result):
    return {claim["name"]: claim for claim in result["claims"]}


def test_smoke(tmp_path):
    result = run_experiment(run.experiment, preset="smoke", out=tmp_path / "run", seed=0, threads=1)
    claims = measured(result)
    assert set(claims) == {claim.name for claim in CLAIMS}
    assert all((claim["value"] is None) == (name in GPU | {"imagenet"}) for name, claim in claims.items())
    assert all(claims[name]["why"] for name in GPU | {"imagenet"})
    assert claims["hint_losses"]["value"] == 0 and claims["cache_losses"]["value"] == 0
    assert claims["teacher_cost"]["value"] > 5
    assert [row["method"] for row in result["tables"]["accuracy"]][-2:] == ["CE", "KD (T=4)"]
    assert len(result["figures"]) == 3 and all((tmp_path / "run" / f).stat().st_size > 5000 for f in result["figures"])
    assert (
        len(list((tmp_path / "run/train/teacher_outputs").glob("*/shard-*.safetensors"))) >= 4
    )  # one a kind of output


def pictures(folder, count=12, size=20):
    """Two classes, told apart by the half that is bright."""
    generator = numpy.random.default_rng(0)
    for name in ("left", "right"):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 90, (size, size, 3), dtype=numpy.uint8)
            pixels[:, : size // 2] += 150 if name == "left" else 0
            pixels[:, size // 2 :] += 150 if name == "right" else 0
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def own_config(tmp_path):
    images = pictures(tmp_path / "pictures")
    torch.manual_seed(0)
    write_weights(ConvNet((8, 16), (2, 2), in_channels=3, classes=2), tmp_path / "teacher.safetensors")
    text = f"""
datasets:
  own/all: !import_call
    key: flambeau.data.image_folder
    init: {{kwargs: {{path: {images}, size: 16}}}}
models:
  teacher_model:
    key: ConvNet
    kwargs: {{widths: [8, 16], strides: [2, 2], in_channels: 3, classes: 2}}
    src_ckpt: {tmp_path}/teacher.safetensors
  student_model:
    key: ConvNet
    kwargs: {{widths: [8], strides: [2], pool: 2, in_channels: 3, classes: 2}}
    dst_ckpt: {tmp_path}/student.safetensors
train:
  num_epochs: 15
  train_data_loader: {{dataset_id: own/all, kwargs: {{batch_size: 8}}, cache_output: {tmp_path}/outputs}}
  val_data_loader: {{dataset_id: own/all, kwargs: {{batch_size: 8}}}}
  teacher: {{requires_grad: False}}
  student: {{requires_grad: True}}
  optimizer: {{key: Adam, kwargs: {{lr: 0.01}}}}
  criterion:
    key: WeightedSumLoss
    kwargs:
      sub_terms:
        kd: {{criterion: {{key: KDLoss, kwargs: {{temperature: 4.0, alpha: 0.9}}}}, weight: 1.0}}
test:
  test_data_loader: {{dataset_id: own/all, kwargs: {{batch_size: 8}}}}
"""
    path = tmp_path / "my.yaml"
    path.write_text(text)
    return path


def test_own_config_and_pictures(tmp_path):
    path = own_config(tmp_path)
    result = run_experiment(run.experiment, overrides=[f"config={path}"], out=tmp_path / "run", threads=1)
    assert all(claim["value"] is None and claim["why"] for claim in result["claims"])
    student, teacher = result["tables"]["test"]
    assert student["model"] == "student" and student["accuracy"] == 100.0 and teacher["accuracy"] > 0
    kept = tmp_path / "run" / "distillation"
    assert (tmp_path / "student.safetensors").read_bytes() == (kept / "student.safetensors").read_bytes()
    assert (kept / "config.yaml").read_text() == path.read_text()
    again = run_experiment(
        run.experiment, overrides=[f"config={path}", "test_only=True", "student_only=True"], out=tmp_path / "test"
    )
    assert again["tables"]["test"] == [student]  # the student's file, without training
    assert not (tmp_path / "test" / "distillation").exists()


def test_bad_configs_are_refused_before_any_work(tmp_path):
    path = own_config(tmp_path)
    (tmp_path / "typo.yaml").write_text(path.read_text().replace("temperature: 4.0", "temperature: 0.0"))
    (tmp_path / "classes.yaml").write_text(
        path.read_text().replace("pool: 2, in_channels: 3, classes: 2", "pool: 2, in_channels: 3, classes: 3")
    )
    (tmp_path / "system.yaml").write_text(path.read_text().replace("flambeau.data.image_folder", "os.system"))
    for config, message in [
        ("nowhere.yaml", "nowhere.yaml is no file"),
        ("flambeau:nothing.yaml", "there is no ready config .*digits/kd_t4.yaml"),
        ("flambeau:../box.py", "there is no ready config"),
        (tmp_path / "typo.yaml", "temperature"),
        (tmp_path / "classes.yaml", "class"),
        (tmp_path / "system.yaml", "os.system may not be imported"),
    ]:
        with pytest.raises(ValueError, match=message):
            out = tmp_path / f"bad {Path(config).stem}"
            run_experiment(run.experiment, overrides=[f"config={config}"], out=out, threads=1)
