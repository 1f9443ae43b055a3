"""What a box has of its bundles, on disk. Blocking: call in a thread.

    objects/<sha256>                files by content
    incoming/<sha256>.<chunk size>  the beginning of one that is being downloaded
    staging/<digest>/               a bundle's files, to be admitted
    slots/<name>/<digest>/          a bundle that is kept
    records/<name>.json             how far a handler's deployment has come

Power may fail at any moment: what is here afterwards is the old or the new, whole, or refused as damaged.
"""

from collections.abc import Collection
from pathlib import Path

from appliance.deploy.trust import VerifiedBundle


class Incoming:
    """The beginning of a file. Bytes are appended in order, and it becomes an object when its digest is right."""

    chunk_bytes: int | None
    """How it was cut; None where nothing of it is there."""
    received: int
    """Bytes."""

    def append(self, data: bytes, chunk_bytes: int) -> None:
        raise NotImplementedError

    def finish(self) -> Path:
        """PeerError where it is not the file that it should be: then it is deleted."""
        raise NotImplementedError

    def discard(self) -> None:
        raise NotImplementedError


class Store:
    """In ``directory``, of at most ``quota_bytes``. DeviceError where the disk fails."""

    def __init__(self, directory: Path, quota_bytes: int) -> None:
        raise NotImplementedError

    def has(self, digest: str) -> bool:
        raise NotImplementedError

    def object(self, digest: str) -> Path:
        """Where a file is, or would be."""
        raise NotImplementedError

    def incoming(self, digest: str, length: int) -> Incoming:
        """Begin with a file, or go on with it. One at a time for each digest."""
        raise NotImplementedError

    def check_room(self, bundle: VerifiedBundle) -> None:
        """DeviceError where what is missing of a bundle does not fit into the quota, or on the disk."""
        raise NotImplementedError

    def stage(self, bundle: VerifiedBundle) -> Path:
        """A directory with the bundle's files, for admission. DeviceError where one is missing or damaged."""
        raise NotImplementedError

    def keep(self, bundle: VerifiedBundle) -> Path:
        """Its slot: durable, and there whole or not at all."""
        raise NotImplementedError

    def slot(self, name: str, digest: str) -> Path | None:
        """A bundle that was kept; None where it is not there, or damaged."""
        raise NotImplementedError

    def collect(self, used: Collection[tuple[str, str]], wanted: Collection[str] = ()) -> None:
        """Remove all that is neither in a used slot (name, digest) nor wanted.

        ``wanted`` are digests: of bundles (which stand for their files, too) and of other files.
        """
        raise NotImplementedError

    def read_record(self, name: str) -> bytes | None:
        raise NotImplementedError

    def write_record(self, name: str, data: bytes) -> None:
        """Durable when this returns; a power cut before that leaves the old or the new one."""
        raise NotImplementedError

    def remove_record(self, name: str) -> None:
        raise NotImplementedError

    def records(self) -> list[str]:
        """Names of the handlers that have one."""
        raise NotImplementedError
