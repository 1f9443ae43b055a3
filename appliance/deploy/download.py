"""Files by their digest, in retained chunks over MQTT. What came before a restart is not asked for again."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from appliance.deploy.fleet_topics import FleetTopics
from appliance.deploy.store import Store

STALL_SECONDS = 60.0
"""Without anything new for so long, a download has failed."""


class Incoming(Protocol):
    """A message as it comes in."""

    @property
    def topic(self) -> str: ...
    @property
    def payload(self) -> bytes: ...


class Ears(Protocol):
    """Where messages are heard; filters stay in force over connections."""

    def listen(self, filters: Iterable[str], on_message: Callable[[Incoming], None]) -> None: ...
    def ignore(self, filters: Iterable[str]) -> None: ...


class Downloads:
    """Fetches files into the store, several at a time."""

    def __init__(self, topics: FleetTopics, ears: Ears, store: Store) -> None:
        raise NotImplementedError

    async def fetch(self, digest: str, length: int, on_progress: Callable[[int], None]) -> Path:
        """The file, verified; ``on_progress`` is told how many bytes are there.

        PeerError where what comes is not this file, or nothing came for STALL_SECONDS. DeviceError: the disk.
        """
        raise NotImplementedError
