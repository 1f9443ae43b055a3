"""The role that deploys: from the fleet's metadata to what each handler's rollout is ordered.

What is heard is believed only after it was verified. Whatever is wrong with metadata, broker or disk, what runs goes
on, and the device's report says what is wrong.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from appliance.backoff import Backoff
from appliance.config import FleetConfig
from appliance.deploy.asking import Asking
from appliance.deploy.bundle import bundle_target
from appliance.deploy.desired import MAX_DEPLOYED, Assignment, Desired, merged, targets_of
from appliance.deploy.download import Ears, Incoming
from appliance.deploy.events import Blocked, Unwanted, Wanted
from appliance.deploy.fleet_topics import FleetTopics
from appliance.deploy.metadata import MetadataCache
from appliance.deploy.record import Slot, slot_of
from appliance.deploy.report import REPORT_SECONDS
from appliance.deploy.resent import Resent
from appliance.deploy.trust import (
    MissignedError,
    SignedTarget,
    StaleError,
    TrustError,
    UntrustedError,
)
from appliance.errors import DeviceError, PeerError
from appliance.rollout.parts import Fetches, Parts, Serves, Stores, Trusts, Verifies
from appliance.rollout.rollout import Rollout
from appliance.sandbox.spec import HandlerSpec
from appliance.standing import NAME_TAKEN, Account, Report
from appliance.threads import in_thread

log = logging.getLogger(__name__)

SETTLE_SECONDS = 0.2
"""Metadata files come in a bunch; they are looked at together."""
REFRESH_SECONDS = 1.0
"""Between two verifications at least, however fast metadata comes."""
SILENCE_SECONDS = 10.0
"""From the start on: what the broker retains comes when the box has connected. Only after that it is missing."""
FIRST_RETRY, LAST_RETRY = 2.0, 300.0
"""Seconds until documents that could not be had are asked for again."""
MAX_GONE = MAX_DEPLOYED
"""Handlers that are gone and whose quarantine is remembered; then those that have been gone longest are forgotten."""


class Deployer:
    """``async with Deployer(…) as deployer``, then :meth:`start_active`, then deployments begin.

    ``taken`` are names of handlers that the configuration has given: nothing is deployed over them.
    """

    def __init__(
        self,
        fleet: FleetConfig,
        device: str,
        *,
        topics: FleetTopics,
        ears: Ears,
        trust: Trusts,
        store: Stores,
        downloads: Fetches,
        serving: Serves,
        load: Callable[[Path, str, Slot], HandlerSpec],
        admit: Callable[[HandlerSpec], Awaitable[None]],
        report: Report,
        taken: Collection[str] = (),
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._device = device
        self._topics = topics
        self._ears = ears
        self._trust = trust
        self._store = store
        self._downloads = downloads
        self._wall = wall
        self._clock = clock
        self._parts = Parts(
            store=store,
            downloads=downloads,
            serving=serving,
            load=load,
            admit=admit,
            report=report,
            collect=self._collect_soon,
        )
        self._cache = MetadataCache()
        self._asking = Asking()
        self._news = asyncio.Event()
        self._resent = Resent()
        self._again = asyncio.Event()
        """What waits to be tried again is tried now."""
        self._garbage = asyncio.Event()
        self._started = asyncio.Event()
        self._group = asyncio.TaskGroup()
        self._tasks: list[asyncio.Task[None]] = []
        self._ending = False
        self._read = False
        """The records were read: every handler that has one is known."""
        self._booting = asyncio.Lock()
        self._rollouts: dict[str, Rollout] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._wanted: frozenset[str] = frozenset()
        """Names that are, or are being, ordered."""
        self._verified: Verifies | None = None
        self._good = False
        """The metadata that is there now has been verified."""
        self._metadata: Mapping[str, bytes] = {}
        """What is being ordered by."""
        self._ordering: asyncio.Task[None] | None = None
        self._ordered: Mapping[str, int] | None = None
        """Versions of the metadata by which everything has been ordered."""
        self._files: set[str] = set()
        """Digests of desired states and indexes that are in use …"""
        self._files_before: frozenset[str] = frozenset()
        """… and those of the last order that was carried out whole."""
        self._cleaning = asyncio.Lock()
        self._patient_until = clock() + SILENCE_SECONDS
        self._account = Account(fleet, report, wall)
        self.configure(fleet, taken)

    def configure(self, fleet: FleetConfig, taken: Collection[str]) -> None:
        """Groups, or the names of the configuration's handlers, are others: what is desired is ordered anew.

        The rest of ``fleet`` counts for handlers whose deployment begins from now on.
        """
        self._fleet = self._account.fleet = fleet
        self._targets = targets_of(self._device, fleet.groups)
        self._taken = frozenset(taken)
        self._order_anew()

    def _order_anew(self) -> None:
        self._ordered, self._metadata = None, {}
        if self._ordering is not None:
            self._ordering.cancel()
        self._news.set()

    # --- life ------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        self._ears.listen((self._topics.all_metadata,), self._heard)
        for work in (self._keep_current(), self._keep_reporting(), self._keep_clean()):
            self._begin(work)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ears.ignore((self._topics.all_metadata,))
        self._ending = True
        for task in self._tasks:
            task.cancel()
        theirs = isinstance(error, asyncio.CancelledError)  # an error of the body's own passes as it is
        await self._group.__aexit__(*((kind, error, trace) if theirs else (None, None, None)))

    async def start_active(self) -> None:
        """Start what the records of this device say, whatever the fleet is about."""
        self._read = await self._start_recorded()
        self._started.set()

    async def _start_recorded(self) -> bool:
        """False where the records cannot be read."""
        try:
            names = await in_thread(self._store.records)
        except DeviceError as error:
            log.warning("event=records_not_read error=%s", error)
            return False
        for name in names:
            if name in self._taken:
                log.warning("event=deployed_handler_not_started handler=%s reason=name_taken", name)
                continue
            await self._rollout(name)
        return True

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        self._tasks = [task for task in self._tasks if not task.done()]
        task = self._group.create_task(work)
        if self._ending:  # by an order that had not yet heard that it is cancelled
            task.cancel()
        self._tasks.append(task)
        return task

    async def _rollout(self, name: str) -> Rollout:
        async with self._booting:  # one for each name, whoever asks first
            if name not in self._rollouts:
                rollout = Rollout(name, self._parts, self._fleet, clock=self._clock)
                await rollout.boot()
                self._rollouts[name] = rollout
                self._running[name] = self._begin(rollout.run())
            return self._rollouts[name]

    # --- metadata --------------------------------------------------------------------------------------------

    def _heard(self, message: Incoming) -> None:
        file = self._topics.metadata_of(message.topic)
        if file is None:
            return
        resent = self._resent.heard(file)
        if self._cache.received(file, message.payload) or resent:
            self._news.set()

    async def _keep_current(self) -> None:
        await self._started.wait()
        while True:
            self._news.clear()
            await self._refresh()
            self._try_again()
            await asyncio.sleep(REFRESH_SECONDS - SETTLE_SECONDS)
            self._ask_again()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._patience()):
                    await self._news.wait()
                await asyncio.sleep(SETTLE_SECONDS)

    def _patience(self) -> float:
        """Seconds until the metadata is looked at again without news: it expires, clocks are set, it is asked for."""
        now = self._clock()
        times = [REPORT_SECONDS, self._resent.due_at - now, self._asking.left(now, content=self._content)]
        if now < self._patient_until:
            times.append(self._patient_until - now)
        if self._verified is not None and self._account.standing.state != "stale":
            times.append(self._verified.expires.timestamp() - self._wall())
        return max(0.0, min(times))

    @property
    def _content(self) -> bool:
        """What was heard last is good, and everything is ordered by it."""
        return self._good and self._verified is not None and self._verified.versions == self._ordered

    def _ask_again(self) -> None:
        """For all metadata. What was heard before is given up where it is of no use: some of it may be forged."""
        now = self._clock()
        if self._asking.left(now, content=self._content) > 0:
            return
        self._asking.asked(now)
        if not self._content:
            self._cache.forget()
        self._ears.ignore((self._topics.all_metadata,))
        self._ears.listen((self._topics.all_metadata,), self._heard)

    async def _refresh(self) -> None:
        self._good = False
        metadata = self._cache.snapshot()
        try:
            verified = await in_thread(self._trust.refresh, metadata)
        except StaleError as error:
            self._is_stale(str(error))
        except (TrustError, DeviceError) as error:
            self._is_doubtful(error)
        else:
            changed = self._verified is None or verified.versions != self._verified.versions
            self._verified, self._good = verified, True
            if changed:
                self._account.verified(verified.versions, verified.expires)
            if verified.versions == self._ordered:
                self._account.stand("current")
            elif self._ordering is None or self._ordering.done() or metadata != self._metadata:
                await self._end_ordering()
                self._metadata = metadata
                self._ordering = self._begin(self._order(verified))

    def _try_again(self) -> None:
        """After a long outage it would not be due for minutes."""
        if self._resent.due(self._clock()):
            self._again.set()
            for rollout in self._rollouts.values():
                rollout.try_again()

    def _is_stale(self, reason: str) -> None:
        """Nothing new is begun with. What is ordered is ordered again when the metadata is fresh."""
        if self._account.standing.state != "stale":
            self._ordered = None
            if self._ordering is not None:
                self._ordering.cancel()
            for rollout in self._rollouts.values():
                rollout.stale(f"the fleet's metadata has expired: {reason}")
        self._account.stand("stale", reason)

    def _is_doubtful(self, error: TrustError | DeviceError) -> None:
        """What was verified last stays in force, as long as it would have been."""
        if self._verified is not None and self._wall() >= self._verified.expires.timestamp():
            self._is_stale(str(error))
        elif isinstance(error, UntrustedError):
            doubt = "; is fleet.root the root.json of this fleet?" if self._verified is None else ""
            self._account.stand("untrusted", f"{error}{doubt}")
        elif isinstance(error, DeviceError) and self._verified is None:
            self._account.stand("waiting", str(error))
        elif self._verified is None and self._clock() >= self._patient_until:
            self._account.stand("waiting", str(error) if self._cache.snapshot() else self._nothing_came())
        elif self._account.standing.state == "current":
            self._account.stand("current", str(error))  # news is under way

    def _nothing_came(self) -> str:
        return (
            f"nothing has come on {self._topics.all_metadata}: are fleet.name and fleet.prefix right, may this device "
            f"read it, and has the fleet sent anything (appliance fleet refresh)?"
        )

    async def _end_ordering(self) -> None:
        if self._ordering is not None:
            self._ordering.cancel()
            await asyncio.wait([self._ordering])

    # --- orders ------------------------------------------------------------------------------------------------

    async def _order(self, verified: Verifies) -> None:
        """Until every rollout has its order, or there is newer metadata."""
        waits = Backoff(FIRST_RETRY, limit=LAST_RETRY, jitter=0.5)
        self._ordered = None
        self._files = set(self._files_before)  # what an order needed that came to nothing, this one need not
        self._again.clear()
        while not await self._order_all(verified):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(waits.failed(self._clock())):
                    await self._again.wait()
            self._again.clear()
        self._ordered = verified.versions
        self._collect_soon()

    async def _order_all(self, verified: Verifies) -> bool:
        """False where something has to be tried again."""
        files: set[str] = set()
        try:
            wanted = merged([d for path in self._targets if (d := await self._desired(verified, path, files))])
        except (PeerError, DeviceError) as error:
            self._account.stand("untrusted" if isinstance(error, UntrustedError) else "waiting", str(error))
            return False
        self._account.stand("current")
        self._wanted = frozenset(wanted)
        for name in self._rollouts.keys() - wanted.keys():
            self._rollouts[name].order(Unwanted())
        for name in self._rollouts.keys() & wanted.keys() & self._taken:  # it was deployed, or was about to be, before
            self._rollouts[name].order(Blocked(slot_of(wanted[name]), NAME_TAKEN, final=True))
        self._account.say_not_ours({name: wanted[name] for name in self._taken & wanted.keys()})
        async with asyncio.TaskGroup() as tasks:
            ours = [
                tasks.create_task(self._order_one(verified, name, assignment, files))
                for name, assignment in wanted.items()
                if name not in self._taken
            ]
        if done := all(task.result() for task in ours):
            self._files, self._files_before = files, frozenset(files)
        return done

    async def _desired(self, verified: Verifies, path: str, files: set[str]) -> Desired | None:
        target = await in_thread(verified.target, path)
        if target is None:
            return None
        return await in_thread(verified.desired, target, await self._fetch(target, files))

    async def _order_one(self, verified: Verifies, name: str, assignment: Assignment, files: set[str]) -> bool:
        """What is wrong with one bundle is that handler's affair. False where it has to be tried again."""
        rollout = await self._rollout(name)
        slot = slot_of(assignment)
        path = bundle_target(name, assignment.version)
        try:
            target = await in_thread(verified.target, path)
            if target is None:
                raise MissignedError(f"{path} is not signed by anybody who may sign it")
            if target.sha256 != assignment.digest:
                raise MissignedError(f"{path} has been signed anew, and is not what was deployed; deploy it again")
            bundle = await in_thread(verified.bundle, name, assignment, target, await self._fetch(target, files))
        except (PeerError, DeviceError) as error:
            final = isinstance(error, MissignedError)
            rollout.order(Blocked(slot, str(error), final=final))
            return final or isinstance(error, StaleError)
        rollout.order(Wanted(slot), bundle)
        return True

    async def _fetch(self, target: SignedTarget, files: set[str]) -> Path:
        files.add(target.sha256)
        self._files.add(target.sha256)
        async with self._cleaning:
            pass  # a collection that has begun without knowing of it has ended
        return await self._downloads.fetch(target.sha256, target.length, lambda _: None)

    # --- disk --------------------------------------------------------------------------------------------------

    def _collect_soon(self) -> None:
        self._garbage.set()

    async def _keep_clean(self) -> None:
        await self._started.wait()  # what is not started yet needs its slots no less
        await self._until_read()
        while True:
            await self._garbage.wait()
            async with self._parts.turn:  # nobody stages meanwhile, and what is fetched is wanted
                self._garbage.clear()
                used = {slot for rollout in self._rollouts.values() for slot in rollout.used}
                wanted = {digest for rollout in self._rollouts.values() for digest in rollout.wanted}
                unknown = {name for name, rollout in self._rollouts.items() if not rollout.known}
                try:
                    async with self._cleaning:
                        await in_thread(self._store.collect, used, wanted, frozenset(self._files), unknown)
                except DeviceError as error:
                    log.warning("event=not_collected error=%s", error)
            await self._forget_gone()

    async def _until_read(self) -> None:
        """A disk that failed at the start may do later: until then nobody knows which slots are in use."""
        waits = Backoff(FIRST_RETRY, limit=LAST_RETRY, jitter=0.5)
        while not self._read:
            await asyncio.sleep(waits.failed(self._clock()))
            if await self._start_recorded():
                self._read = True
                self._order_anew()

    async def _forget_gone(self) -> None:
        """Names come and go for as long as a device lives: of those that went, no more than MAX_GONE are kept."""
        over = [rollout for rollout in self._rollouts.values() if self._is_gone(rollout)]
        for rollout in sorted(over, key=lambda each: each.record.since_ns, reverse=True)[MAX_GONE:]:
            if not self._is_gone(rollout):
                continue  # it has come back while another was forgotten
            del self._rollouts[rollout.name]
            self._running.pop(rollout.name).cancel()
            try:
                await in_thread(self._store.remove_record, rollout.name)
            except DeviceError as error:
                log.warning("event=record_not_removed handler=%s error=%s", rollout.name, error)

    def _is_gone(self, rollout: Rollout) -> bool:
        return rollout.over and rollout.name not in self._wanted

    async def _keep_reporting(self) -> None:
        while True:
            self._account.say()
            await asyncio.sleep(REPORT_SECONDS)
