"""docs/wire.md and docs/wire.cddl against the codec and against real traffic.

pycddl 0.6 departs from RFC 8610, and the tests work around it:

* a ``.cbor`` inside an array is applied to every item of it, so the layers of a frame are validated one by one;
* a ``.regexp`` is searched for, not matched from end to end, so anchors are put around it here;
* a range also takes byte strings, a ``.size`` also text and numbers, and a choice of plain types also an array of
  them: the schema refuses these, and so does the codec, but pycddl cannot show it.
"""

import asyncio
import importlib
import re
import socket
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import cbor2
import pytest
from aioquic.quic.connection import QuicConnection
from hypothesis import given
from hypothesis import strategies as st
from pycddl import Schema, ValidationError

from appliance import wire
from appliance.errors import PeerError
from appliance.frame import FORMATS, Frame, ModelRun, Producer
from appliance.transport import client
from appliance.transport.peer import join
from appliance.wire import (
    PROTOCOL_VERSION,
    Accept,
    Control,
    ControlReader,
    Credit,
    FrameReader,
    Goaway,
    Hello,
    Ping,
    Pong,
    Reject,
    Report,
    WireError,
    encode_control,
    encode_frame,
)

sys.path.insert(0, str(Path(__file__).parent / "zipper"))
from zipper_on_loopback import CREDENTIAL, Running, peers, ring, running  # noqa: F401 - fixtures

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "wire.md").read_text("utf-8")
SCHEMA = re.sub(r'\.regexp "(.*)"', r'.regexp "^(\1)$"', (DOCS / "wire.cddl").read_text("utf-8"))
WITHIN = 10.0

MESSAGES = [
    Hello(PROTOCOL_VERSION, "source", "camera", "a-credential-of-tests", emits=(1, 0xFFFF_FFFF), lossless=True),
    Hello(PROTOCOL_VERSION, "sink", "sink", "a-credential-of-tests", observes=(0,), window=64),
    Accept(PROTOCOL_VERSION, "box", 4),
    Accept(PROTOCOL_VERSION, "box", 0, max_payload=1),
    Reject("protocol", "a sentence"),
    Credit(64),
    Goaway("finished"),
    Goaway("shutdown", "the zipper is stopping"),
    Report("streaming", {"captured": 1, "dropped_credit": 2**63 - 1}, "why", 1234, final=True),
    Ping(0),
    Pong(2**63 - 1),
]


def rule(name: str) -> Schema:
    return Schema(f"root = {name}\n{SCHEMA}")


HEADER, CONTROL, MESSAGE = rule("header"), rule("control"), rule("message")
ENVELOPE = Schema(re.sub(r"bstr \.(cbor header|size \(.*?\))", "bstr", f"root = frame\n{SCHEMA}"))
"""A frame without what is in its byte strings."""


def validate_frame(data: bytes) -> dict[str, Any]:
    """The header of a frame whose layers all are of the schema."""
    ENVELOPE.validate_cbor(data)
    header = cbor2.loads(data)[0]
    HEADER.validate_cbor(header)
    return dict(cbor2.loads(header))


def refused(schema: Schema, value: object) -> bool:
    try:
        schema.validate_cbor(cbor2.dumps(value))
    except ValidationError:
        return True
    return False


# --- what the codec makes is of the schema ------------------------------------------------------------------

names = st.from_regex(r"[a-z0-9]([a-z0-9_-]{0,20}[a-z0-9])?", fullmatch=True)
texts = st.text(max_size=40)
counts = st.integers(0, 2**63 - 1)
runs = st.builds(ModelRun, model=texts, digest=texts, runtime=texts, device=texts)
frames = st.builds(
    Frame,
    tag=st.integers(0, 2**32 - 1),
    source=names,
    seq=counts,
    captured_ns=counts,
    format=st.sampled_from(sorted(FORMATS)),
    payload=st.binary(max_size=300),
    width=st.integers(0, 16384),
    height=st.integers(0, 16384),
    meta=st.dictionaries(texts, texts | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(), max_size=4),
    spent=st.dictionaries(texts, counts, max_size=4),
    producer=st.none() | st.builds(Producer, handler=names, version=texts, models=st.tuples() | st.tuples(runs, runs)),
)


@given(frames)
def test_every_frame_the_codec_makes_is_of_the_schema(frame: Frame) -> None:
    assert validate_frame(encode_frame(frame))["seq"] == frame.seq


@pytest.mark.parametrize("message", MESSAGES, ids=repr)
def test_every_kind_of_control_message_is_of_the_schema(message: Control) -> None:
    CONTROL.validate_cbor(encode_control(message))


def test_no_kind_of_control_message_is_forgotten() -> None:
    assert {type(message) for message in MESSAGES} == set(Control.__args__)


# --- what is not of the protocol is not of the schema -------------------------------------------------------

PLAIN_HEADER = {"tag": 1, "source": "camera", "seq": 0, "time": 0, "format": "jpeg"}
PLAIN_HELLO = {"type": "hello", "version": 1, "role": "source", "name": "camera", "credential": "x"}
RUN = {"model": "m", "digest": "d", "runtime": "r", "device": "cpu"}


@pytest.mark.parametrize(
    "change",
    [
        {"tag": 2**32},
        {"tag": -1},
        {"tag": "1"},
        {"tag": None},
        {"source": ""},
        {"source": "Camera"},
        {"source": "../etc"},
        {"source": "-camera"},
        {"source": 1},
        {"seq": -1},
        {"seq": 2**63},
        {"seq": 1.5},
        {"time": "0"},
        {"format": "gif"},
        {"width": 16385},
        {"meta": {"a": None}},
        {"meta": {1: 1}},
        {"meta": {str(n): 1 for n in range(17)}},
        {"spent": {"transfer": -1}},
        {"producer": {"handler": "h"}},
        {"producer": {"handler": "h", "version": "1", "models": [RUN] * 9}},
        {"producer": {"handler": "h", "version": "1", "models": [RUN | {"device": 1}]}},
        {"surprise": 1},
    ],
    ids=repr,
)
def test_a_wrong_header_is_refused_by_schema_and_codec(change: dict[str, object]) -> None:
    header = PLAIN_HEADER | change
    assert refused(HEADER, header)
    inner = cbor2.dumps(header)
    with pytest.raises(WireError):
        FrameReader().feed(cbor2.dumps([inner, b""]), fin=True)


@pytest.mark.parametrize("key", PLAIN_HEADER)
def test_no_key_of_a_header_may_be_missing(key: str) -> None:
    assert not refused(HEADER, PLAIN_HEADER)
    assert refused(HEADER, {name: value for name, value in PLAIN_HEADER.items() if name != key})


@pytest.mark.parametrize("envelope", [[b"", "text"], [b""], [b"", b"", b""], {"header": b""}, b""], ids=repr)
def test_a_frame_is_two_byte_strings(envelope: object) -> None:
    assert refused(ENVELOPE, envelope)


@pytest.mark.parametrize(
    "message",
    [
        {"type": "credit", "frames": 0},
        {"type": "credit", "frames": 65},
        {"type": "credit", "frames": "1"},
        {"type": "credit"},
        {"type": "ping", "nonce": -1},
        {"type": "ping", "nonce": 1, "more": 1},
        {"type": "surprise", "nonce": 1},
        {"nonce": 1},
        PLAIN_HELLO | {"name": "Camera"},
        PLAIN_HELLO | {"emits": [2**32]},
        PLAIN_HELLO | {"emits": [-1]},
        PLAIN_HELLO | {"emits": 1},
        PLAIN_HELLO | {"emits": list(range(65))},
        PLAIN_HELLO | {"window": 65},
        PLAIN_HELLO | {"lossless": 1},
        PLAIN_HELLO | {"surprise": 1},
        {"type": "accept", "version": 1, "device": "box", "credits": 65},
        {"type": "report", "state": "streaming", "counters": {"captured": -1}},
        {"type": "report", "state": "streaming", "counters": {str(n): 1 for n in range(33)}},
        {"type": "report", "state": "streaming"},
    ],
    ids=repr,
)
def test_a_wrong_message_is_refused_by_schema_and_codec(message: dict[str, object]) -> None:
    assert refused(MESSAGE, message)
    assert refused(CONTROL, cbor2.dumps(message))
    with pytest.raises(WireError):
        ControlReader().feed(cbor2.dumps(cbor2.dumps(message)))


def test_a_role_that_is_none_is_not_of_the_schema() -> None:
    assert not refused(MESSAGE, PLAIN_HELLO)
    assert refused(MESSAGE, PLAIN_HELLO | {"role": "emperor"})  # the zipper's answer: reject, with code `role`


scalars = st.none() | st.booleans() | st.integers(-(2**64), 2**64 - 1) | st.floats() | st.text(max_size=6)
changes = st.dictionaries(
    st.sampled_from([*PLAIN_HEADER, "width", "height", "meta", "spent", "producer", "more"]),
    scalars | st.dictionaries(st.text(max_size=6), scalars, max_size=3),
    max_size=3,
)


@given(changes)
def test_what_the_schema_takes_the_codec_takes(change: dict[str, object]) -> None:
    header = PLAIN_HEADER | change
    if not refused(HEADER, header):
        assert FrameReader().feed(cbor2.dumps([cbor2.dumps(header), b""]), fin=True) is not None


# --- real traffic -------------------------------------------------------------------------------------------


class Recording:
    """Every byte that either end of any connection gives to QUIC, by connection, direction and stream."""

    def __init__(self) -> None:
        self.streams: defaultdict[tuple[QuicConnection, int], bytearray] = defaultdict(bytearray)
        self.ended: set[tuple[QuicConnection, int]] = set()
        self._changed = asyncio.Event()

    def wrote(self, connection: QuicConnection, stream: int, data: bytes, *, ended: bool) -> None:
        key = connection, stream
        self.streams[key] += data
        if ended:
            self.ended.add(key)
        self._changed.set()

    def frames(self) -> list[bytes]:
        return [bytes(self.streams[key]) for key in self.ended]

    def control(self) -> list[bytes]:
        """Each item on every control stream, its head included."""
        items = []
        for (_, stream), data in self.streams.items():
            rest = bytes(data) if stream == 0 else b""
            while rest:
                item = cbor2.dumps(cbor2.loads(rest))
                assert rest.startswith(item)
                items.append(item)
                rest = rest[len(item) :]
        return items

    def kinds(self) -> set[str]:
        return {cbor2.loads(cbor2.loads(item))["type"] for item in self.control()}

    async def until(self, enough: Callable[[], bool]) -> None:
        async with asyncio.timeout(WITHIN):
            while not enough():
                self._changed.clear()
                await self._changed.wait()


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> Recording:
    recording = Recording()
    send = QuicConnection.send_stream_data

    def recorded(quic: QuicConnection, stream_id: int, data: bytes, end_stream: bool = False) -> None:
        recording.wrote(quic, stream_id, data, ended=end_stream)
        send(quic, stream_id, data, end_stream)

    monkeypatch.setattr(QuicConnection, "send_stream_data", recorded)
    monkeypatch.setattr(client, "PING_SECONDS", 0.05)
    return recording


async def test_a_whole_conversation_is_of_the_schema(running: Running, recording: Recording) -> None:  # noqa: F811
    picture = Frame(1, "camera", 3, 10**18, "jpeg", bytes(70_000), 640, 480, {"truth": "ok"}, {"held": 5})
    async with asyncio.timeout(WITHIN), running.observer("doubler", emits=(0x21,)) as handler:
        async with running.observer("sink", observes=(0x21,)) as sink, running.source() as source:
            await source.send(picture)
            observed = await handler.receive()
            await handler.send(observed.derive(0x21, "cbor", cbor2.dumps({"n": 1})))
            handler.done()
            await sink.receive()
            sink.done()
            source.report(Report("streaming", {"captured": 4}, memory_kb=50_000))
            await recording.until(lambda: "pong" in recording.kinds())
        with suppress(PeerError):
            async with join(running.address, Hello(PROTOCOL_VERSION, "sink", "stranger", "not-the-credential")):
                pass
    for item in recording.control():
        CONTROL.validate_cbor(item)
    assert recording.kinds() == {str(kind.__struct_config__.tag) for kind in Control.__args__}
    headers = [validate_frame(data) for data in recording.frames()]
    assert sorted(header["tag"] for header in headers) == [1, 1, 0x21, 0x21]  # each once to the zipper, once from it
    assert any("producer" in header for header in headers)
    assert CREDENTIAL.encode() in b"".join(recording.control())  # the recording is of the real thing


@pytest.fixture
async def lonely_peer(running: Running) -> AsyncIterator[asyncio.subprocess.Process]:  # noqa: F811
    """The peer of docs/wire.md, which uses nothing of this project."""
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()
    except OSError:
        pytest.skip("aioquic's connect() needs IPv6")
    (source,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    address = running.address
    arguments = [address.host, str(address.port), str(address.certificate), CREDENTIAL, "0x01", "0x12"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", source, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def test_the_peer_on_the_page_works(
    running: Running,  # noqa: F811
    lonely_peer: asyncio.subprocess.Process,
) -> None:
    output = lonely_peer.stdout
    assert output is not None
    assert "appliance" not in re.findall(r"^(?:from|import) (\w+)", PAGE, re.MULTILINE)
    async with asyncio.timeout(WITHIN):
        assert (await output.readline()).startswith(b"control {'type': 'accept'")
        observer = running.zipper.observers["remote/example"]
        for seq in range(10):  # more than its window: its credits must come back
            running.zipper.receive(Frame(1, "camera", seq, 0, "jpeg", bytes(50_000), 640, 480))
            line = await output.readline()
            assert line.startswith(b"frame {'tag': 1, 'source': 'camera', 'seq': %d," % seq), line
            assert line.rstrip().endswith(b" 50000")
    assert observer.counters.dropped == 0


# --- the page -----------------------------------------------------------------------------------------------


def examples() -> list[bytes]:
    """The annotated examples without their annotations."""
    blocks = re.findall(r"```hex\n(.*?)```", PAGE, re.DOTALL)
    return [bytes.fromhex(re.sub(r"#.*", "", block)) for block in blocks]


def test_the_examples_are_what_the_codec_makes() -> None:
    frame, hello, accept = examples()
    about = Frame(0x20, "camera", 7, 1_767_225_600 * 10**9, "json", b'{"dark":true}', spent={"transfer": 512})
    assert frame == encode_frame(about)
    assert FrameReader().feed(frame, fin=True) == about
    assert hello == encode_control(Hello(1, "source", "camera", "local-secret-0001", emits=(1,)))
    assert accept == encode_control(Accept(1, "box", 4))


def test_the_examples_are_of_the_schema() -> None:
    frame, *control = examples()
    validate_frame(frame)
    for item in control:
        CONTROL.validate_cbor(item)


def test_the_limits_on_the_page_are_those_in_the_code() -> None:
    rows = re.findall(r"^\| `([a-z.]+)\.([A-Z_]+)` \| ([\d,]+) \|", PAGE, re.MULTILINE)
    told = {(module, name): int(value.replace(",", "")) for module, name, value in rows}
    real = {(module, name): getattr(importlib.import_module(f"appliance.{module}"), name) for module, name in told}
    assert told == real
    assert {name for name in vars(wire) if name.startswith("MAX_")} <= {name for _, name in told}


def test_the_limits_in_the_schema_are_those_in_the_code() -> None:
    upper = {int(limit) for limit in re.findall(r"(?:0|1)(?:\.\.|\*)(\d+)", SCHEMA)}
    assert upper == {
        wire.MAX_PAYLOAD_BYTES,
        wire.MAX_TAG,
        wire.MAX_SIDE,
        wire.MAX_WINDOW,
        wire.MAX_META_ENTRIES,
        wire.MAX_STAGES,
        wire.MAX_MODEL_RUNS,
        wire.MAX_COUNTERS,
        (1 << 63) - 1,
        4 * wire.MAX_META_TEXT,
    }
    assert f"at most {wire.MAX_HEADER_BYTES} bytes" in SCHEMA
    assert f"at most {wire.MAX_CONTROL_BYTES} bytes" in SCHEMA


def test_every_message_and_every_key_is_on_the_page() -> None:
    for kind in Control.__args__:
        config = kind.__struct_config__
        row = next(line for line in PAGE.splitlines() if line.startswith("| `") and f"`{config.tag}`" in line)
        for key in kind.__struct_fields__:
            assert f"`{key}`" in row, (config.tag, key)


def test_every_code_in_the_code_is_on_the_page() -> None:
    text = "".join(path.read_text("utf-8") for path in (DOCS.parent / "appliance").rglob("*.py"))
    codes = {*re.findall(r"RefusedError\(\"(\w+)\"", text), *re.findall(r"(?:dismiss|Goaway)\(\"(\w+)\"", text)}
    assert {"credential", "shutdown"} <= codes
    assert codes <= set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE))
