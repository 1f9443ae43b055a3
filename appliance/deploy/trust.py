"""What the fleet's keys have signed: TUF, by the client of the ``tuf`` library as it is. Blocking: call in a thread.

Nothing here waits for the network. The client's fetcher reads the metadata that has come so far, and files that were
downloaded by their digest; what is not there is not found.

``metadata/`` is what the client stores for itself. It may be lost or damaged: it is asked for again, and the floor
beside it says what may not come back.
"""

import hashlib
import logging
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from tuf.api.exceptions import DownloadError, DownloadHTTPError, ExpiredMetadataError, RepositoryError
from tuf.api.metadata import Metadata, Root, TargetFile
from tuf.ngclient._internal.trusted_metadata_set import TrustedMetadataSet
from tuf.ngclient.config import UpdaterConfig
from tuf.ngclient.fetcher import FetcherInterface
from tuf.ngclient.updater import Updater

from appliance.config import FleetConfig
from appliance.deploy.bundle import MAX_INDEX_BYTES, Bundle, bundle_target, decode_bundle
from appliance.deploy.desired import MAX_DESIRED_BYTES, Assignment, Desired, decode_desired
from appliance.deploy.fleet_topics import MAX_METADATA_BYTES
from appliance.deploy.floor import MAX_FLOOR_BYTES, MAX_SECONDS, ROLES, SEEN_SECONDS, Floor, decode_floor, encode_floor
from appliance.device.durable import make_directory, sync_tree, write_durably, writing
from appliance.device.reading import open_plain
from appliance.errors import ConfigError, PeerError

log = logging.getLogger(__name__)

MAX_ROOT_ROTATIONS = 1024
"""Versions of the root from the one that the box was given: each needs the keys of the one before it."""
MAX_DELEGATIONS = 32
"""Roles that are asked for one target."""
MAX_TARGET_BYTES = max(MAX_DESIRED_BYTES, MAX_INDEX_BYTES)
MADE_SECONDS = 1_795_478_400.0
"""2026-11-24 in Unix seconds: this software was not there before. A box whose clock says less has a wrong one."""

ROOTS = "root_history"
"""Where the client keeps the root's versions, in its directory."""

_METADATA_URL = "metadata:/"
_TARGET_URL = "target:/"
_DIGEST = re.compile(r"[0-9a-f]{64}")

Result = TypeVar("Result")


class TrustError(PeerError):
    """The fleet's metadata cannot be gone by."""


class IncompleteError(TrustError):
    """Something is not there (yet): wait for it."""


class StaleError(TrustError):
    """Something has expired: the fleet's operator has to sign anew, or somebody withholds what is new."""


class UntrustedError(TrustError):
    """Something does not verify: signature, version, digest, length or format."""


class MissignedError(UntrustedError):
    """What is wrong has been signed: not the broker's fault, and signing anew is what helps."""


@dataclass(frozen=True)
class SignedTarget:
    """A file that the fleet's keys have signed. Made by ``Verified`` alone."""

    path: str
    length: int
    sha256: str


@dataclass(frozen=True)
class VerifiedBundle:
    """A bundle that may be admitted and stored. Made by ``Verified`` alone."""

    bundle: Bundle
    digest: str
    """SHA-256 of the index."""
    index_bytes: int


class Trust:
    """Verifies metadata against the root that the box was given. What it knows survives in ``directory``.

    ConfigError for a root that is none. DeviceError where the disk fails.
    """

    def __init__(self, directory: Path, root: bytes, *, wall: Callable[[], float] = time.time) -> None:
        _check_root(root)
        self._root = root
        self._wall = wall
        self._floor_file = directory / "floor.json"
        self._metadata = directory / "metadata"
        self._last: tuple[Mapping[str, bytes], Verified] | None = None
        self._lock = threading.Lock()  # the client's files are not for two at a time
        with writing(directory):
            make_directory(self._metadata.parent)
            _tidy(self._floor_file, self._metadata)
            self._floor = self._read_floor(hashlib.sha256(root).hexdigest())

    def refresh(self, metadata: Mapping[str, bytes]) -> "Verified":
        """Verify metadata (file name -> bytes) from the root on. TrustError says whether to wait."""
        with self._lock:
            now = min(max(self._wall(), self._floor.seen, MADE_SECONDS), MAX_SECONDS)
            if self._last is not None and metadata == self._last[0] and now < self._again_at(self._last[1]):
                return self._last[1]
            self._last = None
            fetcher = _Fetcher(metadata)
            updater = self.guarded(lambda: self._refreshed(fetcher, now))
            verified = Verified(self, updater, fetcher)
            self._keep_floor(verified.versions, _keys(updater), now)
            self._last = metadata, verified
            return verified

    def _again_at(self, verified: "Verified") -> float:
        """Unix seconds: until then the same metadata is not verified again, for the client writes to the disk then."""
        return min(verified.expires.timestamp(), self._floor.seen + SEEN_SECONDS)

    def guarded(self, call: Callable[[], Result]) -> Result:
        """What the client does, its errors sorted. Files of its own that get in its way are thrown away."""
        with writing(self._metadata), _sorted_errors():
            try:
                return call()
            except OSError as error:
                log.warning("%s: stored metadata is damaged, and asked for again: %s", self._metadata, error)
                _clear(self._metadata)
                return call()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """One thread at a time uses the client."""
        with self._lock:
            yield

    def _refreshed(self, fetcher: "_Fetcher", now: float) -> Updater:
        self._metadata.mkdir(exist_ok=True)
        updater = Updater(
            str(self._metadata),
            _METADATA_URL,
            target_base_url=_TARGET_URL,
            fetcher=fetcher,
            config=UpdaterConfig(
                max_root_rotations=MAX_ROOT_ROTATIONS,
                max_delegations=MAX_DELEGATIONS,
                root_max_length=MAX_METADATA_BYTES,
                timestamp_max_length=MAX_METADATA_BYTES,
                snapshot_max_length=MAX_METADATA_BYTES,
                targets_max_length=MAX_METADATA_BYTES,
                prefix_targets_with_hash=False,
            ),
            bootstrap=self._root,
        )
        _trusted(updater).reference_time = datetime.fromtimestamp(now, UTC)
        updater.refresh()
        return updater

    def _keep_floor(self, versions: Mapping[str, int], keys: Mapping[str, tuple[str, ...]], now: float) -> None:
        below = self._floor.sunk(versions, keys)
        if below is not None:
            text = f"{below} {versions[below]} is older than {self._floor.versions[below]}, which was there before"
            raise IncompleteError(text) if below == "root" else UntrustedError(f"{text}: somebody replays it")
        floor = self._floor.raised(versions, keys, now)
        if floor is self._floor:
            return
        with writing(self._floor_file):
            sync_tree(self._metadata)
            write_durably(self._floor_file, encode_floor(floor))
        self._floor = floor

    def _read_floor(self, anchor: str) -> Floor:
        try:
            with self._floor_file.open("rb") as file:
                return decode_floor(file.read(MAX_FLOOR_BYTES), anchor)
        except FileNotFoundError:
            pass
        except ValueError as error:
            log.warning("%s: damaged, and begun anew: %s", self._floor_file, error)
        return Floor(anchor=anchor)


class Verified:
    """One state of the fleet, whole and consistent. It hands out what was signed, and nothing else does."""

    def __init__(self, trust: Trust, updater: Updater, fetcher: "_Fetcher") -> None:
        """Made by ``Trust`` alone."""
        trusted = _trusted(updater)
        self._trust = trust
        self._updater = updater
        self._fetcher = fetcher
        self.versions: Mapping[str, int] = {role: trusted[role].version for role in ROLES}
        """By role: root, timestamp, snapshot, targets."""
        self.expires: datetime = min(trusted[role].expires for role in ROLES)
        """Of what is the first of them to expire, the timestamp as a rule."""

    def target(self, path: str) -> SignedTarget | None:
        """None where nobody signed it who may. TrustError as for ``refresh``, and for one that is too long."""
        with self._trust.alone():
            info = self._trust.guarded(lambda: self._updater.get_targetinfo(path))
        return None if info is None else _signed(info)

    def read(self, target: SignedTarget, file: Path) -> bytes:
        """Content of a target. ``file`` is what was downloaded by its digest; UntrustedError where it is not that."""
        with self._trust.alone(), writing(file), _sorted_errors(), tempfile.TemporaryDirectory() as scratch:
            info = self._updater.get_targetinfo(target.path)
            if info is None or _signed(info) != target:
                raise UntrustedError(f"{target.path} was signed differently when it was asked for")
            self._fetcher.files[target.path] = file
            return Path(self._updater.download_target(info, str(Path(scratch, "verified")))).read_bytes()

    def desired(self, target: SignedTarget, file: Path) -> Desired:
        """MissignedError for what is no desired state."""
        if not target.path.startswith(("devices/", "groups/")):
            raise MissignedError(f"{target.path} is no desired state")
        data = self.read(target, file)
        try:
            return decode_desired(data)
        except PeerError as error:
            raise MissignedError(f"{target.path}: {error}") from error

    def bundle(self, name: str, assignment: Assignment, target: SignedTarget, file: Path) -> VerifiedBundle:
        """MissignedError where name, version and digest of index, target and assignment are not the same."""
        path = bundle_target(name, assignment.version)
        if target.path != path:
            raise MissignedError(f"{path} is desired, and {target.path} is something else")
        if target.sha256 != assignment.digest:
            raise MissignedError(f"{path} is signed as {target.sha256}, desired as {assignment.digest}: deploy it anew")
        data = self.read(target, file)
        try:
            bundle = decode_bundle(data)
        except PeerError as error:
            raise MissignedError(f"{path}: {error}") from error
        if (bundle.name, bundle.version) != (name, assignment.version):
            raise MissignedError(f"{path} is the index of {bundle.name} {bundle.version}")
        return VerifiedBundle(bundle, target.sha256, target.length)


class _Fetcher(FetcherInterface):
    """Where the client gets its files from: messages that have come, and files that were downloaded."""

    def __init__(self, metadata: Mapping[str, bytes]) -> None:
        self._metadata = metadata
        self.files: dict[str, Path] = {}
        """By path of the target."""

    def _fetch(self, url: str) -> Iterator[bytes]:
        if url.startswith(_TARGET_URL):
            return self._file(url.removeprefix(_TARGET_URL).lstrip("/"))
        name = url.removeprefix(_METADATA_URL).lstrip("/")
        data = self._metadata.get(name)
        if data is None:
            raise DownloadHTTPError(f"metadata {name} has not come", 404)
        return iter((data,))

    def _file(self, path: str) -> Iterator[bytes]:
        try:
            with self.files[path].open("rb") as file:
                return iter((file.read(MAX_TARGET_BYTES + 1),))  # at once: the client may leave off in the middle
        except (KeyError, FileNotFoundError):
            raise DownloadHTTPError(f"{path} has not been downloaded", 404) from None


def _signed(info: TargetFile) -> SignedTarget:
    """MissignedError for one without a SHA-256, or longer than its kind may be."""
    digest = info.hashes.get("sha256", "")
    if not _DIGEST.fullmatch(digest):
        raise MissignedError(f"{info.path} is signed without a SHA-256")
    limit = MAX_INDEX_BYTES if info.path.startswith("handlers/") else MAX_DESIRED_BYTES
    if info.length > limit:
        raise MissignedError(f"{info.path} of {info.length} bytes is over the limit of {limit}")
    return SignedTarget(info.path, info.length, digest)


def _trusted(updater: Updater) -> TrustedMetadataSet:
    """What the client has verified, and the time it goes by: the one thing of its that is not public."""
    return updater._trusted_set  # noqa: SLF001


def _keys(updater: Updater) -> dict[str, tuple[str, ...]]:
    root = _trusted(updater).root
    return {role: tuple(sorted(root.roles[role].keyids)) for role in ROLES}


def read_root(fleet: FleetConfig) -> bytes:
    """The root metadata that the configuration names; ConfigError where it cannot be read. Blocking."""
    if not fleet.root:
        raise ConfigError("fleet.root: missing; name the fleet's root.json, which `appliance fleet init` made")
    try:
        with open_plain(Path(fleet.root)) as file:
            root = file.read(MAX_METADATA_BYTES + 1)
    except OSError as error:
        remedy = "copy metadata/root.json of the fleet's directory there"
        raise ConfigError(f"fleet.root: {fleet.root} cannot be read: {error.strerror}; {remedy}") from error
    _check_root(root, f"fleet.root: {fleet.root}")
    return root


def _check_root(root: bytes, source: str = "fleet.root") -> None:
    try:
        if len(root) > MAX_METADATA_BYTES:
            raise ConfigError(f"{source}: {len(root)} bytes are over the limit of {MAX_METADATA_BYTES}")
        metadata = Metadata[Root].from_bytes(root)
        if not isinstance(metadata.signed, Root):
            raise ConfigError(f"{source}: this is {metadata.signed.type} metadata; give the fleet's root.json")
        metadata.signed.verify_delegate(Root.type, metadata.signed_bytes, metadata.signatures)
    except RepositoryError as error:
        raise ConfigError(f"{source}: no root metadata of a fleet: {error}; give the fleet's root.json") from error


def _tidy(floor: Path, metadata: Path) -> None:
    """Remove what a power cut has left of writing, and what else neither the client nor this module has put there."""
    rubbish = [*floor.parent.glob(f".{floor.name}.*"), *([floor] if floor.is_dir() else [])]
    if metadata.is_dir() and not metadata.is_symlink():
        own = {metadata / ROOTS, metadata / "root.json"}  # the latter is a link
        rubbish += [path for path in metadata.iterdir() if path not in own and not _is_stored(path)]
        rubbish += [path for path in (metadata / ROOTS).glob("*") if not _is_stored(path)]
    for path in rubbish:
        log.warning("%s: not whole, or no part of this: removed", path)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _is_stored(path: Path) -> bool:
    """It could be metadata that the client has stored."""
    return path.suffix == ".json" and path.is_file() and not path.is_symlink()


def _clear(directory: Path) -> None:
    if directory.is_dir() and not directory.is_symlink():
        shutil.rmtree(directory)
    else:
        directory.unlink(missing_ok=True)
    directory.mkdir()


@contextmanager
def _sorted_errors() -> Iterator[None]:
    """The client's errors, by what is to be done about them."""
    try:
        yield
    except DownloadHTTPError as error:
        raise IncompleteError(str(error)) from error
    except ExpiredMetadataError as error:
        raise StaleError(f"{error}: sign the fleet's metadata anew (appliance fleet refresh)") from error
    except (DownloadError, RepositoryError, ValueError) as error:  # ValueError: signed, and still nonsense
        raise UntrustedError(f"what the broker has does not verify: {error}") from error
