"""Several files changed as one: a tool that is killed leaves the old files or the new ones, never some of each.

What is to change is written to a directory aside; renaming that directory is the moment of the change. Then the files
are put in their places, which is done again by the next tool where this one is killed.

A fleet's directory is shared, by git or otherwise, so a change that was decided may be somebody else's: it can do no
more than what whoever shares the directory can do in the open, and nothing to private keys. No link leads out of it.
"""

import fcntl
import os
import re
import shutil
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from appliance.device.durable import write_durably
from appliance.errors import ConfigError, DeviceError, PeerError

LOCK_FILE = ".lock"
_BEGUN = ".change-begun"
_DECIDED = ".change"
_REMOVE = ".remove"
"""Ending of an empty file that says: the file of that name goes."""
_CHANGEABLE = re.compile(r"fleet\.toml|\.gitignore|metadata/(?:pending/)?[^/]+\.json(?:\.remove)?")
_ADDABLE = re.compile(r"keys/[^/]+\.(?:pem|pub)")
"""Keys are never replaced: whoever loses the root's has lost the fleet."""
_OWN = ("metadata", "metadata/pending", "targets", _DECIDED, _BEGUN)
"""Directories that tools write to and remove from."""


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold a fleet's directory, and finish what a killed tool has decided. ConfigError where another tool has it."""
    try:
        handle = os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    except OSError as error:
        raise DeviceError(f"{directory / LOCK_FILE}: cannot be opened: {error.strerror}") from error
    with os.fdopen(handle) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{directory} is in use by another `appliance fleet`; let it finish first") from None
        _check_links(directory)
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
    for each in decided.rglob("*"):
        if each.is_symlink() or not (each.is_dir() or _may_be_put(directory, each.relative_to(decided))):
            raise PeerError(
                f"{each}: no `appliance fleet` changes this: somebody wants yours to; remove {decided}, and ask who "
                f"brought it"
            )
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


def _may_be_put(directory: Path, path: Path) -> bool:
    """Whether a tool changes such a file, or, of keys, has one to add (a tool that was killed may have begun)."""
    if _CHANGEABLE.fullmatch(path.as_posix()):
        return True
    place, source = directory / path, directory / _DECIDED / path
    return bool(_ADDABLE.fullmatch(path.as_posix())) and (
        not os.path.lexists(place) or (place.is_file() and place.read_bytes() == source.read_bytes())
    )


def _check_links(directory: Path) -> None:
    """PeerError where writing into the fleet's directory would be writing elsewhere."""
    for name in _OWN:
        if (directory / name).is_symlink():
            raise PeerError(f"{directory / name}: is a link; put a directory in its place, and ask who brought it")


def sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
