"""What devices should run: signed documents for single devices and for groups. Pure.

They are TUF targets, ``devices/<name>.json`` and ``groups/<name>.json``. Every device of a fleet is in the group
``all``.
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

import msgspec

from appliance.config import Name, Tag
from appliance.deploy.bundle import Digest
from appliance.errors import PeerError
from appliance.manifest import Version

MAX_DESIRED_BYTES = 48 << 10
MAX_DEPLOYED = 64
"""Handlers that are deployed to one device."""
EVERYBODY = "all"
"""The group that every device is in."""


class Assignment(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """Which bundle, and what the operator changes of it (as ``[[handlers]]`` does in the configuration)."""

    version: Version
    digest: Digest
    """Of the bundle: a developer who signs another one under the same version changes nothing on any device."""
    settings: dict[str, str] = {}
    observes: tuple[Tag, ...] | None = None


class Desired(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One document. ``None`` takes a handler away that a group before this one gives."""

    v: Literal[1] = 1
    handlers: Annotated[dict[Name, Assignment | None], msgspec.Meta(max_length=MAX_DEPLOYED)] = {}


def encode_desired(desired: Desired) -> bytes:
    return msgspec.json.encode(desired, order="sorted") + b"\n"


def decode_desired(data: bytes) -> Desired:
    """PeerError for what is no such document."""
    if len(data) > MAX_DESIRED_BYTES:
        raise PeerError(f"a desired state of {len(data)} bytes is over the limit of {MAX_DESIRED_BYTES}")
    try:
        return msgspec.json.decode(data, type=Desired, strict=True)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PeerError(f"not a desired state: {error}") from error


def targets_of(device: str, groups: Iterable[str]) -> tuple[str, ...]:
    """Paths of the TUF targets a device looks for, the weakest first: ``all``, its groups in order, itself."""
    names = dict.fromkeys([EVERYBODY, *groups])
    return (*(group_target(name) for name in names), device_target(device))


def device_target(device: str) -> str:
    return f"devices/{device}.json"


def group_target(group: str) -> str:
    return f"groups/{group}.json"


def merged(documents: Iterable[Desired]) -> Mapping[str, Assignment]:
    """What a device should run by all documents about it, the weakest first. PeerError where that is too much."""
    handlers: dict[str, Assignment | None] = {}
    for document in documents:
        handlers |= document.handlers
    wanted = {name: assignment for name, assignment in sorted(handlers.items()) if assignment is not None}
    if len(wanted) > MAX_DEPLOYED:
        raise PeerError(f"{len(wanted)} handlers are desired, over the limit of {MAX_DEPLOYED}")
    return wanted
