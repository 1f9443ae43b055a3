"""What an operator or a developer does with a fleet's directory: read it, change it, write it, with the lock held."""

import hashlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import chain, count
from pathlib import Path

from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, Targets, Timestamp

from appliance.device.durable import write_durably
from appliance.errors import ConfigError, DeviceError
from appliance.fleet.assignments import Wanted
from appliance.fleet.draft import AnyMetadata, Draft, expiry_of
from appliance.fleet.journal import LOCK_FILE, change, is_undecided, locked
from appliance.fleet.keys import PRIVATE, PUBLIC, Keyring, NewKey, public_text
from appliance.fleet.repository import KEYS, TARGETS, Fleet
from appliance.fleet.settings import SETTINGS_FILE, FleetSettings, encode_settings, load_settings
from appliance.fleet.signing import Settled, due, pending, settle, signers_of
from appliance.fleet.state import METADATA, TOP_LEVEL, sha256_of

IGNORED = f"""# Private keys stay off git. Keep copies elsewhere: without the root key nobody can replace a lost one.
{KEYS}/*{PRIVATE}
.change*/{KEYS}/*{PRIVATE}
{LOCK_FILE}
published.json
broker-password
"""


@contextmanager
def opened(directory: Path) -> Iterator[Fleet]:
    """A fleet to be changed. ConfigError where another tool is changing it."""
    if not is_undecided(directory):
        load_settings(directory)  # says so where it is no fleet's directory, before a lock is made in it
    with locked(directory):
        for begun in (directory / TARGETS).glob(".*"):  # by a tool that was killed
            begun.unlink()
        yield Fleet.open(directory)


def create(directory: Path, settings: FleetSettings, keys: Mapping[str, NewKey], now: datetime) -> None:
    """Make a fleet with one key for each of its own roles. ConfigError where the directory holds a fleet."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DeviceError(f"{directory}: cannot be made: {error.strerror}") from error
    with locked(directory):
        for name in (SETTINGS_FILE, METADATA, KEYS):
            if (directory / name).exists():
                raise ConfigError(f"{directory / name}: is there already; choose an empty directory for a new fleet")
        ignore = directory / ".gitignore"
        kept = ignore.read_bytes() if ignore.is_file() else b""
        files: dict[str, bytes | None] = {
            SETTINGS_FILE: encode_settings(settings),
            ".gitignore": kept + IGNORED.encode(),
            **_first_metadata(settings, keys, now),
        }
        for role, key in keys.items():
            files |= key_files(role, key)
        change(directory, files, private=[path for path in files if path.endswith(PRIVATE)])


def key_files(name: str, key: NewKey) -> dict[str, bytes | None]:
    """By path in a fleet's directory."""
    return {f"{KEYS}/{name}{PRIVATE}": key.private, f"{KEYS}/{name}{PUBLIC}": public_text(key.public).encode()}


def free_name(directory: Path, role: str) -> str:
    """For a new key of a role: ``root-2``, where ``root`` is there."""
    return next(
        name
        for name in chain([role], (f"{role}-{number}" for number in count(2)))
        if not any((directory / KEYS / f"{name}{ending}").exists() for ending in (PRIVATE, PUBLIC))
    )


def _first_metadata(settings: FleetSettings, keys: Mapping[str, NewKey], now: datetime) -> dict[str, bytes]:
    expires = {role: expiry_of(role, settings.expiry, now) for role in TOP_LEVEL}
    root = Metadata(Root(expires=expires[Root.type], consistent_snapshot=True))
    for role in TOP_LEVEL:
        root.signed.add_key(keys[role].public, role)
    snapshot = Snapshot(expires=expires[Snapshot.type], meta={"targets.json": MetaFile(1)})
    timestamp = Timestamp(expires=expires[Timestamp.type], snapshot_meta=MetaFile(1))
    made: dict[str, Metadata[Root] | Metadata[Targets] | Metadata[Snapshot] | Metadata[Timestamp]] = {
        "1.root.json": root,
        "1.targets.json": Metadata(Targets(expires=expires[Targets.type])),
        "1.snapshot.json": Metadata(snapshot),
        "timestamp.json": Metadata(timestamp),
    }
    files = {}
    for (name, metadata), role in zip(made.items(), TOP_LEVEL, strict=True):
        metadata.sign(keys[role].signer)
        files[f"{METADATA}/{name}"] = metadata.to_bytes()
    return {**files, f"{METADATA}/root.json": files[f"{METADATA}/1.root.json"]}


# --- changes -------------------------------------------------------------------------------------------------


def carry_out(draft: Draft, keys: Keyring, new_keys: Mapping[str, NewKey] | None = None) -> Settled:
    """Sign a draft and write it: the files its targets name first, then all metadata as one change."""
    fleet = draft.fleet
    settled = settle(fleet, draft.roles, keys, draft.now, sign=draft.roles.keys(), fresh=draft.content.keys())
    _write(fleet.directory, draft.content, settled, new_keys or {})
    return settled


def add_signature(fleet: Fleet, role: str, keys: Keyring, now: datetime) -> Settled:
    """Sign what waits of a role. ConfigError where nothing does, or no key at hand counts."""
    waiting = pending(fleet)
    if role not in waiting:
        known = ", ".join(waiting) or "nothing waits"
        raise ConfigError(f"nothing of {role} waits for a signature; what does: {known}")
    if not signers_of(fleet, waiting, role) & keys.files.keys():
        raise ConfigError(f"none of the keys at hand may sign {role}; name the file of one with --key")
    settled = settle(fleet, waiting, keys, now, sign=(role,))
    _write(fleet.directory, {}, settled, {})
    return settled


@dataclass(frozen=True, slots=True)
class Refreshed:
    settled: Settled
    left: tuple[str, ...]
    """Roles that expire soon and that no key at hand can renew, or that wait for signatures."""


def refresh(fleet: Fleet, keys: Keyring, now: datetime) -> Refreshed:
    """Sign the timestamp anew, and what else expires soon; take in what waits with all its signatures."""
    waiting = pending(fleet)
    draft = Draft(fleet, now)
    left, renew = [], [Timestamp.type]
    for role in due(fleet, now):
        if role == Snapshot.type:
            renew.append(role)
        elif role in waiting or not signers_of(fleet, {}, role) & keys.files.keys():
            left.append(role)
        elif role == Root.type:
            draft.root()
        else:
            draft.role(role)
    roles: dict[str, AnyMetadata] = {**waiting, **draft.roles}
    settled = settle(fleet, roles, keys, now, sign=draft.roles.keys(), renew=renew)
    _write(fleet.directory, {}, settled, {})
    return Refreshed(settled, tuple(left))


def wanted_of(fleet: Fleet) -> Wanted:
    return Wanted({path: fleet.desired(path) for path in fleet.targets()}, fleet.history())


# --- what nothing needs --------------------------------------------------------------------------------------


def unwanted(fleet: Fleet, roles: Collection[str]) -> list[tuple[str, str, str]]:
    """(Role, name, version) of bundles that nothing desires and no next rollback brings back."""
    wanted = wanted_of(fleet)
    desired = [(name, each) for document in wanted.documents.values() for name, each in document.handlers.items()]
    used = {(name, each.version) for name, each in (*desired, *wanted.history.returns()) if each is not None}
    return [
        (each.role, each.name, each.version)
        for each in fleet.bundles()
        if each.role in roles and (each.name, each.version) not in used
    ]


def sweep(fleet: Fleet) -> int:
    """Remove files that no metadata names, in force or waiting. Gives how many."""
    signed = [fleet.state.targets.signed, *(each.signed for each in fleet.state.delegated.values())]
    signed += [each.signed for each in fleet.state.distrusted.values()]
    signed += [each.signed for each in pending(fleet).values() if isinstance(each.signed, Targets)]
    used = set()
    for targets in signed:
        for target, file in targets.targets.items():
            digest = sha256_of(file)
            used.add(digest)
            if target.startswith("handlers/") and (fleet.directory / TARGETS / digest).is_file():
                used |= {each.sha256 for each in fleet.index(digest).files.values()}
    gone = [path for path in (fleet.directory / TARGETS).glob("*") if path.name not in used]
    for path in gone:
        path.unlink()
    return len(gone)


def _write(directory: Path, content: Mapping[str, bytes | Path], settled: Settled, keys: Mapping[str, NewKey]) -> None:
    for digest, source in content.items():
        _store(directory / TARGETS / digest, source)
    files = dict(settled.files)
    for name, key in keys.items():
        files |= key_files(name, key)
    if files:
        change(directory, files, private=[path for path in files if path.endswith(PRIVATE)])


def _store(place: Path, source: bytes | Path) -> None:
    if place.is_file():
        return
    try:
        place.parent.mkdir(exist_ok=True)
        data = source if isinstance(source, bytes) else source.read_bytes()
        if hashlib.sha256(data).hexdigest() != place.name:
            raise ConfigError(f"{source!s}: has changed while it was published; do it again")
        write_durably(place, data)
    except OSError as error:
        raise DeviceError(f"{place}: cannot be written: {error}") from error
