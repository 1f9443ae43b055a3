"""Files that survive a power cut."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.errors import DeviceError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the operating system says of files in ``path``, as DeviceError."""
    try:
        yield
    except OSError as error:
        raise DeviceError(f"{path}: the state cannot be written: {error}; see --state") from error


def write_durably(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Replace a file so that a power cut leaves the old or the new one, whole."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink()
        raise
    sync(path.parent)


def move_durably(source: Path, target: Path) -> None:
    """Rename a file or directory whose content is synced already; the name it takes, and the one it leaves."""
    source.rename(target)
    sync(target.parent)
    if source.parent != target.parent:
        sync(source.parent)


def remove_durably(path: Path) -> None:
    """A file; nothing where there is none."""
    path.unlink(missing_ok=True)
    sync(path.parent)


def make_directory(path: Path) -> None:
    """A directory with its parents; what was made is there after a power cut."""
    if path.is_dir():
        return
    make_directory(path.parent)
    path.mkdir(exist_ok=True)
    sync(path.parent)


def sync(path: Path) -> None:
    """What was written to a file, or the names in a directory, are on the disk when this returns."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(directory: Path) -> None:
    """All files and directories below."""
    for parent, _, files in os.walk(directory):
        for name in files:
            path = Path(parent, name)
            if not path.is_symlink():
                sync(path)
        sync(Path(parent))
