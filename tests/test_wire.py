"""The codec, fed whole, byte by byte, truncated, trailing, nested, oversize, and with what a fuzzer likes."""

from contextlib import suppress
from dataclasses import replace

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.frame import Frame, ModelRun, Producer
from appliance.wire import (
    MAX_CONTROL_BYTES,
    MAX_HEADER_BYTES,
    MAX_PAYLOAD_BYTES,
    Accept,
    Control,
    ControlReader,
    Credit,
    FrameReader,
    Goaway,
    Hello,
    Ping,
    Reject,
    Report,
    WireError,
    encode_control,
    encode_frame,
    encode_head,
    parse_head,
)

names = st.from_regex(r"[a-z0-9]([a-z0-9_-]{0,20}[a-z0-9])?", fullmatch=True)
texts = st.text(max_size=40)
counts = st.integers(0, 2**63 - 1)
models = st.builds(ModelRun, model=texts, digest=texts, runtime=texts, device=texts)
producers = st.builds(Producer, handler=names, version=texts, models=st.tuples() | st.tuples(models))
frames = st.builds(
    Frame,
    tag=st.integers(0, 2**32 - 1),
    source=names,
    seq=counts,
    captured_ns=counts,
    format=st.sampled_from(["jpeg", "rgb", "gray", "cbor", "json", "bytes"]),
    payload=st.binary(max_size=3000),
    width=st.integers(0, 16384),
    height=st.integers(0, 16384),
    meta=st.dictionaries(texts, texts | st.booleans() | st.integers(-(2**40), 2**40), max_size=5),
    spent=st.dictionaries(texts, counts, max_size=5),
    producer=st.none() | producers,
)
tags = st.lists(st.integers(0, 2**32 - 1), max_size=8).map(tuple)
controls = st.one_of(
    st.builds(
        Hello, version=counts, role=texts.filter(lambda t: len(t) <= 16), name=names, credential=texts, observes=tags
    ),
    st.builds(Accept, version=counts, device=names, credits=st.integers(0, 64)),
    st.builds(Reject, code=texts, message=texts),
    st.builds(Credit, frames=st.integers(1, 64)),
    st.builds(Goaway, code=texts, message=texts),
    st.builds(Report, state=texts, counters=st.dictionaries(texts, counts, max_size=4), final=st.booleans()),
    st.builds(Ping, nonce=counts),
)


def read(data: bytes) -> Frame | None:
    return FrameReader().feed(data, fin=True)


@given(frames)
def test_a_frame_comes_back_whole(frame: Frame) -> None:
    assert read(encode_frame(frame)) == frame


@given(frames)
def test_a_frame_comes_back_byte_by_byte(frame: Frame) -> None:
    data = encode_frame(replace(frame, payload=bytes(frame.payload)[:50]))
    reader = FrameReader()
    for index in range(len(data)):
        assert reader.feed(data[index : index + 1], fin=False) is None
    assert reader.feed(b"", fin=True) == read(data)


@given(frames, st.lists(st.integers(1, 500), max_size=8))
def test_a_frame_comes_back_from_any_pieces(frame: Frame, cuts: list[int]) -> None:
    data = encode_frame(frame)
    reader = FrameReader()
    for cut in cuts:
        assert reader.feed(data[:cut], fin=False) is None
        data = data[cut:]
    assert reader.feed(data, fin=True) == frame


@given(frames, st.data())
def test_a_truncated_frame_is_refused(frame: Frame, data: st.DataObject) -> None:
    encoded = encode_frame(frame)
    with pytest.raises(WireError, match="ended inside"):
        read(encoded[: data.draw(st.integers(0, len(encoded) - 1))])


@given(frames, st.binary(min_size=1, max_size=20))
def test_trailing_bytes_are_refused(frame: Frame, trailing: bytes) -> None:
    with pytest.raises(WireError, match="trail"):
        read(encode_frame(frame) + trailing)


@given(st.binary(max_size=200), st.booleans())
def test_garbage_is_a_frame_or_a_wire_error(data: bytes, prefixed: bool) -> None:
    with suppress(WireError):
        read(b"\x82" + encode_head(len(data)) + data + b"\x40" if prefixed else data)


@given(frames, st.integers(0, 10_000), st.integers(0, 255))
def test_a_flipped_byte_is_a_frame_or_a_wire_error(frame: Frame, position: int, value: int) -> None:
    data = bytearray(encode_frame(frame))
    data[position % len(data)] = value
    with suppress(WireError):
        read(bytes(data))


def header(**changes: object) -> dict[str, object]:
    return {"tag": 1, "source": "camera", "seq": 0, "time": 0, "format": "jpeg"} | changes


def framed(inner: bytes, payload: bytes = b"") -> bytes:
    return b"\x82" + encode_head(len(inner)) + inner + encode_head(len(payload)) + payload


def nested(depth: int) -> object:
    value: object = 0
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        (cbor2.dumps(header(tag=2**32)), "tag"),
        (cbor2.dumps(header(tag=-1)), "tag"),
        (cbor2.dumps(header(source="../etc")), "source"),
        (cbor2.dumps(header(source="")), "source"),
        (cbor2.dumps(header(seq="1")), "seq"),
        (cbor2.dumps(header(format="gif")), "unknown format"),
        (cbor2.dumps(header(width=16385)), "width"),
        (cbor2.dumps(header(surprise=1)), "surprise"),
        (cbor2.dumps(header(meta={str(n): 1 for n in range(17)})), "meta"),
        (cbor2.dumps(header(meta={"a": [1]})), "meta"),
        (cbor2.dumps(header(meta={"a": nested(20)})), "depth"),
        (cbor2.dumps(header())[:-1], "malformed"),
        (cbor2.dumps(header()) + b"\x00", "trail"),
        (b"\xbf\xff", "indefinite"),
        (b"\xa2\x63tag\x01\x63tag\x01", "Duplicate"),
        (cbor2.dumps(cbor2.CBORTag(35, "(a+)+$")), "tags are not accepted"),
        (b"\xa1\x80\x01", "malformed"),
        (b"", "malformed"),
    ],
)
def test_a_bad_header_is_refused_with_its_reason(inner: bytes, message: str) -> None:
    with pytest.raises(WireError, match=message):
        read(framed(inner))


def test_sizes_are_refused_before_the_bytes_arrive() -> None:
    with pytest.raises(WireError, match="header of"):
        FrameReader().feed(b"\x82" + encode_head(MAX_HEADER_BYTES + 1), fin=False)
    start = framed(cbor2.dumps(header()))[:-1]
    with pytest.raises(WireError, match="payload of"):
        FrameReader().feed(start + encode_head(MAX_PAYLOAD_BYTES + 1), fin=False)
    with pytest.raises(WireError, match="control message of"):
        ControlReader().feed(encode_head(MAX_CONTROL_BYTES + 1))


def test_the_header_is_known_before_the_payload() -> None:
    reader = FrameReader()
    data = framed(cbor2.dumps(header(tag=7)), b"x" * 100)
    reader.feed(data[:-100], fin=False)
    assert reader.header is not None
    assert reader.header.tag == 7


@pytest.mark.parametrize("head", [b"\x5f", b"\x5c", b"\x00", b"\x82", b"\x60"])
def test_only_definite_byte_strings_are_accepted(head: bytes) -> None:
    with pytest.raises(WireError):
        parse_head(head, 0)


@given(st.integers(0, 2**32 - 1))
def test_heads_agree_with_cbor2(length: int) -> None:
    assert parse_head(encode_head(length), 0) == (length, len(encode_head(length)))
    if length < 70_000:
        assert cbor2.dumps(b"x" * length).startswith(encode_head(length))


def test_an_oversize_frame_is_not_encoded() -> None:
    frame = Frame(1, "camera", 0, 0, "jpeg", b"")
    with pytest.raises(ValueError, match="payload"):
        encode_frame(replace(frame, payload=bytes(MAX_PAYLOAD_BYTES + 1)))
    with pytest.raises(ValueError, match="header"):
        encode_frame(replace(frame, meta={str(n): "x" * 250 for n in range(40)}))


@given(st.lists(controls, max_size=5), st.integers(1, 40))
def test_control_messages_come_back_from_any_pieces(messages: list[Control], piece: int) -> None:
    data = b"".join(encode_control(message) for message in messages)
    reader = ControlReader()
    got = [m for start in range(0, len(data), piece) for m in reader.feed(data[start : start + piece])]
    assert got == messages


@given(st.binary(max_size=100))
def test_garbage_control_is_messages_or_a_wire_error(data: bytes) -> None:
    for stream in (encode_head(len(data)) + data, data):
        with suppress(WireError):
            ControlReader().feed(stream)


def test_a_credential_is_not_in_the_repr() -> None:
    assert "s3cret" not in repr(Hello(version=1, role="source", name="a", credential="s3cret"))
