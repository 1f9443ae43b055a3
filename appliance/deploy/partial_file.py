"""The beginning of a file that is being downloaded: ``<sha256>.<chunk size>``, a whole number of chunks. Blocking."""

import hashlib
import os
from pathlib import Path

from appliance.deploy.fleet_topics import MAX_CHUNK_BYTES
from appliance.device.durable import move_durably, remove_durably, sync, writing
from appliance.errors import PeerError

READ_ONLY = 0o444


class PartialFile:
    """Bytes are appended in order, and it becomes the file ``target`` when its digest is right.

    DeviceError where the disk fails.
    """

    def __init__(self, directory: Path, target: Path, length: int) -> None:
        self._directory = directory
        self._target = target
        self._length = length
        self._path: Path | None = None
        self.chunk_bytes: int | None = None
        """How it is cut; None where nothing of it is there."""
        self.received = 0
        """Bytes."""

    def resume(self) -> None:
        """Go on with what is there from before."""
        with writing(self._directory):
            found = {path: self._usable(path) for path in self._directory.glob(f"{self._target.name}.*")}
            best = max(found, key=lambda path: found[path][1], default=None)
            if best is not None and found[best][1]:
                self._path = best
                self.chunk_bytes, self.received = found[best]
                # here and not while writing: it would make the length durable before the bytes
                os.truncate(best, self.received)
            for path in found:
                if path != self._path:
                    path.unlink()

    def append(self, data: bytes, chunk_bytes: int) -> None:
        """Write what comes next; whole chunks of this size, but for the last."""
        with writing(self._directory):
            if self._path is None:
                self._path = self._directory / f"{self._target.name}.{chunk_bytes}"
                self._path.touch()
                self.chunk_bytes = chunk_bytes
            with self._path.open("r+b") as file:
                file.seek(self.received)
                file.write(data)
            self.received += len(data)

    def finish(self) -> Path:
        """The file, for good. PeerError where it is not the one it should be: then it is deleted."""
        with writing(self._directory):
            if self._path is None:
                self.append(b"", 0)
            path = self._path
            assert path is not None
            found = file_digest(path)
            if found != self._target.name or path.stat().st_size != self._length:
                self.discard()
                raise PeerError(f"what came as {self._target.name} is {found}: deleted, and to be downloaded anew")
            path.chmod(READ_ONLY)
            sync(path)
            move_durably(path, self._target)
        return self._target

    def discard(self) -> None:
        """Nothing of it is kept."""
        with writing(self._directory):
            if self._path is not None:
                remove_durably(self._path)
        self._path, self.chunk_bytes, self.received = None, None, 0

    def _usable(self, path: Path) -> tuple[int, int]:
        """(chunk size, bytes in whole chunks)."""
        suffix = path.suffix.removeprefix(".")
        chunk_bytes = int(suffix) if suffix.isdecimal() and len(suffix) <= len(str(MAX_CHUNK_BYTES)) else 0
        size = path.stat().st_size
        if not 0 < chunk_bytes <= MAX_CHUNK_BYTES or size > self._length:
            return 0, 0
        return chunk_bytes, size if size == self._length else size - size % chunk_bytes


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
