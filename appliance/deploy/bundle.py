"""A bundle: one version of a handler as a set of files by content. Pure.

Its *index* is a small JSON document that names every file with its SHA-256 and length. The index is what is signed
(a TUF target, ``handlers/<name>/<version>.json``), and the SHA-256 of its bytes is the *digest of the bundle*: it says
exactly what runs.
"""

from typing import Annotated, Literal

import msgspec

from appliance.config import Name
from appliance.errors import PeerError
from appliance.manifest import MANIFEST_FILE, FileName, Version

MAX_INDEX_BYTES = 32 << 10
MAX_BUNDLE_FILES = 64
MAX_FILE_BYTES = 256 << 20
"""As large as a model may be."""

Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z", description="SHA-256 in hexadecimal")]


class BundleFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sha256: Digest
    length: Annotated[int, msgspec.Meta(ge=0, le=MAX_FILE_BYTES)]


class Bundle(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The index. ``handler.toml`` is always among the files; the others are those it names."""

    v: Literal[1] = 1
    name: Name
    version: Version
    files: Annotated[dict[FileName, BundleFile], msgspec.Meta(min_length=1, max_length=MAX_BUNDLE_FILES)]

    @property
    def length(self) -> int:
        """Bytes of all files together."""
        return sum(file.length for file in self.files.values())


def encode_bundle(bundle: Bundle) -> bytes:
    """The one way to write an index: the same bundle has the same bytes, and so the same digest."""
    return msgspec.json.encode(bundle, order="sorted") + b"\n"


def decode_bundle(data: bytes) -> Bundle:
    """PeerError for what is no index, or has no manifest."""
    if len(data) > MAX_INDEX_BYTES:
        raise PeerError(f"a bundle's index of {len(data)} bytes is over the limit of {MAX_INDEX_BYTES}")
    try:
        bundle = msgspec.json.decode(data, type=Bundle, strict=True)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PeerError(f"not the index of a bundle: {error}") from error
    if MANIFEST_FILE not in bundle.files:
        raise PeerError(f"the index of {bundle.name} {bundle.version} has no {MANIFEST_FILE}")
    return bundle


def bundle_target(name: str, version: str) -> str:
    """Path of the TUF target that is a bundle's index."""
    return f"handlers/{name}/{version}.json"
