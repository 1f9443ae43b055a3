"""A small fleet: keys, signed metadata and bundles, made with ``tuf.api``; what a broker would hold of it.

``Fleet`` signs whatever it is told to, right or wrong. ``metadata`` is what is published (file name -> bytes),
``files`` everything that is addressed by content (SHA-256 -> bytes).
"""

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from appliance.deploy.bundle import Bundle, BundleFile, bundle_target, encode_bundle
from appliance.deploy.desired import Assignment, Desired, device_target, encode_desired
from appliance.deploy.fleet_topics import DEFAULT_CHUNK_BYTES, FleetTopics

START = datetime(2027, 1, 1, tzinfo=UTC)
"""When everything is signed; the tests' clocks begin here."""
MANIFEST = b'name = "detector"\nversion = "1.0.0"\nobserves = [1]\n'


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Fleet:
    """Signs and publishes. ``days`` is how long what is signed next is good."""

    def __init__(self, *, days: float = 30, threshold: int = 1) -> None:
        self.now = START
        self.days = days
        self.root_days = 365.0
        self.signers: dict[str, list[CryptoSigner]] = {}
        self.metadata: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}
        self.delegates: dict[str, Metadata[Targets]] = {}
        self.root = Root(consistent_snapshot=True)
        self.targets = Targets(expires=self._expires())
        self.snapshot = Snapshot(expires=self._expires())
        self.timestamp = Timestamp(expires=self._expires())
        for role in ("root", "timestamp", "snapshot", "targets"):
            self.give_key(role)
        for _ in range(threshold - 1):
            self.give_key("root")
        self.root.roles["root"].threshold = threshold
        self.publish_root(first=True)
        self.first_root = self.metadata["1.root.json"]
        self.publish(first=True)

    # Keys

    def give_key(self, role: str) -> CryptoSigner:
        """One key more for a role, in the next root."""
        signer = CryptoSigner.generate_ed25519()
        self.signers.setdefault(role, []).append(signer)
        self.root.add_key(signer.public_key, role)
        return signer

    def rotate(self, role: str, *, publish: bool = True) -> list[CryptoSigner]:
        """Another key in place of all that a role has. Returns the old ones."""
        old = self.signers[role]
        for signer in old:
            self.root.revoke_key(signer.public_key.keyid, role)
        self.signers[role] = []
        self.give_key(role)
        if publish:
            self.publish_root(also=old if role == "root" else ())
        return old

    def publish_root(self, *, also: Sequence[CryptoSigner] = (), first: bool = False) -> bytes:
        """The next version of the root, signed by its keys and ``also`` others."""
        if not first:
            self.root.version += 1
        self.root.expires = self.now + timedelta(days=self.root_days)
        data = signed(self.root, [*self.signers["root"], *also])
        self.metadata[f"{self.root.version}.root.json"] = data
        return data

    # What is signed

    def add(self, path: str, data: bytes, role: str | None = None) -> str:
        """A target, by the top-level role or a delegated one; published by the next ``publish``. Its SHA-256."""
        self.files[digest_of(data)] = data
        targets = self.targets if role is None else self.delegates[role].signed
        targets.targets[path] = TargetFile.from_data(path, data, ["sha256"])
        return digest_of(data)

    def bundle(
        self,
        name: str = "detector",
        version: str = "1.0.0",
        contents: Mapping[str, bytes] | None = None,
        role: str | None = None,
    ) -> Assignment:
        """Sign a bundle's index. Returns how it is assigned."""
        contents = {"handler.toml": MANIFEST, **(contents or {})}
        self.files |= {digest_of(data): data for data in contents.values()}
        index = Bundle(
            name=name,
            version=version,
            files={file: BundleFile(digest_of(data), len(data)) for file, data in contents.items()},
        )
        return Assignment(version=version, digest=self.add(bundle_target(name, version), encode_bundle(index), role))

    def deploy(self, device: str, handlers: Mapping[str, Assignment | None]) -> str:
        return self.add(device_target(device), encode_desired(Desired(handlers=dict(handlers))))

    def delegate(self, role: str, paths: Sequence[str]) -> CryptoSigner:
        """A developer, for these paths."""
        signer = CryptoSigner.generate_ed25519()
        self.signers[role] = [signer]
        if self.targets.delegations is None:
            self.targets.delegations = Delegations(keys={}, roles={})
        assert self.targets.delegations.roles is not None
        self.targets.delegations.roles[role] = DelegatedRole(role, [], 1, terminating=True, paths=list(paths))
        self.targets.add_key(signer.public_key, role)
        self.delegates[role] = Metadata(Targets(expires=self._expires()))
        self.delegates[role].signed.version = 0
        return signer

    def publish(self, *, first: bool = False) -> None:
        """Sign all but the root anew, by versions one higher."""
        documents: list[Targets | Snapshot | Timestamp] = [self.targets, self.snapshot, self.timestamp]
        for document in [*documents, *(each.signed for each in self.delegates.values())]:
            document.expires = self._expires()
            if not first:
                document.version += 1
        for role, metadata in self.delegates.items():
            self._publish_targets(role, metadata.signed)
        self._publish_targets("targets", self.targets)
        snapshot = signed(self.snapshot, self.signers["snapshot"])
        self.metadata[f"{self.snapshot.version}.snapshot.json"] = snapshot
        self.timestamp.snapshot_meta = MetaFile.from_data(self.snapshot.version, snapshot, ["sha256"])
        self.publish_timestamp()

    def publish_timestamp(self, *, raise_version: bool = False) -> None:
        if raise_version:
            self.timestamp.version += 1
        self.timestamp.expires = self._expires()
        self.metadata["timestamp.json"] = signed(self.timestamp, self.signers["timestamp"])

    def _publish_targets(self, role: str, targets: Targets) -> None:
        data = signed(targets, self.signers[role])
        self.metadata[f"{targets.version}.{role}.json"] = data
        self.snapshot.meta[f"{role}.json"] = MetaFile.from_data(targets.version, data, ["sha256"])

    def _expires(self) -> datetime:
        return self.now + timedelta(days=self.days)


def signed(document: Root | Targets | Snapshot | Timestamp, signers: Sequence[CryptoSigner]) -> bytes:
    metadata = Metadata(document)
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes()


def messages(fleet: Fleet, topics: FleetTopics, chunk_bytes: int = DEFAULT_CHUNK_BYTES) -> dict[str, bytes]:
    """What the broker retains of a fleet: topic -> payload."""
    found = {topics.metadata(file): data for file, data in fleet.metadata.items()}
    for digest, data in fleet.files.items():
        found |= chunks_of(topics, data, chunk_bytes, digest)
    return found


def chunks_of(topics: FleetTopics, data: bytes, chunk_bytes: int, digest: str | None = None) -> dict[str, bytes]:
    pieces = [data[at : at + chunk_bytes] for at in range(0, len(data), chunk_bytes)]
    return {topics.chunk(digest or digest_of(data), index): piece for index, piece in enumerate(pieces)}
