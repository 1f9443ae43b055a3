"""What is signed and by whom, in lines for people."""

from collections.abc import Iterator
from typing import Any, cast

from securesystemslib.signer import SSlibKey
from tuf.api.metadata import Metadata, Root, TargetFile, Targets

from appliance.deploy.desired import MAX_DESIRED_BYTES, decode_desired
from appliance.fleet.assignments import Wanted, changes
from appliance.fleet.draft import AnyMetadata, prefix_of
from appliance.fleet.history import History
from appliance.fleet.keys import PUBLIC, read_public
from appliance.fleet.repository import DESIRED, KEYS, Fleet
from appliance.fleet.state import TOP_LEVEL, delegations_of, sha256_of
from appliance.text import printable


def keys_of(fleet: Fleet) -> dict[str, SSlibKey]:
    """All public keys of a fleet, by id."""
    delegations = fleet.state.targets.signed.delegations
    return cast("dict[str, SSlibKey]", {**fleet.state.root.signed.keys, **(delegations.keys if delegations else {})})


def keyids_of(fleet: Fleet, role: str) -> list[str]:
    """Of a role or developer; empty for what is none."""
    if role in TOP_LEVEL:
        return list(fleet.state.root.signed.roles[role].keyids)
    delegation = fleet.state.delegations().get(role)
    return list(delegation.keyids) if delegation else []


def roles_of(fleet: Fleet) -> Iterator[str]:
    """Role by role: threshold, expiry, and each of its keys."""
    state = fleet.state
    names = {read_public(path).keyid: path.name for path in sorted((fleet.directory / KEYS).glob(f"*{PUBLIC}"))}
    own: tuple[Metadata[Any], ...] = (state.root, state.targets, state.snapshot, state.timestamp)
    for role, metadata in zip(TOP_LEVEL, own, strict=True):
        yield f"{role}  {_threshold(state.root.signed.roles[role].threshold)}  until {metadata.signed.expires:%Y-%m-%d}"
        yield from _keys(keyids_of(fleet, role), names)
    for role, delegation in state.delegations().items():
        present = state.delegated.get(role)
        until = f"until {present.signed.expires:%Y-%m-%d}" if present else "has signed nothing that counts"
        prefixes = ", ".join(prefix_of(path) for path in delegation.paths or ())
        yield f"{role}  {_threshold(delegation.threshold)}  {until}  handlers {prefixes}"
        yield from _keys(keyids_of(fleet, role), names)


def described(fleet: Fleet, role: str, change: AnyMetadata) -> Iterator[str]:
    """What a change that waits would change of what is in force. Nothing in it steers a terminal."""
    yield f"{role} version {change.signed.version}, until {change.signed.expires:%Y-%m-%d}:"
    lines = (
        _of_root(fleet, change.signed) if isinstance(change.signed, Root) else _of_targets(fleet, role, change.signed)
    )
    yield from [f"  {printable(line)}" for line in lines] or ["  as what is in force, signed anew"]


def _of_root(fleet: Fleet, change: Root) -> Iterator[str]:
    for name in TOP_LEVEL:
        old, new = fleet.state.root.signed.roles[name], change.roles[name]
        yield from _differences(f"key of {name}", set(old.keyids), set(new.keyids))
        if old.threshold != new.threshold:
            yield f"threshold of {name}: {old.threshold} -> {new.threshold}"


def _of_targets(fleet: Fleet, role: str, change: Targets) -> Iterator[str]:
    state = fleet.state
    present = state.targets if role == "targets" else state.delegated.get(role) or state.distrusted.get(role)
    before = present.signed if present else Targets()
    if role == "targets":
        yield from changes(_wanted(fleet, before), _wanted(fleet, change))
    for path in sorted({*before.targets, *change.targets}):
        old, new = before.targets.get(path), change.targets.get(path)
        if old != new:
            yield f"{path}: {_digest(old)} -> {_digest(new)}"
    developers, others = delegations_of(before), delegations_of(change)
    yield from _differences("developer", set(developers), set(others))
    for name, developer in sorted(others.items()):
        if developers.get(name) != developer:
            keys = ", ".join(keyid[:12] for keyid in developer.keyids)
            prefixes = ", ".join(prefix_of(path) for path in developer.paths or ())
            yield f"developer {name}: handlers {prefixes}, {_threshold(developer.threshold)} of {keys}"


def _wanted(fleet: Fleet, targets: Targets) -> Wanted:
    documents = {
        path: decode_desired(fleet.read(sha256_of(file), MAX_DESIRED_BYTES))
        for path, file in targets.targets.items()
        if path.startswith(DESIRED)
    }
    return Wanted(documents, History())


def _digest(file: TargetFile | None) -> str:
    return sha256_of(file)[:12] if file else "none"


def _differences(what: str, old: set[str], new: set[str]) -> Iterator[str]:
    for sign, names in (("-", old - new), ("+", new - old)):
        for name in sorted(names):
            yield f"{what}: {sign} {name[:12]}"


def _threshold(count: int) -> str:
    return "1 key signs" if count == 1 else f"{count} keys sign"


def _keys(keyids: list[str], names: dict[str, str]) -> Iterator[str]:
    for keyid in keyids:
        yield f"    {keyid[:12]}  {names.get(keyid, '')}".rstrip()
