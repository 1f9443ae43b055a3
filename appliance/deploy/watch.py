"""How a handler does, for who judges whether it stays. Pure."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sample:
    """Of one version, since it was begun with."""

    state: str
    """As in its status."""
    handled: int
    """Frames that went well."""
    faults: int
    """Frames on which it failed as no honest handler does, and deaths of its worker."""
    deadlines: int
    """Those of them that were deadlines."""
    in_a_row: int
    """Faults since the last frame that went well."""
    offered: int
    """Frames that there were for it."""
    dropped: int
    """Those of them that it was too slow for."""
    reason: str
    """The last failure, in words; empty where there was none."""
