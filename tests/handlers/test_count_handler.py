"""count: counters over what detect finds, kept in state, whatever arrives."""

from collections import Counter
from typing import Any

import cbor2
import pytest
from guest_host import HANDLERS, Guest, Picture
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.cbor import decode_strict
from appliance.sandbox.messages import MAX_STATE_VALUE, Errno

COUNT = (HANDLERS / "count" / "handler.wasm").read_bytes()
MAX_LABELS, MAX_LABEL = 64, 48


def data(payload: bytes, source: str = "camera") -> Picture:
    return Picture(0, 0, tag=0x12, source=source, format="cbor", payload=payload)


def detected(*labels: str, source: str = "camera") -> Picture:
    objects = [{"label": label, "score": 0.5, "box": [1, 2, 300, 400]} for label in labels]
    return data(cbor2.dumps({"objects": objects}), source)


def test_counts_this_frame_the_most_at_once_and_the_frames_seen() -> None:
    guest = Guest(COUNT)
    guest.result(detected("cat", "dog", "cat"))
    assert guest.result(detected("dog")) == {
        "counts": {"dog": 1},
        "max": {"cat": 2, "dog": 1},
        "seen": {"cat": 1, "dog": 2},
        "frames": 2,
    }
    assert guest.result(detected())["counts"] == {}
    assert guest.emits[0].tag == 0x14


def test_counters_survive_a_restart() -> None:
    first = Guest(COUNT)
    first.result(detected("cat", "cat"))
    second = Guest(COUNT, state=first.state)
    assert second.result(detected("cat")) == {
        "counts": {"cat": 1},
        "max": {"cat": 2},
        "seen": {"cat": 2},
        "frames": 2,
    }


def test_sources_are_counted_apart() -> None:
    guest = Guest(COUNT)
    guest.result(detected("cat", source="door"))
    assert guest.result(detected("dog", source="yard"))["seen"] == {"dog": 1}
    assert guest.result(detected(source="door"))["seen"] == {"cat": 1}
    assert guest.state.keys() == {"door", "yard"}


def test_a_frame_that_fails_leaves_no_trace() -> None:
    guest = Guest(COUNT)
    guest.result(detected("cat"))
    before = dict(guest.state)
    assert guest.handle(data(cbor2.dumps({"objects": [{"label": "cat"}, {"score": 1}]}))) == Errno.EINVAL
    assert guest.state == before
    assert len(guest.emits) == 1
    assert "not a result of detect" in guest.lines[-1][1]
    assert guest.result(detected())["frames"] == 2


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        "objects",
        {},
        {"objects": {}},
        {"objects": None},
        {"objects": ["cat"]},
        {"objects": [{"label": None}]},
        {"objects": [{"label": 3}]},
        {"objects": [{1: "cat"}]},
    ],
)
def test_other_documents_are_refused(document: object) -> None:
    assert Guest(COUNT).handle(data(cbor2.dumps(document))) == Errno.EINVAL


def test_members_it_does_not_know_are_passed_over() -> None:
    deep: list[Any] = []
    for _ in range(200):
        deep = [deep]
    document = {"model": {"a": [1, 2, {"b": b"x"}]}, "objects": [{"track": 7, "label": "cat", "x": [1.5]}], "z": deep}
    assert Guest(COUNT).result(data(cbor2.dumps(document)))["counts"] == {"cat": 1}


@pytest.mark.parametrize(("size", "status"), [((40 << 10) - 12, 0), ((40 << 10) + 1, Errno.ETOOBIG)])
def test_the_largest_result_of_detect_is_taken(size: int, status: int) -> None:
    padded = cbor2.dumps({"objects": [], "x": b""})[:-1] + b"\x59" + (size - 12).to_bytes(2, "big") + bytes(size - 12)
    assert Guest(COUNT).handle(data(padded)) == status


def test_more_labels_than_it_keeps_and_longer_ones() -> None:
    guest = Guest(COUNT)
    labels = [f"{index:02d}" + "é" * 30 for index in range(80)]
    assert guest.result(detected(*labels))["frames"] == 1
    for _ in range(30):
        assert guest.handle(detected(*labels, *labels)) == 0
    result = guest.result(detected(*labels))
    kept = [label[:25] for label in labels[:MAX_LABELS]]  # 2 + 23 x 2 = 48 bytes
    assert list(result["seen"]) == kept
    assert set(result["seen"].values()) == {32}
    assert len(guest.state["camera"]) <= MAX_STATE_VALUE


def test_state_that_cannot_be_read_is_replaced_with_a_warning() -> None:
    guest = Guest(COUNT, state={"camera": b"\x82\x05\x83"})
    assert guest.result(detected("cat"))["frames"] == 1
    assert guest.lines == [(30, "the stored counters cannot be read: counting starts anew")]


@pytest.fixture(scope="module")
def guest() -> Guest:
    return Guest(COUNT)


@given(payload=st.binary(max_size=300))
@settings(deadline=None)
def test_any_payload_is_counted_or_refused(guest: Guest, payload: bytes) -> None:
    before = dict(guest.state)
    status = guest.handle(data(payload))
    assert status in (0, Errno.EINVAL)
    assert status == 0 or guest.state == before


leaves = st.none() | st.integers(-9, 9) | st.floats() | st.text(max_size=8) | st.sampled_from(["objects", "label"])
documents = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["objects", "label", "score", "x"]), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(document=documents, cut=st.integers(0, 60), noise=st.binary(max_size=4))
@settings(deadline=None)
def test_documents_that_are_nearly_right_never_trap(guest: Guest, document: object, cut: int, noise: bytes) -> None:
    payload = cbor2.dumps({"objects": document})
    damaged = payload[:cut] + noise + payload[cut + len(noise) :]
    for candidate in (payload, damaged):
        assert guest.handle(data(candidate)) in (0, Errno.EINVAL)


@given(state=st.binary(min_size=1, max_size=200))
@settings(deadline=None)
def test_any_state_is_read_or_replaced(state: bytes) -> None:
    guest = Guest(COUNT, state={"camera": state})
    assert guest.result(detected("cat"))["counts"] == {"cat": 1}
    decode_strict(guest.state["camera"])


@given(frames=st.lists(st.lists(st.sampled_from(["cat", "dog", "naïve ☕", ""]), max_size=6), min_size=1, max_size=8))
@settings(deadline=None)
def test_counters_are_those_of_a_plain_count(frames: list[list[str]]) -> None:
    guest = Guest(COUNT)
    most: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    for number, labels in enumerate(frames, start=1):
        now = Counter(labels)
        most |= now
        seen.update(now.keys())
        assert guest.result(detected(*labels)) == {"counts": now, "max": most, "seen": seen, "frames": number}
