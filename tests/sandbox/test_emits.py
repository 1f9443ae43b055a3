import json

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.sandbox.emits import EmitError, Emits
from appliance.sandbox.messages import MAX_DOCUMENT_BYTES, MAX_EMIT_BYTES, MAX_EMITS, Emit, Errno

TAG = 0x10
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(VALUES, st.sampled_from(["cbor", "json"]))
def test_documents_pass(value: object, format: str) -> None:
    payload = cbor2.dumps(value) if format == "cbor" else json.dumps(value).encode()
    emits = Emits({TAG})
    emits.add(Emit(TAG, format, payload))
    assert emits.frames == [Emit(TAG, format, payload)]


@given(st.binary(max_size=200), st.sampled_from(["cbor", "json"]))
def test_any_bytes_are_a_document_or_refused(payload: bytes, format: str) -> None:
    emits = Emits({TAG})
    try:
        emits.add(Emit(TAG, format, payload))
    except EmitError as error:
        assert error.code == Errno.EINVAL
        assert not emits.frames


def test_what_was_refused_takes_no_room() -> None:
    emits = Emits({TAG})
    for _ in range(3):
        with pytest.raises(EmitError):
            emits.add(Emit(TAG, "json", b"[" * MAX_DOCUMENT_BYTES))
    emits.add(Emit(TAG, "json", b" " * (MAX_DOCUMENT_BYTES - 1) + b"1"))
    with pytest.raises(EmitError, match="about one frame") as refused:
        emits.add(Emit(TAG, "cbor", b"\x01"))
    assert refused.value.code == Errno.ETOOBIG


def test_limits() -> None:
    emits = Emits({TAG, 0xF000})
    for emit, code in (
        (Emit(TAG, "bytes", bytes(MAX_EMIT_BYTES + 1)), Errno.ETOOBIG),
        (Emit(TAG, "gray", b""), Errno.EINVAL),
        (Emit(0x11, "bytes", b""), Errno.EDENIED),
        (Emit(0xF000, "bytes", b""), Errno.EDENIED),  # reserved, whatever a manifest says
    ):
        with pytest.raises(EmitError) as refused:
            emits.add(emit)
        assert refused.value.code == code
    for _ in range(MAX_EMITS):
        emits.add(Emit(TAG, "bytes", bytes(MAX_EMIT_BYTES)))
    with pytest.raises(EmitError, match="more than"):
        emits.add(Emit(TAG, "bytes", b""))
