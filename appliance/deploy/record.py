"""How far the deployment of one handler has come: the record that a device keeps of it. Pure.

It is written before each step is carried out, so that a device that lost power knows what to do. What is ``active``
in it is what runs.
"""

import hashlib
from typing import Annotated, Literal

import msgspec

from appliance.config import Name, Tag
from appliance.deploy.bundle import Digest
from appliance.deploy.desired import MAX_DESIRED_BYTES, Assignment
from appliance.deploy.report import FAILED_STATES, MAX_REASON, HandlerState, SlotReport
from appliance.errors import DeviceError
from appliance.manifest import Version
from appliance.text import printable

MAX_BAD = 16
"""Bundles in quarantine for each handler; then the oldest are forgotten."""
MAX_BOOTS = 1 << 31
"""Nobody starts a box so often while a version is tried."""
MAX_RECORD_BYTES = 256 << 10
"""Three slots with as many settings as a desired state may have, and MAX_BAD reasons."""

Stage = Literal["gone", "waiting", "fetching", "admitting", "storing", "canary", "settled"]
"""Where a deployment is: a state of the report, all that are an end of it being ``settled``."""
UNDER_WAY = frozenset({"fetching", "admitting", "storing", "canary"})
_SETTLED = FAILED_STATES | {"active"}

Nanoseconds = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
"""Since 1970."""
Reason = Annotated[str, msgspec.Meta(max_length=MAX_REASON)]


class Slot(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """A version as the operator wants it: a bundle, and what is changed of it."""

    version: Version
    digest: Digest
    settings: Annotated[dict[str, str], msgspec.Meta(max_length=MAX_DESIRED_BYTES)] = {}
    observes: tuple[Tag, ...] | None = None

    @property
    def changes(self) -> str:
        """Stands for what the operator changed of the bundle."""
        return hashlib.sha256(msgspec.json.encode((self.settings, self.observes), order="sorted")).hexdigest()

    @property
    def report(self) -> SlotReport:
        return SlotReport(self.version, self.digest, self.changes)


class Bad(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """What is in quarantine: a bundle, or only one way to run it where it runs well otherwise."""

    digest: Digest
    version: Version
    state: Literal["refused", "rolled-back"]
    """How it ended."""
    reason: Reason
    changes: Digest
    """Of the slot: what the operator had changed of the bundle."""

    def is_about(self, slot: Slot) -> bool:
        return (self.digest, self.changes) == (slot.digest, slot.changes)


class Trial(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A version is in service, and not yet to be trusted."""

    since_ns: Nanoseconds
    """Wall-clock time at which it went into service."""
    boots: Annotated[int, msgspec.Meta(ge=0, le=MAX_BOOTS)] = 0
    """Starts of the device since then."""


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """``active`` serves frames, ``previous`` comes back where it fails, ``candidate`` is on its way."""

    v: Literal[1] = 1
    handler: Name
    state: HandlerState | Literal["gone"] = "gone"
    """As in the report; ``gone``: nobody wants it and nothing of it runs."""
    reason: Reason = ""
    since_ns: Nanoseconds = 0
    """Wall-clock time at which the state began."""
    active: Slot | None = None
    previous: Slot | None = None
    proven: bool = False
    """``previous`` has been through its trial."""
    candidate: Slot | None = None
    starts: Annotated[int, msgspec.Meta(ge=0, le=MAX_BOOTS)] = 0
    """Of the device, while the candidate was admitted or tried."""
    trial: Trial | None = None
    bad: Annotated[tuple[Bad, ...], msgspec.Meta(max_length=MAX_BAD)] = ()

    @property
    def stage(self) -> Stage:
        return "settled" if self.state in _SETTLED else self.state  # type: ignore[return-value]  # all the others

    @property
    def slots(self) -> frozenset[str]:
        """Digests of the bundles whose slots must stay."""
        return frozenset(slot.digest for slot in (self.active, self.previous, self.candidate) if slot is not None)

    def badness(self, slot: Slot) -> Bad | None:
        """Why it may not run on this device; None where it may."""
        return next((bad for bad in reversed(self.bad) if bad.is_about(slot)), None)


def slot_of(assignment: Assignment) -> Slot:
    return Slot(
        version=assignment.version,
        digest=assignment.digest,
        settings=assignment.settings,
        observes=assignment.observes,
    )


def one_line(reason: str) -> str:
    """A reason as it may be reported and kept: strangers have written parts of it."""
    text = printable(reason)
    return text if len(text) <= MAX_REASON else f"{text[: MAX_REASON - 1]}…"


def encode_record(record: Record) -> bytes:
    return msgspec.json.encode(record)


def decode_record(data: bytes, handler: str) -> Record:
    """DeviceError where the record is not whole: the disk has damaged it, since writing it is one step."""
    try:
        if len(data) > MAX_RECORD_BYTES:
            raise DeviceError(f"a record of {len(data)} bytes is over the limit of {MAX_RECORD_BYTES}")
        record = msgspec.json.decode(data, type=Record)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DeviceError(f"not a record of a deployment: {error}") from error
    if fault := _fault(record, handler):
        raise DeviceError(f"not a record of a deployment: {fault}")
    return record


def _fault(record: Record, handler: str) -> str:
    """What no type says, and the machine never writes."""
    if record.handler != handler:
        return f"it is of {record.handler}"
    if record.state in UNDER_WAY and record.candidate is None:
        return f"{record.state}, and no candidate"
    if record.active is None and (record.state == "active" or record.previous or record.trial):
        return "nothing is active that should be"
    return ""
