"""The connecting end: pins the zipper's certificate."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from cryptography import x509

from appliance.errors import ConfigError, PeerError
from appliance.transport.identity import SERVER_NAME
from appliance.transport.link import PING_SECONDS, Link, Session, enlarge_buffers, quic_configuration
from appliance.wire import Ping

CONNECT_SECONDS = 5.0
CLOSE_SECONDS = 1.0
MAX_CERTIFICATE_BYTES = 64 << 10


@asynccontextmanager
async def connect(host: str, port: int, certificate: Path, session: Session) -> AsyncIterator[Link]:
    """A connection to the zipper whose certificate is in the file ``certificate``.

    Raises PeerError where nobody answers, or somebody with another certificate. Leaving the block closes it.
    """
    configuration = _pinned(host, certificate)
    loop = asyncio.get_running_loop()
    quic = QuicConnection(configuration=configuration)
    try:
        transport, link = await loop.create_datagram_endpoint(lambda: Link(quic, session), remote_addr=(host, port))
    except OSError as error:
        raise PeerError(f"cannot reach {host}:{port}: {error}") from error
    enlarge_buffers(transport.get_extra_info("socket"))
    try:
        link.connect(transport.get_extra_info("peername"))
        with suppress(TimeoutError):
            async with asyncio.timeout(CONNECT_SECONDS):
                await link.settled.wait()
        if link.down or not link.settled.is_set():
            raise PeerError(f"no zipper with the pinned certificate answers at {host}:{port}")
        keepalive = asyncio.create_task(_keep_alive(link), name="quic keepalive")
        try:
            yield link
        finally:
            keepalive.cancel()
    finally:
        link.close()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await link.wait_closed()
        finally:
            transport.close()
            await asyncio.sleep(0)  # asyncio closes the socket in its next round


def _pinned(host: str, certificate: Path) -> QuicConfiguration:
    """A client configuration that trusts this one certificate and nothing else."""
    configuration = quic_configuration(host, is_client=True)
    configuration.verify_mode = ssl.CERT_REQUIRED
    configuration.server_name = SERVER_NAME
    try:
        with certificate.open("rb") as file:
            pinned = file.read(MAX_CERTIFICATE_BYTES)
        x509.load_pem_x509_certificate(pinned)
    except OSError as error:
        raise ConfigError(f"{certificate}: the zipper's certificate cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{certificate}: holds no certificate; copy the zipper's zipper-cert.pem anew") from error
    configuration.load_verify_locations(cadata=pinned)
    return configuration


async def _keep_alive(link: Link) -> None:
    """Keep the idle timer of both ends from running out, and notice a peer that is gone."""
    nonce = 0
    while True:
        await asyncio.sleep(PING_SECONDS)
        nonce += 1
        link.send_control(Ping(nonce))
