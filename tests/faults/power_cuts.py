"""Power cuts: a real ext4 in a file, which forgets what was not flushed.

    with disk(tmp_path) as drive:
        for cut in cuts(seed=1, count=200):
            ...  # write into drive.path, as far as cut.share of the work
            drive.cut(cut)
            drive.power_up()
            ...  # drive.path has what survived

The cut is the kernel's own ``EXT4_IOC_SHUTDOWN``: from then on nothing reaches the disk. Most cuts lose the journal's
last transactions, too; the others write them and lose the data: a file that was renamed and never synced is there,
and empty. ``noauto_da_alloc`` takes away what ext4 does for programs that forget to sync.
"""

import fcntl
import os
import random
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MEGABYTES = 48
_SHUTDOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN, _IOR('X', 125, __u32)
_LOG_FLUSH = 1
_NO_LOG_FLUSH = 2
_OPTIONS = "loop,noatime,noauto_da_alloc,commit=600"
_SECONDS = 60


@dataclass(frozen=True)
class Cut:
    number: int
    share: float
    """When it comes: 0 before the work has begun, towards 1 when it is done."""
    journal: bool
    """Metadata is written in this last moment, data is not."""


def cuts(seed: int, count: int) -> Iterator[Cut]:
    """The same ones for the same seed."""
    chance = random.Random(seed)
    for number in range(count):
        yield Cut(number, chance.random(), chance.random() < 0.3)


class Drive:
    """A mounted file system. Whoever has files open in it must be gone before ``power_up``."""

    def __init__(self, image: Path, path: Path) -> None:
        self._image = image
        self.path = path

    def cut(self, cut: Cut) -> None:
        """From here on every write is lost, and fails."""
        handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(handle, _SHUTDOWN, struct.pack("I", _LOG_FLUSH if cut.journal else _NO_LOG_FLUSH))
        finally:
            os.close(handle)

    def power_up(self) -> None:
        """As a box that starts again finds it: the journal is replayed."""
        self.unmount()
        self.mount()

    def mount(self) -> None:
        _run("mount", "-o", _OPTIONS, str(self._image), str(self.path))

    def unmount(self, *options: str) -> None:
        _run("umount", *options, str(self.path))


@contextmanager
def disk(directory: Path, megabytes: int = MEGABYTES) -> Iterator[Drive]:
    """A new, empty file system, its image and mount point in ``directory``."""
    image, path = directory / "disk.img", directory / "disk"
    path.mkdir()
    with image.open("wb") as file:
        file.truncate(megabytes << 20)
    _run("mkfs.ext4", "-q", "-F", str(image))
    drive = Drive(image, path)
    drive.mount()
    try:
        yield drive
    finally:
        drive.unmount("--lazy")  # whatever a failing test has left open: no mount stays behind
        path.rmdir()
        image.unlink()


def unavailable(directory: Path) -> str | None:
    """Why there are no power cuts to be had here; None where there are."""
    if os.geteuid() != 0:
        return "mounting a file system needs root"
    try:
        with disk(directory) as drive:
            drive.cut(Cut(0, 0.0, journal=False))
    except (OSError, subprocess.SubprocessError) as error:
        return f"no ext4 on a loop device: {getattr(error, 'stderr', None) or error}"
    return None


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=_SECONDS)
