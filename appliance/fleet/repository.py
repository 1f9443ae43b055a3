"""A fleet's directory, read: what is signed, what devices need of it, what is desired. Blocking: it reads files.

``targets/<sha256>`` are the files, ``metadata/`` is what is signed of them.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tuf.api.metadata import TargetFile

from appliance.deploy.bundle import MAX_INDEX_BYTES, Bundle, bundle_target, decode_bundle
from appliance.deploy.desired import MAX_DESIRED_BYTES, Assignment, Desired, decode_desired
from appliance.device.reading import open_plain
from appliance.errors import ConfigError, PeerError
from appliance.fleet.history import HISTORY_TARGET, MAX_HISTORY_BYTES, History, decode_history
from appliance.fleet.journal import is_undecided, locked
from appliance.fleet.settings import FleetSettings, load_settings
from appliance.fleet.state import State, read_state, sha256_of

TARGETS = "targets"
KEYS = "keys"
DESIRED = ("devices/", "groups/")
"""Paths of desired documents begin so."""


@dataclass(frozen=True, slots=True)
class Signed:
    """A bundle that is signed, and by which role."""

    name: str
    version: str
    digest: str
    length: int
    """Of the index."""
    role: str


@dataclass(frozen=True, slots=True)
class Fleet:
    """What one directory holds, as it was when it was opened."""

    directory: Path
    settings: FleetSettings
    state: State

    @classmethod
    def open(cls, directory: Path) -> "Fleet":
        """ConfigError or PeerError naming the file. Finishes first what a killed tool has begun."""
        if is_undecided(directory):
            with locked(directory):
                pass
        return cls(directory, load_settings(directory), read_state(directory))

    # --- what goes to devices -------------------------------------------------------------------------------

    def metadata_files(self) -> Mapping[str, bytes]:
        """What devices need, by file name: all roots, and timestamp, snapshot, targets and developers' roles in force.

        In an order in which a device that sees them one by one is never worse off: the timestamp is the last.
        """
        return dict(sorted(self.state.files.items(), key=lambda item: item[0] == "timestamp.json"))

    def needed_content(self) -> Mapping[str, int]:
        """SHA-256 -> length of all files that must be there for devices.

        Those are the desired documents, and index and files of each bundle that is desired or that a rollback would
        bring back. ConfigError or PeerError where one is not in the directory.
        """
        needed = {sha256_of(file): file.length for _, file in self._documents()}
        for name, assignment in self._wanted():
            if assignment.digest not in needed:
                needed[assignment.digest] = self.content(assignment.digest).stat().st_size
                bundle = self.bundle(name, assignment)
                needed |= {file.sha256: file.length for file in bundle.files.values()}
        for digest in needed:
            self.content(digest)
        return needed

    def content(self, digest: str) -> Path:
        """The file of that SHA-256. ConfigError where it is not in the directory; who reads it checks what it is."""
        path = self.directory / TARGETS / digest
        if not path.is_file():
            raise ConfigError(f"{path}: is missing; bring it back from git or a backup, or publish the bundle again")
        return path

    # --- what is desired ------------------------------------------------------------------------------------

    def targets(self) -> tuple[str, ...]:
        """Paths of the desired documents (``groups/all.json``, ``devices/gate.json``), sorted."""
        return tuple(path for path, _ in self._documents())

    def desired(self, target: str) -> Desired:
        """One document by its path; an empty one where there is none."""
        file = self.state.targets.signed.targets.get(target)
        return decode_desired(self.read(sha256_of(file), MAX_DESIRED_BYTES)) if file else Desired()

    def history(self) -> History:
        file = self.state.targets.signed.targets.get(HISTORY_TARGET)
        return decode_history(self.read(sha256_of(file), MAX_HISTORY_BYTES)) if file else History()

    # --- what is signed -------------------------------------------------------------------------------------

    def bundles(self) -> Iterator[Signed]:
        """All that devices would take, by whomever it is signed."""
        for role, signed in [("targets", self.state.targets), *self.state.delegated.items()]:
            paths = self.state.delegations()[role].is_delegated_path if role != "targets" else None
            for path, file in signed.signed.targets.items():
                if path.startswith("handlers/") and (paths is None or paths(path)):
                    _, name, version = path.removesuffix(".json").split("/", 2)
                    yield Signed(name, version, sha256_of(file), file.length, role)

    def find(self, name: str, version: str) -> Signed | None:
        """As a device looks for it."""
        target = bundle_target(name, version)
        return next((each for each in self.bundles() if bundle_target(each.name, each.version) == target), None)

    def bundle(self, name: str, assignment: Assignment) -> Bundle:
        """The index of a bundle, checked to be of that name and version."""
        bundle = self.index(assignment.digest)
        if (bundle.name, bundle.version) != (name, assignment.version):
            raise PeerError(f"{self.content(assignment.digest)}: is the index of {bundle.name} {bundle.version}")
        return bundle

    def index(self, digest: str) -> Bundle:
        """The index of a bundle by its digest."""
        return decode_bundle(self.read(digest, MAX_INDEX_BYTES))

    def read(self, digest: str, limit: int) -> bytes:
        """A small file by its SHA-256, checked."""
        path = self.content(digest)
        with open_plain(path) as file:
            data = file.read(limit + 1)
        if len(data) > limit or hashlib.sha256(data).hexdigest() != digest:
            raise PeerError(f"{path}: is not what its name says; bring it back from git or a backup")
        return data

    def _documents(self) -> Iterator[tuple[str, TargetFile]]:
        for path, file in sorted(self.state.targets.signed.targets.items()):
            if path.startswith(DESIRED):
                yield path, file

    def _wanted(self) -> Iterator[tuple[str, Assignment]]:
        """(Handler, bundle) of all that is desired or would be after a rollback."""
        for path in self.targets():
            for name, assignment in self.desired(path).handlers.items():
                if assignment is not None:
                    yield name, assignment
        yield from self.history().returns()
