"""Decides when a camera counts as frozen and when it is opened again; pure, the time is an argument."""

from dataclasses import dataclass
from enum import Enum
from typing import Literal

from appliance.backoff import Backoff

StateName = Literal["opening", "streaming", "stalled", "failed", "ended"]


@dataclass(frozen=True, slots=True)
class FeedState:
    """What a camera is doing, for status; ``reason`` says why it is stalled or failed."""

    name: StateName
    reason: str = ""


class Action(Enum):
    """What the shell is to do now."""

    OPEN = "open"
    """Start an attempt: open the camera and read it."""
    GIVE_UP = "give up"
    """The attempt hangs in a call: leave it, it cannot be interrupted."""


TRANSITIONS: dict[StateName, frozenset[StateName]] = {
    "opening": frozenset({"streaming", "stalled", "failed", "ended"}),
    "streaming": frozenset({"stalled", "failed", "ended"}),
    "stalled": frozenset({"opening"}),
    "failed": frozenset({"opening"}),
    "ended": frozenset(),
}


class CameraWatch:
    """The state of one camera. All times are monotonic seconds.

    ``stall_seconds`` is what one read may take while streaming, ``open_seconds`` what opening and the first
    read may take each.
    """

    def __init__(self, stall_seconds: float, open_seconds: float, backoff: Backoff) -> None:
        self.state = FeedState("opening")
        self._stall_seconds = stall_seconds
        self._open_seconds = max(open_seconds, stall_seconds)
        self._backoff = backoff
        self._open_at: float | None = float("-inf")

    def poll(self, now: float, busy_since: float | None) -> Action | None:
        """What to do at ``now``; ``busy_since`` is when the attempt's present camera call began, if it is in one."""
        if self._open_at is not None:
            if now < self._open_at:
                return None
            self._open_at = None
            if self.state.name != "opening":
                self._become("opening")
            return Action.OPEN
        if self.state.name == "ended" or busy_since is None or now < busy_since + self._patience:
            return None
        doing = "did not open" if self.state.name == "opening" else "gave no picture"
        self._become("stalled", f"{doing} for {self._patience:g} s")
        self._open_at = now + self._backoff.failed(now)
        return Action.GIVE_UP

    def wake_at(self, now: float, busy_since: float | None) -> float | None:
        """When :meth:`poll` has to be called again if nothing happens before; None: never.

        Between two calls of the camera too: the next one may hang without a word.
        """
        if self._open_at is not None or self.state.name == "ended":
            return self._open_at
        return (now if busy_since is None else busy_since) + self._patience

    def got_picture(self, now: float) -> None:
        """The attempt delivered a picture."""
        if self.state.name == "opening":
            self._become("streaming")
        self._backoff.ok(now)

    def failed(self, reason: str, now: float) -> None:
        """The attempt is over; another follows after the back-off."""
        self._become("failed", reason)
        self._open_at = now + self._backoff.failed(now)

    def ended(self) -> None:
        """The camera was a finite one and is through."""
        self._become("ended")

    @property
    def _patience(self) -> float:
        return self._open_seconds if self.state.name == "opening" else self._stall_seconds

    def _become(self, name: StateName, reason: str = "") -> None:
        if name not in TRANSITIONS[self.state.name]:
            raise RuntimeError(f"a camera cannot become {name} while {self.state.name}")
        self.state = FeedState(name, reason)
