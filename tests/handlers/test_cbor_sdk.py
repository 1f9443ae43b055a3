"""The CBOR reader and writer of the SDKs, in a guest, against cbor2."""

import math
import struct
from typing import Any

import cbor2
import pytest
from guest_host import Guest, Picture
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.cbor import decode_strict
from appliance.sandbox.messages import Errno

COPY, HEADER = 0, 1

leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=30)
    | st.binary(max_size=30)
)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=12), inner, max_size=6)
)


@pytest.fixture(scope="module")
def guest(mirror: bytes) -> Guest:
    return Guest(mirror)


def data(payload: bytes) -> Picture:
    return Picture(seq=2**40 + 3, tag=0x12, width=0, height=0, format="cbor", payload=payload)


def mirrored(guest: Guest, payload: bytes) -> Any:
    before = len(guest.emits)
    assert guest.handle(data(payload)) == 0
    return decode_strict(guest.emits[before + COPY].payload)


@given(value=values)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_was_read_is_written_again(guest: Guest, value: object) -> None:
    payload = cbor2.dumps(value)
    if len(payload) <= 8000:
        assert mirrored(guest, payload) == value


@given(payload=st.binary(max_size=200))
@settings(deadline=None)
def test_any_bytes_are_a_value_or_refused(guest: Guest, payload: bytes) -> None:
    guest.emits.clear()
    try:
        valid = decode_strict(payload)
    except ValueError:
        valid = None
    status = guest.handle(data(payload))
    assert status in (0, Errno.EINVAL)
    if valid is not None and _in_range(valid):
        assert status == 0


@given(value=values, cut=st.integers(0, 400), noise=st.binary(max_size=3))
@settings(deadline=None)
def test_damaged_documents_never_trap(guest: Guest, value: object, cut: int, noise: bytes) -> None:
    payload = cbor2.dumps(value)
    at = cut % (len(payload) + 1)
    damaged = payload[:at] + noise + payload[at + len(noise) :]
    assert guest.handle(data(damaged[:8192])) in (0, Errno.EINVAL)


def test_every_prefix_and_every_trailing_byte_is_refused(guest: Guest) -> None:
    payload = cbor2.dumps({"objects": [{"label": "cat", "score": 0.5, "box": [1, 2, 300, 70000]}], "n": -(2**40)})
    assert mirrored(guest, payload)["n"] == -(2**40)
    for end in range(len(payload)):
        assert guest.handle(data(payload[:end])) == Errno.EINVAL
    assert guest.handle(data(payload + b"\x00")) == Errno.EINVAL


@pytest.mark.parametrize(
    "payload",
    [
        b"\x9f\x01\xff",  # indefinite array
        b"\x5f\x41a\xff",  # indefinite bytes
        b"\xc0\x01",  # tag
        b"\x1b" + b"\xff" * 8,  # beyond int64
        b"\x9b" + b"\xff" * 8,  # array of 2^64 - 1
        b"\x7a\x7f\xff\xff\xff",  # text of 2 GiB
        b"\xbb\x80" + bytes(7),  # map of 2^63
        b"\xf8\x20",  # simple value
        b"\x1c",  # reserved
    ],
)
def test_what_the_appliance_does_not_use_is_refused(guest: Guest, payload: bytes) -> None:
    assert guest.handle(data(payload)) == Errno.EINVAL


@pytest.mark.parametrize("bits", [0x0000, 0x8000, 0x0001, 0x03FF, 0x0400, 0x3C00, 0x3555, 0x7BFF, 0xC000])
def test_half_precision(guest: Guest, bits: int) -> None:
    expected = struct.unpack("<e", struct.pack("<H", bits))[0]
    assert mirrored(guest, b"\xf9" + struct.pack(">H", bits)) == expected


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_cannot_say_becomes_null(guest: Guest, value: float) -> None:
    for code, width in ((b"\xf9", ">e"), (b"\xfa", ">f"), (b"\xfb", ">d")):
        assert mirrored(guest, code + struct.pack(width, value)) is None


def test_floats_take_32_bits_where_that_is_exact(guest: Guest) -> None:
    before = len(guest.emits)
    assert guest.handle(data(cbor2.dumps([0.5, 0.1]))) == 0
    assert guest.emits[before + COPY].payload == b"\x82\xfa" + struct.pack(">f", 0.5) + b"\xfb" + struct.pack(">d", 0.1)


def test_a_full_buffer_is_an_error_and_nothing_is_written_beyond_it(guest: Guest) -> None:
    halves = [1.5] * 2700  # 3 bytes each here; the writer has no 16 bits, and makes 5 of them
    payload = b"\x99" + struct.pack(">H", len(halves)) + b"\xf9\x3e\x00" * len(halves)
    assert len(payload) <= 8192
    before = len(guest.emits)
    assert guest.handle(data(payload)) == -3
    assert len(guest.emits) == before
    assert mirrored(guest, b"\x01") == 1


def test_the_frames_header_is_where_it_belongs(guest: Guest) -> None:
    before = len(guest.emits)
    assert guest.handle(data(b"\x01")) == 0
    assert decode_strict(guest.emits[before + HEADER].payload) == [2**40 + 3, 10**18, 0x12, 0, 0, 1]


def _in_range(value: object) -> bool:
    if isinstance(value, dict):
        return all(_in_range(item) for item in value.values())
    if isinstance(value, list):
        return all(_in_range(item) for item in value)
    return not isinstance(value, int) or -(2**63) <= value < 2**63
