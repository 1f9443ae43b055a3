"""A file that comes in pieces: which to ask for next, and how they go together. Pure.

Pieces are accepted in any order within a window, and taken in the file's order. Memory is bounded by the window.
"""

from appliance.deploy.fleet_topics import MAX_CHUNK_BYTES, MIN_CHUNK_BYTES
from appliance.errors import PeerError

WINDOW_BYTES = 1 << 20
"""Of a file, asked for at a time and at most held in memory: a window that is small waits for the broker's answers."""
MAX_WINDOW = 64
"""Pieces, however small they are."""


class Assembly:
    """Puts a file of ``length`` bytes together.

    ``received`` bytes of it are there from before, in pieces of ``chunk_bytes``: a whole number of them, or all.
    """

    def __init__(self, digest: str, length: int, *, chunk_bytes: int | None = None, received: int = 0) -> None:
        self._digest = digest
        self._length = length
        self._chunk_bytes = chunk_bytes if received else None
        self._next = -(-received // chunk_bytes) if chunk_bytes else 0  # index of the piece that is taken next
        self._held: dict[int, bytes] = {}

    @property
    def chunk_bytes(self) -> int | None:
        """None until the first piece has come."""
        return self._chunk_bytes

    @property
    def taken(self) -> int:
        """Bytes, from the beginning of the file."""
        return min(self._length, self._next * (self._chunk_bytes or 0))

    @property
    def done(self) -> bool:
        return self.taken == self._length

    def wanted(self) -> frozenset[int]:
        """Pieces to ask for now."""
        return frozenset(index for index in self._window() if index not in self._held)

    def accept(self, index: int, piece: bytes) -> bool:
        """Hold a piece; False where it is not wanted. PeerError where it cannot be of this file."""
        if not piece or index not in self._window() or index in self._held:
            return False
        self._judge(index, len(piece))
        self._held[index] = piece
        return True

    def take(self) -> bytes:
        """What comes next in the file, as far as it is there."""
        pieces = []
        while (piece := self._held.pop(self._next, None)) is not None:
            pieces.append(piece)
            self._next += 1
        return b"".join(pieces)

    def _window(self) -> range:
        if self._chunk_bytes is None:
            return range(1 if self._length else 0)  # the first one tells how long the others are
        count = -(-self._length // self._chunk_bytes)
        return range(self._next, min(count, self._next + window_of(self._chunk_bytes)))

    def _judge(self, index: int, length: int) -> None:
        if self._chunk_bytes is None:
            shortest = min(self._length, MIN_CHUNK_BYTES)
            longest = min(self._length, MAX_CHUNK_BYTES)
            if not shortest <= length <= longest:
                raise PeerError(f"chunk 0 of {self._digest} has {length} bytes; {shortest} to {longest} are allowed")
            self._chunk_bytes = length
            return
        expected = min(self._chunk_bytes, self._length - index * self._chunk_bytes)
        if length != expected:
            raise PeerError(f"chunk {index} of {self._digest} has {length} bytes where {expected} belong")


def window_of(chunk_bytes: int) -> int:
    """How many pieces are asked for at a time."""
    return min(MAX_WINDOW, WINDOW_BYTES // chunk_bytes)
