import ctypes
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import expit, log_expit

from flambeau.ops import build

ISAS = list(build.ISA_FLAGS)
RUNS = ISAS[: ISAS.index(build.instruction_set()) + 1]
DOUBLE = {"exp": np.exp, "sigmoid": expit, "tanh": np.tanh, "log_sigmoid": log_expit}


@pytest.fixture(scope="module", params=ISAS)
def library(request):
    if request.param not in RUNS:
        pytest.skip(f"this processor has no {request.param}")
    return build.load(Path(__file__).with_name("vector_math_probe.cpp"), request.param)


def call(library, name, x, dtype=np.float32):
    out = np.full(len(x), 7, dtype)
    getattr(library, name)(x.ctypes.data_as(ctypes.c_void_p), out.ctypes.data_as(ctypes.c_void_p), len(x))
    return out


def arguments():
    """Every exponent with both signs, dense where the functions bend; an odd count leaves a partial vector."""
    rng = np.random.default_rng(0)
    wide = rng.integers(0, 2**32, 200_001, dtype=np.uint32).view(np.float32)
    dense = np.concatenate([np.linspace(-110, 95, 200_000), np.linspace(-2, 2, 100_000)]).astype(np.float32)
    return np.concatenate([wide[np.isfinite(wide)], dense])


@pytest.mark.parametrize("name", DOUBLE)
def test_accuracy_over_the_whole_range(library, name):
    x = arguments()
    with np.errstate(over="ignore", under="ignore"):
        exact = DOUBLE[name](x.astype(np.float64))
        rounded = exact.astype(np.float32)
    got = call(library, f"vector_{name}", x)
    same = got == rounded  # includes overflow to infinity and underflow to zero
    error = np.abs(got[~same].astype(np.float64) - exact[~same]) / np.spacing(np.abs(rounded[~same])).astype(np.float64)
    assert error.max(initial=0) < 4, (name, x[~same][error.argmax()])  # units in the last place, denormals included


def test_special_values(library):
    inf, nan = np.inf, np.nan
    x = np.array([inf, -inf, nan, 0.0, -0.0, 1e-45, -1e-45, 3.4e38, -3.4e38], np.float32)
    with np.errstate(over="ignore", under="ignore"):
        for name, function in DOUBLE.items():
            expected = function(x.astype(np.float64)).astype(np.float32)
            np.testing.assert_array_almost_equal_nulp(
                np.nan_to_num(call(library, f"vector_{name}", x), nan=-7), np.nan_to_num(expected, nan=-7), 2
            )
    assert np.signbit(call(library, "vector_tanh", x)[4]) and not np.signbit(call(library, "vector_tanh", x)[3])
    assert call(library, "vector_exp", x)[3] == 1  # exactly: sLSTM's n starts at exp(0)
    np.testing.assert_array_equal(call(library, "vector_clamp", x), np.clip(x, -2, 2))


def test_bfloat16_rounds_to_nearest_even_and_keeps_nan(library):
    x = np.concatenate([arguments()[::7], np.array([np.nan, np.inf, -np.inf, 3.4e38], np.float32)])
    got = torch.from_numpy(call(library, "to_bfloat16", x, np.uint16).view(np.int16)).view(torch.bfloat16)
    torch.testing.assert_close(got, torch.from_numpy(x).bfloat16(), rtol=0, atol=0, equal_nan=True)


def test_width(library):
    assert library.vector_width() in (4, 8, 16)
