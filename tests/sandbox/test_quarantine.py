import json
import random
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.sandbox.failure import FAULTS, MAX_MESSAGE, Failure
from appliance.sandbox.messages import GuestFault
from appliance.sandbox.quarantine import (
    FORGIVING_FRAMES,
    MAX_RECORD_BYTES,
    QUARANTINE_STRIKES,
    Quarantined,
    Strikes,
    decode_record,
    encode_record,
)
from appliance.sandbox.session import Fault

KINDS = [kind for part in get_args(Fault) for kind in get_args(part)]
RECORD = Quarantined(
    "parts", "1.0.0", "0" * 64, Failure("trap", "unreachable", 7, 9, ["0: 0x0000a2 deep"], "x.capsule"), "2" * 64
)


def play(share: float, frames: int, seed: int = 1) -> bool:
    """Whether a handler that fails on this share of its frames is out at the end."""
    chance, strikes = random.Random(seed), Strikes()
    for _ in range(frames):
        if chance.random() < share:
            strikes.failed("trap")
        else:
            strikes.handled()
        if strikes.out:
            return True
    return False


def test_every_kind_is_known() -> None:
    assert set(get_args(GuestFault)) < set(KINDS)
    assert set(KINDS) > FAULTS


def test_one_that_fails_on_every_frame_is_out_soon() -> None:
    strikes = Strikes()
    for _ in range(QUARANTINE_STRIKES - 1):
        strikes.failed("trap")
    assert not strikes.out
    strikes.failed("deadline")
    assert strikes.out


def test_one_that_fails_on_more_than_a_twentieth_is_out_in_time() -> None:
    assert all(play(0.10, 5000, seed) for seed in range(5))


def test_one_that_fails_now_and_then_never_is() -> None:
    assert not any(play(0.02, 100_000, seed) for seed in range(3))


def test_good_frames_make_up_for_a_bad_one_but_save_up_nothing() -> None:
    strikes = Strikes()
    for _ in range(1000):
        strikes.handled()
    for _ in range(QUARANTINE_STRIKES - 1):
        strikes.failed("crash")
    for _ in range(FORGIVING_FRAMES):
        strikes.handled()
    strikes.failed("crash")
    assert not strikes.out
    strikes.failed("crash")
    assert strikes.out


@pytest.mark.parametrize("kind", sorted(set(KINDS) - FAULTS))
def test_what_is_not_a_fault_of_the_guest_is_no_strike(kind: Fault) -> None:
    strikes = Strikes()
    for _ in range(10 * QUARANTINE_STRIKES):
        strikes.failed(kind)
    assert not strikes.out


@given(st.lists(st.one_of(st.just("ok"), st.sampled_from(sorted(FAULTS))), max_size=400))
def test_it_takes_at_least_so_many_failures(outcomes: list[Fault]) -> None:
    strikes = Strikes()
    failures = 0
    for outcome in outcomes:
        if outcome == "ok":
            strikes.handled()
        else:
            failures += 1
            strikes.failed(outcome)
        if strikes.out:
            assert failures >= QUARANTINE_STRIKES
            return


def test_a_record_comes_back() -> None:
    assert decode_record(encode_record(RECORD)) == RECORD
    assert RECORD.is_about("1.0.0", "0" * 64, "2" * 64)
    assert not RECORD.is_about("1.0.1", "0" * 64, "2" * 64)
    assert not RECORD.is_about("1.0.0", "1" * 64, "2" * 64)
    assert not RECORD.is_about("1.0.0", "0" * 64, "3" * 64)


def test_a_record_from_before_is_about_whatever_was_changed() -> None:
    before = json.loads(encode_record(RECORD))
    del before["changes"]
    assert decode_record(json.dumps(before).encode()).is_about("1.0.0", "0" * 64, "2" * 64)


def test_the_largest_record_is_within_its_bound() -> None:
    failure = Failure("trap", "\x01" * MAX_MESSAGE, 1 << 63, 1 << 63, ["\x01" * 96] * 8, "x" * 160)
    assert len(encode_record(Quarantined("x" * 64, "1" * 128, "0" * 64, failure, "2" * 64))) <= MAX_RECORD_BYTES


@given(st.integers(0, len(encode_record(RECORD)) - 1))
def test_a_record_that_a_power_cut_has_torn_is_none(length: int) -> None:
    with pytest.raises(ValueError, match="not a record"):
        decode_record(encode_record(RECORD)[:length])


@given(st.binary(max_size=200))
def test_anything_else_is_none(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a record"):
        decode_record(data)
