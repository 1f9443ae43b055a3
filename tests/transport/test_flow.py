"""The sparse-stream attack of aioquic issue 589, mounted on a connection with our limits."""

from pathlib import Path

import pytest
from aioquic.buffer import Buffer, encode_uint_var
from aioquic.quic.connection import QuicConnection, QuicConnectionError
from aioquic.quic.packet import QuicFrameType

from appliance.transport.client import _pinned
from appliance.transport.flow import MAX_OPEN_STREAMS, WINDOW, WINDOW_BEFORE_ACCEPT, SlidingLimit, bound_receive_memory
from appliance.transport.identity import ensure_certificate
from appliance.transport.link import quic_configuration
from appliance.wire import MAX_FRAME_BYTES

CLIENT, SERVER = ("127.0.0.1", 1), ("127.0.0.1", 2)
STREAM_WITH_OFFSET_AND_LENGTH = QuicFrameType.STREAM_BASE | 4 | 2


def exchange(client: QuicConnection, server: QuicConnection, now: float, rounds: int = 10) -> None:
    """Carry datagrams both ways until nothing is left to say."""
    for _ in range(rounds):
        for data, _address in client.datagrams_to_send(now):
            server.receive_datagram(data, CLIENT, now)
        for data, _address in server.datagrams_to_send(now):
            client.receive_datagram(data, SERVER, now)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[QuicConnection, QuicConnection, SlidingLimit]:
    certificate = ensure_certificate(tmp_path)
    client = QuicConnection(configuration=_pinned("127.0.0.1", certificate[0]))
    configuration = quic_configuration("127.0.0.1", is_client=False)
    configuration.load_cert_chain(*certificate)
    server = QuicConnection(
        configuration=configuration, original_destination_connection_id=client.original_destination_connection_id
    )
    limit = bound_receive_memory(server)
    client.connect(SERVER, now=0.0)
    exchange(client, server, 0.0)
    assert server._handshake_confirmed
    return client, server, limit


def sparse(server: QuicConnection, stream: int, offset: int) -> None:
    """One byte far out on a unidirectional stream of the client's."""
    frame = encode_uint_var(stream * 4 + 2) + encode_uint_var(offset) + encode_uint_var(1) + b"x"
    server._handle_stream_frame(None, STREAM_WITH_OFFSET_AND_LENGTH, Buffer(data=frame))


def buffered(server: QuicConnection) -> int:
    return sum(len(stream.receiver._buffer) for stream in server._streams.values())


@pytest.mark.parametrize("window", [WINDOW_BEFORE_ACCEPT, WINDOW])
def test_sparse_streams_never_hold_more_than_the_window(pair, window: int) -> None:
    client, server, limit = pair
    limit.window = window
    refused = 0
    for stream in range(MAX_OPEN_STREAMS):
        for part in (3, 2, 1):
            try:
                sparse(server, stream, min(window, MAX_FRAME_BYTES) // part - 2)
            except QuicConnectionError as error:
                assert "data limit" in error.reason_phrase
                refused += 1
        exchange(client, server, 1.0, rounds=1)  # the moment at which aioquic raises its limits
    assert refused
    assert 0 < buffered(server) <= window


def test_without_our_limit_the_attack_works(pair) -> None:
    """What the test above would see were the limit not there: it can fail."""
    client, server, _ = pair
    plain = QuicConnection(configuration=server.configuration, original_destination_connection_id=b"12345678")
    server._local_max_data = plain._local_max_data
    for stream in range(8):
        sparse(server, stream, MAX_FRAME_BYTES - 2 if stream else 900_000)
        server._local_max_data.value *= 16
    assert buffered(server) > WINDOW
    del client


def test_streams_are_capped(pair) -> None:
    _, server, limit = pair
    limit.window = WINDOW
    sparse(server, MAX_OPEN_STREAMS - 1, 0)
    with pytest.raises(QuicConnectionError, match="Too many streams"):
        sparse(server, MAX_OPEN_STREAMS, 0)


def test_the_window_slides_with_what_is_consumed(pair) -> None:
    client, server, limit = pair
    limit.window = WINDOW
    exchange(client, server, 1.0)
    total = 0
    for _ in range(10):
        stream = client.get_next_available_stream_id(is_unidirectional=True)
        client.send_stream_data(stream, bytes(MAX_FRAME_BYTES // 2), end_stream=True)
        total += MAX_FRAME_BYTES // 2
        for step in range(2000):
            exchange(client, server, 1.0 + step * 0.05, rounds=1)
            while server.next_event() is not None:
                pass
            if server._local_max_data.used == total:
                break
    assert server._local_max_data.used == total > 2 * WINDOW
    assert limit.value - limit.used <= WINDOW
    assert buffered(server) == 0
