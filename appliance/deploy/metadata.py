"""Metadata files as they come from the broker, before anybody has verified them. Pure.

Retained messages fill the cache, in any order; ``Trust.refresh`` reads it. What it holds is bounded, whatever is sent.
"""

import logging
from collections.abc import Mapping
from types import MappingProxyType

from appliance.deploy.fleet_topics import MAX_METADATA_BYTES

log = logging.getLogger(__name__)

MAX_METADATA_FILES = 2048
"""All roots that a box follows (``trust.MAX_ROOT_ROTATIONS``), and the last few versions of each role."""
MAX_CACHED_BYTES = 8 << 20
"""Of all files and their names together."""


class MetadataCache:
    """File name -> bytes. One that would be more than allowed is emptied: which of its files are junk is not known."""

    def __init__(self) -> None:
        self._files: dict[str, bytes] = {}
        self._bytes = 0
        self.emptied = 0
        """How often it overflowed: what was there has to be asked for again."""

    def received(self, file: str, payload: bytes) -> bool:
        """Keep a file, or forget it where the payload is empty. True where something changed."""
        if len(payload) > MAX_METADATA_BYTES:
            log.warning(
                "metadata %s of %d bytes is over the limit of %d: ignored", file, len(payload), MAX_METADATA_BYTES
            )
            return False
        if self._files.get(file, b"") == payload:
            return False
        self._forget(file)
        if payload:
            self._bytes += len(file) + len(payload)
            self._files[file] = bytes(payload)
        if len(self._files) > MAX_METADATA_FILES or self._bytes > MAX_CACHED_BYTES:
            log.warning(
                "over %d metadata files or %d bytes: forgotten; the fleet's topics hold what does not belong there",
                MAX_METADATA_FILES,
                MAX_CACHED_BYTES,
            )
            self.forget()
            self.emptied += 1
        return True

    def forget(self) -> None:
        """Everything: it is asked for anew."""
        self._files.clear()
        self._bytes = 0

    def snapshot(self) -> Mapping[str, bytes]:
        """What is there now; later messages do not change it."""
        return MappingProxyType(dict(self._files))

    def _forget(self, file: str) -> None:
        old = self._files.pop(file, None)
        if old is not None:
            self._bytes -= len(file) + len(old)
