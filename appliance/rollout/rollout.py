"""The deployment of one handler, carried out: what the machine says is done with the parts that can.

Everything that happens goes through one task, one event after another. What takes long (fetching, admission, the disk)
is work beside it, which a newer order ends.
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable

from appliance.backoff import Backoff
from appliance.config import FleetConfig
from appliance.deploy import events as ev
from appliance.deploy.machine import step
from appliance.deploy.record import Record, Slot, decode_record, encode_record, one_line
from appliance.deploy.report import FAILED_STATES, HandlerReport, Progress
from appliance.deploy.trust import VerifiedBundle
from appliance.errors import ApplianceError, DeviceError
from appliance.mqtt.result import rfc3339
from appliance.rollout.parts import Parts
from appliance.rollout.running import Running, blamed
from appliance.threads import in_thread

log = logging.getLogger(__name__)

POLL_SECONDS = 0.25
"""Between two looks at what is in service or a canary."""
PROGRESS_SECONDS = 1.0
FIRST_RETRY, LAST_RETRY = 2.0, 600.0
"""Seconds until what failed for no fault of the bundle is tried again."""
FIRST_SAVE, LAST_SAVE = 1.0, 60.0
"""Seconds until a record that could not be written is tried again."""

Order = ev.Wanted | ev.Unwanted | ev.Blocked


class Rollout:
    """:meth:`boot` once, then :meth:`run` as a task; orders may come at any time."""

    def __init__(
        self,
        name: str,
        parts: Parts,
        fleet: FleetConfig,
        *,
        wall_ns: Callable[[], int] = time.time_ns,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.record = Record(handler=name)
        self.known = False
        """The record was read, or there is none."""
        self._parts = parts
        self._wall_ns = wall_ns
        self._clock = clock
        self._wake = asyncio.Event()
        self._order: Order | None = None
        self._ordered = False
        self._bundle: VerifiedBundle | None = None
        self._bundle_ordered: VerifiedBundle | None = None
        self._desired: Slot | None = None
        self._happened: deque[tuple[ev.Event, asyncio.Task[None] | None]] = deque()
        self._group: asyncio.TaskGroup | None = None
        self._work: asyncio.Task[None] | None = None
        self._retries = _retries()
        self._retry_at: float | None = None
        self._running = Running(name, parts, fleet, self._happens, clock)
        self._progress: Progress | None = None
        self._progress_said = 0.0
        self._trouble = ""
        self._said: HandlerReport | None = None
        self._idle = False

    # --- orders ----------------------------------------------------------------------------------------------

    def order(self, order: Order, bundle: VerifiedBundle | None = None) -> None:
        """What the operator wants now, whatever it was before; ``bundle`` with ``Wanted``."""
        if order != self._order:
            self._retries = _retries()
        self._order, self._ordered = order, True
        # orders are taken first: an expiry before this one must not hold it up after it
        self._happened = deque(each for each in self._happened if not isinstance(each[0], ev.Stale))
        self._bundle_ordered = bundle
        self._desired = None if isinstance(order, ev.Unwanted) else order.slot
        self._wake.set()

    def stale(self, reason: str) -> None:
        """The fleet's metadata has expired: what was ordered before is not begun with any more."""
        self._order, self._ordered = None, False
        self._happens(ev.Stale(reason))

    def try_again(self) -> None:
        """What waits to be tried again need not wait any longer; if it fails, the next wait is as long as ever."""
        if self._retry_at is not None:
            self._retry_at = self._clock()
            self._wake.set()

    @property
    def used(self) -> frozenset[tuple[str, str]]:
        """(name, digest) of slots that must stay."""
        return frozenset((self.name, digest) for digest in self.record.slots)

    @property
    def wanted(self) -> frozenset[str]:
        """Digests of bundles whose files must stay."""
        return frozenset((self.record.candidate.digest,)) if self.record.candidate else frozenset()

    @property
    def over(self) -> bool:
        """Nothing of it is left but what is in quarantine, and nothing is being done."""
        return self._idle and self.record.state == "gone" and not self._ordered and not self._happened

    # --- life ------------------------------------------------------------------------------------------------

    async def boot(self) -> None:
        """Read the record and start what it says; nothing where there is none.

        One that cannot be read is read later, by :meth:`run`, and nothing takes its place before.
        """
        try:
            data = await in_thread(self._parts.store.read_record, self.name)
        except DeviceError as error:
            self._is_unknown(str(error))
            return
        self.known = True
        try:
            self.record = Record(handler=self.name) if data is None else decode_record(data, self.name)
        except DeviceError as error:
            log.warning("event=record_damaged handler=%s action=begun_anew error=%s", self.name, error)
            self.record = Record(handler=self.name)
            await self._save(self.record, patiently=False)
        if data is not None or self._said is not None:
            self._happens(ev.Booted())
        await self._catch_up()

    def _is_unknown(self, error: str) -> None:
        log.warning("event=record_not_read handler=%s error=%s", self.name, error)
        reason = one_line(f"the record of the deployment cannot be read: {error}")
        since = self.record.since_ns or self._wall_ns()
        self.record = Record(handler=self.name, state="waiting", reason=reason, since_ns=since)
        self._say()

    async def run(self) -> None:
        """Until it is cancelled. What is in service then is left so."""
        await self._until_known()
        async with asyncio.TaskGroup() as self._group:
            while True:
                self._look()
                self._wake.clear()
                await self._catch_up()
                await self._nap()

    async def _until_known(self) -> None:
        waits = _retries()
        while not self.known:
            await asyncio.sleep(waits.failed(self._clock()))
            await self.boot()
            self._parts.collect()  # what waited for it

    def _look(self) -> None:
        if self._retry_at is not None and self._clock() >= self._retry_at:
            self._retry_at, self._ordered = None, self._order is not None
        self._running.look(self.record)

    async def _catch_up(self) -> None:
        """Everything that has happened, the newest order first: it may make the rest of no account."""
        while self._due or self._happened:
            if order := self._due:
                self._ordered, self._bundle = False, self._bundle_ordered
                await self._take(order)
                continue
            event, work = self._happened.popleft()
            if work is None or work is self._work:
                await self._take(event)
        if self._running.serve_at is not None and self.record.active and self._clock() >= self._running.serve_at:
            await self._running.serve(self.record.active)
        self._say()

    async def _nap(self) -> None:
        times = [at - self._clock() for at in (self._retry_at, self._running.serve_at) if at is not None]
        if self._running.to_be_watched:
            times.append(POLL_SECONDS)
        self._idle = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, min(times)) if times else None):
                await self._wake.wait()
        self._idle = False

    @property
    def _due(self) -> Order | None:
        """An order waits for the start to be over: what the record says comes before it."""
        return self._order if self._ordered and self._group is not None else None

    def _happens(self, event: ev.Event, work: asyncio.Task[None] | None = None) -> None:
        self._happened.append((event, work))
        self._wake.set()

    async def _take(self, event: ev.Event) -> None:
        before = self.record
        after, actions = step(before, event, self._wall_ns())
        for action in actions:
            if isinstance(action, ev.Save):
                await self._save(after, patiently=self._group is not None)
                self.record = after
                self._tell(before)
            else:
                await self._do(action)

    async def _do(self, action: ev.Action) -> None:
        match action:
            case ev.Abandon():
                await self._abandon()
            case ev.Fetch() | ev.Admit() | ev.Keep():
                self._begin(action)
            case ev.Try(slot):
                await self._running.try_out(slot)
            case ev.Serve(slot):
                await self._running.serve(slot)
            case ev.Stop():
                await self._running.stop()
            case ev.RetryLater():
                self._retry_at = self._clock() + self._retries.failed(self._clock())
            case ev.Collect():
                self._parts.collect()
            case ev.Forget():
                self._forget()

    # --- the record -------------------------------------------------------------------------------------------

    async def _save(self, record: Record, *, patiently: bool) -> None:
        """Nothing is done that is not recorded; only a start goes on without, rather than hold up the device's."""
        waits = Backoff(FIRST_SAVE, limit=LAST_SAVE)
        while True:
            try:
                await in_thread(self._parts.store.write_record, self.name, encode_record(record))
            except DeviceError as error:
                log.warning("event=record_not_written handler=%s error=%s", self.name, error)
                self._trouble = f"the record of the deployment cannot be written: {error}"
            else:
                self._trouble = ""
                return
            if not patiently:
                return
            self._say()
            await asyncio.sleep(waits.failed(self._clock()))

    def _forget(self) -> None:
        """Only the record stays: power may fail before the broker has taken the report back, so each start does it."""
        self._said = None
        self._parts.report(self.name, None)

    # --- work ----------------------------------------------------------------------------------------------------

    def _begin(self, action: ev.Fetch | ev.Admit | ev.Keep) -> None:
        if self._group is None or self._bundle is None or self._bundle.digest != action.slot.digest:
            raise AssertionError(f"{self.name} {action.slot.version} was not ordered")
        work: Awaitable[ev.Event]
        match action:  # only what was verified is fetched and kept: the bundle that came with the order
            case ev.Fetch(slot):
                work = self._fetch(slot, self._bundle)
            case ev.Admit(slot):
                work = self._admit(slot, self._bundle)
            case ev.Keep(slot):
                work = self._keep(slot, self._bundle)
        self._work = self._group.create_task(self._answer(work), name=f"deployment of {self.name}")

    async def _answer(self, work: Awaitable[ev.Event]) -> None:
        try:
            event = await work
        except ApplianceError as error:
            event = blamed(error)
        self._happens(event, asyncio.current_task())

    async def _fetch(self, slot: Slot, bundle: VerifiedBundle) -> ev.Event:
        store = self._parts.store
        async with self._parts.fetching:
            async with self._parts.turn:  # a collection that has begun without knowing of it has ended
                if await in_thread(store.slot, self.name, slot.digest) is not None:
                    return ev.Fetched()
                await in_thread(store.check_room, bundle)
            if not await in_thread(store.has, bundle.digest):  # it was here, and is gone or was damaged
                await self._parts.downloads.fetch(bundle.digest, bundle.index_bytes, lambda _: None)
            here = 0
            for file in bundle.bundle.files.values():

                def progress(received: int, before: int = here) -> None:
                    self._received(before + received, bundle.bundle.length)

                if not await in_thread(store.has, file.sha256):
                    await self._parts.downloads.fetch(file.sha256, file.length, progress)
                here += file.length
                progress(0, here)
        return ev.Fetched()

    async def _admit(self, slot: Slot, bundle: VerifiedBundle) -> ev.Event:
        store = self._parts.store
        async with self._parts.turn:
            directory = await in_thread(store.slot, self.name, slot.digest)
            if directory is None:
                directory = await in_thread(store.stage, bundle)
            await self._parts.admit(await in_thread(self._parts.load, directory, self.name, slot))
        return ev.Admitted()

    async def _keep(self, slot: Slot, bundle: VerifiedBundle) -> ev.Event:
        store = self._parts.store
        async with self._parts.turn:
            if await in_thread(store.slot, self.name, slot.digest) is None:
                await in_thread(store.keep, bundle)
        return ev.Kept()

    async def _abandon(self) -> None:
        self._retry_at = None
        self._progress = None
        if self._work is not None:
            work, self._work = self._work, None
            work.cancel()
            await asyncio.wait([work])
        await self._running.end_trying()

    # --- reports ---------------------------------------------------------------------------------------------------

    def _received(self, received: int, total: int) -> None:
        """Of the bundle's bytes; said once a second."""
        self._progress = Progress(received, total)
        if self._clock() - self._progress_said >= PROGRESS_SECONDS:
            self._progress_said = self._clock()
            self._say()

    def _tell(self, before: Record) -> None:
        """Every transition is logged and reported, however soon the next one follows."""
        after = self.record
        if (after.state, after.reason, after.active) != (before.state, before.reason, before.active):
            level = logging.WARNING if after.state in FAILED_STATES else logging.INFO
            slot = after.candidate or after.active
            version = slot.version if slot else "none"
            reason = f" reason={after.reason}" if after.reason else ""
            log.log(level, "event=deployment handler=%s state=%s version=%s%s", self.name, after.state, version, reason)
        self._say()

    def _say(self) -> None:
        document = self._document()
        if document is not None and document != self._said:
            self._said = document
            self._parts.report(self.name, document)

    def _document(self) -> HandlerReport | None:
        record = self.record
        if record.state == "gone":
            return None
        desired = self._desired or record.candidate
        return HandlerReport(
            handler=self.name,
            state=record.state,
            reason=one_line(self._trouble or record.reason),
            since=rfc3339(record.since_ns),
            trial=record.trial is not None,
            desired=desired.report if desired else None,
            current=record.active.report if record.active else None,
            previous=record.previous.report if record.previous else None,
            progress=self._progress if record.state == "fetching" else None,
        )


def _retries() -> Backoff:
    return Backoff(FIRST_RETRY, limit=LAST_RETRY, jitter=0.5)  # a fleet does not ask all at once
