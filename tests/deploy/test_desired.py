"""Desired states: how documents about one device come together."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.deploy.desired import (
    MAX_DEPLOYED,
    MAX_DESIRED_BYTES,
    Assignment,
    Desired,
    decode_desired,
    encode_desired,
    merged,
    targets_of,
)
from appliance.errors import PeerError

ONE, TWO = (Assignment(version=f"{number}.0.0", digest=str(number) * 64) for number in (1, 2))


@given(st.dictionaries(st.from_regex(r"[a-z][a-z0-9]{0,9}", fullmatch=True), st.sampled_from([ONE, TWO, None])))
def test_what_is_written_is_read(handlers: dict[str, Assignment | None]) -> None:
    desired = Desired(handlers=handlers)
    assert decode_desired(encode_desired(desired)) == desired


@given(st.binary(max_size=200))
def test_any_bytes_are_the_peers_fault(data: bytes) -> None:
    with pytest.raises(PeerError):
        decode_desired(b"?" + data)


def test_a_document_has_a_bound() -> None:
    assert decode_desired(b"{}".ljust(MAX_DESIRED_BYTES)) == Desired()
    with pytest.raises(PeerError, match="over the limit"):
        decode_desired(b"{}".ljust(MAX_DESIRED_BYTES + 1))


@pytest.mark.parametrize("data", [b'{"handlers":{"A":null}}', b'{"handlers":{"a":{"version":"1.0.0"}}}', b'{"x":1}'])
def test_what_is_not_allowed_is_refused(data: bytes) -> None:
    with pytest.raises(PeerError, match="not a desired state"):
        decode_desired(data)


def test_a_device_is_in_the_group_of_all_and_its_own_word_is_the_last() -> None:
    assert targets_of("box", ["red", "all", "blue"]) == (
        "groups/all.json", "groups/red.json", "groups/blue.json", "devices/box.json",
    )  # fmt: skip


def test_the_later_document_wins_and_may_take_away() -> None:
    documents = [Desired(handlers={"a": ONE, "b": ONE, "c": ONE}), Desired(handlers={"b": TWO, "c": None})]
    assert merged(documents) == {"a": ONE, "b": TWO}
    assert merged([]) == {}


def test_too_many_handlers_are_the_peers_fault() -> None:
    half = MAX_DEPLOYED // 2 + 1
    documents = [Desired(handlers={f"{letter}{n}": ONE for n in range(half)}) for letter in "ab"]
    with pytest.raises(PeerError, match="over the limit"):
        merged(documents)
