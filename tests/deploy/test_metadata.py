"""The cache of metadata files, whatever the broker sends."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.deploy import metadata
from appliance.deploy.fleet_topics import MAX_METADATA_BYTES
from appliance.deploy.metadata import MAX_METADATA_FILES, MetadataCache
from appliance.deploy.trust import MAX_DELEGATIONS, MAX_ROOT_ROTATIONS


def test_files_come_are_replaced_and_go() -> None:
    cache = MetadataCache()
    assert cache.received("timestamp.json", b"1")
    assert not cache.received("timestamp.json", b"1")
    before = cache.snapshot()
    assert cache.received("timestamp.json", b"2")
    assert (before["timestamp.json"], cache.snapshot()["timestamp.json"]) == (b"1", b"2")
    assert cache.received("timestamp.json", b"")
    assert not cache.received("timestamp.json", b"")
    assert cache.snapshot() == {}


def test_a_file_that_is_too_long_is_ignored(caplog: pytest.LogCaptureFixture) -> None:
    cache = MetadataCache()
    cache.received("timestamp.json", b"good")
    with caplog.at_level(logging.WARNING):
        assert not cache.received("timestamp.json", bytes(MAX_METADATA_BYTES + 1))
    assert cache.snapshot() == {"timestamp.json": b"good"}
    assert "over the limit" in caplog.text


def test_too_many_files_empty_it_and_it_says_so(caplog: pytest.LogCaptureFixture) -> None:
    cache = MetadataCache()
    for number in range(MAX_METADATA_FILES):
        cache.received(f"{number}.root.json", b"x")
    assert len(cache.snapshot()) == MAX_METADATA_FILES
    with caplog.at_level(logging.WARNING):
        assert cache.received("one-more.json", b"x")
    assert (cache.snapshot(), cache.emptied) == ({}, 1)
    assert "forgotten" in caplog.text
    assert cache.received("timestamp.json", b"1"), "and goes on"


def test_as_many_roots_as_a_box_follows_have_room_with_all_else() -> None:
    roots = [f"{version}.root.json" for version in range(1, MAX_ROOT_ROTATIONS + 2)]
    others = [f"{version}.{role}.json" for role in ("targets", "snapshot") for version in (1, 2)]
    developers = [f"{version}.developer-{number}.json" for number in range(MAX_DELEGATIONS) for version in (1, 2)]
    files = ["timestamp.json", *others, *developers, *roots]
    cache = MetadataCache()
    for file in files:
        cache.received(file, bytes(4 << 10))
    assert set(cache.snapshot()) == set(files)


@given(st.lists(st.tuples(st.sampled_from([f"{n}.json" for n in range(9)]), st.integers(0, 80)), max_size=60))
def test_it_never_holds_more_than_it_may(messages: list[tuple[str, int]]) -> None:
    cache = MetadataCache()
    model: dict[str, bytes] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metadata, "MAX_METADATA_BYTES", 64)
        patch.setattr(metadata, "MAX_CACHED_BYTES", 200)
        patch.setattr(metadata, "MAX_METADATA_FILES", 6)
        for file, length in messages:
            emptied = cache.emptied
            before = dict(cache.snapshot())
            changed = cache.received(file, bytes(length))
            if length <= 64:
                model.pop(file, None)
                model |= {file: bytes(length)} if length else {}
            if cache.emptied > emptied:
                model.clear()
            assert dict(cache.snapshot()) == model
            assert changed == (before != model or cache.emptied > emptied)
            assert len(model) <= 6
            assert sum(len(name) + len(data) for name, data in model.items()) <= 200
