"""What a device says of its deployments, and what the operator's tools read: retained JSON. Pure.

``<mqtt.prefix>/<device>/deployment`` is about the device, ``…/deployment/<handler>`` about one handler.
The latter is cleared (an empty message) when the handler has been removed.
"""

from typing import Annotated, Literal, TypeVar

import msgspec

from appliance.config import Name
from appliance.deploy.bundle import Digest
from appliance.errors import PeerError
from appliance.manifest import Version

MAX_REPORT_BYTES = 16 << 10
MAX_REASON = 512
REPORT_SECONDS = 60.0
"""A device says so often that it is there (``at``), whatever else it has to say."""

HandlerState = Literal[
    "waiting",  # for metadata, a broker, disk space, another try: the reason says which
    "fetching",
    "admitting",
    "storing",
    "canary",  # shadows the live version, its results withheld
    "active",  # what is desired runs, the first while on trial
    "refused",  # never put into service: admission, the canary, a quarantined digest
    "rolled-back",  # was in service, and went back to the previous version
]
FAILED_STATES = frozenset({"refused", "rolled-back"})
"""States in which a device does not run what is desired, and will not until something else is."""


class SlotReport(msgspec.Struct, frozen=True):
    version: Version
    digest: Digest
    changes: Annotated[str, msgspec.Meta(max_length=64)] = ""
    """SHA-256 that stands for settings and tags; empty: a device that does not tell."""


class Progress(msgspec.Struct, frozen=True):
    """Bytes of the bundle that are here, of all."""

    received: int
    total: int


class HandlerReport(msgspec.Struct, frozen=True, kw_only=True):
    """``trial``: in service, and not yet long enough to be trusted."""

    v: Literal[1] = 1
    handler: Name
    state: HandlerState
    reason: Annotated[str, msgspec.Meta(max_length=MAX_REASON)] = ""
    since: str
    """RFC 3339, UTC: when the state began."""
    trial: bool = False
    desired: SlotReport | None = None
    current: SlotReport | None = None
    """What serves frames."""
    previous: SlotReport | None = None
    """What a rollback would bring back."""
    progress: Progress | None = None


class DeviceReport(msgspec.Struct, frozen=True, kw_only=True):
    v: Literal[1] = 1
    fleet: Name
    state: Literal["waiting", "current", "stale", "untrusted"]
    """``waiting``: nothing verified yet. ``stale``: the metadata has expired, running handlers go on and new ones wait.
    ``untrusted``: what the broker has does not verify; the last that did is in force."""
    reason: Annotated[str, msgspec.Meta(max_length=MAX_REASON)] = ""
    at: str
    """RFC 3339, UTC: when this was said."""
    groups: tuple[Name, ...] = ()
    metadata: dict[str, int] = {}
    """Version in force, by role."""
    expires: str = ""
    """RFC 3339, UTC: when the first of what is in force expires, the timestamp as a rule."""


Report = TypeVar("Report", HandlerReport, DeviceReport)


def encode_report(report: HandlerReport | DeviceReport) -> bytes:
    return msgspec.json.encode(report)


def decode_handler_report(data: bytes) -> HandlerReport:
    """PeerError for what is no report of a handler."""
    return _decode(data, HandlerReport)


def decode_device_report(data: bytes) -> DeviceReport:
    """PeerError for what is no report of a device."""
    return _decode(data, DeviceReport)


def _decode(data: bytes, kind: type[Report]) -> Report:
    if len(data) > MAX_REPORT_BYTES:
        raise PeerError(f"a report of {len(data)} bytes is over the limit of {MAX_REPORT_BYTES}")
    try:
        return msgspec.json.decode(data, type=kind, strict=True)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PeerError(f"not a report: {error}") from error
