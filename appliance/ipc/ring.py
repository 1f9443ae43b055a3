"""Shared memory that frames are written into once and read by every child process.

The owner (the zipper) maps a memfd writable, then seals it with ``F_SEAL_FUTURE_WRITE``: whoever gets the
descriptor afterwards can only map it read-only, whatever it tries. Children are started by exec, so none
inherits the owner's writable mapping.
"""

import fcntl
import mmap
import os
from bisect import insort
from types import TracebackType
from typing import Self

import msgspec

from appliance.errors import DeviceError

F_SEAL_FUTURE_WRITE = 0x0010
"""linux/fcntl.h; Python's ``fcntl`` module names it only from 3.13."""
ALIGN = 64
DEFAULT_RING_BYTES = 32 << 20


class FrameRef(msgspec.Struct, frozen=True, array_like=True):
    """Where a frame's payload lies in the ring: what passes between processes instead of the bytes."""

    key: int
    """Unique for every payload ever written: what inference results are memoised by."""
    offset: int
    length: int
    format: str
    width: int
    height: int


class Arena:
    """First-fit allocation of byte ranges; pure bookkeeping, so that it can be tested without memory."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._used: list[tuple[int, int]] = []  # sorted (start, end)

    def allocate(self, length: int) -> int | None:
        """Offset of a free range of ``length`` bytes, or None where there is none."""
        need = max(ALIGN, -(-length // ALIGN) * ALIGN)
        start = 0
        for used_start, used_end in self._used:
            if used_start - start >= need:
                break
            start = used_end
        if start + need > self.size:
            return None
        insort(self._used, (start, start + need))
        return start

    def free(self, offset: int) -> None:
        """Give back the range that :meth:`allocate` returned as ``offset``."""
        for index, (start, _) in enumerate(self._used):
            if start == offset:
                del self._used[index]
                return
        raise ValueError(f"offset {offset} is not allocated")

    @property
    def used(self) -> int:
        """Bytes allocated now."""
        return sum(end - start for start, end in self._used)


class RingWriter:
    """The owner's end: one process, the zipper, has it."""

    def __init__(self, size: int = DEFAULT_RING_BYTES) -> None:
        try:
            self.fd = os.memfd_create("frames", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except OSError as error:
            raise DeviceError(f"cannot create shared memory for frames: {error}") from error
        os.ftruncate(self.fd, size)
        self._map = mmap.mmap(self.fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | F_SEAL_FUTURE_WRITE
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, seals)
        self._arena = Arena(size)
        self._next_key = 1

    def write(self, payload: bytes | memoryview, format: str, width: int, height: int) -> FrameRef | None:
        """Copy a payload in; None where the ring is full (the frame is then dropped and counted)."""
        offset = self._arena.allocate(len(payload))
        if offset is None:
            return None
        self._map[offset : offset + len(payload)] = bytes(payload) if isinstance(payload, memoryview) else payload
        key = self._next_key
        self._next_key += 1
        return FrameRef(key, offset, len(payload), format, width, height)

    def free(self, ref: FrameRef) -> None:
        """Nobody reads the payload any more."""
        self._arena.free(ref.offset)

    @property
    def used(self) -> int:
        """Bytes that frames hold now."""
        return self._arena.used

    def close(self) -> None:
        self._map.close()
        os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class RingReader:
    """A child's end: read-only, made from the inherited descriptor."""

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, os.fstat(fd).st_size, mmap.MAP_SHARED, mmap.PROT_READ)
        self._view = memoryview(self._map)

    def view(self, ref: FrameRef) -> memoryview:
        """The payload, without copying; raises IndexError where the reference lies outside the ring."""
        if ref.offset < 0 or ref.length < 0 or ref.offset + ref.length > len(self._view):
            raise IndexError(f"frame {ref.offset}+{ref.length} lies outside the ring of {len(self._view)} bytes")
        return self._view[ref.offset : ref.offset + ref.length]

    def close(self) -> None:
        self._view.release()
        self._map.close()
