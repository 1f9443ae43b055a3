"""A zipper on loopback, with the real transport."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.config import PeerConfig
from appliance.ipc.ring import RingWriter
from appliance.transport.identity import ensure_certificate
from appliance.transport.peer import Address, Peer, join
from appliance.transport.server import CappedServer
from appliance.wire import PROTOCOL_VERSION, Hello
from appliance.zipper.access import Access
from appliance.zipper.core import Zipper
from appliance.zipper.server import Door, zipper_server

CREDENTIAL = "local-credential-of-the-tests"


@dataclass
class Running:
    zipper: Zipper
    door: Door
    server: CappedServer
    address: Address

    @asynccontextmanager
    async def source(
        self, name: str = "camera", *, emits: tuple[int, ...] = (1,), lossless: bool = False
    ) -> AsyncIterator[Peer]:
        hello = Hello(PROTOCOL_VERSION, "source", name, CREDENTIAL, emits=emits, lossless=lossless)
        async with join(self.address, hello) as peer:
            yield peer

    @asynccontextmanager
    async def observer(
        self, name: str = "sink", *, observes: tuple[int, ...] = (1,), emits: tuple[int, ...] = (), window: int = 8
    ) -> AsyncIterator[Peer]:
        role = "handler" if emits else "sink"
        hello = Hello(PROTOCOL_VERSION, role, name, CREDENTIAL, observes=observes, emits=emits, window=window)
        async with join(self.address, hello) as peer:
            yield peer


@pytest.fixture
def ring() -> Iterator[RingWriter]:
    with RingWriter(4 << 20) as ring:
        yield ring


@pytest.fixture
def peers() -> tuple[PeerConfig, ...]:
    return ()


@pytest.fixture
async def running(tmp_path: Path, ring: RingWriter, peers: tuple[PeerConfig, ...]) -> AsyncIterator[Running]:
    zipper = Zipper(ring)
    door = Door(zipper, Access(peers, CREDENTIAL), "box")
    certificate = ensure_certificate(tmp_path)
    async with zipper_server(door, "127.0.0.1", 0, certificate, max_connections=4) as (server, port):
        yield Running(zipper, door, server, Address("127.0.0.1", port, certificate[0]))
