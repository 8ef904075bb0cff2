import json

import pytest
import torch

from flambeau.ops import build
from flambeau.ops.flashrnn import flashrnn, tiling


@pytest.fixture
def cache(tmp_path, monkeypatch):
    build.instruction_set()
    flashrnn(torch.zeros(1, 1, 1, 1, 1), torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1), function="elman")  # build first
    monkeypatch.setenv("FLAMBEAU_CACHE", str(tmp_path))
    tiling._choose.cache_clear()
    yield tmp_path
    tiling._choose.cache_clear()


def test_candidates_fit_registers_rows_and_threads():
    wide = build.instruction_set().startswith("avx512")
    assert tiling.candidates(16, 256, 2, 128, 4, 2, n=4)[0] == ((6, 2) if wide else (2, 2))
    assert tiling.candidates(1, 256, 1, 512, 4, 2) == [(1, 2)]  # one long row: panels
    assert tiling.candidates(1, 9999, 1, 64, 4, 2) == [(1, 1)]  # steps too short to meet at a barrier
    assert tiling.candidates(8, 2, 8, 16, 4, 8) == [(6 if wide else 2, 1)]  # too little work to start a thread
    assert tiling.candidates(3, 1000, 1, 32, 3, 8)[0][1] == 3


def test_every_block_size_gives_the_same_states(cache):
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(s, generator=generator) for s in [(13, 4, 4, 1, 20), (4, 1, 20, 20), (4, 1, 20)]]
    sizes = 13, 4, 1, 20, 4, 1
    results = []

    def run(chosen):
        tiling._choose.cache_clear()
        path = tiling._file()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({tiling._key(sizes): chosen}))
        assert tiling.choose(*sizes) == chosen
        results.append(flashrnn(*inputs)[0])

    fitting = tiling.candidates(*sizes, n=6)
    assert len(fitting) >= 2
    for chosen in fitting:
        run(chosen)
    assert all(torch.equal(r, results[0]) for r in results)


def test_tuning_is_kept_by_machine(cache):
    sizes = 13, 4, 1, 20, 4, 1
    chosen = []
    best = tiling.tune(chosen.append, *sizes, repeats=1)
    assert best in tiling.candidates(*sizes, n=6) and set(chosen) == set(tiling.candidates(*sizes, n=6))
    (path,) = (cache / "tilings").iterdir()
    assert build.instruction_set() in path.name and str(build.l2_bytes()) in path.name
    assert json.loads(path.read_text()) == {"13,4,1,20,4,1": list(best)}
    assert tiling.choose(*sizes) == best
