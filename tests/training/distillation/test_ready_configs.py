"""The configs that come with the library: each is checked whole, and each kind is run on files written here."""

from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

import flambeau.training.distillation as distillation
from flambeau.models.vision import ConvNet, resnet34
from flambeau.training.distillation.config import load_config, parse_config
from flambeau.training.distillation.models import build_models
from flambeau.training.distillation.run import distill
from flambeau.training.distillation.schema import check_config, check_models

CONFIGS = Path(distillation.__file__).parent / "configs"
READY = sorted(CONFIGS.rglob("*.yaml"))
IMAGENET = sorted((CONFIGS / "imagenet").glob("*.yaml"))
FROM_WEIGHTS = "    src_ckpt: "


def without_weights(text):
    return "\n".join(line for line in text.splitlines() if not line.startswith(FROM_WEIGHTS))


@pytest.mark.parametrize("path", READY, ids=[path.stem for path in READY])
def test_every_config_is_whole_and_fits_its_models(path):
    allow = ("flambeau", "torch", "transformers")
    config = load_config(path, allow)
    check_config(config, allow)
    if path.parent.name == "glue":
        return  # its models are downloads
    with torch.device("meta"):
        teacher, student = build_models(parse_config(without_weights(path.read_text())))
    check_models(config["train"], student, teacher)
    assert ("teacher_model" in config["models"]) == (teacher is not None) and config["test"]


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """Four pictures of ImageNet's layout, and the weights of a teacher."""
    root = tmp_path_factory.mktemp("imagenet")
    generator = numpy.random.default_rng(0)
    for part in ("train", "val"):
        for name in ("n01440764", "n01443537"):
            (root / part / name).mkdir(parents=True)
            for number in range(2):
                pixels = generator.integers(0, 255, (40, 50, 3), dtype=numpy.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{number}.JPEG", format="JPEG")
    torch.manual_seed(0)
    torch.save(resnet34().state_dict(), root / "resnet34.pth")
    return root


@pytest.mark.parametrize(
    "path", sorted((CONFIGS / "imagenet").glob("*.yaml")), ids=lambda path: path.stem.split("-")[0]
)
def test_imagenet_configs_train_on_small_pictures(imagenet, tmp_path, path):
    text = path.read_text()
    text = text if path.stem.startswith("kd") else without_weights(text)
    for before, after in (
        ("~/datasets/ilsvrc2012/train}", f"{imagenet}/train, size: 32, resize: 36}}"),
        ("~/datasets/ilsvrc2012/val, train: False}", f"{imagenet}/val, train: False, size: 32, resize: 36}}"),
        ("resource/ckpt/imagenet/", f"{tmp_path}/"),
        ("resource/ckpt/resnet34-b627a593.pth", f"{imagenet}/resnet34.pth"),
        ("num_samples: 1281167", "num_samples: 4"),
        ("num_workers: 16", "num_workers: 0"),
    ):
        assert before in text or before.startswith(("resource", "num_samples"))
        text = text.replace(before, after)
    config = parse_config(text)
    stages = [config["train"][name] for name in config["train"] if name.startswith("stage")] or [config["train"]]
    for stage in stages:
        assert stage["num_epochs"] > 0
        stage["num_epochs"] = 1
        if "train_data_loader" in stage:
            stage["train_data_loader"]["kwargs"]["batch_size"] = 2
    outcome = distill(config, device="cpu", seed=0)
    assert len(outcome["fits"]) == len(stages) and all(fit.steps == 2 for fit in outcome["fits"])
    assert 0 <= outcome["test"]["student"]["accuracy"] <= 100
    assert (tmp_path / f"{path.stem}.safetensors").is_file()


def test_a_cifar_config_trains_on_small_files(tmp_path):
    generator = numpy.random.default_rng(0)
    records = generator.integers(0, 255, (6, 3073), dtype=numpy.uint8)
    records[:, 0] = numpy.arange(6)
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        (tmp_path / f"{name}.bin").write_bytes(records.tobytes())
    (tmp_path / "batches.meta.txt").write_text("\n".join(f"class{number}" for number in range(10)))
    text = without_weights((CONFIGS / "cifar" / "cifar10-kd-resnet20_from_resnet56.yaml").read_text())
    text = text.replace("~/datasets/cifar10", str(tmp_path)).replace("resource/ckpt/cifar10", str(tmp_path))
    text = text.replace("num_epochs: 182", "num_epochs: 1").replace("batch_size: 64", "batch_size: 10")
    outcome = distill(parse_config(text), device="cpu", seed=0)
    assert outcome["fits"][0].steps == 3 and set(outcome["test"]) == {"student", "teacher"}


def test_the_rows_of_one_table_differ_in_their_method_alone():
    """Same data, models, steps and learning rate, so that the rows can be compared."""
    configs = {path.stem: load_config(path) for path in (CONFIGS / "digits").glob("*.yaml")}
    for name in ("ce", "kd_t1", "kd_t4", "at", "fitnet", "fitnet_two_stages"):
        config, train = configs[name], configs[name]["train"]
        stages = [train[key] for key in train if key.startswith("stage")] or [train]
        assert sum(stage["num_epochs"] for stage in stages) == 5
        assert all(stage["optimizer"] == {"key": "Adam", "kwargs": {"lr": 4e-3}} for stage in stages)
        arguments = {key: value.arguments for key, value in config["datasets"].items()}
        assert arguments == {key: value.arguments for key, value in configs["ce"]["datasets"].items()}
        student = config["models"].get("student_model") or config["models"]["model"]
        assert student["kwargs"] == configs["ce"]["models"]["model"]["kwargs"]
    few = configs["few_ce"]["train"]["num_epochs"] * 400, configs["few_kd"]["train"]["num_epochs"] * 4000
    assert few[0] == few[1]  # as many steps with a tenth of the images
    assert sum(p.numel() for p in ConvNet(**student["kwargs"]).parameters()) <= 20_000


def test_a_glue_config_trains_small_berts(tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs the extra hf: pip install 'flambeau[hf]'")
    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cats", "sleep", "the"])
    )
    for name, width in (("bert-large-uncased", 32), ("bert-base-uncased", 16)):
        sizes = dict(hidden_size=width, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=8)
        torch.manual_seed(0)
        transformers.BertForSequenceClassification(transformers.BertConfig(**sizes)).save_pretrained(tmp_path / name)
        transformers.BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / name)
    rows = ["a\t1\t\tCats sleep", "a\t0\t*\tsleep the"] * 4
    for name in ("train", "dev"):
        (tmp_path / f"{name}.tsv").write_text("\n".join(rows))
    text = without_weights((CONFIGS / "glue" / "cola-kd-bert_base_from_bert_large.yaml").read_text())
    for name in ("bert-large-uncased", "bert-base-uncased"):
        text = text.replace(name, str(tmp_path / name))
    text = text.replace("~/datasets/glue/CoLA", str(tmp_path)).replace("resource/ckpt/glue", str(tmp_path))
    text = text.replace("num_epochs: 3", "num_epochs: 1").replace("batch_size: 16", "batch_size: 4")
    with pytest.raises(ValueError, match="transformers"):
        parse_config(text)
    allow = ("flambeau", "torch", "transformers")
    outcome = distill(parse_config(text, allow), device="cpu", seed=0, allow=allow)
    assert outcome["fits"][0].steps == 2 and set(outcome["test"]) == {"student", "teacher"}
