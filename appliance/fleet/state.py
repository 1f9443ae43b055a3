"""A fleet's signed metadata as it is in force, read and verified once.

What is in force is what a device would find: the newest root, the timestamp it signs, the snapshot that names, and so
on. Everything is verified before anything is built on it: the directory may come from a shared git repository, and an
operator must not sign what somebody else has put there.
"""

import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from securesystemslib.exceptions import Error as SignatureLibraryError
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import DelegatedRole, Metadata, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.serialization import DeserializationError

from appliance.deploy.fleet_topics import MAX_METADATA_BYTES
from appliance.device.reading import open_plain
from appliance.errors import ConfigError, PeerError
from appliance.text import printable

METADATA = "metadata"
PENDING = "metadata/pending"
"""Roles that lack a signature, or a place in the snapshot: nothing of it goes to devices."""
TOP_LEVEL = (Root.type, Targets.type, Snapshot.type, Timestamp.type)

_SHA256 = re.compile(r"[0-9a-f]{64}")
_ROOT_FILE = re.compile(r"([1-9][0-9]{0,3})\.root\.json")

Kind = TypeVar("Kind", Root, Timestamp, Snapshot, Targets)
AnyKind = TypeVar("AnyKind", bound=Metadata[Any])


@dataclass(frozen=True, slots=True)
class State:
    """Metadata in force. Who changes one of them makes a copy first (:func:`copied`)."""

    files: Mapping[str, bytes]
    """By name, without a directory: what devices need."""
    root: Metadata[Root]
    timestamp: Metadata[Timestamp]
    snapshot: Metadata[Snapshot]
    targets: Metadata[Targets]
    delegated: Mapping[str, Metadata[Targets]]
    """Developers' roles that are in the snapshot and verify, by name."""
    distrusted: Mapping[str, Metadata[Targets]]
    """Those that a revocation has left without enough signatures: devices take nothing of them."""

    def delegations(self) -> Mapping[str, DelegatedRole]:
        return delegations_of(self.targets.signed)

    def version_after(self, role: str) -> int:
        """Versions only go up, over a developer's leaving and coming back, too."""
        meta = self.snapshot.signed.meta.get(f"{role}.json")
        return meta.version + 1 if meta else 1


def sha256_of(file: TargetFile) -> str:
    """PeerError for a file that is signed without its SHA-256."""
    digest = file.hashes.get("sha256", "")
    if not _SHA256.fullmatch(digest):
        raise PeerError(f"{printable(file.path)} is signed without a SHA-256; remove the change that brought it")
    return digest


def delegations_of(targets: Targets) -> dict[str, DelegatedRole]:
    return dict((targets.delegations.roles or {}) if targets.delegations else {})


def read_state(directory: Path) -> State:
    """ConfigError where metadata is missing, PeerError where it does not verify: both name the file."""
    metadata = directory / METADATA
    files = _roots(metadata)
    root = parse(files[f"{len(files)}.root.json"], Root, metadata / f"{len(files)}.root.json")

    def load(role: str, kind: type[Kind], delegator: Root | Targets, name: str) -> Metadata[Kind]:
        data = read_metadata(metadata / name)
        parsed = parse(data, kind, metadata / name)
        _verified(lambda: delegator.verify_delegate(role, parsed.signed_bytes, parsed.signatures), metadata / name)
        files[name] = data
        return parsed

    timestamp = load(Timestamp.type, Timestamp, root.signed, "timestamp.json")
    version = timestamp.signed.snapshot_meta.version
    snapshot = load(Snapshot.type, Snapshot, root.signed, f"{version}.snapshot.json")
    version = snapshot.signed.meta["targets.json"].version
    targets = load(Targets.type, Targets, root.signed, f"{version}.targets.json")
    delegated, distrusted = {}, {}
    for role in delegations_of(targets.signed):
        meta = snapshot.signed.meta.get(f"{role}.json")
        if meta is None:  # it has signed nothing yet
            continue
        name = f"{meta.version}.{role}.json"
        data = read_metadata(metadata / name)
        parsed = parse(data, Targets, metadata / name)
        files[name] = data
        if is_signed(parsed, role, targets.signed):
            delegated[role] = parsed
        else:
            distrusted[role] = parsed
    return State(files, root, timestamp, snapshot, targets, delegated, distrusted)


def is_signed(metadata: Metadata[Kind], role: str, delegator: Root | Targets) -> bool:
    """Whether enough of the role's keys have signed."""
    return bool(delegator.get_verification_result(role, metadata.signed_bytes, metadata.signatures))


def is_signed_root(metadata: Metadata[Root], before: Root | None) -> bool:
    """A root is signed by enough keys of its own and of the root before it, which the first has not."""
    data, signatures = metadata.signed_bytes, metadata.signatures
    return bool(metadata.signed.get_root_verification_result(before, data, signatures))


def parse(data: bytes, kind: type[Kind], path: Path) -> Metadata[Kind]:
    try:
        parsed = Metadata[Kind].from_bytes(data)
    except DeserializationError as error:
        raise PeerError(f"{path}: not metadata of a fleet: {error}; bring it back from git or a backup") from error
    if not isinstance(parsed.signed, kind):
        raise PeerError(f"{path}: is {parsed.signed.type} metadata; bring the file back from git or a backup")
    return parsed


def copied(metadata: AnyKind) -> AnyKind:
    """To be changed, with its signatures left behind."""
    copy = deepcopy(metadata)
    copy.signatures.clear()
    return copy


def _roots(metadata: Path) -> dict[str, bytes]:
    """All versions from the first, each verified by the one before."""
    try:
        found = [match for each in metadata.iterdir() if (match := _ROOT_FILE.fullmatch(each.name))]
    except OSError as error:
        raise ConfigError(f"{metadata}: cannot be read: {error.strerror}; it is part of a fleet's directory") from error
    newest = max((int(match[1]) for match in found), default=1)
    files: dict[str, bytes] = {}
    before: Root | None = None
    for version in range(1, newest + 1):
        name = f"{version}.root.json"
        files[name] = read_metadata(metadata / name)
        root = parse(files[name], Root, metadata / name)
        signed = root.signed.version == version and is_signed_root(root, before)
        if not signed:
            raise PeerError(f"{metadata / name}: is not signed as root {version} must be; bring it back from git")
        before = root.signed
    return files


def _verified(check: Callable[[], None], path: Path) -> None:
    try:
        check()
    except (RepositoryError, SignatureLibraryError, ValueError) as error:
        raise PeerError(
            f"{path}: does not verify: {error}. Somebody has changed it, or a merge has mixed two states; "
            f"bring {path.parent} back from git or a backup, as a whole"
        ) from error


def read_metadata(path: Path) -> bytes:
    """A file of metadata, no larger than a message may be. ConfigError where it cannot be read."""
    try:
        with open_plain(path) as file:
            data = file.read(MAX_METADATA_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; bring it back from git or a backup") from error
    if len(data) > MAX_METADATA_BYTES:
        raise PeerError(f"{path}: larger than {MAX_METADATA_BYTES} bytes")
    return data
