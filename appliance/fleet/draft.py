"""What is to be signed next: copies of the roles that change, and the files that their targets name.

Nothing here signs or writes: :mod:`appliance.fleet.signing` does the one, :mod:`appliance.fleet.journal` the other.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import cast

from securesystemslib.signer import Key
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, Root, TargetFile, Targets

from appliance.deploy.bundle import bundle_target
from appliance.deploy.desired import encode_desired
from appliance.errors import ConfigError, PeerError
from appliance.fleet.assignments import Wanted
from appliance.fleet.history import HISTORY_TARGET, encode_history
from appliance.fleet.repository import Fleet
from appliance.fleet.settings import Expiry
from appliance.fleet.state import PENDING, TOP_LEVEL, copied, delegations_of, is_signed, parse, read_metadata, sha256_of
from appliance.frame import is_name

MAX_DEVELOPERS = 24
"""``tuf`` looks into 32 delegations at most for one file."""

AnyMetadata = Metadata[Root] | Metadata[Targets]


def expiry_of(role: str, expiry: Expiry, now: datetime) -> datetime:
    """When what is signed now expires."""
    days = getattr(expiry, role) if role in TOP_LEVEL else expiry.developers
    return now.replace(microsecond=0) + timedelta(days=days)


@dataclass(slots=True)
class Draft:
    """Begins as what is in force; the methods change copies."""

    fleet: Fleet
    now: datetime
    """UTC, as all times of signatures."""
    roles: dict[str, AnyMetadata] = field(default_factory=dict)
    """Root, targets and developers' roles that change."""
    content: dict[str, bytes | Path] = field(default_factory=dict)
    """Files by SHA-256, not in the directory yet."""

    def root(self) -> Root:
        """The next root, to be changed."""
        self._begin("root", self.fleet.state.root)
        return cast("Metadata[Root]", self.roles["root"]).signed

    def targets(self) -> Targets:
        self._begin("targets", self.fleet.state.targets)
        return cast("Metadata[Targets]", self.roles["targets"]).signed

    def developer(self, role: str) -> Targets:
        """The next version of a developer's role; its first where there is none."""
        state = self.fleet.state
        present = state.delegated.get(role) or state.distrusted.get(role)
        self._begin(role, self._waiting(role) or present or Metadata(Targets()))
        signed = cast("Metadata[Targets]", self.roles[role]).signed
        signed.version = state.version_after(role)
        return signed

    def role(self, role: str) -> Targets:
        return self.targets() if role == Targets.type else self.developer(role)

    # --- bundles --------------------------------------------------------------------------------------------

    def add_bundle(self, role: str, name: str, version: str, index: bytes, files: dict[str, Path]) -> None:
        """ConfigError where the name is another's to sign, or the version is there with other content."""
        self._check_owner(role, name)
        target, digest = bundle_target(name, version), hashlib.sha256(index).hexdigest()
        signed = self.role(role)
        there = signed.targets.get(target)
        if there is not None and sha256_of(there) != digest:
            raise ConfigError(
                f"{name} {version} is published already, with other content; "
                f"a version never changes: give handler.toml another `version`"
            )
        signed.targets[target] = TargetFile(len(index), {"sha256": digest}, target)
        self.content |= {digest: index, **files}

    def forget(self) -> None:
        """Leave of the history what the next rollback needs: older versions may be gone now."""
        history, wanted = self.fleet.history(), {path: self.fleet.desired(path) for path in self.fleet.targets()}
        self.want(Wanted(wanted, history.shortened()))

    def remove_bundle(self, role: str, name: str, version: str) -> None:
        del self.role(role).targets[bundle_target(name, version)]

    def _check_owner(self, role: str, name: str) -> None:
        delegations = self.fleet.state.delegations()
        target = bundle_target(name, "0.0.0")
        owner = next((each for each, of in delegations.items() if of.is_delegated_path(target)), Targets.type)
        if role not in (Targets.type, *delegations):
            known = ", ".join(delegations) or "nobody yet"
            raise ConfigError(f"--as {role}: is no developer of this fleet; known: {known}. See `fleet key delegate`")
        if owner != role:
            remedy = f"publish it with --as {owner}" if owner != Targets.type else "leave --as out"
            raise ConfigError(f"{name!r} is not for {role} to sign, but for {owner}: {remedy}, or give it another name")

    # --- what is desired ------------------------------------------------------------------------------------

    def want(self, wanted: Wanted) -> None:
        """Make the desired documents and their history what is given; empty ones go."""
        signed = self.targets().targets
        documents = {path: encode_desired(each) for path, each in wanted.documents.items() if each.handlers}
        if wanted.history.before:
            documents[HISTORY_TARGET] = encode_history(wanted.history)
        for path in [each for each in (HISTORY_TARGET, *wanted.documents) if each not in documents]:
            signed.pop(path, None)
        for path, data in documents.items():
            digest = hashlib.sha256(data).hexdigest()
            signed[path] = TargetFile(len(data), {"sha256": digest}, path)
            self.content[digest] = data

    # --- keys -----------------------------------------------------------------------------------------------

    def delegate(self, developer: str, prefixes: Iterable[str], keys: Iterable[Key], threshold: int) -> None:
        """Let a developer sign handlers whose names begin so, or change who signs for them."""
        signed = self.targets()
        if not is_name(developer) or developer in TOP_LEVEL or developer == "pending":
            raise ConfigError(f"{developer!r} cannot be a developer's name: lower-case, and no role of the fleet's own")
        others = {name: role for name, role in delegations_of(signed).items() if name != developer}
        if len(others) >= MAX_DEVELOPERS:
            raise ConfigError(f"the fleet has {MAX_DEVELOPERS} developers already; `fleet key revoke` one that is gone")
        given = {key.keyid: key for key in keys}
        _check_threshold(developer, len(given), threshold)
        paths = [path for prefix in prefixes for path in self._paths(prefix, others)]
        role = DelegatedRole(developer, list(given), threshold, terminating=True, paths=paths)
        known = {**(signed.delegations.keys if signed.delegations else {}), **given}
        signed.delegations = _delegations(known, {**others, developer: role})
        self._sign_anew(developer)

    def _paths(self, prefix: str, others: dict[str, DelegatedRole]) -> list[str]:
        if not is_name(prefix.rstrip("-_")):
            raise ConfigError(f"--prefix {prefix!r}: is not the beginning of a handler's name, like acme-")
        for name, role in others.items():
            for other in map(prefix_of, role.paths or ()):
                if other.startswith(prefix) or prefix.startswith(other):
                    raise ConfigError(f"--prefix {prefix!r}: overlaps with {other!r}, which {name} signs")
        own = [path.split("/")[1] for path in self.targets().targets if path.startswith(f"handlers/{prefix}")]
        if own:
            raise ConfigError(f"--prefix {prefix!r}: {own[0]} is signed by the operator; choose another prefix")
        return [f"handlers/{prefix}*/*"]

    def revoke_developer(self, developer: str) -> None:
        """Nothing that the developer has signed is taken any more."""
        signed = self.targets()
        roles = delegations_of(signed)
        if developer not in roles:
            raise ConfigError(f"{developer!r} is no developer of this fleet; known: {', '.join(roles) or 'nobody'}")
        del roles[developer]
        signed.delegations = _delegations(signed.delegations.keys if signed.delegations else {}, roles)

    def revoke_key(self, developer: str, keyid: str, threshold: int | None) -> None:
        """Take one of a developer's keys away."""
        signed = self.targets()
        signed.revoke_key(keyid, developer)
        role = delegations_of(signed)[developer]
        role.threshold = threshold or role.threshold
        _check_threshold(developer, len(role.keyids), role.threshold)
        self._sign_anew(developer)

    def _sign_anew(self, developer: str) -> None:
        """Where what the developer has signed would not hold with the new keys, it is there to be signed again."""
        present = self.fleet.state.delegated.get(developer)
        if present is not None and not is_signed(present, developer, self.targets()):
            self.developer(developer)

    def set_keys(self, role: str, remove: Iterable[str], add: Iterable[Key], threshold: int | None) -> None:
        """Other keys for one of the fleet's own roles, by key ids; what they have signed is signed again."""
        root = self.root()
        for keyid in remove:
            root.revoke_key(keyid, role)
        for key in add:
            root.add_key(key, role)
        root.roles[role].threshold = threshold or root.roles[role].threshold
        _check_threshold(role, len(root.roles[role].keyids), root.roles[role].threshold)
        if role == Targets.type:
            self.targets()

    # --- what a copy begins with ----------------------------------------------------------------------------

    def _begin(self, role: str, present: AnyMetadata) -> None:
        if role in self.roles:
            return
        if role in TOP_LEVEL and (waiting := _pending(self.fleet.directory, role)):
            raise ConfigError(
                f"{waiting[0]}: a change of {role} waits for signatures; complete it with "
                f"`appliance fleet sign {role} --key FILE`, or drop it by removing the file"
            )
        copy = copied(present)
        copy.signed.version += 1
        copy.signed.expires = expiry_of(role, self.fleet.settings.expiry, self.now)
        self.roles[role] = copy

    def _waiting(self, role: str) -> Metadata[Targets] | None:
        """What a developer has signed and the snapshot does not have yet: the next change is made to that."""
        for path in _pending(self.fleet.directory, role):
            waiting = parse(read_metadata(path), Targets, path)
            if is_signed(waiting, role, self.fleet.state.targets.signed):
                return waiting
            raise ConfigError(
                f"{path}: a change of {role} waits for signatures; complete it with "
                f"`appliance fleet sign {role} --key FILE`, or drop it by removing the file"
            )
        return None


def prefix_of(path: str) -> str:
    """``handlers/acme-*/*`` -> ``acme-``."""
    return path.removeprefix("handlers/").removesuffix("*/*")


def _pending(directory: Path, role: str) -> list[Path]:
    return sorted((directory / PENDING).glob(f"*.{role}.json"))


def _delegations(keys: dict[str, Key], roles: dict[str, DelegatedRole]) -> Delegations | None:
    """Without keys that no role uses."""
    used = {keyid for role in roles.values() for keyid in role.keyids}
    missing = used - keys.keys()
    if missing:
        raise PeerError(f"the key {min(missing)} of a developer is not in the metadata")
    return Delegations({keyid: keys[keyid] for keyid in sorted(used)}, roles) if roles else None


def _check_threshold(role: str, keys: int, threshold: int) -> None:
    if not 1 <= threshold <= keys:
        raise ConfigError(f"{role}: a threshold of {threshold} is not possible with {keys} keys: 1 to {keys} is")
