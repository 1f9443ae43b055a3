"""Home Assistant's view of this box, kept true: announced, said again on demand, and taken back.

What was announced is remembered on disk before it is said, so that a later run can take back what is no more, or all of
it where discovery has been switched off meanwhile. Nothing is asked of Home Assistant but that it says when it begins.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import msgspec

from appliance.config import Config
from appliance.device.durable import write_durably
from appliance.device.reading import open_plain
from appliance.mqtt.homeassistant import Box, Document, Handler, documents, fitted
from appliance.mqtt.ledger import Announced, Ledger

log = logging.getLogger(__name__)

REFRESH_SECONDS = 1.0
"""Between two looks at what there is; also the least time between two answers to Home Assistant's beginning."""
MAX_DOCUMENTS = 64
"""Beside the box's own. Further handlers are not announced."""
MAX_MEMORY_BYTES = 4 << 20
BIRTH = b"online"


class Incoming(Protocol):
    """A message, as far as it matters here."""

    @property
    def payload(self) -> bytes: ...


class Ears(Protocol):
    """What hears messages: :class:`appliance.control.Control`."""

    def listen(self, filters: Iterable[str], on_message: Callable[[Incoming], None]) -> None: ...


class Voice(Protocol):
    """What says retained states: :class:`appliance.publisher.Publisher`, told of the discovery prefix."""

    def set_retained(self, topic: str, payload: bytes, *, again: bool = False) -> None: ...
    def clear_retained(self, topic: str) -> None: ...
    def settled(self, topic: str) -> bool: ...


@dataclass(frozen=True, slots=True)
class View:
    """Where to look for what there is; asked again and again, on the loop."""

    handlers: Callable[[], Collection[Handler]]
    """Those that run or are meant to."""
    cameras: Callable[[], Mapping[str, int | None]]
    """Tag of their frames by name, None where it is not known: :func:`cameras_of`. All that may come, also those
    that are not connected: that is a state, not the end of a camera."""
    deployed: Callable[[], Collection[str]] = tuple
    """Handlers that have a report of their deployment."""
    ready: Callable[[], bool] = lambda: True
    """Whether the above is complete: nothing is announced or taken back before."""


class Discovery:
    """One box's discovery. ``on`` may be changed at any time: off means that all is taken back."""

    def __init__(
        self,
        box: Box,
        view: View,
        voice: Voice,
        memory: Path,
        *,
        on: bool,
        ears: Ears | None = None,
        refresh_seconds: float = REFRESH_SECONDS,
    ) -> None:
        """``memory``: the file with what was announced; ``ears``: None where nobody hears Home Assistant begin."""
        self.on = on
        self._box = box
        self._view = view
        self._voice = voice
        self._memory = memory
        self._ears = ears
        self._refresh_seconds = refresh_seconds
        self._told: dict[str, Document] = {}
        self._clearing: set[str] = set()
        self._again = False
        self._complaints: set[str] = set()

    async def __aenter__(self) -> Self:
        self._on_disk = await asyncio.to_thread(_recall, self._memory, self._box)
        self._ledger = Ledger(self._on_disk)
        async with AsyncExitStack() as stack:
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            self._keeping = tasks.create_task(self._keep(), name="discovery")
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """What was announced stays: a box that is off is unavailable, not gone."""
        self._keeping.cancel()
        cancelled = isinstance(error, asyncio.CancelledError)  # as in the publisher: no other error in a group
        await self._stack.__aexit__(*((kind, error, trace) if cancelled else (None, None, None)))

    def _heard(self, message: Incoming) -> None:
        """Home Assistant has begun: its broker may be another one, which knows nothing of us."""
        if bytes(message.payload) == BIRTH:
            self._again = True

    async def _keep(self) -> None:
        while True:
            if self._view.ready():
                await self._refresh()
            await asyncio.sleep(self._refresh_seconds)

    async def _refresh(self) -> None:
        if self.on and self._ears is not None:
            self._ears.listen([self._box.birth_topic], self._heard)  # not before: the broker may not allow it
            self._ears = None
        change = self._ledger.look(self._wanted() if self.on else {}, patient=self.on)
        if not await self._remembered(self._ledger.record):
            return  # said and not remembered, it could not be taken back
        self._say(change.say)
        self._clear(change.clear)

    def _wanted(self) -> dict[str, Document]:
        view = self._view
        handlers = view.handlers()
        if not self._box.readable and any(handler.sensors for handler in handlers):
            self._complain("handlers have no sensors: Home Assistant reads no CBOR, see mqtt.format")
        told = documents(self._box, view.cameras(), handlers, view.deployed())
        if len(told) > MAX_DOCUMENTS:
            self._complain(f"no more than {MAX_DOCUMENTS - 1} handlers are announced")
        return dict(list(told.items())[:MAX_DOCUMENTS])

    def _say(self, documents: dict[str, Document]) -> None:
        again, self._again = self._again, False
        if documents == self._told and not again:
            return
        for topic, document in documents.items():
            smaller, left_out = fitted(document)
            if left_out:
                self._complain(f"{topic} has no room for all entities: fewer sensors or cameras would have")
            self._voice.set_retained(topic, msgspec.json.encode(smaller), again=again)
        self._told = documents
        self._clearing -= documents.keys()

    def _clear(self, topics: Collection[str]) -> None:
        for topic in topics:
            if topic not in self._clearing:
                self._voice.clear_retained(topic)
                self._clearing.add(topic)
            elif self._voice.settled(topic):
                self._clearing.remove(topic)
                self._ledger.cleared(topic)

    async def _remembered(self, record: Announced) -> bool:
        if record != self._on_disk:
            try:
                await asyncio.to_thread(_remember, self._memory, record)
            except OSError as error:
                self._complain(f"{self._memory} cannot be written: {error.strerror}; nothing new is announced")
                return False
            self._on_disk = record
        return True

    def _complain(self, text: str) -> None:
        """Say a thing once."""
        if text not in self._complaints:
            self._complaints.add(text)
            log.warning("event=discovery_incomplete reason=%s", text)


def cameras_of(config: Config) -> dict[str, int | None]:
    """All cameras that may send frames to this box, and their frames' tag: by the configuration, so that one that is
    not there now is not taken for gone."""
    peers = {peer.name: peer.emits for peer in config.zipper.peers if "source" in peer.roles}
    remote = {name: tags[0] if len(tags) == 1 else None for name, tags in peers.items()}
    return {**remote, **{camera.name: camera.tag for camera in config.cameras}}


def _recall(memory: Path, box: Box) -> Announced:
    """What earlier runs announced; nothing where there is no file, or a damaged one."""
    try:
        with open_plain(memory) as file:
            known = msgspec.json.decode(file.read(MAX_MEMORY_BYTES), type=Announced)
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        log.warning("event=discovery_forgotten file=%s error=%s", memory, error)
        return {}
    return {topic: components for topic, components in known.items() if box.owns(topic)}


def _remember(memory: Path, record: Announced) -> None:
    if record:
        write_durably(memory, msgspec.json.encode(record))
    else:
        memory.unlink(missing_ok=True)
