"""What has to be sent so that the broker holds what a fleet needs, and nothing else. Pure.

The order is what keeps devices safe from half a publication: pieces of files first, then metadata, the timestamp
last, and only then is cleared what nothing needs any more. A message without a payload clears its topic.

What the broker holds is remembered between runs, but only as far as it is certain: before a message is sent, its
topic is noted as one that *perhaps* holds something, and when it is acknowledged, as one that *surely* does. So
nothing that was begun is ever forgotten, and what is doubtful is sent once more.
"""

import hashlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec

from appliance.deploy.bundle import MAX_FILE_BYTES, Digest
from appliance.deploy.fleet_topics import MAX_CHUNK_BYTES, MAX_METADATA_BYTES, MIN_CHUNK_BYTES, FleetTopics
from appliance.errors import ConfigError, PeerError

MAX_CHUNKS = MAX_FILE_BYTES // MIN_CHUNK_BYTES
MAX_HELD_FILES = 4096
"""Files, and metadata files, that a broker may hold of one fleet."""
MAX_PIECES = 1 << 17
"""Pieces of all files together: 4 GiB of them at the usual length. Some 300 bytes of memory are kept of each."""

TIMESTAMP = "timestamp.json"

_VERSIONED = re.compile(r"(?:(\d+)\.)?(.+)\.json")
_LAST = {"root": 0, "snapshot": 2, "timestamp": 3}
"""Place in the order by role; all others are targets, at 1."""

Index = Annotated[int, msgspec.Meta(ge=0, lt=MAX_CHUNKS)]
ReadPiece = Callable[[str, int, int], bytes]
"""(SHA-256 of the file, offset, length) -> bytes of it."""


@dataclass(frozen=True, slots=True)
class Needed:
    """What a broker should hold: metadata by file name, and the lengths of files by SHA-256."""

    metadata: Mapping[str, bytes]
    content: Mapping[str, int]

    def __post_init__(self) -> None:
        """ConfigError for what no broker can be given."""
        for file, payload in self.metadata.items():
            if not 0 < len(payload) <= MAX_METADATA_BYTES:
                raise ConfigError(
                    f"{file}: {len(payload)} bytes of metadata, over the limit of {MAX_METADATA_BYTES}: "
                    "undeploy handlers, or take versions away that no device runs"
                )


@dataclass(frozen=True, slots=True)
class MetadataStep:
    """Say ``payload`` on the topic of a metadata file, or clear it."""

    file: str
    payload: bytes

    @property
    def length(self) -> int:
        return len(self.payload)


@dataclass(frozen=True, slots=True)
class ChunkStep:
    """Send piece ``index`` of a file that is cut every ``chunk_bytes``, or clear it (``length`` 0)."""

    digest: str
    index: int
    chunk_bytes: int
    length: int

    @property
    def offset(self) -> int:
        return self.index * self.chunk_bytes


Step = MetadataStep | ChunkStep


class HeldFile(msgspec.Struct, forbid_unknown_fields=True):
    """Pieces of one file, by index. None is both sure and perhaps there."""

    chunk_bytes: Annotated[int, msgspec.Meta(ge=MIN_CHUNK_BYTES, le=MAX_CHUNK_BYTES)]
    sure: Annotated[set[Index], msgspec.Meta(max_length=MAX_CHUNKS)] = msgspec.field(default_factory=set)
    perhaps: Annotated[set[Index], msgspec.Meta(max_length=MAX_CHUNKS)] = msgspec.field(default_factory=set)

    def sending(self, step: ChunkStep) -> None:
        if step.length and self.chunk_bytes != step.chunk_bytes:  # pieces of another size are of no use beside these
            self.chunk_bytes = step.chunk_bytes
            self.perhaps |= self.sure
            self.sure = set()
        self.sure.discard(step.index)
        self.perhaps.add(step.index)

    def whole(self, length: int) -> bool:
        return self.sure.issuperset(range(count_of(length, self.chunk_bytes)))


class Held(msgspec.Struct, forbid_unknown_fields=True):
    """What one broker holds of one fleet, as far as is known: the ledger."""

    v: Literal[1] = 1
    metadata: Annotated[dict[str, str], msgspec.Meta(max_length=MAX_HELD_FILES)] = msgspec.field(default_factory=dict)
    """SHA-256 of the payload by file name; empty where it is not certain."""
    files: Annotated[dict[Digest, HeldFile], msgspec.Meta(max_length=MAX_HELD_FILES)] = msgspec.field(
        default_factory=dict
    )

    def sending(self, step: Step) -> None:
        """``step`` is about to be sent: from now on nobody knows what its topic holds."""
        if isinstance(step, MetadataStep):
            self.metadata[step.file] = ""
        else:
            self.files.setdefault(step.digest, HeldFile(step.chunk_bytes)).sending(step)

    def acknowledged(self, step: Step) -> None:
        """The broker has taken ``step``."""
        if isinstance(step, MetadataStep):
            if step.payload:
                self.metadata[step.file] = sha256(step.payload)
            else:
                self.metadata.pop(step.file, None)
            return
        file = self.files[step.digest]
        file.perhaps.discard(step.index)
        if step.length:
            file.sure.add(step.index)
        elif not file.sure and not file.perhaps:
            del self.files[step.digest]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to send, in order. All of a stage is acknowledged before the next begins."""

    stages: tuple[tuple[Step, ...], ...]

    def __iter__(self) -> Iterator[Step]:
        return (step for stage in self.stages for step in stage)

    @property
    def length(self) -> int:
        """Bytes of all payloads."""
        return sum(step.length for step in self)


def plan(needed: Needed, held: Held, chunk_bytes: int) -> Plan:
    """The way from what the broker holds to what is needed; files not begun yet are cut every ``chunk_bytes``.

    ConfigError for more pieces than a survey would take.
    """
    pieces = sum(count_of(length, chunk_bytes) for length in needed.content.values())
    if pieces > MAX_PIECES:
        raise ConfigError(
            f"chunk_kb: {pieces} pieces of files are over the limit of {MAX_PIECES}: raise it in fleet.toml, "
            "or undeploy handlers"
        )
    changed = [
        MetadataStep(file, needed.metadata[file])
        for file in sorted(needed.metadata, key=_place)
        if held.metadata.get(file) != sha256(needed.metadata[file])
    ]
    stages: tuple[tuple[Step, ...], ...] = (
        tuple(_pieces(needed.content, held, chunk_bytes)),
        tuple(step for step in changed if _place(step.file)[0] < _LAST["timestamp"]),
        tuple(step for step in changed if _place(step.file)[0] == _LAST["timestamp"]),
        (*_old_metadata(needed, held), *_old_pieces(needed.content, held, chunk_bytes)),
    )
    return Plan(tuple(stage for stage in stages if stage))


def _pieces(content: Mapping[str, int], held: Held, chunk_bytes: int) -> Iterator[ChunkStep]:
    for digest, length in content.items():
        file = held.files.get(digest)
        if file is not None and file.whole(length):
            continue
        sure: Collection[int] = file.sure if file is not None and file.chunk_bytes == chunk_bytes else ()
        for index in range(count_of(length, chunk_bytes)):
            if index not in sure:
                yield ChunkStep(digest, index, chunk_bytes, min(chunk_bytes, length - index * chunk_bytes))


def _old_metadata(needed: Needed, held: Held) -> Iterator[MetadataStep]:
    return (MetadataStep(file, b"") for file in sorted(held.metadata.keys() - needed.metadata.keys(), key=_place))


def _old_pieces(content: Mapping[str, int], held: Held, chunk_bytes: int) -> Iterator[ChunkStep]:
    for digest, file in held.files.items():
        length = content.get(digest, 0)
        count = count_of(length, file.chunk_bytes if file.whole(length) else chunk_bytes)
        for index in sorted(file.sure | file.perhaps):
            if index >= count:
                yield ChunkStep(digest, index, file.chunk_bytes, 0)


class Survey:
    """What a broker says it holds of a fleet: its retained messages, by their SHA-256."""

    def __init__(self, topics: FleetTopics) -> None:
        self._topics = topics
        self._metadata: dict[str, str] = {}
        self._pieces: dict[str, dict[int, tuple[int, str]]] = {}
        self._count = 0
        self.timestamp = b""
        """The payload of the timestamp's topic."""

    def received(self, topic: str, payload: bytes) -> None:
        """One message; an empty one says that there is none. PeerError where it becomes too much."""
        if (file := self._topics.metadata_of(topic)) is not None:
            if file == TIMESTAMP:
                self.timestamp = payload
            self._metadata.pop(file, None)
            if payload:
                self._metadata[file] = sha256(payload)
        elif (piece := self._topics.chunk_of(topic)) is not None and piece[1] < MAX_CHUNKS:
            pieces = self._pieces.setdefault(piece[0], {})
            self._count += (piece[1] not in pieces) if payload else -(piece[1] in pieces)
            pieces.pop(piece[1], None)
            if payload:
                pieces[piece[1]] = len(payload), sha256(payload)
        if max(len(self._metadata), len(self._pieces)) > MAX_HELD_FILES or self._count > MAX_PIECES:
            raise PeerError(
                f"the broker holds more than {MAX_HELD_FILES} files or {MAX_PIECES} pieces of them on "
                f"{self._topics.root}: clear it by hand"
            )

    def confirms(self, held: Held) -> bool:
        """Whether a ledger can be relied upon: nothing in it is doubtful, and its metadata is what the broker holds.

        A broker that lost its memory holds other metadata than the ledger says. While a publication was under way it
        may have lost pieces alone, so a ledger that something was begun by is doubtful.
        """
        return held.metadata == self._metadata and not any(file.perhaps for file in held.files.values())

    def incomplete(self, content: Mapping[str, int], chunk_bytes: int) -> tuple[str, ...]:
        """Files that the broker has not shown whole, by number of pieces."""
        return tuple(
            digest
            for digest, length in content.items()
            if len(self._pieces.get(digest, ())) < count_of(length, self._cut(digest, chunk_bytes))
        )

    def held(self, content: Mapping[str, int], read: ReadPiece, chunk_bytes: int) -> Held:
        """The ledger as it should be; pieces of needed files are compared with what they should be. Reads files."""
        files = {}
        for digest, pieces in self._pieces.items():
            if pieces:
                cut, length = self._cut(digest, chunk_bytes), content.get(digest, 0)
                sure = {index for index, found in pieces.items() if found == _right(read, digest, index, cut, length)}
                files[digest] = HeldFile(cut, sure, pieces.keys() - sure)
        return Held(metadata=dict(self._metadata), files=files)

    def _cut(self, digest: str, chunk_bytes: int) -> int:
        """How long the pieces are of a file that the broker holds: as long as the first."""
        length, _ = self._pieces.get(digest, {}).get(0, (chunk_bytes, ""))
        return min(max(length, MIN_CHUNK_BYTES), MAX_CHUNK_BYTES)


def _right(read: ReadPiece, digest: str, index: int, cut: int, length: int) -> tuple[int, str] | None:
    """(Length, SHA-256) of a piece as it should be; None for one that should not be."""
    piece = min(cut, length - index * cut)
    return (piece, sha256(read(digest, index * cut, piece))) if piece > 0 else None


def count_of(length: int, chunk_bytes: int) -> int:
    """Pieces of a file: none of an empty one, which needs no fetching."""
    return -(-length // chunk_bytes)


def version_of(metadata: bytes) -> int:
    """The version that a metadata file says it has, unverified; 0 for what says none."""
    try:
        return msgspec.json.decode(metadata, type=_Metadata).signed.version
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return 0


class _Signed(msgspec.Struct, frozen=True):
    version: int


class _Metadata(msgspec.Struct, frozen=True):
    signed: _Signed


def sha256(payload: bytes) -> str:
    return hashlib.sha256(payload).hexdigest()


def _place(file: str) -> tuple[int, int, str]:
    """Where a metadata file has its place: roots in order of their versions, targets, snapshot, timestamp."""
    found = _VERSIONED.fullmatch(file)
    version, role = (int(found[1] or 0), found[2]) if found else (0, file)
    return _LAST.get(role, 1), version, role
