"""What a box has of its bundles, on disk. Blocking: call in a thread.

    objects/<sha256>                files by content
    incoming/<sha256>.<chunk size>  the beginning of one that is being downloaded
    staging/<digest>/               a bundle's files, to be admitted
    slots/<name>/<digest>/          a bundle that is kept
    records/<name>.json             how far a handler's deployment has come

Power may fail at any moment: what is here afterwards is the old or the new, whole, or refused as damaged.
"""

import errno
import logging
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from appliance.deploy.bundle import MAX_INDEX_BYTES, Bundle, BundleFile, decode_bundle
from appliance.deploy.partial_file import PartialFile, file_digest
from appliance.deploy.trust import VerifiedBundle
from appliance.device.durable import make_directory, move_durably, remove_durably, sync, write_durably, writing
from appliance.errors import DeviceError, PeerError
from appliance.frame import is_name

log = logging.getLogger(__name__)

INDEX_FILE = ".index.json"
"""A slot's index, under a name that no file of a bundle can have."""
MAX_RECORD_BYTES = 256 << 10
FREE_BYTES = 64 << 20
"""What stays free on the disk whatever is deployed: spool, logs and records need room, too."""
MEGABYTE = 1 << 20

_DIGEST = re.compile(r"[0-9a-f]{64}")
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV})
"""A file system that has no hard links, or not so many."""
_SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""What this process or the system is out of: no file is damaged by that."""


class Store:
    """In ``directory``, of at most ``quota_bytes``. DeviceError where the disk fails. Threads may share it."""

    def __init__(self, directory: Path, quota_bytes: int) -> None:
        self._directory = directory
        self._quota = quota_bytes
        self._objects = directory / "objects"
        self._incoming = directory / "incoming"
        self._staging = directory / "staging"
        self._slots = directory / "slots"
        self._records = directory / "records"
        self._lock = threading.RLock()
        self._links = True
        self._open: set[str] = set()
        """Digests of files that are being downloaded now."""
        self._under_way: dict[str, Bundle] = {}
        """By digest: bundles for which room was found, and which are not kept yet."""
        with writing(directory):
            for each in (self._objects, self._incoming, self._records):
                _make_fit(each, Path.is_file)
            for each in (self._staging, self._slots):
                _make_fit(each, Path.is_dir)
            _remove(self._records.glob(".*"))  # what a power cut has left of writing one

    # Files by content

    def has(self, digest: str) -> bool:
        file = self.object(digest)
        with writing(file):
            return file.is_file()

    def sound(self, digest: str) -> bool:
        """It is there, every byte of it checked. One that is damaged is removed, so that it is fetched again."""
        file = self.object(digest)
        with writing(file):
            if not file.is_file():
                return False
            if file_digest(file) == digest:
                return True
            log.warning("%s is damaged: removed, and to be downloaded again", file)
            remove_durably(file)
            return False

    def object(self, digest: str) -> Path:
        """Where a file is, or would be. ValueError for what is no SHA-256."""
        if not _DIGEST.fullmatch(digest):
            raise ValueError(f"{digest!r} is no SHA-256")
        return self._objects / digest

    @contextmanager
    def incoming(self, digest: str, length: int) -> Iterator[PartialFile]:
        """A file to be downloaded. While the block lasts nobody collects it; one block at a time for each digest."""
        self._open.add(digest)
        try:
            yield PartialFile(self._incoming, self.object(digest), length)
        finally:
            self._open.discard(digest)

    def check_room(self, bundle: VerifiedBundle) -> None:
        """DeviceError where a bundle does not fit into the quota, or on the disk, beside those under way."""
        with self._changing():
            under_way = {**self._under_way, bundle.digest: bundle.bundle}
            missing = self._missing(under_way.values())
            used = _size(self._directory)
            index = bundle.bundle
            what = f"{index.name} {index.version} ({_megabytes(index.length)} MB)"
            if used + missing > self._quota:
                raise DeviceError(
                    f"{what} does not fit: {_megabytes(used)} of fleet.quota_mb = {_megabytes(self._quota)} are in "
                    f"use, and {_megabytes(missing)} MB are to come; raise it, or undeploy something"
                )
            free = shutil.disk_usage(self._directory).free
            if missing and free - missing < FREE_BYTES:
                raise DeviceError(
                    f"{what} does not fit: the disk of {self._directory} has {_megabytes(free)} MB left, and "
                    f"{_megabytes(missing)} MB are to come, beside {_megabytes(FREE_BYTES)} that stay free"
                )
            self._under_way = under_way

    # Bundles

    def stage(self, bundle: VerifiedBundle) -> Path:
        """A directory with the bundle's files, for admission. DeviceError where one is missing or damaged."""
        with self._changing():
            staged = self._staging / bundle.digest
            fresh = self._assembled(bundle.bundle.files, f"{bundle.digest}.stage")
            self._discard(staged)
            fresh.rename(staged)
            return staged

    def keep(self, bundle: VerifiedBundle) -> Path:
        """Its slot: durable, and there whole or not at all. DeviceError where a file is missing or damaged."""
        with self._changing():
            name, digest = bundle.bundle.name, bundle.digest
            slot = self._slot(name, digest)
            if self.slot(name, digest) is None:
                files = {**bundle.bundle.files, INDEX_FILE: self._index_file(digest)}
                fresh = self._assembled(files, f"{digest}.slot")
                sync(fresh)
                make_directory(slot.parent)
                self._discard(slot)
                move_durably(fresh, slot)
            self._under_way.pop(digest, None)
            return slot

    def slot(self, name: str, digest: str) -> Path | None:
        """A bundle that was kept, every byte of it checked; None where it is not there, or damaged.

        DeviceError where it cannot be looked at, which says nothing of it.
        """
        slot = self._slot(name, digest)
        try:
            if not slot.is_dir():
                return None
            _check_slot(slot, name, digest)
        except (OSError, PeerError) as error:
            if isinstance(error, OSError) and error.errno in _SHORTAGES:
                raise DeviceError(f"{slot}: cannot be read now: {error}") from error
            log.warning("%s is damaged, and not used: %s", slot, error)
            return None
        return slot

    def collect(
        self,
        used: Collection[tuple[str, str]],
        wanted: Collection[str] = (),
        documents: Collection[str] = (),
        unknown: Collection[str] = (),
    ) -> None:
        """Remove all that is neither in a used slot (name, digest) nor wanted.

        ``wanted`` are digests of bundles, which stand for their files, too; ``documents`` of files alone. Of handlers
        that are ``unknown`` every slot may be in use.
        """
        with self._changing():
            self._under_way = {digest: each for digest, each in self._under_way.items() if digest in wanted}
            for slot in list(self._slots.glob("*/*")):
                if slot.parent.name not in unknown and (slot.parent.name, slot.name) not in used:
                    self._discard(slot)
            needed = self._needed(wanted).union(documents)
            _remove(name for name in self._slots.iterdir() if not name.is_dir() or not any(name.iterdir()))
            for file in (*self._objects.iterdir(), *self._incoming.iterdir()):
                digest = file.name.partition(".")[0]
                if digest not in needed and digest not in self._open:
                    _remove([file])
            _remove(staged for staged in self._staging.iterdir() if staged.name not in wanted)

    # Records

    def read_record(self, name: str) -> bytes | None:
        """None where there is none."""
        path = self._record(name)
        try:
            with path.open("rb") as file:
                return file.read(MAX_RECORD_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DeviceError(f"{path}: {error.strerror}; who removes it has the handler begun anew") from error

    def write_record(self, name: str, data: bytes) -> None:
        """Durable when this returns; a power cut before that leaves the old or the new one."""
        if len(data) > MAX_RECORD_BYTES:
            raise ValueError(f"a record of {len(data)} bytes is over the limit of {MAX_RECORD_BYTES}")
        with writing(self._records):  # without the lock: a rollback does not wait for another handler's files
            write_durably(self._record(name), data)

    def remove_record(self, name: str) -> None:
        with writing(self._records):
            remove_durably(self._record(name))

    def records(self) -> list[str]:
        """Names of the handlers that have one."""
        try:
            files = list(self._records.iterdir())  # glob takes a directory that it may not read for an empty one
        except OSError as error:
            raise DeviceError(f"{self._records} cannot be read: {error.strerror}") from error
        return sorted(file.stem for file in files if file.suffix == ".json" and is_name(file.stem))

    # Within

    @contextmanager
    def _changing(self) -> Iterator[None]:
        with self._lock, writing(self._directory):
            yield

    def _slot(self, name: str, digest: str) -> Path:
        return self._slots / _checked_name(name) / self.object(digest).name

    def _record(self, name: str) -> Path:
        return self._records / f"{_checked_name(name)}.json"

    def _index_file(self, digest: str) -> BundleFile:
        file = self.object(digest)
        return BundleFile(digest, file.stat().st_size if file.is_file() else 0)

    def _assembled(self, files: Mapping[str, BundleFile], name: str) -> Path:
        """A new directory with these files, in ``staging``."""
        fresh = self._staging / f".{name}"
        self._discard(fresh)
        fresh.mkdir()
        for file, entry in files.items():
            self._place(entry, fresh / file)
        return fresh

    def _place(self, entry: BundleFile, path: Path) -> None:
        file = self.object(entry.sha256)
        if not file.is_file():
            raise DeviceError(f"{path.name} ({entry.sha256}) is not here: it has to be downloaded")
        if file.stat().st_size != entry.length or file_digest(file) != entry.sha256:
            remove_durably(file)
            raise DeviceError(f"{path.name} ({entry.sha256}) is damaged on disk: it has to be downloaded again")
        if self._links:
            try:
                path.hardlink_to(file)
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                self._links = False
            else:
                return
        shutil.copyfile(file, path)
        sync(path)

    def _discard(self, directory: Path) -> None:
        """A directory is gone at once, and durably so; what is in it goes by and by."""
        if not directory.exists():
            return
        trash = Path(tempfile.mkdtemp(dir=self._staging, prefix=".trash."))
        move_durably(directory, trash / directory.name)
        shutil.rmtree(trash)

    def _missing(self, bundles: Iterable[Bundle]) -> int:
        """Bytes that are to be written for bundles under way."""
        files = {file.sha256: file.length for bundle in bundles for file in bundle.files.values()}
        missing = sum(length for digest, length in files.items() if not self.has(digest))
        begun = 0
        for file in self._incoming.iterdir():
            if file.name.partition(".")[0] in files:
                with suppress(FileNotFoundError):  # it has just become an object
                    begun += file.stat().st_size
        copies = 0 if self._links else sum(bundle.length for bundle in bundles)
        return max(0, missing - begun) + copies

    def _needed(self, wanted: Collection[str]) -> set[str]:
        """Digests of all files that slots and what is wanted consist of."""
        indexes = [slot / INDEX_FILE for slot in self._slots.glob("*/*")]
        indexes += [file for digest in wanted if (file := self.object(digest)).is_file()]
        needed = {*wanted, *(slot.name for slot in self._slots.glob("*/*"))}  # their indexes
        for index in indexes:
            try:
                needed |= {file.sha256 for file in _read_index(index).files.values()}
            except (OSError, PeerError):
                continue  # a damaged slot, or wanted and not an index
        return needed


def _read_index(path: Path) -> Bundle:
    with path.open("rb") as file:
        return decode_bundle(file.read(MAX_INDEX_BYTES + 1))


def _check_slot(slot: Path, name: str, digest: str) -> None:
    """PeerError or OSError for one that is not, byte by byte, what its digest says."""
    index = slot / INDEX_FILE
    if index.stat().st_size > MAX_INDEX_BYTES or file_digest(index) != digest:
        raise PeerError("its index is not what was kept")
    bundle = _read_index(index)
    if bundle.name != name:
        raise PeerError(f"it is a slot of {bundle.name}")
    if {file.name for file in slot.iterdir()} != {INDEX_FILE, *bundle.files}:
        raise PeerError("its files are not those of its index")
    for file, entry in bundle.files.items():
        if (slot / file).stat().st_size != entry.length or file_digest(slot / file) != entry.sha256:
            raise PeerError(f"{file} is not what was kept")


def _make_fit(directory: Path, belongs: Callable[[Path], bool]) -> None:
    """Have a directory that holds nothing of another kind: it would be in the way for ever."""
    for path in (directory.parent, directory):
        if not path.is_dir() and (path.exists() or path.is_symlink()):
            log.warning("%s is no directory: removed", path)
            path.unlink()
    make_directory(directory)
    for path in directory.iterdir():
        if path.is_symlink() or not belongs(path):
            log.warning("%s does not belong there: removed", path)
            _remove([path])


def _remove(paths: Iterable[Path]) -> None:
    """Files, and directories with what is in them. Whether this survives a power cut does not matter."""
    for path in list(paths):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _size(directory: Path) -> int:
    """Bytes of all files below; one that has several names counts once."""
    files: dict[tuple[int, int], int] = {}
    for parent, _, names in os.walk(directory):
        for name in names:
            with suppress(FileNotFoundError):  # records and downloads come and go meanwhile
                status = Path(parent, name).lstat()
                files[status.st_dev, status.st_ino] = status.st_size
    return sum(files.values())


def _checked_name(name: str) -> str:
    if not is_name(name):
        raise ValueError(f"{name!r} is no name of a handler")
    return name


def _megabytes(size: int) -> str:
    return f"{size / MEGABYTE:.1f}"
