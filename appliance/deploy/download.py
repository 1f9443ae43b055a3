"""Files by their digest, in retained chunks over MQTT. What came before a restart is not asked for again."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Protocol, TypeVar
from weakref import WeakValueDictionary

from appliance.deploy.chunks import Assembly
from appliance.deploy.fleet_topics import FleetTopics
from appliance.deploy.partial_file import PartialFile
from appliance.deploy.store import Store
from appliance.errors import PeerError

STALL_SECONDS = 60.0
"""Without anything new for so long, a download has failed."""
AT_A_TIME = 4
"""Files that are downloaded at a time: what they hold in memory is bounded, and one that stalls holds up no other."""

Result = TypeVar("Result")


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
    """Fetches files into the store, a few at a time."""

    def __init__(self, topics: FleetTopics, ears: Ears, store: Store) -> None:
        self._topics = topics
        self._ears = ears
        self._store = store
        self._turns = asyncio.Semaphore(AT_A_TIME)
        self._files: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """By digest, while somebody wants the file: two who want the same one fetch it once."""

    async def fetch(self, digest: str, length: int, on_progress: Callable[[int], None]) -> Path:
        """The file, verified; ``on_progress`` is told how many bytes are there.

        PeerError where what comes is not this file, or nothing came for STALL_SECONDS. DeviceError: the disk.
        """
        lock = self._files.setdefault(digest, asyncio.Lock())
        async with lock, self._turns:
            if await asyncio.to_thread(self._store.sound, digest):
                path = self._store.object(digest)
            else:
                path = await self._download(digest, length, on_progress)
        on_progress(length)
        return path

    async def _download(self, digest: str, length: int, on_progress: Callable[[int], None]) -> Path:
        with self._store.incoming(digest, length) as file:
            await _to_its_end(asyncio.to_thread(file.resume))
            assembly = Assembly(digest, length, chunk_bytes=file.chunk_bytes, received=file.received)
            on_progress(assembly.taken)
            try:
                await _Transfer(self._topics, self._ears, digest, assembly).run(file, on_progress)
            except StalledError:
                raise
            except PeerError:
                await _to_its_end(asyncio.to_thread(file.discard))
                raise
            return await _to_its_end(asyncio.to_thread(file.finish))


class StalledError(PeerError):
    """Nothing came. What came before is kept for another try."""


class _Transfer:
    """Asks for the chunks of one file, and writes them as they come."""

    def __init__(self, topics: FleetTopics, ears: Ears, digest: str, assembly: Assembly) -> None:
        self._topics = topics
        self._ears = ears
        self._digest = digest
        self._assembly = assembly
        self._asked: frozenset[int] = frozenset()
        self._news = asyncio.Event()
        self._failure: PeerError | None = None

    async def run(self, file: PartialFile, on_progress: Callable[[int], None]) -> None:
        """Until the file is there. StalledError where nothing comes, PeerError where it is not of this file."""
        try:
            while not self._assembly.done:
                self._ask(self._assembly.wanted())
                await self._next()
                data = self._assembly.take()
                if data and self._assembly.chunk_bytes is not None:
                    await _to_its_end(asyncio.to_thread(file.append, data, self._assembly.chunk_bytes))
                    on_progress(self._assembly.taken)
        finally:
            self._ask(frozenset())

    def _ask(self, wanted: frozenset[int]) -> None:
        if had := self._asked - wanted:
            self._ears.ignore(self._topics.chunk(self._digest, index) for index in sorted(had))
        if new := wanted - self._asked:
            self._ears.listen((self._topics.chunk(self._digest, index) for index in sorted(new)), self._heard)
        self._asked = wanted

    async def _next(self) -> None:
        try:
            async with asyncio.timeout(STALL_SECONDS):
                await self._news.wait()
        except TimeoutError:
            missing = min(self._assembly.wanted())
            raise StalledError(
                f"chunk {missing} of {self._digest} has not come within {STALL_SECONDS:.0f} s; is the broker there, "
                f"and everything published (appliance fleet refresh)?"
            ) from None
        self._news.clear()
        if self._failure is not None:
            raise self._failure

    def _heard(self, message: Incoming) -> None:
        chunk = self._topics.chunk_of(message.topic)
        if chunk is None or chunk[0] != self._digest:
            return
        try:
            accepted = self._assembly.accept(chunk[1], message.payload)
        except PeerError as error:
            self._failure, accepted = error, True
        if accepted:
            self._news.set()


async def _to_its_end(work: Awaitable[Result]) -> Result:
    """What a thread does with a file ends before anybody else may begin: a cancellation waits for it."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # nobody else will ask for it
        raise
