import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from flambeau.ops import build
from flambeau.ops.flashrnn import flashrnn

GOOD = 'extern "C" int answer() { return 42; }\n'


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FLAMBEAU_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "build"


def write(folder: Path, text: str) -> Path:
    source = folder / "answer.cpp"
    source.write_text(text)
    return source


def test_built_once_and_again_when_anything_changes(tmp_path, cache):
    source = write(tmp_path, GOOD)
    first = build.compile_library(source)
    stamp = first.stat().st_mtime_ns
    assert build.compile_library(source) == first and first.stat().st_mtime_ns == stamp
    flagged = build.compile_library(source, ["-DX"])
    changed = build.compile_library(write(tmp_path, GOOD.replace("42", "43")))
    (tmp_path / "extra.h").write_text("// a header beside the source")
    with_header = build.compile_library(source)
    assert len({first, flagged, changed, with_header}) == 4
    assert sorted(cache.iterdir()) == sorted([first, flagged, changed, with_header])  # nothing else is left behind
    assert build.load(source, "generic").answer() == 43


def test_a_prelude_comes_before_the_source_and_enters_the_hash(tmp_path, cache):
    source = write(tmp_path, GOOD.replace("42", "ANSWER"))
    paths = {build.compile_library(source, prelude=f"#define ANSWER {n}\n") for n in (1, 2, 2)}
    assert len(paths) == 2 and sorted(cache.iterdir()) == sorted(paths)
    assert build.load(source, "generic", "#define ANSWER 2\n").answer() == 2


def test_cache_folder_order(monkeypatch, tmp_path):
    monkeypatch.delenv("FLAMBEAU_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert build.cache_folder() == tmp_path / "flambeau"
    monkeypatch.setenv("FLAMBEAU_CACHE", str(tmp_path / "own"))
    assert build.cache_folder() == tmp_path / "own"


def test_compiler_message_is_shown(tmp_path, cache):
    with pytest.raises(build.BuildError, match=r"(?s)refused answer.cpp.*\$ .*answer.cpp.*nonsense"):
        build.compile_library(write(tmp_path, "nonsense;"))
    assert list(cache.iterdir()) == []


def test_two_processes_at_once(tmp_path, cache):
    source = write(tmp_path, GOOD)
    code = (
        "import sys; from pathlib import Path; from flambeau.ops import build\n"
        "print(build.load(Path(sys.argv[1]), 'generic').answer())"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(source)], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    assert [p.communicate()[0] for p in running] == ["42\n", "42\n"]
    assert len(list(cache.iterdir())) == 1


def test_forced_instruction_set(monkeypatch):
    monkeypatch.setenv("FLAMBEAU_ISA", "generic")
    assert build.instruction_set() == "generic"
    monkeypatch.setenv("FLAMBEAU_ISA", "sparc")
    with pytest.raises(ValueError, match="FLAMBEAU_ISA is 'sparc'; this processor runs generic"):
        build.instruction_set()


def test_without_a_compiler_one_warning_and_the_reference(tmp_path):
    code = """
import warnings, torch
from flambeau.ops.flashrnn import flashrnn
from flambeau.ops import build
inputs = torch.randn(2, 3, 4, 1, 5), torch.randn(4, 1, 5, 5), torch.randn(4, 1, 5)
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    first = flashrnn(*inputs)[0]
    flashrnn(*inputs)
assert [str(w.message).startswith("flashrnn: compiled kernel unavailable") for w in seen] == [True], seen
assert torch.equal(first, flashrnn(*inputs, backend="reference")[0])
try:
    flashrnn(*inputs, backend="cpu")
except build.BuildError as error:
    assert "no C++ compiler found" in str(error)
else:
    raise AssertionError("an explicit backend must not fall back")
"""
    environment = {"PATH": "/nonexistent", "FLAMBEAU_CACHE": str(tmp_path), "HOME": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_a_built_kernel_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        flashrnn(torch.randn(1, 2, 1, 1, 3), torch.randn(1, 1, 3, 3), torch.randn(1, 1, 3), function="elman")
