"""Strict decoding: plain values come back, everything else is a ValueError, and nothing is anything else."""

import math
from contextlib import suppress

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.cbor import MAX_DEPTH, decode_strict

scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text() | st.binary()
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4)
)


@given(values)
def test_plain_values_come_back(value: object) -> None:
    assert decode_strict(cbor2.dumps(value)) == value


@given(st.binary(max_size=64))
def test_anything_else_is_a_value_error(data: bytes) -> None:
    with suppress(ValueError):
        decode_strict(data)


@pytest.mark.parametrize(
    "tag", [*range(6), 25, 28, 29, 30, 35, 36, 37, 52, 54, 100, 256, 258, 260, 261, 1004, 43000, 55799, 999]
)
def test_no_tag_is_accepted(tag: int) -> None:
    inner = b"\x00" if tag in (2, 3) else 1
    with pytest.raises(ValueError, match="tags are not accepted"):
        decode_strict(cbor2.dumps(cbor2.CBORTag(tag, inner)))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "premature end"),
        (b"\x01\x02", "trail"),
        (b"\xf7", "not accepted"),
        (b"\xe0", "not accepted"),
        (b"\x81\xf7", "not accepted"),
        (b"\xa1\x61a\xf7", "not accepted"),
        (b"\xa2\x61a\x01\x61a\x02", "Duplicate"),
        (b"\xa1\x01\x02", "map key must be"),
        (b"\x5f\x41a\xff", "indefinite"),
        (b"\x9f\xff", "indefinite"),
        (b"\x81" * (MAX_DEPTH + 1) + b"\x00", "depth"),
        (b"\x61\xff", "utf-8"),
        (b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff", "premature end"),
    ],
)
def test_each_fault_is_named(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_strict(data)


def test_the_deepest_that_is_allowed() -> None:
    value = decode_strict(b"\x81" * MAX_DEPTH + b"\x00")
    for _ in range(MAX_DEPTH):
        (value,) = value
    assert value == 0


def test_not_a_number_is_a_number() -> None:
    assert math.isnan(decode_strict(b"\xf9\x7e\x00"))
