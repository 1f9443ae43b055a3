"""What runs of one handler: the version in service, and beside it the one that is tried."""

import logging
import time
from collections.abc import Callable

from appliance.backoff import Backoff
from appliance.config import FleetConfig
from appliance.deploy import events as ev
from appliance.deploy.record import Record, Slot
from appliance.deploy.watch import Failed, Pace, Passed, Prevented, Sample, judge_canary, judge_service, since
from appliance.errors import ApplianceError, DeviceError, PeerError
from appliance.rollout.parts import Parts
from appliance.sandbox.spec import HandlerSpec
from appliance.threads import in_thread

log = logging.getLogger(__name__)

FIRST_SERVE, LAST_SERVE = 2.0, 60.0
"""Seconds until what should be in service, and could not be started, is tried again."""


class Running:
    """Starts and stops versions, looks at them, and tells ``happens`` what has come of it."""

    def __init__(
        self,
        name: str,
        parts: Parts,
        fleet: FleetConfig,
        happens: Callable[[ev.Event], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._parts = parts
        self._fleet = fleet
        self._happens = happens
        self._clock = clock
        self._serves = Backoff(FIRST_SERVE, limit=LAST_SERVE)
        self._served: Slot | None = None
        self._tried: Slot | None = None
        self._up_at: float | None = None
        self._ran_at = 0.0
        """When the canary was seen to run first and last; at the beginning the latter is when it was started."""
        self._up: tuple[Sample, Sample] | None = None
        """How both were then: the canary, and what is in service."""
        self._trial: tuple[int, float] | None = None
        self.serve_at: float | None = None
        """When to try again to have in service what the record says; None: it is."""

    @property
    def to_be_watched(self) -> bool:
        return self._served is not None or self._tried is not None

    # --- starting and stopping ---------------------------------------------------------------------------------

    async def try_out(self, slot: Slot) -> None:
        """Run it as canary."""
        try:
            spec = await self._load(slot)
            if spec is None:
                return
            if self._served is None and self._name in self._parts.serving.live:
                raise DeviceError(f"this device runs a {self._name} that is not the fleet's")
            await self.end_trying()  # an operator may have the handler restarted, by a shadow, too
            await self._parts.serving.shadow(spec)
        except ApplianceError as error:
            self._happens(blamed(error))
        else:
            self._tried, self._ran_at, self._up_at, self._up = slot, self._clock(), None, None

    async def end_trying(self) -> None:
        self._tried = None
        if self._name in self._parts.serving.shadows:
            await self._parts.serving.unshadow(self._name)

    async def serve(self, slot: Slot) -> None:
        """Have it in service: the canary, if it is this one, else in place of what is, which goes on until then."""
        self.serve_at = None
        try:
            if self._tried == slot and self._name in self._parts.serving.shadows:
                await self._parts.serving.promote(self._name)
            elif not await self._replace(slot):
                return
        except ApplianceError as error:
            now = self._clock()
            self.serve_at = now + self._serves.failed(now)
            log.warning("event=handler_not_served handler=%s version=%s error=%s", self._name, slot.version, error)
            if not isinstance(error, DeviceError):
                self._happens(ev.Faulted(slot, str(error)))
            return
        self._served, self._tried = slot, None
        self._serves.ok(self._clock())

    async def _replace(self, slot: Slot) -> bool:
        """False where it is damaged."""
        serving = self._parts.serving
        spec = await self._load(slot)
        if spec is None:
            return False
        if self._name in serving.live:
            if self._name in serving.shadows:
                await self.end_trying()
                self._happens(ev.Hindered("the canary had to make room for the version in service"))
            await serving.shadow(spec)
            await serving.promote(self._name)
        else:
            await serving.start(spec)
        return True

    async def stop(self) -> None:
        served, self._served, self.serve_at = self._served, None, None
        if served is not None and self._name in self._parts.serving.live:
            await self._parts.serving.stop(self._name)

    async def _load(self, slot: Slot) -> HandlerSpec | None:
        """None, and ``Damaged`` has happened, where its slot is not there whole."""
        directory = await in_thread(self._parts.store.slot, self._name, slot.digest)
        if directory is None:
            reason = f"{slot.version} is damaged on the disk, or gone; it has to be fetched again"
            log.warning("event=slot_damaged handler=%s version=%s digest=%s", self._name, slot.version, slot.digest)
            self._happens(ev.Damaged(slot.digest, reason))
            return None
        return await in_thread(self._parts.load, directory, self._name, slot)

    # --- looking -------------------------------------------------------------------------------------------------

    def look(self, record: Record) -> None:
        """At the clock and at what runs. The canary comes last: what is in service changes when it has passed."""
        now = self._clock()
        self._look_at_trial(record, now)
        self._look_at_service(record)
        self._look_at_canary(record, now)

    def _look_at_trial(self, record: Record, now: float) -> None:
        """Measured from the start of this process: the wall clock of a device may jump."""
        if record.trial is None:
            self._trial = None
        elif self._trial is None or self._trial[0] != record.trial.since_ns:
            self._trial = (record.trial.since_ns, now)
        elif now - self._trial[1] >= self._fleet.trial_seconds:
            self._happens(ev.TrialOver())

    def _look_at_service(self, record: Record) -> None:
        slot = self._served
        sample = self._parts.serving.sample(self._name)
        if slot is None or slot != record.active or sample is None:
            return
        verdict = judge_service(sample)
        if verdict is not None:
            self._happens(ev.Faulted(slot, verdict.reason))

    def _look_at_canary(self, record: Record, now: float) -> None:
        sample = self._parts.serving.sample(self._name, shadow=True)
        if self._tried is None or record.state != "canary" or sample is None:
            return
        elapsed, pace = self._since_up(sample, now)
        verdict = judge_canary(sample, elapsed, self._fleet.canary_frames, self._fleet.canary_seconds, pace=pace)
        if isinstance(verdict, Passed):
            self._happens(ev.Passed())
        elif isinstance(verdict, Failed):
            self._happens(ev.Refused(verdict.reason))
        elif isinstance(verdict, Prevented):
            self._happens(ev.Hindered(verdict.reason))

    def _since_up(self, canary: Sample, now: float) -> tuple[float, Pace | None]:
        """Frames that come while it starts do not count, nor does the time. No pace where nothing is in service."""
        if canary.state != "running":
            return now - self._ran_at, None
        self._ran_at = now
        live = self._parts.serving.sample(self._name)
        if self._up_at is None:
            self._up_at, self._up = now, (canary, live) if live else None
        elapsed = now - self._up_at
        if live is None or self._up is None:
            return elapsed, None
        return elapsed, Pace(since(canary, self._up[0]), since(live, self._up[1]), elapsed)


def blamed(error: ApplianceError) -> ev.Event:
    """Whose fault it is says what follows."""
    if isinstance(error, PeerError | DeviceError):
        return ev.Hindered(str(error))
    return ev.Refused(str(error))
