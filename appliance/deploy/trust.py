"""What the fleet's keys have signed: TUF, by the client of the ``tuf`` library as it is. Blocking: call in a thread.

Nothing here waits for the network. The client's fetcher reads the metadata that has come so far, and files that were
downloaded by their digest; what is not there is not found.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from appliance.deploy.bundle import Bundle
from appliance.deploy.desired import Assignment, Desired
from appliance.errors import PeerError


class TrustError(PeerError):
    """The fleet's metadata cannot be gone by."""


class IncompleteError(TrustError):
    """Something is not there (yet): wait for it."""


class StaleError(TrustError):
    """Something has expired: the fleet's operator has to sign anew, or somebody withholds what is new."""


class UntrustedError(TrustError):
    """Something does not verify: signature, version, digest, length or format."""


@dataclass(frozen=True)
class SignedTarget:
    """A file that the fleet's keys have signed. Made by ``Verified`` alone."""

    path: str
    length: int
    sha256: str


@dataclass(frozen=True)
class VerifiedBundle:
    """A bundle that may be admitted and stored. Made by ``Verified`` alone."""

    bundle: Bundle
    digest: str
    """SHA-256 of the index."""


class Trust:
    """Verifies metadata against the root that the box was given. What it knows survives in ``directory``.

    ConfigError for a root that is none. DeviceError where the disk fails.
    """

    def __init__(self, directory: Path, root: bytes, *, wall: Callable[[], float] = time.time) -> None:
        raise NotImplementedError

    def refresh(self, metadata: Mapping[str, bytes]) -> "Verified":
        """Verify metadata (file name -> bytes) from the root on. TrustError says whether to wait."""
        raise NotImplementedError


class Verified:
    """One state of the fleet, whole and consistent. It hands out what was signed, and nothing else does."""

    versions: Mapping[str, int]
    """By role: root, timestamp, snapshot, targets."""
    expires: datetime
    """Of the timestamp."""

    def target(self, path: str) -> SignedTarget | None:
        """None where nobody signed it who may. TrustError as for ``refresh``; UntrustedError for one that is too long."""
        raise NotImplementedError

    def read(self, target: SignedTarget, file: Path) -> bytes:
        """Content of a target, ``file`` being what was downloaded by its digest. UntrustedError where it is not that."""
        raise NotImplementedError

    def desired(self, target: SignedTarget, file: Path) -> Desired:
        """UntrustedError for what is no desired state."""
        raise NotImplementedError

    def bundle(self, name: str, assignment: Assignment, target: SignedTarget, file: Path) -> VerifiedBundle:
        """UntrustedError where name, version and digest of index, target and assignment are not the same."""
        raise NotImplementedError
