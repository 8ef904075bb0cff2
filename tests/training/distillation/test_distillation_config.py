"""Reading a config runs nothing, is bounded, changes nothing, and says where it is wrong."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from flambeau.training.distillation import ConfigError, check_config, load_config, parse_config
from flambeau.training.distillation.tags import Deferred, resolve

TAGS = """
_name: &name digits
_root: &root !join ['~/sets/', *name]
path: !pathjoin [*root, train]
home: !expanduser '~/x'
absolute: !abspath 'a/b'
layer: &layer !import_call {key: torch.nn.Linear, init: {kwargs: {in_features: 3, out_features: 2}}}
again: *layer
pair: !import_call {key: Sequential, package: torch.nn, init: {args: [*layer, !import_call {key: torch.nn.ReLU}]}}
kind: !import_get {key: torch.nn.ReLU}
weight: !getattr [*layer, out_features]
first: !access_by_index_or_key {data: [5, 6], index_or_key: 1}
frozen: !call_method {obj: *layer, method_name: requires_grad_, args: [False]}
renamed: !setattr [*layer, label, hint]
ones: &ones !import_call {key: torch.ones, init: {args: [2, 3]}}
eye: !import_call_method {package: torch.nn.Embedding.from_pretrained, init: {args: [*ones]}}
small: 1e-3
"""


def test_tags_make_what_they_say_and_one_object_each():
    config = parse_config(TAGS)
    assert config["path"].endswith("/sets/digits/train") and not config["path"].startswith("~")
    assert config["home"].endswith("/x") and config["absolute"].endswith("/a/b") and config["small"] == 1e-3
    built = resolve(config)
    assert (
        isinstance(built["layer"], nn.Linear)
        and built["again"] is built["layer"]
        and built["pair"][0] is built["layer"]
    )
    assert built["kind"] is nn.ReLU and built["weight"] == 2 and built["first"] == 6
    assert built["frozen"] is built["layer"] and not built["layer"].weight.requires_grad
    assert built["renamed"].label == "hint"
    assert torch.equal(built["eye"].weight, torch.ones(2, 3))


def test_reading_and_using_a_config_twice_leaves_it_as_it_is(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(TAGS)
    config = load_config(path)
    before = copy.deepcopy(config)
    first, second = resolve(config), resolve(config)
    assert first["layer"] is not second["layer"]
    assert config == before == load_config(path)


@pytest.mark.parametrize(
    "text, told",
    [
        ("a: 1\nb: !import_call {key: os.system, init: {args: [touch HERE]}}", ":2: os.system may not be imported"),
        ("b: !import_call {key: torch.hub.load}", "torch.hub.load may not be imported"),
        ("b: !import_call {key: torch.load}", "torch.load may not be imported"),
        ("b: !import_get {key: system, package: os}", "os.system may not be imported"),
        ("b: !import_call {key: torch.nn.functional.torch.load}", "belongs to torch, which may not be imported"),
        ("b: !import_call {key: torch.utils.data.dataloader.os.system}", "belongs to os, which may not be imported"),
        ("b: !import_call {key: flambeau.data.images.files.np.load}", "belongs to numpy, which may not be imported"),
        ("b: !import_call {key: flambeau.training.checkpoint.clean}", "may not be imported"),
        ("b: !import_call {key: flambeau.files.write_bytes}", "may not be imported"),
        ("b: !import_get {key: torch.nn.Module.__init__}", "expected a public dotted name"),
        ("b: !import_get {key: torch.nn.modules._functions}", "expected a public dotted name"),
        ("b: !getattr [!import_get {key: torch.nn.Linear}, __globals__]", "expected the name of a public attribute"),
        ("b: !call_method {obj: 1, method_name: __class__}", "expected the name of a public attribute"),
        ("b: !getattr [!import_get {key: torch.nn.functional}, torch]", "belongs to torch"),
        ("b: !setattr [!import_get {key: torch.nn.Linear}, forward, 1]", "may not be replaced"),
        ("b: !import_call_method {package: subprocess.Popen.wait}", ":1: subprocess.Popen.wait may not be imported"),
        (
            "b: !call_method {obj: !call_method {obj: !import_call {key: torch.zeros, init: {args: [1]}}, "
            "method_name: numpy}, method_name: tofile, args: [HERE]}",
            "tofile of ndarray belongs to numpy",
        ),
        (
            "b: !call_method {obj: !call_method {obj: !import_call {key: torch.zeros, init: {args: [1]}}, "
            "method_name: untyped_storage}, method_name: from_file, args: [HERE, true, 8]}",
            "from_file of UntypedStorage belongs to torch.storage",
        ),
        ("b: !import_get {key: torch.utils.data.datapipes.iter.FileOpener}", "may not be imported"),
        ("b: !import_get {key: torch.utils.data.functional_datapipe}", "may not be imported"),
        ("b: !import_get {key: flambeau.training.distillation.config.parse_config}", "may not be imported"),
        ("b: !import_call {key: flambeau.data.series.frame.require}", "belongs to flambeau.extras"),
        ("b: !!python/object/apply:os.system [touch HERE]", "could not determine a constructor"),
        ("dependencies: [{name: os}]\nb: 1", "dependencies name 'os', which is not allowed"),
    ],
)
def test_what_is_not_allowed_raises_with_its_line_and_runs_nothing(text, told, tmp_path):
    target = tmp_path / "ran"
    path = tmp_path / "bad.yaml"
    path.write_text(text.replace("HERE", str(target)))
    with pytest.raises(ConfigError, match=told.replace("(", r"\(")) as caught:
        resolve(load_config(path))
    assert str(path) in str(caught.value) and not target.exists()


def test_allowed_packages_are_the_callers(tmp_path):
    text = "dependencies: [{name: collections}]\nb: !import_call {key: collections.OrderedDict}"
    with pytest.raises(ConfigError, match="may not be imported"):
        parse_config(text)
    assert resolve(parse_config(text, allow=("collections",)))["b"] == {}
    assert isinstance(parse_config(text, allow=("collections",))["b"], Deferred)


def test_a_failing_call_names_its_line():
    text = "a: 1\nb:\n  c: !import_call {key: torch.nn.Linear, init: {kwargs: {inputs: 3}}}\n"
    with pytest.raises(ConfigError, match="config:3: !import_call of torch.nn.Linear failed: TypeError"):
        resolve(parse_config(text))


LAUGHS = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{new}: &{new} [{', '.join(f'*{old}' for _ in range(10))}]\n" for old, new in zip("abcdefgh", "bcdefghi")
)
DOUBLING = f"a: &a0 {'x' * 600}\n" + "".join(f"b{n}: &a{n + 1} !join [*a{n}, *a{n}]\n" for n in range(4))


@pytest.mark.parametrize(
    "text, told",
    [
        (LAUGHS, "more than 100000 values"),
        (DOUBLING, "the joined text has"),
        ("a: &a [*a]", "alias inside itself"),
        ("[" * 3000 + "]" * 3000, "nested more than"),
        ("a: 1\na: 2", ":2: the key 'a' is given twice"),
        ("a: [1", "config:1"),
        ("- 1", "expected a mapping"),
        ("a: !unknown 3", "could not determine a constructor for the tag"),
        ("a: !join x", "!join takes a list"),
        ("a: !import_call 3", "!import_call takes a mapping"),
        ("a: !getattr [1]", "!getattr takes a list of 2"),
        ("#" * 2_000_000, "more than the 1048576"),
    ],
)
def test_files_are_bounded_and_mistakes_have_a_line(text, told):
    with pytest.raises(ConfigError, match=told):
        parse_config(text)


def test_reading_a_config_imports_nothing_of_it():
    text = "b: !import_get {key: torch.nn.quantized.dynamic.Linear}"
    code = (
        "import sys; from flambeau.training.distillation.config import parse_config; "
        f"before = set(sys.modules); parse_config({text!r}); print(sorted(set(sys.modules) - before))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "quantized" not in printed


GOOD = """
datasets: {digits/train: 1, digits/test: 2}
models:
  teacher_model: {key: ConvNet}
  student_model: {key: ConvNet, _note: free}
train:
  log_freq: 10
  stage1:
    num_epochs: 1
    train_data_loader: {dataset_id: digits/train, kwargs: {batch_size: 4}}
    teacher: {forward_hook: {output: [layer1], input: [layer2]}}
    student:
      forward_hook: {output: [layer1]}
      auxiliary: {regressor: {key: CRDHead, kwargs: {in_features: 3}, input: layer1}}
    optimizer: {key: SGD, kwargs: {lr: 0.1}}
    scheduler: {key: StepLR, kwargs: {step_size: 1}}
    criterion:
      key: WeightedSumLoss
      kwargs:
        sub_terms:
          kd: {criterion: {key: KDLoss}, weight: 1}
          hint: {criterion: {key: FitNetLoss}, student: "layer1:output", teacher: "layer2:input", weight: 1}
          vid: {criterion: {key: VIDLoss}, student: regressor, teacher: layer1, weight: 1}
  stage2:
    num_epochs: 2
    student: {sequential: [a, "+b"], adaptations: {b: {key: Linear, kwargs: {in_features: 1, out_features: 1}}}}
    optimizer: {key: Adam}
    criterion: {key: KDLoss}
test:
  test_data_loader: {dataset_id: digits/test, kwargs: {batch_size: 4}}
"""


@pytest.mark.parametrize(
    "old, new, told",
    [
        ("log_freq", "log_frek", "train has an unknown key 'log_frek'; the nearest are log_freq"),
        ("    optimizer: {key", "    optimiser: {key", "unknown key 'optimiser'; the nearest are optimizer"),
        ("forward_hook: {output: [layer1], input", "forward_hok: {output: [layer1], input", "nearest are forward_hook"),
        ("kwargs: {lr", "kwarg: {lr", "train.stage1.optimizer has an unknown key 'kwarg'"),
        ("    num_epochs: 2\n", "", "train.stage2 has no num_epochs"),
        ("    num_epochs: 1\n", "    num_epochs: 0\n", "expected a whole number of at least 1, got 0"),
        ("stage2", "stage3", "stages must be stage1, stage2"),
        ('"layer2:input"', '"layer2:output"', "hint looks at the output of the teacher's 'layer2', which forward_hook"),
        ('"layer1:output"', '"layer1:outputs"', "expected .path:input. or .path:output., got .layer1:outputs"),
        ("student: regressor", "student: regresor", "vid looks at the output of the student's 'regresor'"),
        ("key: KDLoss}, weight", "key: KDLos}, weight", "is called 'KDLos'; the nearest names are KDLoss"),
        ("dataset_id: digits/train", "dataset_id: digits/trian", "no data set 'digits/trian', but digits/train"),
        ("  teacher_model: {key: ConvNet}\n", "", "kd looks at a teacher, and there is none"),
        ("  student_model: {key: ConvNet, _note: free}\n", "", "expected student_model"),
        ("{key: ConvNet}", "{kye: ConvNet}", "models.teacher_model has an unknown key 'kye'"),
        ("weight: 1}\n          hint", "weight: one}\n          hint", "weight: expected a number, got 'one'"),
        (
            "kwargs: {batch_size: 4}}\n    teacher: {",
            "kwargs: {batch_size: 4}, cache_output: c}\n    teacher: {requires_grad: True, ",
            "requires_grad is True",
        ),
        ("    criterion: {key: KDLoss}\n", "", "train.stage2 has no criterion"),
        ("key: Adam", "key: Adum", "train.stage2.optimizer: .* is called 'Adum'; the nearest names are Adam"),
        ("key: Adam", "key: Adam, kwargs: {rate: 1}", "train.stage2.optimizer: Adam: got an unexpected .* 'rate'"),
        ("in_features: 1,", "inputs: 1,", "train.stage2.student.adaptations.b: Linear: "),
        ("CRDHead", "CRDHed", "auxiliary.regressor: .* is called 'CRDHed'; the nearest names are CRDHead"),
        (", input: layer1", "", "auxiliary.regressor: expected key, kwargs and input"),
        ("step_size", "step", "train.stage1.scheduler: StepLR: "),
        ("{sequential", "{forward_proc: forward_all, sequential", "forward_proc: .* is called 'forward_all'"),
        ("{key: KDLoss}\n", "{key: KDLoss, kwargs: {t: 4}}\n", "train.stage2: criterion loss: KDLoss: "),
        ("    optimizer: {key: SGD, kwargs: {lr: 0.1}}\n", "", "train.stage1 has no optimizer"),
    ],
)  # fmt: skip
def test_a_wrong_config_is_refused_before_anything_is_built(old, new, told):
    check_config(parse_config(GOOD))
    assert old in GOOD
    with pytest.raises(ConfigError, match=told):
        check_config(parse_config(GOOD.replace(old, new)))


ODD = [
    None,
    3,
    -1,
    1.5,
    "x",
    "",
    [],
    [1],
    ["x"],
    {},
    {"key": 1},
    {"x": 1},
    True,
    [[1]],
    {"key": "Linear", "kwargs": [1]},
]


def places(value, path=()):
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def test_whatever_stands_at_whatever_place_is_accepted_or_refused_in_words():
    config = parse_config(GOOD)
    for path in places(config):
        for odd in ODD:
            changed = copy.deepcopy(config)
            at = changed
            for key in path[:-1]:
                at = at[key]
            at[path[-1]] = copy.deepcopy(odd)
            try:
                check_config(changed)
            except ConfigError as error:
                assert str(error), (path, odd)
