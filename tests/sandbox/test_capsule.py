"""The capsule's bytes: what is written is read again, and anything else is refused in one way."""

from contextlib import suppress
from dataclasses import replace
from typing import Any

import cbor2
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sandbox_bench import NOTHING, spec

from appliance import wire
from appliance.errors import ConfigError
from appliance.frame import FORMATS, Frame
from appliance.sandbox.capsule import (
    CAPSULE_FRAMES,
    MAX_CAPSULE_BYTES,
    MAX_PAYLOAD_BYTES,
    Capsule,
    CapsuleFrame,
    CapsuleModel,
    Crash,
    Handled,
    capsule_of,
    decode_capsule,
    encode_capsule,
    within_bounds,
)
from appliance.sandbox.failure import Failure
from appliance.sandbox.messages import MAX_STATE_KEYS, MAX_STATE_VALUE
from appliance.sandbox.spec import MAX_MODELS, MAX_SETTING_BYTES, MAX_SETTINGS

DIGEST = "ab" * 32
FAILURE = Failure("trap", "unreachable executed", 7, 1_700_000_000_000_000_000, ["0: 0x0000a2 deep"])


def frame(seq: int, payload: bytes = b"x") -> Frame:
    return Frame(1, "camera", seq, 1_700_000_000_000_000_000 + seq, "bytes", payload)


def crash(*frames: Frame) -> Crash:
    return Crash(spec(NOTHING), FAILURE, tuple(Handled(one, {"n": bytes([one.seq])}) for one in frames))


CAPSULE = capsule_of(crash(frame(6), frame(7)), DIGEST)
BYTES = encode_capsule(CAPSULE)


def test_what_a_capsule_holds() -> None:
    assert decode_capsule(BYTES) == CAPSULE
    assert (CAPSULE.handler, CAPSULE.version, CAPSULE.abi, CAPSULE.engine) == ("guest", "1.0.0", "native", "wasm3")
    assert (CAPSULE.module, CAPSULE.settings, CAPSULE.failure) == (DIGEST, {"threshold": "0.5"}, FAILURE)
    assert CAPSULE.models == (CapsuleModel("model", "0" * 64),)
    assert [one.seq for one in CAPSULE.frames] == [6, 7]
    assert CAPSULE.state == {"n": b"\6"}  # before the first of its frames, so that the last finds what it found


def test_payloads_in_memory_that_is_shared_are_copied() -> None:
    whole = b"0123456789"
    assert capsule_of(crash(frame(1, memoryview(whole)[2:4])), DIGEST).frames[0].payload == b"23"


def test_large_frames_leave_room_by_leaving_out_the_oldest() -> None:
    third = bytes(MAX_PAYLOAD_BYTES // 3 + 1)
    capsule = capsule_of(crash(*(frame(n, third) for n in range(4))), DIGEST)
    assert [one.seq for one in capsule.frames] == [2, 3]
    assert capsule.state == {"n": b"\2"}
    assert len(encode_capsule(capsule)) <= MAX_CAPSULE_BYTES


def test_no_more_frames_than_a_capsule_holds_are_kept() -> None:
    kept = ()
    for number in range(9):
        kept = within_bounds((*kept, Handled(frame(number), {})))
        assert [one.frame.seq for one in kept] == list(range(max(0, number - CAPSULE_FRAMES + 1), number + 1))


def test_the_largest_frame_fits_alone() -> None:
    assert MAX_PAYLOAD_BYTES >= wire.MAX_PAYLOAD_BYTES


frames = st.builds(
    CapsuleFrame,
    st.integers(0, 2**32 - 1),
    st.just("camera"),
    st.integers(0, 2**63 - 1),
    st.integers(0, 2**63 - 1),
    st.sampled_from(sorted(FORMATS)),
    st.integers(0, 16_384),
    st.integers(0, 16_384),
    st.binary(max_size=50),
)
capsules = st.builds(
    Capsule,
    handler=st.from_regex(r"[a-z0-9]{1,64}", fullmatch=True),
    version=st.text(max_size=20),
    abi=st.just("native"),
    engine=st.just("wasm3"),
    module=st.just(DIGEST),
    settings=st.dictionaries(st.text(max_size=9), st.text(max_size=9), max_size=4),
    state=st.dictionaries(st.text(min_size=1, max_size=9), st.binary(max_size=9), max_size=4),
    models=st.lists(st.builds(CapsuleModel, st.text(max_size=9), st.just(DIGEST)), max_size=3).map(tuple),
    failure=st.builds(Failure, st.sampled_from(["trap", "crash"]), st.text(max_size=9), st.none() | st.integers(0, 9)),
    frames=st.lists(frames, min_size=1, max_size=CAPSULE_FRAMES).map(tuple),
)


@given(capsules)
def test_capsules_come_back(capsule: Capsule) -> None:
    assert decode_capsule(encode_capsule(capsule)) == capsule


@given(st.binary(max_size=300))
def test_any_bytes_at_all(data: bytes) -> None:
    with pytest.raises(ConfigError, match="not a crash capsule"):
        decode_capsule(data)


@given(st.integers(0, len(BYTES) - 1), st.binary(min_size=1, max_size=4))
def test_a_capsule_with_other_bytes_in_it_is_a_capsule_or_refused(at: int, other: bytes) -> None:
    with suppress(ConfigError):
        decode_capsule(BYTES[:at] + other + BYTES[at + len(other) :])


@given(st.integers(0, len(BYTES) - 1))
def test_a_capsule_that_was_cut(length: int) -> None:
    with pytest.raises(ConfigError, match="not a crash capsule"):
        decode_capsule(BYTES[:length])


PLAIN: dict[str, Any] = msgspec.to_builtins(CAPSULE, builtin_types=(bytes,))
ONE_FRAME = PLAIN["frames"][0]
WRONG: list[tuple[str, dict[str, Any]]] = [
    ("another version of the format", {"capsule": 2}),
    ("a name that is a path", {"handler": "../../etc"}),
    ("a digest that is none", {"module": "x"}),
    ("no frame", {"frames": []}),
    ("too many frames", {"frames": [ONE_FRAME] * (CAPSULE_FRAMES + 1)}),
    ("a frame of no format", {"frames": [ONE_FRAME | {"format": "exe"}]}),
    ("a frame with a side below 0", {"frames": [ONE_FRAME | {"width": -1}]}),
    ("a payload that is text", {"frames": [ONE_FRAME | {"payload": "text"}]}),
    ("a tag beyond all tags", {"frames": [ONE_FRAME | {"tag": 1 << 32}]}),
    ("a number beyond all numbers", {"frames": [ONE_FRAME | {"seq": 1 << 63}]}),
    ("too many settings", {"settings": {str(n): "" for n in range(MAX_SETTINGS + 1)}}),
    ("too long a setting", {"settings": {"a": "x" * (MAX_SETTING_BYTES + 1)}}),
    ("too much state", {"state": {str(n): b"" for n in range(MAX_STATE_KEYS + 1)}}),
    ("too long a value of state", {"state": {"a": bytes(MAX_STATE_VALUE + 1)}}),
    ("too many models", {"models": [PLAIN["models"][0]] * (MAX_MODELS + 1)}),
    ("an unknown kind of failure", {"failure": PLAIN["failure"] | {"kind": "boredom"}}),
    ("too long a backtrace", {"failure": PLAIN["failure"] | {"backtrace": [""] * 9}}),
    ("an unknown key", {"extra": 1}),
]


@pytest.mark.parametrize("change", [change for _, change in WRONG], ids=[name for name, _ in WRONG])
def test_every_bound_is_kept(change: dict[str, Any]) -> None:
    assert decode_capsule(cbor2.dumps(PLAIN)) == CAPSULE
    with pytest.raises(ConfigError, match="not a crash capsule"):
        decode_capsule(cbor2.dumps(PLAIN | change))


def test_a_file_over_the_limit_is_not_even_decoded() -> None:
    with pytest.raises(ConfigError, match="over the limit"):
        decode_capsule(bytes(MAX_CAPSULE_BYTES + 1))


def test_the_largest_capsule_is_within_the_limit() -> None:
    large = replace(
        spec(NOTHING),
        settings={f"{n:0>64}": "x" * MAX_SETTING_BYTES for n in range(MAX_SETTINGS)},
        models=spec(NOTHING, models=MAX_MODELS).models,
    )
    state = {f"{n:0>64}": bytes(MAX_STATE_VALUE) for n in range(MAX_STATE_KEYS)}
    handled = tuple(Handled(frame(n, bytes(MAX_PAYLOAD_BYTES // 4)), state) for n in range(4))
    data = encode_capsule(capsule_of(Crash(large, FAILURE, handled), DIGEST))
    assert len(decode_capsule(data).frames) == 4
