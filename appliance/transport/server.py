"""The zipper's QUIC endpoint: capped in connections, address validation beyond loopback."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from aioquic.asyncio.server import QuicServer
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import NetworkAddress, QuicConnection

from appliance.errors import DeviceError
from appliance.transport.link import Link, Session, enlarge_buffers, is_loopback, quic_configuration

log = logging.getLogger(__name__)

_LONG_HEADER = 0x80


class CappedServer(QuicServer):
    """aioquic's server with a cap on connections, half-open ones included."""

    def __init__(self, max_connections: int, make_session: Callable[[], Session], **kwargs: Any) -> None:
        super().__init__(create_protocol=self._create, **kwargs)
        self._max_connections = max_connections
        self._make_session = make_session
        self.links: set[Link] = set()
        self.refused = 0

    def _create(self, quic: QuicConnection, stream_handler: None = None) -> Link:
        link = Link(quic, self._make_session(), stream_handler)
        self.links.add(link)
        return link

    def datagram_received(self, data: bytes | str, addr: NetworkAddress) -> None:
        if data and isinstance(data, bytes) and data[0] & _LONG_HEADER and len(self.links) >= self._max_connections:
            # An unknown destination in a long header would open a connection. Its length byte is at 5 (RFC 9000, 17.2).
            destination = data[6 : 6 + data[5]] if len(data) > 6 else b""
            if destination not in self._protocols:
                self.refused += 1
                return
        super().datagram_received(data, addr)

    def _connection_terminated(self, protocol: Any) -> None:
        super()._connection_terminated(protocol)
        self.links.discard(protocol)

    async def stop(self) -> None:
        """Close all connections and wait until their goodbyes are sent."""
        links = list(self.links)
        for link in links:
            link.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                for link in links:
                    await link.wait_closed()
        self.close()


@asynccontextmanager
async def serve(
    host: str,
    port: int,
    certificate: tuple[Path, Path],
    make_session: Callable[[], Session],
    max_connections: int,
) -> AsyncIterator[tuple[CappedServer, int]]:
    """Listen; yields the server and its port (which matters where ``port`` is 0)."""
    configuration: QuicConfiguration = quic_configuration(host, is_client=False)
    configuration.load_cert_chain(*certificate)
    loop = asyncio.get_running_loop()
    try:
        transport, server = await loop.create_datagram_endpoint(
            lambda: CappedServer(
                max_connections, make_session, configuration=configuration, retry=not is_loopback(host)
            ),
            local_addr=(host, port),
        )
    except OSError as error:
        raise DeviceError(
            f"cannot listen on {host}:{port}: {error.strerror}; see zipper.host and zipper.port"
        ) from error
    sock = transport.get_extra_info("socket")
    enlarge_buffers(sock)
    try:
        yield server, sock.getsockname()[1]
    finally:
        await server.stop()
