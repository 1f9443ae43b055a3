"""What a process has given up of its own accord, as it tells others."""

from typing import Annotated

import msgspec

MAX_MEASURES = 16
MAX_REASON = 256

Reason = Annotated[str, msgspec.Meta(max_length=MAX_REASON)]


class Lockdown(msgspec.Struct, frozen=True):
    """What a process has given up, beyond its limits; ``str()`` is a line for people."""

    in_force: Annotated[list[Reason], msgspec.Meta(max_length=MAX_MEASURES)] = []
    missing: Annotated[dict[Reason, Reason], msgspec.Meta(max_length=MAX_MEASURES)] = {}
    """What is not in force, and why not."""

    def __str__(self) -> str:
        there = ", ".join(self.in_force) or "limits alone"
        missing = ", ".join(f"{name} ({reason})" for name, reason in self.missing.items())
        return f"{there}; not in force: {missing}" if missing else there
