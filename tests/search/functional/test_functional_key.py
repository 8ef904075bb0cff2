import math
import time

import pytest

from flambeau.search.functional.key import FAILURES, RESERVED, ProbeError, functional_hash, hash_numbers


class Says:
    """A probe for which a candidate is a function that returns its numbers."""

    def numbers(self, candidate):
        return candidate()


def key(*values, bits=24):
    return hash_numbers(values, bits)


def test_rounding_noise_does_not_matter_and_differences_do():
    for value in (0.25, 1.0, 3.0, 1e-3, -7.5, 0.1):
        below, above = math.nextafter(value, -math.inf), math.nextafter(value, math.inf)
        assert key(below) == key(value) == key(above)
        assert key(value) != key(value * 1.001) and key(value) != key(-value)
    assert key(1e-17) == key(0.0) == key(-0.0) == key(-1e-17)
    assert key(1.0, 2.0) != key(2.0, 1.0) and key(1.0) != key(1.0, 0.0)


def test_bits_are_those_of_the_mantissa():
    one_bit_of_24 = 1.5 + 2.0**-24
    assert key(1.5, bits=24) != key(one_bit_of_24, bits=24)
    assert key(1.5, bits=20) == key(one_bit_of_24, bits=20)
    assert key(1.99, bits=1) == key(2.0, bits=1)  # rounding carries into the exponent


def test_keys_have_63_bits_and_are_spread():
    keys = {key(i / 7) for i in range(1, 5000)}
    assert len(keys) == 4999 and all(RESERVED <= k < 1 << 63 for k in keys)
    assert max(keys) > 1 << 62


def test_failures_have_reserved_keys():
    assert key(1.0, math.nan, math.inf) == FAILURES["nan"]
    assert key(1.0, -math.inf) == FAILURES["inf"]
    assert key(1e308, 1e308) >= RESERVED  # their sum overflows, they do not
    with pytest.warns(UserWarning, match="ZeroDivisionError"):
        assert functional_hash(lambda: [1 / 0], Says()) == FAILURES["exception"]
    assert functional_hash(lambda: [math.nan], Says()) == FAILURES["nan"]
    assert all(kind < RESERVED for kind in FAILURES.values())


def test_a_candidate_that_never_ends_is_stopped():
    def endless():
        while True:
            try:
                while True:
                    pass
            except Exception:
                pass

    assert functional_hash(endless, Says(), seconds=0.05) == FAILURES["timeout"]
    assert functional_hash(lambda: [1.0], Says(), seconds=5.0) == key(1.0)
    time.sleep(0.1)  # nothing arrives afterwards


@pytest.mark.parametrize("bits", [0, 53, -1, 24.0, None])
def test_bits_outside_1_to_52(bits):
    with pytest.raises(ValueError, match=r"mantissa_bits: expected 1..52, got"):
        functional_hash(lambda: [1.0], Says(), mantissa_bits=bits)
    with pytest.raises(ValueError, match="mantissa_bits"):
        hash_numbers([1.0], bits)


def test_other_bad_input():
    with pytest.raises(ProbeError, match="at least one number, got none"):
        functional_hash(list, Says())
    with pytest.raises(ValueError, match="seconds: expected more than 0"):
        functional_hash(lambda: [1.0], Says(), seconds=0)
