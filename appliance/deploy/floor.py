"""What a box has seen of its fleet and never goes below again: versions, and the time. Pure.

The ``tuf`` client keeps this by the metadata it stores, which a power cut may take. The floor is a record of its own,
written durably at each successful refresh.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec

from appliance.deploy.bundle import Digest

ROLES = ("root", "timestamp", "snapshot", "targets")
MAX_FLOOR_BYTES = 64 << 10
SEEN_SECONDS = 3600.0
"""The time is written anew when it has gone on by so much: an SD card does not like to be written to."""
MAX_SECONDS = 253_402_300_799.0
"""The last second of the year 9999, the last one there is a date for."""


class Floor(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    v: Literal[1] = 1
    anchor: Digest
    """SHA-256 of the root that the box was given: with another one, everything begins anew."""
    versions: dict[str, int] = {}
    """By role."""
    keys: dict[str, tuple[str, ...]] = {}
    """By role: the keys that it had by the root of that time."""
    seen: Annotated[float, msgspec.Meta(ge=0, le=MAX_SECONDS)] = 0.0
    """Unix seconds: the time by which metadata was found to be good."""

    def sunk(self, versions: Mapping[str, int], keys: Mapping[str, tuple[str, ...]]) -> str | None:
        """The first role that is below this floor, if one is.

        A role that has lost a key may begin anew: whoever stole the key may have signed any version (section 5.3.11
        of the TUF specification). The root may not.
        """
        for role in ROLES:
            binding = role == "root" or set(self.keys.get(role, ())) <= set(keys[role])
            if binding and versions[role] < self.versions.get(role, 0):
                return role
        return None

    def raised(self, versions: Mapping[str, int], keys: Mapping[str, tuple[str, ...]], now: float) -> "Floor":
        """The floor after a refresh at ``now``; itself where nothing worth writing is new."""
        same = self.versions == versions and self.keys == keys
        if same and now < self.seen + SEEN_SECONDS:
            return self
        return Floor(anchor=self.anchor, versions=dict(versions), keys=dict(keys), seen=max(now, self.seen))


def encode_floor(floor: Floor) -> bytes:
    return msgspec.json.encode(floor, order="sorted") + b"\n"


def decode_floor(data: bytes, anchor: str) -> Floor:
    """ValueError for a damaged one. One of another anchor is none."""
    floor = msgspec.json.decode(data, type=Floor, strict=True)  # its errors are ValueErrors
    return floor if floor.anchor == anchor else Floor(anchor=anchor)
