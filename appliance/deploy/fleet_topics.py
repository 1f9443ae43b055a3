"""Topics of a fleet: ``<prefix>/<fleet>/…``, all retained. Pure; ``docs/fleet.md`` is the text of record.

``…/meta/<file>`` is a TUF metadata file, ``…/chunk/<sha256>/<index>`` a piece of a file by the SHA-256 of the whole.
All pieces of a file are equally long, but for the last: the length of the first tells how the file was cut.
"""

import re
from dataclasses import dataclass

from appliance.config import check_prefix
from appliance.errors import ConfigError
from appliance.frame import is_name

MAX_METADATA_BYTES = 60 << 10
"""Of one metadata file: it has to fit in a message."""
MAX_CHUNK_BYTES = 60 << 10
MIN_CHUNK_BYTES = 1 << 10
DEFAULT_CHUNK_BYTES = 32 << 10

_METADATA = re.compile(r"(?:[1-9][0-9]{0,8}\.)?[a-z0-9][a-z0-9_-]{0,63}\.json")
_CHUNK = re.compile(r"([0-9a-f]{64})/(0|[1-9][0-9]{0,5})")


@dataclass(frozen=True, slots=True)
class FleetTopics:
    """ConfigError for a prefix or fleet that no topic can be made of."""

    prefix: str
    fleet: str

    def __post_init__(self) -> None:
        check_prefix("fleet.prefix", self.prefix)
        if not is_name(self.fleet):
            raise ConfigError(f"fleet.name: {self.fleet!r} must be a lower-case name of letters, digits, - and _")

    @property
    def root(self) -> str:
        return f"{self.prefix}/{self.fleet}"

    @property
    def all_metadata(self) -> str:
        """A filter."""
        return f"{self.root}/meta/+"

    @property
    def all_chunks(self) -> str:
        """A filter; only operators' tools ask for all."""
        return f"{self.root}/chunk/+/+"

    @property
    def marker(self) -> str:
        """Not retained: operators' tools tell themselves here that a broker has shown all that it holds."""
        return f"{self.root}/marker"

    def chunks_of(self, digest: str) -> str:
        """A filter."""
        return f"{self.root}/chunk/{digest}/+"

    def metadata(self, file: str) -> str:
        """``timestamp.json``, ``3.root.json``."""
        return f"{self.root}/meta/{file}"

    def chunk(self, digest: str, index: int) -> str:
        return f"{self.root}/chunk/{digest}/{index}"

    def metadata_of(self, topic: str) -> str | None:
        """The name of the metadata file; None for another topic."""
        name = topic.removeprefix(f"{self.root}/meta/")
        return name if name != topic and _METADATA.fullmatch(name) else None

    def chunk_of(self, topic: str) -> tuple[str, int] | None:
        """(SHA-256 of the file, index of the piece); None for another topic."""
        rest = topic.removeprefix(f"{self.root}/chunk/")
        found = _CHUNK.fullmatch(rest) if rest != topic else None
        return (found[1], int(found[2])) if found else None
