"""Real QUIC over loopback: sources, sinks and remote handlers against a zipper."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from zipper_on_loopback import CREDENTIAL, Running

from appliance.config import PeerConfig
from appliance.errors import ConfigError, PeerError
from appliance.frame import Frame
from appliance.transport.identity import ensure_certificate
from appliance.transport.peer import Address, DismissedError, RejectedError, join
from appliance.wire import PROTOCOL_VERSION, Goaway, Hello, Report
from appliance.zipper import server as server_module
from appliance.zipper.conversation import SOURCE_CREDITS


def picture(seq: int, *, source: str = "camera", tag: int = 1, size: int = 50_000) -> Frame:
    return Frame(tag, source, seq, 1_000_000, "jpeg", seq.to_bytes(4, "big") * (size // 4), 640, 480)


async def within(awaitable, seconds: float = 10):
    async with asyncio.timeout(seconds):
        return await awaitable


async def test_frames_arrive_whole_and_in_order(running: Running) -> None:
    async with running.observer() as sink, running.source() as source:
        for seq in range(50):
            await within(source.send(picture(seq)))
            got = await within(sink.receive())
            sink.done()
            assert (got.seq, bytes(got.payload)) == (seq, picture(seq).payload)
            assert list(got.spent) == ["transfer"]


async def test_a_sink_that_never_answers_costs_the_others_nothing(running: Running) -> None:
    async with running.observer("stuck", window=1), running.observer("well") as sink, running.source() as source:
        for seq in range(40):
            await within(source.send(picture(seq)))
            assert (await within(sink.receive())).seq == seq
            sink.done()
        stuck = running.zipper.observers["remote/stuck"]
        assert (stuck.in_flight, stuck.counters.offered, stuck.counters.dropped) == (1, 40, 38)
        assert running.zipper.observers["remote/well"].counters.dropped == 0


async def test_lossless_credit_returns_when_every_observer_is_done(running: Running) -> None:
    async with running.observer(window=1) as sink, running.source(lossless=True) as source:
        for seq in range(SOURCE_CREDITS):
            await within(source.send(picture(seq)))
        with pytest.raises(TimeoutError):
            await within(source.credit(), 0.2)
        for seq in range(SOURCE_CREDITS):
            assert (await within(sink.receive())).seq == seq
            sink.done()
        await within(source.settled(SOURCE_CREDITS))


async def test_a_remote_handler_observes_and_emits(running: Running) -> None:
    async with (
        running.observer("doubler", emits=(0x21,)) as handler,
        running.observer("sink", observes=(0x21,)) as sink,
        running.source() as source,
    ):
        await within(source.send(picture(7)))
        frame = await within(handler.receive())
        await within(handler.send(frame.derive(0x21, "json", b"{}")))
        handler.done()
        got = await within(sink.receive())
        assert (got.tag, got.seq, got.payload) == (0x21, 7, b"{}")
        assert got.producer is not None
        assert got.producer.handler == "doubler"


async def test_the_newest_of_a_name_wins(running: Running) -> None:
    async with AsyncExitStack() as stack:
        older = await stack.enter_async_context(running.source())
        newer = await stack.enter_async_context(running.source())
        error = await within(older.gone())
        assert isinstance(error, DismissedError)
        assert error.code == "replaced"
        await within(newer.send(picture(1)))
        await within(newer.settled(SOURCE_CREDITS))
        assert running.door.sources["camera"].connected
        assert running.zipper.totals.received == 1


async def test_a_report_and_the_end_of_a_source_are_known(running: Running) -> None:
    changes: list[tuple[bool, str]] = []
    seen = asyncio.Event()

    def changed(status: server_module.SourceStatus) -> None:
        changes.append((status.connected, status.report.state if status.report else ""))
        if not status.connected:
            seen.set()

    running.door.on_change = changed
    async with running.source() as source:
        source.report(Report("streaming", {"captured": 3}))
    await within(seen.wait())
    assert changes == [(True, ""), (True, "streaming"), (False, "streaming")]
    assert running.door.sources["camera"].closed_reason == "finished"


@pytest.mark.parametrize(
    ("hello", "code"),
    [
        (Hello(99, "source", "camera", CREDENTIAL), "version"),
        (Hello(PROTOCOL_VERSION, "emperor", "camera", CREDENTIAL), "role"),
        (Hello(PROTOCOL_VERSION, "source", "camera", "wrong-credential-here"), "credential"),
        (Hello(PROTOCOL_VERSION, "source", "camera", ""), "credential"),
        (Hello(PROTOCOL_VERSION, "source", "camera", CREDENTIAL, emits=(0xF001,)), "tags"),
    ],
)
async def test_a_bad_hello_is_rejected_with_its_reason(running: Running, hello: Hello, code: str) -> None:
    with pytest.raises(RejectedError, match=rf"\({code}\)"):
        async with join(running.address, hello):
            pass
    assert not running.door.sources


@pytest.fixture
def peers(request: pytest.FixtureRequest) -> tuple[PeerConfig, ...]:
    return (
        PeerConfig(name="north", credential="credential-of-north", roles=("source",), emits=(1,)),
        PeerConfig(name="south", credential="credential-of-south", roles=("sink",), observes=(1,)),
    )


@pytest.mark.parametrize(
    ("hello", "code"),
    [
        (Hello(PROTOCOL_VERSION, "sink", "north", "credential-of-north"), "role"),
        (Hello(PROTOCOL_VERSION, "source", "north", "credential-of-north", emits=(1, 2)), "tags"),
        (Hello(PROTOCOL_VERSION, "source", "north", "credential-of-south", emits=(1,)), "credential"),
        (Hello(PROTOCOL_VERSION, "sink", "south", "credential-of-south", observes=(2,), window=1), "tags"),
    ],
)
async def test_a_credential_is_bound_to_name_role_and_tags(running: Running, hello: Hello, code: str) -> None:
    with pytest.raises(RejectedError, match=rf"\({code}\)"):
        async with join(running.address, hello):
            pass
    async with join(running.address, Hello(PROTOCOL_VERSION, "source", "north", "credential-of-north", emits=(1,))):
        assert running.door.sources["north"].connected


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (picture(0, tag=2), "not among those declared"),
        (picture(0, source="other"), "sent a frame of other"),
    ],
)
async def test_a_frame_that_was_not_declared_ends_the_connection(running: Running, frame: Frame, message: str) -> None:
    async with running.source() as source:
        source.send_now(frame)
        assert message in str(await within(source.gone()))
    assert running.zipper.totals.received == 0


async def test_a_frame_without_credit_ends_the_connection(running: Running) -> None:
    async with running.observer(window=1), running.source(lossless=True) as source:
        for seq in range(SOURCE_CREDITS + 1):
            source.send_now(picture(seq, size=400))
        assert "without credit" in str(await within(source.gone()))


async def test_credit_for_nothing_ends_the_connection(running: Running) -> None:
    async with running.observer() as sink:
        sink.done()
        assert "more frames than were sent" in str(await within(sink.gone()))
    assert "remote/sink" not in running.zipper.observers


async def test_an_observer_that_leaves_releases_its_frames(running: Running) -> None:
    async with running.source(lossless=True) as source:
        async with running.observer(window=1):
            for seq in range(SOURCE_CREDITS):
                await within(source.send(picture(seq)))
        await within(source.settled(SOURCE_CREDITS))


@pytest.mark.slow
async def test_connections_are_capped_and_a_place_becomes_free(running: Running) -> None:
    async with AsyncExitStack() as stack:
        first = [await stack.enter_async_context(running.observer(f"sink{n}")) for n in range(4)]
        with pytest.raises((PeerError, TimeoutError)):
            async with asyncio.timeout(1), running.observer("one-too-many"):
                pass
        assert running.server.refused > 0
        del first
    async with running.observer("later") as later:
        assert later.accepted.done()


async def test_another_certificate_is_refused(running: Running, tmp_path: Path) -> None:
    stranger, _ = ensure_certificate(tmp_path / "stranger")
    hello = Hello(PROTOCOL_VERSION, "source", "camera", CREDENTIAL)
    with pytest.raises(PeerError, match="pinned certificate"):
        async with join(Address("127.0.0.1", running.address.port, stranger), hello):
            pass


@pytest.mark.parametrize("content", [b"", b"\xff" * 500, b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
async def test_a_file_without_a_certificate_is_told(running: Running, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "copied.pem"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"copied\.pem: holds no certificate"):
        async with join(Address("127.0.0.1", running.address.port, file), Hello(PROTOCOL_VERSION, "sink", "a", "b")):
            pass


async def test_silence_after_the_handshake_is_ended(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "HELLO_SECONDS", 0.05)
    monkeypatch.setattr("appliance.transport.peer.Peer.opened", lambda _self, _link: None)
    with pytest.raises(PeerError, match="no hello within"):
        async with running.source():
            pass


async def test_goaway_reaches_peers_when_the_zipper_stops(running: Running) -> None:
    async with running.source() as source:
        for session in list(running.door.sessions.values()):
            session.dismiss("shutdown", "")
        error = await within(source.gone())
        assert isinstance(error, DismissedError)
        assert error.code == "shutdown"


async def test_a_goaway_before_the_hello_is_orderly(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "appliance.transport.peer.Peer.opened", lambda _self, link: link.send_control(Goaway("finished"))
    )
    with pytest.raises(PeerError):
        async with running.source():
            pass
    assert not running.door.sessions


@pytest.mark.parametrize(
    ("stream", "data", "message"),
    [
        (2, b"\x00garbage", "expected an array of two"),
        (2, b"\x82\x5a\x7f\xff\xff\xff", "over the limit"),
        (2, b"\x82\x43\xa1\x01\x02\x40", "malformed frame header"),
        (0, b"\x5a\x7f\xff\xff\xff", "over the limit"),
        (0, b"\x41\xff", "malformed control message"),
    ],
)
async def test_malformed_bytes_cost_one_connection_a_clear_reject(
    running: Running, stream: int, data: bytes, message: str
) -> None:
    async with running.observer() as sink, running.source("good") as good, running.source() as bad:
        link = bad._link
        assert link is not None
        link._quic.send_stream_data(stream, data, end_stream=False)
        link.transmit()
        assert message in str(await within(bad.gone()))
        await within(good.send(picture(3, source="good")))
        assert (await within(sink.receive())).seq == 3
    assert running.zipper.totals.received == 1


async def test_frames_before_the_hello_are_refused(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "appliance.transport.peer.Peer.opened", lambda _self, link: link.send_frame(picture(0, size=400))
    )
    with pytest.raises(PeerError, match="header is out of place"):
        async with running.source():
            pass


async def test_a_frame_that_was_reset_is_forgotten(running: Running) -> None:
    async with running.observer() as sink, running.source() as source:
        link = source._link
        assert link is not None
        stream = link._quic.get_next_available_stream_id(is_unidirectional=True)
        link._quic.send_stream_data(stream, b"\x82", end_stream=False)
        link._quic.reset_stream(stream, 0)
        await within(source.send(picture(1)))
        assert (await within(sink.receive())).seq == 1
