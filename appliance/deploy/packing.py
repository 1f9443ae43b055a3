"""A handler's directory as a bundle: exactly the files that its manifest names."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from appliance.deploy.bundle import (
    MAX_BUNDLE_FILES,
    MAX_FILE_BYTES,
    MAX_INDEX_BYTES,
    Bundle,
    BundleFile,
    encode_bundle,
)
from appliance.device.reading import open_plain
from appliance.errors import HandlerError
from appliance.manifest import (
    MANIFEST_FILE,
    MAX_FILES_BYTES,
    MAX_LABELS_BYTES,
    MAX_MANIFEST_BYTES,
    MAX_MODULE_BYTES,
    Manifest,
    load_manifest,
    own_file,
)


@dataclass(frozen=True, slots=True)
class Packed:
    bundle: Bundle
    index: bytes
    """The bundle's bytes, as they are signed."""
    digest: str
    """SHA-256 of ``index``, hexadecimal."""
    files: Mapping[str, Path]
    """Where each file of the bundle lies."""


def pack(directory: Path) -> Packed:
    """The bundle of a handler's directory. Reads whole files (models, too): call it off the event loop.

    HandlerError names the file and what is wrong with it: missing, too large, a link out of the directory, a model
    that the manifest gives no file.
    """
    manifest = load_manifest(directory)
    limits: dict[str, int] = {}
    for name, limit in _named(directory, manifest):
        limits[name] = min(limit, limits.get(name, limit))
    if len(limits) > MAX_BUNDLE_FILES:
        raise HandlerError(f"{directory / MANIFEST_FILE}: names {len(limits)} files; a bundle has {MAX_BUNDLE_FILES}")
    files = {name: own_file(directory, name) for name in sorted(limits)}
    bundle = Bundle(
        name=manifest.name,
        version=manifest.version,
        files={name: _measured(path, limits[name]) for name, path in files.items()},
    )
    index = encode_bundle(bundle)
    if len(index) > MAX_INDEX_BYTES:
        raise HandlerError(f"{directory}: the index of its bundle is over the limit of {MAX_INDEX_BYTES} bytes")
    return Packed(bundle, index, hashlib.sha256(index).hexdigest(), files)


def _named(directory: Path, manifest: Manifest) -> Iterator[tuple[str, int]]:
    """Names of files, each with the bytes it may have."""
    yield MANIFEST_FILE, MAX_MANIFEST_BYTES
    yield manifest.module, MAX_MODULE_BYTES
    for model in manifest.models:
        if model.file is None:
            raise HandlerError(
                f"{directory / MANIFEST_FILE}: model {model.name!r} has no `file`, and nobody can name one on the "
                f"devices; copy the model into {directory} and give `file` and `labels` in the manifest"
            )
        yield model.file, MAX_FILE_BYTES
        if model.labels is not None:
            yield model.labels, MAX_LABELS_BYTES
    for name in manifest.files:
        yield name, MAX_FILES_BYTES


def _measured(path: Path, limit: int) -> BundleFile:
    try:
        with open_plain(path) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            length = file.tell()
    except OSError as error:
        raise HandlerError(f"{path}: cannot be read: {error.strerror}; the manifest names it") from error
    if length > limit:
        raise HandlerError(f"{path}: {length} bytes are over the limit of {limit}")
    return BundleFile(digest, length)
