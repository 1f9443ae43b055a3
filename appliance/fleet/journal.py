"""Several files changed as one: a tool that is killed leaves the old files or the new ones, never some of each.

What is to change is written to a directory aside; renaming that directory is the moment of the change. Then the files
are put in their places, which is done again by the next tool where this one is killed.
"""

import fcntl
import os
import shutil
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from appliance.device.durable import write_durably
from appliance.errors import ConfigError, DeviceError

LOCK_FILE = ".lock"
_BEGUN = ".change-begun"
_DECIDED = ".change"
_REMOVE = ".remove"
"""Ending of an empty file that says: the file of that name goes."""


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold a fleet's directory, and finish what a killed tool has decided. ConfigError where another tool has it."""
    try:
        lock = (directory / LOCK_FILE).open("w")
    except OSError as error:
        raise DeviceError(f"{directory}: cannot be written: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{directory} is in use by another `appliance fleet`; let it finish first") from None
        recover(directory)
        yield


def recover(directory: Path) -> None:
    """Finish a change that was decided, forget one that was not. Called with the directory locked."""
    shutil.rmtree(directory / _BEGUN, ignore_errors=True)
    if (directory / _DECIDED).is_dir():
        _put(directory)


def is_undecided(directory: Path) -> bool:
    """True where a killed tool has left a change to be finished: only then a reader needs the lock."""
    return (directory / _DECIDED).is_dir()


def change(directory: Path, files: Mapping[str, bytes | None], private: Collection[str] = ()) -> None:
    """Make files (paths relative to ``directory``) what is given, None removes; all or nothing.

    ``private`` are those of them that only their owner may read.

    DeviceError where it cannot be written; nothing has changed then, or the next tool finishes it.
    """
    begun = directory / _BEGUN
    try:
        begun.mkdir()
        for path, data in files.items():
            place = begun / (path if data is not None else path + _REMOVE)
            place.parent.mkdir(parents=True, exist_ok=True)
            write_durably(place, data or b"", 0o600 if path in private else 0o644)
        for each in (begun, *(inner for inner in begun.rglob("*") if inner.is_dir())):
            sync(each)
        begun.rename(directory / _DECIDED)
        sync(directory)
        _put(directory)
    except OSError as error:
        raise DeviceError(f"{directory}: cannot be written: {error}") from error


def _put(directory: Path) -> None:
    """Put the decided files in their places. May be begun any number of times: copied first, removed at the end."""
    decided = directory / _DECIDED
    for source in sorted(each for each in decided.rglob("*") if each.is_file()):
        place = directory / source.relative_to(decided)
        if source.name.endswith(_REMOVE):
            place.with_name(place.name.removesuffix(_REMOVE)).unlink(missing_ok=True)
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        write_durably(place, source.read_bytes(), stat.S_IMODE(source.stat().st_mode))
        for begun in place.parent.glob(f".{place.name}.*"):  # by a tool that was killed
            begun.unlink()
    finished = directory / _BEGUN  # by a rename: half a removed directory must not look like a change
    shutil.rmtree(finished, ignore_errors=True)
    decided.rename(finished)
    sync(directory)
    shutil.rmtree(finished, ignore_errors=True)


def sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
