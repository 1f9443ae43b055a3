"""What devices say, and how far each is with what it should run. Pure: text and times in, values out."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Literal

import msgspec

from appliance.deploy.desired import EVERYBODY, MAX_DEPLOYED, Assignment
from appliance.deploy.record import slot_of
from appliance.deploy.report import (
    FAILED_STATES,
    REPORT_SECONDS,
    DeviceReport,
    HandlerReport,
    Progress,
    SlotReport,
    decode_device_report,
    decode_handler_report,
)
from appliance.errors import PeerError
from appliance.frame import is_name

SILENT_SECONDS = 3 * REPORT_SECONDS
"""A device that says nothing for so long is silent, whatever its status is."""
MAX_DEVICES = 4096
MAX_HANDLERS = 2 * MAX_DEPLOYED
"""Reports on handlers of one device that are kept: on those that run, and on those that go or were refused."""
MAX_KEPT_BYTES = 48 << 20
"""All that devices have said, each with ``KEPT_OVERHEAD``: ten handlers on each of four thousand devices."""
KEPT_OVERHEAD = 512
"""Bytes beside its payload that something said takes."""
MAX_STATUS_BYTES = 64 << 10

GONE = frozenset({"lost", "disconnected"})
"""Statuses of devices that are not there."""
NEVER_HEARD_OF = "never heard of"
FIRST_CLOCK = 1_700_000_000.0
"""A device that says it is earlier has no clock."""

NOT_TRIED_AGAIN = (
    "a bundle that a device has refused or rolled back for a fault of its own is not tried there again with the same "
    "settings: deploy another version, or other settings"
)
EXIT_CONVERGED, EXIT_FAILED, EXIT_UNANSWERED = 0, 1, 4


def exit_code_of(codes: Iterable[int]) -> int:
    """Of several outcomes: a refusal counts before what has not been answered."""
    codes = set(codes)
    return next((code for code in (EXIT_FAILED, EXIT_UNANSWERED) if code in codes), EXIT_CONVERGED)


class _Status(msgspec.Struct, frozen=True):
    state: str


@dataclass(slots=True)
class Device:
    """What one device has said last."""

    name: str
    status: str = ""
    report: DeviceReport | None = None
    handlers: dict[str, HandlerReport] = field(default_factory=dict)
    heard: float | None = None
    """When it last said something while we listened: seconds since 1970 of this machine's clock."""
    sizes: dict[str, int] = field(default_factory=dict, repr=False, compare=False)
    """Bytes of what is kept, by the rest of the topic."""


class Reports:
    """What all devices have said, by topics ``<prefix>/<device>/…``. What is no report is counted and dropped."""

    def __init__(self, prefix: str, fleet: str) -> None:
        self._prefix = prefix
        self._fleet = fleet
        self._devices: dict[str, Device] = {}
        self._kept = 0
        self.nonsense = 0

    @property
    def filters(self) -> tuple[str, ...]:
        """What has to be subscribed to."""
        return tuple(f"{self._prefix}/+/{each}" for each in ("status", "deployment", "deployment/+"))

    def received(self, topic: str, payload: bytes, heard: float | None = None) -> None:
        """One message; an empty one says that the device has taken its word back. PeerError where it becomes too much.

        ``heard``: now, where the message is fresh; None where the broker had kept it.
        """
        start = f"{self._prefix}/"
        name, *about = topic.removeprefix(start).split("/") if topic.startswith(start) else ("",)
        try:
            device = self._device(name)
            _take(device, about, payload)
            device.heard = heard if heard is not None else device.heard
        except PeerError:
            self.nonsense += 1
            return
        rest = "/".join(about)
        self._kept -= device.sizes.pop(rest, 0)
        if payload:
            device.sizes[rest] = len(payload) + KEPT_OVERHEAD
            self._kept += device.sizes[rest]
        if self._kept > MAX_KEPT_BYTES:
            raise PeerError(
                f"the broker holds more than {MAX_KEPT_BYTES} bytes of reports on {self._prefix}/+/deployment/#: "
                "clear by hand what no device has said"
            )

    def devices(self) -> tuple[Device, ...]:
        """Those of the fleet, by name."""
        return tuple(
            self._devices[name]
            for name in sorted(self._devices)
            if (report := self._devices[name].report) is not None and report.fleet == self._fleet
        )

    def _device(self, name: str) -> Device:
        if not is_name(name):
            raise PeerError(f"{name!r} is no device")
        if name not in self._devices and len(self._devices) >= MAX_DEVICES:
            raise PeerError(f"over {MAX_DEVICES} devices")
        return self._devices.setdefault(name, Device(name))


def _take(device: Device, about: list[str], payload: bytes) -> None:
    match about:
        case ["status"]:
            device.status = _decode_status(payload) if payload else ""
        case ["deployment"]:
            device.report = decode_device_report(payload) if payload else None
        case ["deployment", handler] if not payload:
            device.handlers.pop(handler, None)
        case ["deployment", handler]:
            report = decode_handler_report(payload)
            if report.handler != handler or (handler not in device.handlers and len(device.handlers) >= MAX_HANDLERS):
                raise PeerError(f"{device.name}: not a report of {handler}")
            device.handlers[handler] = report
        case _:
            raise PeerError(f"{device.name}: no report")


def _decode_status(payload: bytes) -> str:
    if len(payload) > MAX_STATUS_BYTES:
        raise PeerError(f"a status of {len(payload)} bytes is over the limit of {MAX_STATUS_BYTES}")
    try:
        return msgspec.json.decode(payload, type=_Status).state
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PeerError(f"not a status: {error}") from error


def silent_since(device: Device, now: float) -> float | None:
    """When a silent device was last heard of (seconds since 1970; 0 where nobody knows). None: it is not silent."""
    said = seconds_of(device.report.at) if device.report is not None else 0.0
    last = min(now, max(said if said >= FIRST_CLOCK else 0.0, device.heard or 0.0))
    if device.report is None or device.status in GONE:
        return last
    if not last:  # its clock was never set: its status is all there is
        return None if device.status else last
    return last if now - last > SILENT_SECONDS else None


def seconds_of(text: str) -> float:
    """RFC 3339 -> seconds since 1970; 0 for what is no time."""
    try:
        time = datetime.fromisoformat(text)
        return (time if time.tzinfo is not None else time.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return 0.0


# --- waiting ----------------------------------------------------------------------------------------------------

Effective = Callable[[str, tuple[str, ...]], Mapping[str, Assignment]]
"""(Device, its groups) -> what all documents together say that it should run."""
Verdict = Literal["converged", "failed", "waiting"]


@dataclass(frozen=True, slots=True)
class Expected:
    """Devices and groups should run ``handler`` as the bundle ``digest``; with None, not at all.

    ``inherited``: each should run what all documents together give it, be that nothing; the digest does not count.
    """

    handler: str
    digest: str | None
    version: str = ""
    changes: str = ""
    """Of what the operator changed of the bundle (:attr:`appliance.deploy.record.Slot.changes`)."""
    devices: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()
    inherited: bool = False

    def of(self, slot: SlotReport | None) -> "Expected":
        """The same of what documents give one device."""
        digest, version, changes = (slot.digest, slot.version, slot.changes) if slot else (None, "", "")
        return replace(self, digest=digest, version=version, changes=changes)


@dataclass(frozen=True, slots=True)
class Arrival:
    """How far one device is with what is expected of it."""

    device: str
    verdict: Verdict
    state: str
    """A state of a handler (:mod:`appliance.deploy.report`), or ``silent``, ``removed``, ``other``."""
    version: str = ""
    """What serves frames there now."""
    reason: str = ""
    progress: Progress | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it went, device by device."""

    arrivals: tuple[Arrival, ...]

    @property
    def settled(self) -> bool:
        """Every device has answered, and there is one."""
        return bool(self.arrivals) and all(each.verdict != "waiting" for each in self.arrivals)

    @property
    def only_silent(self) -> bool:
        """Nobody is left to wait for, but for devices that are not there."""
        return all(each.verdict != "waiting" or each.state == "silent" for each in self.arrivals)

    @property
    def exit_code(self) -> int:
        """0: all converged. 1: some refused or went back. 4: some have not answered, or there is nobody to answer."""
        if any(each.verdict == "failed" for each in self.arrivals):
            return EXIT_FAILED
        return EXIT_CONVERGED if self.settled else EXIT_UNANSWERED


def outcome(expected: Expected, devices: Iterable[Device], effective: Effective, now: float) -> Outcome:
    """What ``devices`` have said of what is expected. A device that is named and never heard of is silent."""
    known = {device.name: device for device in devices if _concerns(expected, device)}
    known |= {name: Device(name) for name in expected.devices if name not in known}
    return Outcome(tuple(_arrival(expected, known[name], effective, now) for name in sorted(known)))


def _concerns(expected: Expected, device: Device) -> bool:
    groups = device.report.groups if device.report is not None else ()
    return device.name in expected.devices or not expected.groups.isdisjoint((EVERYBODY, *groups))


def _arrival(expected: Expected, device: Device, effective: Effective, now: float) -> Arrival:
    report = device.handlers.get(expected.handler)
    running = report.current if report is not None else None
    version = running.version if running is not None else ""
    groups = device.report.groups if device.report is not None else ()
    assigned = effective(device.name, groups).get(expected.handler)
    given = slot_of(assigned).report if assigned is not None else None
    if expected.inherited:
        expected = expected.of(given)
    ours = _is(given, expected) if given is not None else expected.digest is None
    if not ours:
        other = f"{assigned.version} by another document" if assigned is not None else "none by another document"
        return Arrival(device.name, "converged", "other", version, f"should run {other}")
    if _arrived(expected, device, report):
        return Arrival(device.name, "converged", report.state if report is not None else "removed", version)
    if report is not None and _is(report.desired, expected) and report.state in FAILED_STATES:
        return Arrival(device.name, "failed", report.state, version, report.reason)
    if (since := silent_since(device, now)) is not None:
        return Arrival(device.name, "waiting", "silent", version, silence(since, now))
    if report is None or not _is(report.desired, expected):
        return Arrival(device.name, "waiting", "waiting", version, _why(device))
    return Arrival(device.name, "waiting", report.state, version, report.reason or _why(device), report.progress)


def _arrived(expected: Expected, device: Device, report: HandlerReport | None) -> bool:
    if expected.digest is None:
        return report is None and device.report is not None
    return (
        report is not None
        and report.state == "active"
        and _is(report.current, expected)
        and _is(report.desired, expected)
    )


def _is(slot: SlotReport | None, expected: Expected) -> bool:
    if slot is None or slot.digest != expected.digest:
        return False
    return slot.changes == expected.changes or not (slot.changes and expected.changes)


def _why(device: Device) -> str:
    """Why a device has not heard of it yet, as far as it knows itself."""
    report = device.report
    return report.reason or report.state if report is not None and report.state != "current" else ""


# --- status -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """One line of ``fleet status``: a handler of a device, or (``handler`` empty) a device without any."""

    device: str
    seen: str
    """RFC 3339, UTC: when it last said that it is there."""
    silence: str
    """``silent for 2 h``; empty for a device that is there."""
    note: str
    """About the device's metadata, where it is not current."""
    handler: str = ""
    desired: str = ""
    current: str = ""
    previous: str = ""
    digest: str = ""
    """Of what serves frames."""
    state: str = ""
    trial: bool = False
    since: str = ""
    reason: str = ""
    progress: Progress | None = None


def rows(devices: Iterable[Device], now: float) -> tuple[Row, ...]:
    """What devices have said, as a table."""
    table = []
    for device in devices:
        since = silent_since(device, now)
        seen = device.report.at if device.report is not None else ""
        first = Row(device.name, seen, silence(since, now) if since is not None else "", _metadata_note(device))
        table += [_row(first, report) for _, report in sorted(device.handlers.items())] or [first]
    return tuple(table)


def _row(device: Row, report: HandlerReport) -> Row:
    def version(slot: SlotReport | None) -> str:
        return slot.version if slot is not None else ""

    return Row(
        device.device,
        device.seen,
        device.silence,
        device.note,
        report.handler,
        version(report.desired),
        version(report.current),
        version(report.previous),
        report.current.digest if report.current is not None else "",
        report.state,
        report.trial,
        report.since,
        report.reason,
        report.progress,
    )


def _metadata_note(device: Device) -> str:
    report = device.report
    if report is None or report.state == "current":
        return ""
    expired = f" since {report.expires}" if report.state == "stale" and report.expires else ""
    return f"metadata {report.state}{expired}" + (f": {report.reason}" if report.reason else "")


def silence(since: float, now: float) -> str:
    """``silent for 2 h``."""
    return f"silent for {span(now - since)}" if since else NEVER_HEARD_OF


def span(seconds: float) -> str:
    """``40 s``, ``5 min``, ``2 h``, ``3 d``."""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
