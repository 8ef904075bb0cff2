"""A key for what a candidate computes: equal for equivalent candidates, however they are written (functional hashing).

A candidate is run for a tiny budget on fixed data; the numbers that come out are rounded and mixed into 63 bits (Real
et al. 2020, "AutoML-Zero"; google-research/unified_functional_hashing). What is run, and on what, is a probe (see
`flambeau.search.functional.probe`), or anything else with a method `numbers`.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import struct
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

FAILURES = {"nan": 1, "inf": 2, "exception": 3, "timeout": 4}  # the keys of candidates that fail, one a kind
RESERVED = 16  # no other candidate has a key below
MAGNITUDE = (1 << 63) - 1  # the bits of a double without its sign
TINY = (1023 - 40) << 52  # the double 2^-40: cancellation leaves less than that of nothing, it counts as zero


class ProbeError(ValueError):
    """A candidate that this probe cannot judge; not a failure of the candidate."""


class CandidateTimeout(BaseException):
    """Raised inside a candidate that runs too long (not an Exception: candidates must not catch it)."""


class FunctionalHasher(Protocol):
    """What `functional_hash` needs of a probe."""

    def numbers(self, candidate: Any) -> Iterable[float]:
        """The numbers that a candidate computes, equal (but for rounding) for equal functions."""


def functional_hash(
    candidate: Any, probe: FunctionalHasher, mantissa_bits: int = 24, seconds: float | None = None
) -> int:
    """The 63-bit key of what `candidate` computes under `probe`.

    Of every number the sign, the exponent and `mantissa_bits` bits of the mantissa count, rounded to nearest. (The
    published code ignores the sign, as its numbers are accuracies, and truncates, so that 1/4 and the float just below
    it differ.) Candidates that fail have the key of their kind of failure (`FAILURES`): NaN before infinity among the
    numbers, an exception (a warning tells which), more than `seconds` of time.

    Raises:
        ValueError: `mantissa_bits` outside 1..52, or (ProbeError) a candidate that the probe cannot judge.
    """
    check_bits(mantissa_bits)
    if seconds is not None and not seconds > 0:
        raise ValueError(f"seconds: expected more than 0, got {seconds}")
    try:
        with time_limit(seconds) if seconds is not None else nullcontext():
            values = list(probe.numbers(candidate))
    except CandidateTimeout:
        return FAILURES["timeout"]
    except ProbeError:
        raise
    except Exception as error:
        warnings.warn(f"a candidate failed under the probe: {type(error).__name__}: {error}", stacklevel=2)
        return FAILURES["exception"]
    return hash_numbers(values, mantissa_bits)


def hash_numbers(values: Iterable[float], mantissa_bits: int = 24) -> int:
    """Mix numbers, in their order, into 63 bits; see `functional_hash`.

    Raises:
        ValueError: no numbers, or `mantissa_bits` outside 1..52.
    """
    check_bits(mantissa_bits)
    values = [float(value) for value in values]
    if not values:
        raise ProbeError("values: expected at least one number, got none")
    if not math.isfinite(sum(values)) and not all(map(math.isfinite, values)):
        return FAILURES["nan" if any(map(math.isnan, values)) else "inf"]
    dropped = 52 - mantissa_bits
    half = (1 << dropped) >> 1  # a carry goes into the exponent, as it should
    bits = struct.unpack(f"<{len(values)}Q", struct.pack(f"<{len(values)}d", *values))
    rounded = [(number + half) >> dropped if number & MAGNITUDE >= TINY else 0 for number in bits]
    digest = hashlib.sha256(struct.pack(f"<{len(values)}Q", *rounded)).digest()
    key = int.from_bytes(digest[:8], "big") >> 1
    return key if key >= RESERVED else key + RESERVED


def check_bits(mantissa_bits: int) -> None:
    if not isinstance(mantissa_bits, int) or not 1 <= mantissa_bits <= 52:
        raise ValueError(f"mantissa_bits: expected 1..52, got {mantissa_bits!r}")


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise CandidateTimeout in this thread after `seconds`, as soon as it is in Python code."""
    thread, lock, done = ctypes.c_ulong(threading.get_ident()), threading.Lock(), False
    interrupt = ctypes.pythonapi.PyThreadState_SetAsyncExc

    def expire() -> None:
        with lock:
            if not done:
                interrupt(thread, ctypes.py_object(CandidateTimeout))

    timer = threading.Timer(seconds, expire)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with lock:
            done = True
            interrupt(thread, None)  # one that has not arrived yet must not arrive later
        timer.cancel()
