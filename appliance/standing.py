"""What a device reports of itself, and of handlers that the fleet wants and the configuration has given."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from appliance.config import FleetConfig
from appliance.deploy.desired import EVERYBODY, Assignment
from appliance.deploy.record import one_line, slot_of
from appliance.deploy.report import DeviceReport, HandlerReport
from appliance.mqtt.result import rfc3339

log = logging.getLogger(__name__)

NAME_TAKEN = "the configuration of this device has a handler of that name; remove it there, or rename it"

Report = Callable[[str | None, HandlerReport | DeviceReport | None], None]
"""(handler, what is to be retained of it); no handler: of the device. Nothing to be retained: clear it."""
StandingState = Literal["waiting", "current", "stale", "untrusted"]


@dataclass(frozen=True, slots=True)
class Standing:
    """How it is about the fleet's metadata: as in the device's report."""

    state: StandingState = "waiting"
    reason: str = "for the fleet's metadata"


class Account:
    """Says what has changed. ``fleet`` may be another one at any time."""

    def __init__(self, fleet: FleetConfig, report: Report, wall: Callable[[], float] = time.time) -> None:
        self.fleet = fleet
        self.standing = Standing()
        self._report = report
        self._wall = wall
        self._versions: Mapping[str, int] = {}
        self._expires = ""
        self._not_ours: dict[str, HandlerReport] = {}
        """What was said of handlers whose names are taken."""

    def stand(self, state: StandingState, reason: str = "") -> None:
        before, self.standing = self.standing, Standing(state, one_line(reason))
        if before != self.standing:
            level = logging.INFO if state == "current" else logging.WARNING
            log.log(level, "event=fleet_metadata state=%s reason=%s", state, self.standing.reason or "none")
            self.say()

    def verified(self, versions: Mapping[str, int], expires: datetime) -> None:
        """Other metadata is in force, all of which is good until ``expires``."""
        self._versions, self._expires = versions, _rfc3339(expires.timestamp())
        self.say()

    def say(self) -> None:
        """How it is now, and that the device is there."""
        self._report(
            None,
            DeviceReport(
                fleet=self.fleet.name,
                state=self.standing.state,
                reason=self.standing.reason,
                at=_rfc3339(self._wall()),
                groups=(EVERYBODY, *self.fleet.groups),
                metadata=dict(self._versions),
                expires=self._expires,
            ),
        )

    def say_not_ours(self, wanted: Mapping[str, Assignment]) -> None:
        """Of handlers that the configuration has given."""
        for name in self._not_ours.keys() - wanted.keys():
            del self._not_ours[name]
            self._report(name, None)
        for name, assignment in wanted.items():
            desired = slot_of(assignment).report
            if name in self._not_ours and self._not_ours[name].desired == desired:
                continue
            self._not_ours[name] = HandlerReport(
                handler=name, state="refused", reason=NAME_TAKEN, since=_rfc3339(self._wall()), desired=desired
            )
            self._report(name, self._not_ours[name])


def _rfc3339(seconds: float) -> str:
    return rfc3339(int(seconds * 1e9))
