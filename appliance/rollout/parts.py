"""What the deployments of a device's handlers have in common: the parts that carry them out."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol

from appliance.deploy.desired import Assignment, Desired
from appliance.deploy.record import Slot
from appliance.deploy.report import HandlerReport
from appliance.deploy.trust import SignedTarget, VerifiedBundle
from appliance.deploy.watch import Sample
from appliance.sandbox.spec import HandlerSpec

FETCHING = 2
"""Bundles whose files are fetched at a time: fewer than files may be (``deploy/download.py``), so that no document
waits for them; more than one, so that one that does not come is not before all others."""


class Slots(Protocol):
    """What a rollout needs of :class:`appliance.deploy.store.Store`; blocking."""

    def has(self, digest: str) -> bool: ...
    def check_room(self, bundle: VerifiedBundle) -> None: ...
    def stage(self, bundle: VerifiedBundle) -> Path: ...
    def keep(self, bundle: VerifiedBundle) -> Path: ...
    def slot(self, name: str, digest: str) -> Path | None: ...
    def read_record(self, name: str) -> bytes | None: ...
    def write_record(self, name: str, data: bytes) -> None: ...
    def remove_record(self, name: str) -> None: ...


class Fetches(Protocol):
    """:class:`appliance.deploy.download.Downloads`."""

    async def fetch(self, digest: str, length: int, on_progress: Callable[[int], None]) -> Path: ...


class Serves(Protocol):
    """:class:`appliance.serving.Serving`."""

    @property
    def live(self) -> Mapping[str, object]: ...
    @property
    def shadows(self) -> Mapping[str, object]: ...
    async def start(self, spec: HandlerSpec) -> None: ...
    async def stop(self, name: str) -> None: ...
    async def shadow(self, spec: HandlerSpec) -> None: ...
    async def unshadow(self, name: str) -> None: ...
    async def promote(self, name: str) -> None: ...
    def sample(self, name: str, *, shadow: bool = False) -> Sample | None: ...


class Verifies(Protocol):
    """:class:`appliance.deploy.trust.Verified`; blocking."""

    @property
    def versions(self) -> Mapping[str, int]: ...
    @property
    def expires(self) -> datetime: ...
    def target(self, path: str) -> SignedTarget | None: ...
    def desired(self, target: SignedTarget, file: Path) -> Desired: ...
    def bundle(self, name: str, assignment: Assignment, target: SignedTarget, file: Path) -> VerifiedBundle: ...


class Trusts(Protocol):
    """:class:`appliance.deploy.trust.Trust`; blocking."""

    def refresh(self, metadata: Mapping[str, bytes]) -> Verifies: ...


class Stores(Slots, Protocol):
    """:class:`appliance.deploy.store.Store`; blocking."""

    def collect(
        self,
        used: Collection[tuple[str, str]],
        wanted: Collection[str] = (),
        documents: Collection[str] = (),
        unknown: Collection[str] = (),
    ) -> None: ...
    def records(self) -> list[str]: ...


@dataclass(frozen=True)
class Parts:
    """What rollouts have in common."""

    store: Slots
    downloads: Fetches
    serving: Serves
    load: Callable[[Path, str, Slot], HandlerSpec]
    """Of a directory, the handler by name, as it is wanted; blocking."""
    admit: Callable[[HandlerSpec], Awaitable[None]]
    report: Callable[[str, HandlerReport | None], None]
    collect: Callable[[], None]
    """There may be something on the disk that nobody needs any more."""
    fetching: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(FETCHING))
    """Held while fetching, which takes as long as the broker likes: nothing else waits for it."""
    turn: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))
    """Held while admitting, keeping or tidying up: a small device has one core to spare, and one disk."""
