import base64
import json
import math
from pathlib import Path
from typing import Any

import cbor2
import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.cbor import decode_strict
from appliance.errors import HandlerError
from appliance.frame import Frame, ModelRun, Producer
from appliance.mqtt.result import MAX_VALUE_BYTES, encode_result, rfc3339

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "result.schema.json").read_text("utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
RUN = ModelRun("parts", "ab" * 32, "litert 2.3.0", "cpu")
CAPTURED_NS = 1_772_366_400_000_000_001
NOW_NS = CAPTURED_NS + 3_200_999

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 64), (1 << 64) - 1)
    | st.floats()
    | st.text()
    | st.binary(max_size=50)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=5),
    max_leaves=20,
)


def frame(payload: bytes, format: str = "cbor", **changes: Any) -> Frame:
    fields: dict[str, Any] = {
        "tag": 16,
        "source": "camera",
        "seq": 7,
        "captured_ns": CAPTURED_NS,
        "spent": {"capture": 100, "wire": 200, "handle": 3000},
        "producer": Producer("parts", "1.2.3", (RUN,)),
        **changes,
    }
    return Frame(format=format, payload=payload, **fields)


def as_json(value: Any) -> Any:
    """What JSON makes of a value."""
    match value:
        case bytes():
            return base64.b64encode(value).decode()
        case float() if not math.isfinite(value):
            return None
        case list():
            return [as_json(item) for item in value]
        case dict():
            return {key: as_json(item) for key, item in value.items()}
    return value


def decoded(payload: bytes) -> Any:
    document = json.loads(payload)
    VALIDATOR.validate(document)
    return document


def test_the_whole_payload() -> None:
    emitted = frame(cbor2.dumps({"label": "ok", "score": 0.5}), meta={"truth": "ok", "line": 4})
    assert decoded(encode_result(emitted, "box", NOW_NS)) == {
        "v": 1,
        "device": "box",
        "source": "camera",
        "seq": 7,
        "captured": "2026-03-01T12:00:00.000000001Z",
        "captured_ns": CAPTURED_NS,
        "tag": 16,
        "handler": "parts",
        "version": "1.2.3",
        "models": [{"model": "parts", "digest": "ab" * 32, "runtime": "litert 2.3.0", "device": "cpu"}],
        "value": {"label": "ok", "score": 0.5},
        "truth": "ok",
        "meta": {"line": 4},
        "timing_us": {"capture": 100, "wire": 200, "handle": 3000, "total": 3200},
    }


def test_what_is_not_there_is_left_out() -> None:
    document = decoded(encode_result(frame(b"\xf6", spent={}), "box", NOW_NS))
    assert document["value"] is None
    assert document["timing_us"] == {"total": 3200}
    assert not {"truth", "meta", "format"} & set(document)


@given(values)
def test_any_cbor_value_in_either_encoding(value: Any) -> None:
    emitted = frame(cbor2.dumps(value))
    in_json = decoded(encode_result(emitted, "box", NOW_NS))
    assert in_json["value"] == as_json(value)
    in_cbor = decode_strict(encode_result(emitted, "box", NOW_NS, "cbor"))
    assert repr(in_cbor["value"]) == repr(value)  # as text: NaN is not equal to itself
    VALIDATOR.validate({**in_cbor, "value": None})


@given(values)
def test_any_json_value_in_either_encoding(value: Any) -> None:
    value = as_json(value)
    emitted = frame(json.dumps(value).encode(), "json")
    assert decoded(encode_result(emitted, "box", NOW_NS))["value"] == value
    assert decode_strict(encode_result(emitted, "box", NOW_NS, "cbor"))["value"] == value


@given(st.binary(max_size=200), st.sampled_from(["cbor", "json"]), st.sampled_from(["json", "cbor"]))
def test_any_bytes_are_a_payload_or_the_handlers_fault(payload: bytes, emitted: str, format: Any) -> None:
    try:
        encoded = encode_result(frame(payload, emitted), "box", NOW_NS, format)
    except HandlerError:
        return
    if format == "json":
        decoded(encoded)
    else:
        decode_strict(encoded)


@pytest.mark.parametrize("format", ["bytes", "jpeg", "rgb", "gray"])
def test_bytes_are_base64_and_say_what_they_are(format: str) -> None:
    emitted = frame(memoryview(b"\x00\xff\x10"), format)  # type: ignore[arg-type]
    document = decoded(encode_result(emitted, "box", NOW_NS))
    assert (document["format"], base64.b64decode(document["value"])) == (format, b"\x00\xff\x10")
    assert decode_strict(encode_result(emitted, "box", NOW_NS, "cbor"))["value"] == b"\x00\xff\x10"


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("format", "payload", "words"),
    [
        ("cbor", b"", "not valid CBOR"),
        ("cbor", b"\x01\x02", "trail"),
        ("cbor", b"\x9f\x01\xff", "indefinite"),
        ("cbor", b"\xa2\x61a\x01\x61a\x02", "Duplicate"),
        ("cbor", b"\xc1\x00", "tag"),
        ("cbor", b"\xd8\x1c\x81\xd8\x1d\x00", "tag"),
        ("cbor", b"\xf7", "not accepted"),
        ("cbor", b"\xa1\x41a\x01", "not text"),
        ("cbor", b"\xa1\x01\x01", "not valid CBOR"),
        ("cbor", b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff", "not valid CBOR"),
        ("cbor", cbor2.dumps(nested(17)), "depth"),
        ("json", b"", "not valid JSON"),
        ("json", b"{} {}", "Extra data"),
        ("json", b'{"a": 1, "a": 2}', "twice"),
        ("json", b"[NaN]", "NaN"),
        ("json", b"-Infinity", "Infinity"),
        ("json", b"\xff", "not valid JSON"),
        ("json", '"a"'.encode("utf-16"), "not valid JSON"),
        ("json", b"1" * 5000, "not valid JSON"),
        ("json", b"18446744073709551616", "64 bits"),
        ("json", json.dumps(nested(17)).encode(), "nested deeper"),
        ("json", b"[" * 100_000, "nested too deeply"),
        ("json", b'"\\ud800"', "surrogate"),
        ("json", b'{"\\ud800": 1}', "surrogate"),
    ],
)
def test_what_is_refused_and_why(format: str, payload: bytes, words: str) -> None:
    for encoding in ("json", "cbor"):
        with pytest.raises(HandlerError, match=words):
            encode_result(frame(payload, format), "box", NOW_NS, encoding)  # type: ignore[arg-type]


def test_sizes_are_bounded_before_anything_is_decoded() -> None:
    with pytest.raises(HandlerError, match="over the limit"):
        encode_result(frame(b"[" * (MAX_VALUE_BYTES + 1), "json"), "box", NOW_NS)
    assert len(encode_result(frame(bytes(MAX_VALUE_BYTES), "bytes"), "box", NOW_NS)) > MAX_VALUE_BYTES
    control_characters = json.dumps("\x00" * (MAX_VALUE_BYTES // 6 - 2)).encode()
    assert len(encode_result(frame(control_characters, "json"), "box", NOW_NS)) < 2 * MAX_VALUE_BYTES
    many = cbor2.dumps("\x00" * (MAX_VALUE_BYTES - 10))
    with pytest.raises(HandlerError, match="a result of"):
        encode_result(frame(many), "box", NOW_NS)


def test_only_what_a_handler_emitted_is_a_result() -> None:
    with pytest.raises(HandlerError, match="producer"):
        encode_result(frame(b"\xf6", producer=None), "box", NOW_NS)


def test_a_depth_of_sixteen_is_carried() -> None:
    for format, payload in (("cbor", cbor2.dumps(nested(16))), ("json", json.dumps(nested(16)).encode())):
        assert decoded(encode_result(frame(payload, format), "box", NOW_NS))["value"] == nested(16)


@pytest.mark.parametrize("ns", [0, 999_999_999, (1 << 63) - 1])
def test_times(ns: int) -> None:
    text = rfc3339(ns)
    assert len(text) == len("1970-01-01T00:00:00.000000000Z")
    assert text.endswith(f"{ns % 10**9:09d}Z")
