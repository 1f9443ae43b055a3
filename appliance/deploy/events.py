"""What can happen to the deployment of a handler, and what there is to be done about it. Pure values."""

from dataclasses import dataclass
from typing import TypeAlias

from appliance.deploy.record import Slot

# --- events: what has happened --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wanted:
    """The operator wants this version, and it is verified."""

    slot: Slot


@dataclass(frozen=True, slots=True)
class Unwanted:
    """The operator does not want this handler here."""


@dataclass(frozen=True, slots=True)
class Blocked:
    """The operator wants this version, but it cannot be verified; ``final``: nor will it be."""

    slot: Slot
    reason: str
    final: bool = False


@dataclass(frozen=True, slots=True)
class Stale:
    """The fleet's metadata has expired."""

    reason: str


@dataclass(frozen=True, slots=True)
class Fetched:
    """All files of the candidate are here."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """Manifest, module and models of the candidate may run."""


@dataclass(frozen=True, slots=True)
class Kept:
    """The candidate's slot is on the disk."""


@dataclass(frozen=True, slots=True)
class Passed:
    """The canary was good enough."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The candidate is at fault."""

    reason: str


@dataclass(frozen=True, slots=True)
class Hindered:
    """A step failed, and the candidate is not at fault: nobody sent its files, the disk is full."""

    reason: str


@dataclass(frozen=True, slots=True)
class Faulted:
    """What is in service fails too often, or cannot be started."""

    slot: Slot
    reason: str


@dataclass(frozen=True, slots=True)
class TrialOver:
    """The version in service has proved itself."""


@dataclass(frozen=True, slots=True)
class Booted:
    """The device has started, nothing runs yet."""


@dataclass(frozen=True, slots=True)
class Damaged:
    """This device does not have a bundle any more that it had kept."""

    digest: str
    reason: str


Event: TypeAlias = (
    Wanted
    | Unwanted
    | Blocked
    | Stale
    | Fetched
    | Admitted
    | Kept
    | Passed
    | Refused
    | Hindered
    | Faulted
    | TrialOver
    | Booted
    | Damaged
)


# --- actions: what is to be done, in the order given ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Save:
    """Keep the record, durably, before anything else is done."""


@dataclass(frozen=True, slots=True)
class Abandon:
    """End whatever is under way for a candidate: a download, admission, a canary, waiting for another try."""


@dataclass(frozen=True, slots=True)
class Fetch:
    """Get the files that are not here. Answered by Fetched, Hindered."""

    slot: Slot


@dataclass(frozen=True, slots=True)
class Admit:
    """Judge it. Answered by Admitted, Refused, Hindered."""

    slot: Slot


@dataclass(frozen=True, slots=True)
class Keep:
    """Put it into a slot. Answered by Kept, Hindered."""

    slot: Slot


@dataclass(frozen=True, slots=True)
class Try:
    """Run it beside what is in service, its results withheld. Answered by Passed, Refused, Hindered, Damaged."""

    slot: Slot


@dataclass(frozen=True, slots=True)
class Serve:
    """Have it in service, instead of what is. Answered only by Faulted and Damaged, where that fails or later."""

    slot: Slot


@dataclass(frozen=True, slots=True)
class Stop:
    """Have nothing in service."""


@dataclass(frozen=True, slots=True)
class RetryLater:
    """Ask again what is wanted, after a while."""


@dataclass(frozen=True, slots=True)
class Collect:
    """Remove from the disk what nothing needs any more."""


@dataclass(frozen=True, slots=True)
class Forget:
    """Nobody wants it: clear its report, and remove the record where it holds no quarantine."""


Action: TypeAlias = Save | Abandon | Fetch | Admit | Keep | Try | Serve | Stop | RetryLater | Collect | Forget
