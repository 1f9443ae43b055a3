"""Indexes of bundles: written one way, and read without belief."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.deploy.bundle import (
    MAX_BUNDLE_FILES,
    MAX_FILE_BYTES,
    MAX_INDEX_BYTES,
    Bundle,
    BundleFile,
    bundle_target,
    decode_bundle,
    encode_bundle,
)
from appliance.errors import PeerError

DIGEST = "a" * 64
FILES = st.dictionaries(
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
    st.builds(BundleFile, st.from_regex(r"[0-9a-f]{64}", fullmatch=True), st.integers(0, MAX_FILE_BYTES)),
    max_size=20,
)


def document(**changes: object) -> dict[str, object]:
    files = {"handler.toml": {"sha256": DIGEST, "length": 10}}
    return {"v": 1, "name": "detector", "version": "1.0.0", "files": files, **changes}


@given(FILES)
def test_what_is_written_is_read_and_written_the_same(files: dict[str, BundleFile]) -> None:
    bundle = Bundle(name="detector", version="1.0.0", files={**files, "handler.toml": BundleFile(DIGEST, 1)})
    data = encode_bundle(bundle)
    assert decode_bundle(data) == bundle
    assert encode_bundle(decode_bundle(data)) == data
    turned = Bundle(name="detector", version="1.0.0", files=dict(reversed(bundle.files.items())))
    assert encode_bundle(turned) == data
    assert bundle.length == sum(file.length for file in bundle.files.values())


@given(st.binary(max_size=300) | st.text(max_size=100).map(str.encode))
def test_any_bytes_are_an_index_or_the_peers_fault(data: bytes) -> None:
    with pytest.raises(PeerError):
        decode_bundle(data)


@given(st.data())
def test_a_mutated_index_is_one_or_the_peers_fault(data: st.DataObject) -> None:
    right = bytearray(json.dumps(document()).encode())
    at = data.draw(st.integers(0, len(right) - 1))
    right[at] = data.draw(st.integers(0, 255))
    try:
        bundle = decode_bundle(bytes(right))
    except PeerError:
        return
    assert "handler.toml" in bundle.files


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"files": {}}, "files"),
        ({"files": {"other": {"sha256": DIGEST, "length": 1}}}, r"has no handler\.toml"),
        ({"files": {"../x": {"sha256": DIGEST, "length": 1}}}, "files"),
        ({"files": {".index.json": {"sha256": DIGEST, "length": 1}}}, "files"),
        ({"files": {"handler.toml": {"sha256": DIGEST.upper(), "length": 1}}}, "sha256"),
        ({"files": {"handler.toml": {"sha256": DIGEST, "length": -1}}}, "length"),
        ({"files": {"handler.toml": {"sha256": DIGEST, "length": MAX_FILE_BYTES + 1}}}, "length"),
        ({"files": {f"f{n}": {"sha256": DIGEST, "length": 1} for n in range(MAX_BUNDLE_FILES + 1)}}, "files"),
        ({"name": "../x"}, "name"),
        ({"name": "A"}, "name"),
        ({"version": "1"}, "version"),
        ({"version": "1.0.0/../.."}, "version"),
        ({"v": 2}, "v"),
        ({"more": 1}, "more"),
    ],
)
def test_what_is_not_allowed_is_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(PeerError, match=message):
        decode_bundle(json.dumps(document(**changes)).encode())


def test_an_index_has_a_bound() -> None:
    data = json.dumps(document()).encode()
    assert decode_bundle(data.ljust(MAX_INDEX_BYTES))
    with pytest.raises(PeerError, match="over the limit"):
        decode_bundle(data.ljust(MAX_INDEX_BYTES + 1))


def test_a_bundle_has_a_path() -> None:
    assert bundle_target("detector", "1.0.0") == "handlers/detector/1.0.0.json"
