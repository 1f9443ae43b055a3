"""From a draft to files: signatures, thresholds, snapshot and timestamp. Writes nothing.

What lacks a signature waits in ``metadata/pending`` and is in no snapshot. What has all goes into a new snapshot with a
new timestamp. Root and targets go together: a root that changes the targets' keys is worth nothing without targets that
these have signed.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import cast

from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from appliance.deploy.desired import Assignment
from appliance.deploy.fleet_topics import MAX_METADATA_BYTES
from appliance.errors import ConfigError, PeerError
from appliance.fleet.draft import AnyMetadata, expiry_of
from appliance.fleet.keys import Keyring, id_of
from appliance.fleet.repository import Fleet
from appliance.fleet.state import (
    METADATA,
    PENDING,
    TOP_LEVEL,
    copied,
    delegations_of,
    is_signed,
    is_signed_root,
    parse,
    read_metadata,
    sha256_of,
)
from appliance.frame import is_name
from appliance.text import printable

_CORE = (Root.type, Targets.type)


@dataclass(frozen=True, slots=True)
class Missing:
    """A role that lacks signatures."""

    role: str
    signed: int
    threshold: int
    keyids: tuple[str, ...]
    """Of the keys that could still sign."""

    def __str__(self) -> str:
        keys = ", ".join(keyid[:12] for keyid in self.keyids)
        return f"{self.role} has {self.signed} of {self.threshold} signatures; keys that can add one: {keys}"


@dataclass(frozen=True, slots=True)
class Settled:
    """What has become of the roles that were to be signed."""

    files: Mapping[str, bytes | None]
    """What to write, by path in the fleet's directory; None goes."""
    in_force: tuple[str, ...]
    """Roles that have a new version for devices, the timestamp included; empty where all waits."""
    missing: tuple[Missing, ...]


@dataclass(slots=True)
class _Next:
    """The roles as they will be in force, and those that wait."""

    root: Metadata[Root]
    targets: Metadata[Targets]
    taken: dict[str, AnyMetadata]
    waiting: dict[str, AnyMetadata]
    missing: list[Missing]


def settle(
    fleet: Fleet,
    roles: Mapping[str, AnyMetadata],
    keys: Keyring,
    now: datetime,
    *,
    sign: Collection[str],
    renew: Collection[str] = (),
    fresh: Collection[str] = (),
) -> Settled:
    """Sign the roles in ``sign`` with the keys at hand, and put in force what has enough signatures.

    ``renew`` names snapshot or timestamp where they are wanted anew though no role has changed; ``fresh`` are files by
    SHA-256 that will be in the directory. ConfigError where a file would be too large, a file is missing or a key
    cannot be used; PeerError for a role that signs what it may not.
    """
    draft = _decide(fleet, roles, keys, sign)
    _check_bundles(fleet, draft, fresh)
    if not (draft.taken or renew):
        return Settled(_files(fleet, {}, draft), (), tuple(draft.missing))
    closing = _closing(fleet, draft, keys, now, renew)
    lacking = [lack for role, made in closing.items() if (lack := _lack(role, made, draft.root.signed))]
    if lacking and not draft.taken:
        raise ConfigError(f"{lacking[0]}; name the file of one with --key")
    if lacking:  # a developer's directory: who has the other keys takes it in
        draft.waiting |= draft.taken
        return Settled(_files(fleet, {}, draft), (), (*draft.missing, *lacking))
    made = {**draft.taken, **closing}
    return Settled(_files(fleet, made, draft), tuple(made), tuple(draft.missing))


def pending(fleet: Fleet) -> dict[str, AnyMetadata]:
    """What waits in the directory, by role. PeerError for what does not follow what is in force."""
    found: dict[str, AnyMetadata] = {}
    state = fleet.state
    for path in sorted((fleet.directory / PENDING).glob("*.json")):
        number, _, role = path.name.removesuffix(".json").partition(".")
        if not is_name(role):
            raise PeerError(f"{path.parent}: {path.name!r} is not the file of a role; remove it")
        metadata: AnyMetadata
        if role == Root.type:
            metadata, follows = parse(read_metadata(path), Root, path), state.root.signed.version + 1
        else:
            metadata = parse(read_metadata(path), Targets, path)
            follows = state.targets.signed.version + 1 if role == Targets.type else state.version_after(role)
        if not str(metadata.signed.version) == number == str(follows):
            raise PeerError(
                f"{path}: is not version {follows} of {role}: something else was put in force meanwhile. "
                f"Remove the file, and make the change again"
            )
        _check_keys(metadata.signed, path)
        found[role] = metadata
    return found


def _check_keys(signed: Root | Targets, path: Path) -> None:
    """A key's id tells which key it is: nobody signs for another one under an id that is known."""
    keys = signed.keys if isinstance(signed, Root) else signed.delegations.keys if signed.delegations else {}
    for keyid, key in keys.items():
        if keyid != id_of(key):
            raise PeerError(
                f"{path}: another key has the id {keyid[:12]}: somebody wants you to sign for it; remove it"
            )
    if isinstance(signed, Root) and not signed.consistent_snapshot:
        raise PeerError(f"{path}: lacks `consistent_snapshot`, which devices need; remove it")


def _decide(fleet: Fleet, roles: Mapping[str, AnyMetadata], keys: Keyring, sign: Collection[str]) -> _Next:
    state = fleet.state
    draft = _Next(state.root, state.targets, {}, {}, [])
    root = cast("Metadata[Root]", roles.get(Root.type, state.root))
    targets = cast("Metadata[Targets]", roles.get(Targets.type, state.targets))
    lacks: list[Missing] = []
    if Root.type in roles:
        _sign(root, signers_of(fleet, roles, Root.type) if Root.type in sign else (), keys)
        lacks += _lacks_of_root(root, state.root.signed)
    if Targets.type in roles:
        _sign(targets, signers_of(fleet, roles, Targets.type) if Targets.type in sign else (), keys)
    if lack := _lack(Targets.type, targets, root.signed):
        lacks.append(lack)
    core = {role: each for role, each in roles.items() if role in _CORE}
    if lacks:
        draft.waiting |= core
        draft.missing += lacks
    else:
        draft.root, draft.targets, draft.taken = root, targets, core
    delegated = delegations_of(draft.targets.signed)
    for role, metadata in roles.items():
        if role in _CORE:
            continue
        signers = signers_of(fleet, roles, role)
        if not signers and role not in delegated:
            raise PeerError(f"{role} is no developer of this fleet any more; remove what waits in {PENDING} of it")
        _sign(metadata, signers if role in sign else (), keys)
        lack = _lack(role, metadata, draft.targets.signed) if role in delegated else None
        if lack or role not in delegated:
            draft.waiting[role] = metadata
            draft.missing += [lack] if lack else []
        else:
            draft.taken[role] = metadata
    return draft


def _closing(
    fleet: Fleet, draft: _Next, keys: Keyring, now: datetime, renew: Collection[str]
) -> dict[str, Metadata[Snapshot] | Metadata[Timestamp]]:
    """Snapshot, where it has to change, and timestamp."""
    state, expiry, root = fleet.state, fleet.settings.expiry, draft.root.signed
    made: dict[str, Metadata[Snapshot] | Metadata[Timestamp]] = {}
    changed = {role: each.signed.version for role, each in draft.taken.items() if role != Root.type}
    snapshot = state.snapshot
    if changed or Snapshot.type in renew or not is_signed(snapshot, Snapshot.type, root):
        snapshot = copied(state.snapshot)
        snapshot.signed.version += 1
        snapshot.signed.expires = expiry_of(Snapshot.type, expiry, now)
        snapshot.signed.meta |= {f"{role}.json": MetaFile(version) for role, version in changed.items()}
        _sign(snapshot, root.roles[Snapshot.type].keyids, keys)
        made[Snapshot.type] = snapshot
    timestamp = copied(state.timestamp)
    timestamp.signed.version += 1
    timestamp.signed.expires = expiry_of(Timestamp.type, expiry, now)
    timestamp.signed.snapshot_meta = MetaFile(snapshot.signed.version)
    _sign(timestamp, root.roles[Timestamp.type].keyids, keys)
    made[Timestamp.type] = timestamp
    return made


Made = Mapping[str, AnyMetadata | Metadata[Snapshot] | Metadata[Timestamp]]


def _files(fleet: Fleet, made: Made, draft: _Next) -> dict[str, bytes | None]:
    files: dict[str, bytes | None] = {}
    for role, metadata in {**draft.waiting, **made}.items():
        version, where = metadata.signed.version, METADATA if role in made else PENDING
        name = "timestamp.json" if role == Timestamp.type else f"{version}.{role}.json"
        data = metadata.to_bytes()
        if len(data) > MAX_METADATA_BYTES:
            raise ConfigError(
                f"{name} would have {len(data)} bytes, over the limit of {MAX_METADATA_BYTES} that a message may have; "
                f"`appliance fleet prune` drops versions that nothing desires"
            )
        files[f"{where}/{name}"] = data
        if role == Root.type and role in made:
            files[f"{METADATA}/root.json"] = data
        if role in made:
            for path in (fleet.directory / PENDING).glob(f"*.{role}.json"):
                files[f"{PENDING}/{path.name}"] = None
            for path in (fleet.directory / METADATA).glob(f"*.{role}.json"):
                if role != Root.type and path.name != name:
                    files[f"{METADATA}/{path.name}"] = None
    return files


def signers_of(fleet: Fleet, roles: Mapping[str, AnyMetadata], role: str) -> frozenset[str]:
    """Ids of the keys whose signature counts for a role, when ``roles`` come into force; empty for an unknown role."""
    before = fleet.state.root.signed
    root = cast("Metadata[Root]", roles.get(Root.type, fleet.state.root)).signed
    if role in TOP_LEVEL:
        return frozenset(root.roles[role].keyids) | frozenset(before.roles[role].keyids if role == Root.type else ())
    targets = cast("Metadata[Targets]", roles.get(Targets.type, fleet.state.targets)).signed
    delegation = delegations_of(targets).get(role)
    return frozenset(delegation.keyids if delegation else ())


def _check_bundles(fleet: Fleet, draft: _Next, fresh: Collection[str]) -> None:
    """A developer signs bundles under the developer's prefix, and their files are in the directory."""
    for role, delegation in delegations_of(draft.targets.signed).items():
        if role not in draft.taken:
            continue
        present = fleet.state.delegated.get(role)
        known = present.signed.targets if present else {}
        for path, file in cast("Metadata[Targets]", draft.taken[role]).signed.targets.items():
            if not (delegation.is_delegated_path(path) and path.endswith(".json")):
                raise PeerError(
                    f"{role} has signed {printable(path)}, which is not {role}'s to sign; nothing of it is taken"
                )
            if known.get(path) != file and sha256_of(file) not in fresh:
                _check_bundle(fleet, path, file)


def _check_bundle(fleet: Fleet, path: str, file: TargetFile) -> None:
    _, name, version = path.removesuffix(".json").split("/")
    bundle = fleet.bundle(name, Assignment(version=version, digest=sha256_of(file)))
    for each in bundle.files.values():
        fleet.content(each.sha256)


def _sign(
    metadata: AnyMetadata | Metadata[Snapshot] | Metadata[Timestamp], keyids: Iterable[str], keys: Keyring
) -> None:
    for signer in keys.signers(sorted(keyids)):
        metadata.sign(signer, append=True)


def _lack(
    role: str, metadata: AnyMetadata | Metadata[Snapshot] | Metadata[Timestamp], delegator: Root | Targets
) -> Missing | None:
    result = delegator.get_verification_result(role, metadata.signed_bytes, metadata.signatures)
    if result:
        return None
    return Missing(role, len(result.signed), result.threshold, tuple(sorted(result.unsigned)))


def _lacks_of_root(root: Metadata[Root], before: Root) -> Iterator[Missing]:
    """By the rules of the root before it, and of its own."""
    if not is_signed_root(root, before):
        lacks = [lack for delegator in (before, root.signed) if (lack := _lack(Root.type, root, delegator))]
        yield lacks[0]


def is_near(expires: datetime, term_days: int, now: datetime) -> bool:
    """Whether less than a third of a signature's term is left."""
    return (expires - now).total_seconds() < term_days * 86_400 / 3


def due(fleet: Fleet, now: datetime) -> tuple[str, ...]:
    """Roles whose signatures are to be renewed, developers' included."""
    state, expiry = fleet.state, fleet.settings.expiry
    expires = {
        Root.type: state.root.signed.expires,
        Targets.type: state.targets.signed.expires,
        Snapshot.type: state.snapshot.signed.expires,
        **{role: each.signed.expires for role, each in state.delegated.items()},
    }
    term = {role: getattr(expiry, role if role in TOP_LEVEL else "developers") for role in expires}
    return tuple(role for role, when in expires.items() if is_near(when, term[role], now))
