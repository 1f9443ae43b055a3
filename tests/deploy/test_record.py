from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.deploy import events as ev
from appliance.deploy.desired import MAX_DESIRED_BYTES, Assignment
from appliance.deploy.machine import step
from appliance.deploy.record import (
    MAX_BAD,
    MAX_RECORD_BYTES,
    Bad,
    Record,
    Slot,
    Trial,
    decode_record,
    encode_record,
    one_line,
    slot_of,
)
from appliance.deploy.report import MAX_REASON, HandlerState
from appliance.deploy.store import MAX_RECORD_BYTES as STORED_BYTES
from appliance.errors import DeviceError

DIGEST = "a" * 64
SLOT = Slot(version="1.0.0", digest=DIGEST, settings={"volume": "11"}, observes=(1, 2))
BAD = Bad(digest=DIGEST, version="1.0.0", state="refused", reason="3 faults", changes=SLOT.changes)
RECORD = Record(
    handler="parts",
    state="canary",
    since_ns=1,
    active=SLOT,
    previous=Slot(version="0.9.0", digest="b" * 64),
    candidate=Slot(version="1.1.0", digest="c" * 64),
    trial=Trial(since_ns=5, boots=2),
    bad=(BAD,),
)


def test_a_record_comes_back() -> None:
    assert decode_record(encode_record(RECORD), "parts") == RECORD


def test_the_largest_record_is_within_its_bound() -> None:
    settings = {f"{number:04}": "\x01" for number in range(MAX_DESIRED_BYTES // 16)}
    slots = [Slot(version="1.0.0", digest=digit * 64, settings=settings) for digit in "123"]
    bad = Bad(digest=DIGEST, version="1.0.0", state="rolled-back", reason="\U0001f980" * MAX_REASON, changes=DIGEST)
    record = Record(
        handler="p" * 64,
        state="rolled-back",
        reason="\U0001f980" * MAX_REASON,
        active=slots[0],
        previous=slots[1],
        candidate=slots[2],
        trial=Trial(since_ns=2**63 - 1),
        bad=(bad,) * MAX_BAD,
    )
    assert len(encode_record(record)) <= MAX_RECORD_BYTES <= STORED_BYTES
    assert decode_record(encode_record(record), "p" * 64) == record


def test_a_larger_one_is_not_read() -> None:
    with pytest.raises(DeviceError, match="over the limit"):
        decode_record(b" " * (MAX_RECORD_BYTES + 1), "parts")


@given(st.integers(0, len(encode_record(RECORD)) - 1))
def test_a_record_that_is_cut_is_none(length: int) -> None:
    with pytest.raises(DeviceError, match="not a record"):
        decode_record(encode_record(RECORD)[:length], "parts")


@given(st.binary(max_size=200))
def test_anything_else_is_none(data: bytes) -> None:
    with pytest.raises(DeviceError):
        decode_record(data, "parts")


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("handler", "door", "it is of door"),
        ("candidate", None, "canary, and no candidate"),
        ("active", None, "nothing is active"),
        ("since_ns", 2**63, "since_ns"),
        ("since_ns", -1, "since_ns"),
        ("trial", {"since_ns": 1, "boots": 2**40}, "boots"),
    ],
)
def test_one_that_no_device_has_written_is_none(field: str, value: object, why: str) -> None:
    data = msgspec.json.encode({**msgspec.json.decode(encode_record(RECORD)), field: value})
    with pytest.raises(DeviceError, match=why):
        decode_record(data, "parts")


SLOTS = st.none() | st.sampled_from(
    [Slot(version=f"{n}.0.0", digest=f"{n}" * 64, settings={"s": s} if s else {}) for n in (1, 2) for s in ("", "1")]
)
EVENTS = st.sampled_from(
    [
        ev.Booted(),
        ev.Wanted(SLOT),
        ev.Unwanted(),
        ev.Blocked(SLOT, "expired"),
        ev.Stale("expired"),
        ev.Fetched(),
        ev.Admitted(),
        ev.Kept(),
        ev.Passed(),
        ev.Refused("3 faults"),
        ev.Hindered("the disk is full"),
        ev.Faulted(SLOT, "3 faults"),
        ev.TrialOver(),
        ev.Damaged("1" * 64, "damaged"),
    ]
)


@given(
    st.builds(
        Record,
        handler=st.just("parts"),
        state=st.sampled_from([*get_args(HandlerState), "gone"]),
        active=SLOTS,
        previous=SLOTS,
        proven=st.booleans(),
        candidate=SLOTS,
        trial=st.none() | st.builds(Trial, since_ns=st.just(1), boots=st.integers(0, 5)),
    ),
    st.lists(EVENTS, max_size=6),
)
def test_from_whatever_is_read_the_device_can_go_on(record: Record, events: list[ev.Event]) -> None:
    try:
        record = decode_record(encode_record(record), "parts")
    except DeviceError:
        return
    for event in (ev.Booted(), *events):
        if isinstance(event, ev.Faulted) and record.active is not None:
            event = ev.Faulted(record.active, event.reason)  # noqa: PLW2901 - it is of what runs
        record, _ = step(record, event, 1)
        assert decode_record(encode_record(record), "parts") == record


def test_what_is_in_quarantine_is_so_with_these_settings() -> None:
    assert BAD.is_about(SLOT)
    assert not BAD.is_about(Slot(version="1.0.0", digest=DIGEST))
    assert not BAD.is_about(msgspec.structs.replace(SLOT, digest="b" * 64))


def test_the_order_of_settings_is_no_change() -> None:
    one, two = (
        Slot(version="1.0.0", digest=DIGEST, settings=given) for given in ({"a": "1", "b": "2"}, {"b": "2", "a": "1"})
    )
    assert one.changes == two.changes
    assert one.changes != Slot(version="1.0.0", digest=DIGEST, observes=(1,)).changes


def test_an_assignment_is_a_slot() -> None:
    assignment = Assignment(version="1.0.0", digest=DIGEST, settings={"volume": "11"}, observes=(1, 2))
    assert slot_of(assignment) == SLOT


def test_reasons_fit_and_cannot_steer_a_terminal() -> None:
    assert one_line("a\x1b[31m\nb") == "a [31m b"
    assert len(one_line("x" * 10 * MAX_REASON)) == MAX_REASON
