"""What is verified, and everything that is not: forged, replayed, frozen, mixed, foreign, damaged."""

import re
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fleet_double import START, Fleet, signed
from tuf.api.metadata import Metadata, MetaFile, Root, TargetFile
from tuf.ngclient.updater import Updater

from appliance.config import FleetConfig
from appliance.deploy import trust
from appliance.deploy.bundle import Bundle, BundleFile, bundle_target, encode_bundle
from appliance.deploy.desired import Assignment, Desired
from appliance.deploy.fleet_topics import MAX_METADATA_BYTES
from appliance.deploy.floor import SEEN_SECONDS
from appliance.deploy.trust import (
    MADE_SECONDS,
    IncompleteError,
    SignedTarget,
    StaleError,
    Trust,
    TrustError,
    UntrustedError,
    Verified,
    read_root,
)
from appliance.errors import ConfigError, DeviceError

PACKAGE = Path(__file__).parents[2] / "appliance"
DAY = 86400.0


class Clock:
    def __init__(self) -> None:
        self.now = START.timestamp() + 60

    def __call__(self) -> float:
        return self.now


class Box:
    """A device: its trust, a clock, and the files it has downloaded."""

    def __init__(self, directory: Path, fleet: Fleet) -> None:
        self.directory = directory / "trust"
        self.files = directory / "files"
        self.files.mkdir()
        self.fleet = fleet
        self.clock = Clock()
        self.restart()

    def restart(self) -> None:
        self.trust = Trust(self.directory, self.fleet.first_root, wall=self.clock)

    def refresh(self) -> Verified:
        return self.trust.refresh(dict(self.fleet.metadata))

    def downloaded(self, target: SignedTarget) -> Path:
        file = self.files / target.sha256
        file.write_bytes(self.fleet.files[target.sha256])
        return file


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


@pytest.fixture
def box(quick: Path, fleet: Fleet) -> Box:
    return Box(quick, fleet)


def target(verified: Verified, path: str) -> SignedTarget:
    found = verified.target(path)
    assert found is not None
    return found


# What is right


def test_what_is_signed_is_handed_out(box: Box, fleet: Fleet) -> None:
    assignment = fleet.bundle()
    fleet.deploy("box", {"detector": assignment})
    fleet.publish()
    verified = box.refresh()
    assert verified.versions == {"root": 1, "timestamp": 2, "snapshot": 2, "targets": 2}
    assert verified.expires == START + timedelta(days=30)
    desired = target(verified, "devices/box.json")
    assert verified.desired(desired, box.downloaded(desired)).handlers == {"detector": assignment}
    index = target(verified, "handlers/detector/1.0.0.json")
    bundle = verified.bundle("detector", assignment, index, box.downloaded(index))
    assert (bundle.bundle.name, bundle.digest) == ("detector", assignment.digest)
    assert verified.target("devices/other.json") is None


def test_a_developer_signs_what_is_delegated_to_them(box: Box, fleet: Fleet) -> None:
    fleet.delegate("acme", ["handlers/acme-*/*"])
    assignment = fleet.bundle("acme-counter", role="acme")
    fleet.publish()
    verified = box.refresh()
    index = target(verified, "handlers/acme-counter/1.0.0.json")
    assert verified.bundle("acme-counter", assignment, index, box.downloaded(index)).digest == assignment.digest


@pytest.mark.parametrize("path", ["handlers/detector/1.0.0.json", "devices/box.json", "groups/all.json"])
def test_a_developer_signs_nothing_else(box: Box, fleet: Fleet, path: str) -> None:
    fleet.delegate("acme", ["handlers/acme-*/*"])
    fleet.add(path, b"{}", role="acme")
    fleet.publish()
    assert box.refresh().target(path) is None


def test_the_root_goes_from_key_to_key(box: Box, fleet: Fleet) -> None:
    fleet.rotate("root")
    fleet.rotate("timestamp")
    fleet.rotate("targets")
    fleet.publish()
    assert box.refresh().versions["root"] == 4
    box.restart()
    assert box.refresh().versions["root"] == 4


# What is not there


@pytest.mark.parametrize("file", ["timestamp.json", "2.snapshot.json", "2.targets.json"])
def test_what_has_not_come_is_waited_for(box: Box, fleet: Fleet, file: str) -> None:
    fleet.publish()
    there = fleet.metadata.pop(file)
    with pytest.raises(IncompleteError, match=f"{file} has not come"):
        box.refresh()
    fleet.metadata[file] = there
    assert box.refresh().versions["timestamp"] == 2


def test_a_developers_metadata_that_has_not_come_holds_up_nobody_else(box: Box, fleet: Fleet) -> None:
    fleet.delegate("acme", ["handlers/acme-*/*"])
    fleet.bundle("acme-counter", role="acme")
    fleet.bundle()
    fleet.publish()
    del fleet.metadata["1.acme.json"]
    verified = box.refresh()
    assert verified.target("handlers/detector/1.0.0.json") is not None
    with pytest.raises(IncompleteError, match=r"1\.acme\.json has not come"):
        verified.target("handlers/acme-counter/1.0.0.json")


def test_a_file_that_was_not_downloaded_is_waited_for(box: Box, fleet: Fleet) -> None:
    fleet.deploy("box", {})
    fleet.publish()
    verified = box.refresh()
    with pytest.raises(IncompleteError, match="not been downloaded"):
        verified.desired(target(verified, "devices/box.json"), box.files / "absent")


# What has expired, and clocks


def test_frozen_metadata_goes_stale_and_fresh_metadata_helps(box: Box, fleet: Fleet) -> None:
    box.refresh()
    box.clock.now += 31 * DAY
    with pytest.raises(StaleError, match=r"timestamp\.json is expired.*appliance fleet refresh"):
        box.refresh()
    fleet.now += timedelta(days=31)
    fleet.publish()
    assert box.refresh().versions["timestamp"] == 2


def test_a_root_that_has_expired_is_stale(box: Box, fleet: Fleet) -> None:
    fleet.now += timedelta(days=360)
    fleet.publish()
    box.clock.now += 370 * DAY
    with pytest.raises(StaleError, match=r"root\.json is expired"):
        box.refresh()
    fleet.publish_root()
    box.refresh()


def test_a_fresh_timestamp_over_an_old_snapshot_is_stale(box: Box, fleet: Fleet) -> None:
    fleet.now += timedelta(days=20)
    fleet.publish_timestamp(raise_version=True)
    box.clock.now += 31 * DAY
    with pytest.raises(StaleError, match=r"snapshot\.json is expired"):
        box.refresh()


def test_a_developer_who_signs_no_more_is_stale_alone(box: Box, fleet: Fleet) -> None:
    fleet.delegate("acme", ["handlers/acme-*/*"])
    fleet.days = 1
    fleet.bundle("acme-counter", role="acme")
    fleet.publish()
    fleet.days = 30
    delegates, fleet.delegates = fleet.delegates, {}
    fleet.publish()
    fleet.delegates = delegates
    box.clock.now += 2 * DAY
    with pytest.raises(StaleError, match="acme is expired"):
        box.refresh().target("handlers/acme-counter/1.0.0.json")


def test_a_new_box_without_a_clock_knows_that_it_is_not_1970(box: Box, fleet: Fleet) -> None:
    box.clock.now = 0.0
    fleet.now = datetime.fromtimestamp(MADE_SECONDS, UTC) - timedelta(days=31)
    fleet.publish()
    with pytest.raises(StaleError, match="expired"):
        box.refresh()
    fleet.now += timedelta(days=2)
    fleet.publish()
    box.refresh()


def test_a_clock_that_begins_in_1970_does_not_bring_the_past_back(box: Box, fleet: Fleet) -> None:
    fleet.now += timedelta(days=40)
    fleet.publish()
    box.clock.now += 45 * DAY
    box.refresh()
    box.clock.now = 0.0
    box.restart()
    fleet.now -= timedelta(days=30)
    fleet.publish()
    with pytest.raises(StaleError):
        box.refresh()


def test_a_clock_that_was_far_ahead_locks_nothing(box: Box, fleet: Fleet) -> None:
    box.refresh()
    now = box.clock.now
    box.clock.now = now + 10_000 * DAY
    with pytest.raises(StaleError):
        box.refresh()
    box.clock.now = now
    box.restart()
    box.refresh()


def test_the_library_still_goes_by_the_time_it_is_given(
    box: Box, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """We set one attribute of tuf's that is not public: this says when it is not there any more."""
    updater = Updater(str(box.files), "m:/", bootstrap=fleet.first_root)
    assert hasattr(updater._trusted_set, "reference_time")
    seen = []
    monkeypatch.setattr("tuf.api.metadata.Timestamp.is_expired", lambda document, at=None: seen.append(at) or False)
    box.refresh()
    assert {at.timestamp() for at in seen} == {box.clock.now}


# Replay


def test_an_old_timestamp_is_refused(box: Box, fleet: Fleet) -> None:
    old = dict(fleet.metadata)
    fleet.publish()
    box.refresh()
    for _ in range(2):
        with pytest.raises(UntrustedError, match="timestamp version 1"):
            box.trust.refresh(old)
        box.restart()
    assert box.refresh().versions["timestamp"] == 2


@pytest.mark.parametrize("damage", ["gone", "empty", "garbage", "directories", "file", "old"])
def test_damaged_stored_metadata_stops_nothing_and_opens_no_way_back(box: Box, fleet: Fleet, damage: str) -> None:
    fleet.rotate("root")
    old = dict(fleet.metadata)
    box.refresh()
    saved = shutil.copytree(box.directory / "metadata", box.files / "saved", symlinks=True)
    fleet.publish()
    box.refresh()
    damaged(box.directory / "metadata", damage, saved)
    box.restart()
    with pytest.raises(UntrustedError, match=r"older|timestamp version 1"):
        box.trust.refresh(old)
    damaged(box.directory / "metadata", damage, saved)
    assert box.refresh().versions == {"root": 2, "timestamp": 2, "snapshot": 2, "targets": 2}


def damaged(directory: Path, how: str, saved: Path) -> None:
    files = [path for path in directory.rglob("*") if path.is_file()]
    if how in {"gone", "file", "old"}:
        shutil.rmtree(directory)
    if how == "file":
        directory.write_bytes(b"")
    if how == "old":
        shutil.copytree(saved, directory, symlinks=True)
    for path in files:
        if how == "empty":
            path.write_bytes(b"")
        if how == "garbage":
            path.write_bytes(b"\x00" * 100)
        if how == "directories":
            path.unlink(missing_ok=True)
            path.mkdir(exist_ok=True)


def test_a_root_that_was_seen_cannot_be_withheld(box: Box, fleet: Fleet) -> None:
    old = dict(fleet.metadata)
    fleet.rotate("root")
    box.refresh()
    shutil.rmtree(box.directory / "metadata")
    with pytest.raises(IncompleteError, match="root 1 is older than 2"):
        box.trust.refresh(old)


def test_what_a_power_cut_has_left_of_writing_is_removed(box: Box) -> None:
    box.refresh()
    kept = sorted(box.directory.rglob("*"))
    for name in (".floor.json.x1", "metadata/tmpab12", "metadata/root_history/half"):
        (box.directory / name).write_bytes(b"half")
    (box.directory / "metadata" / "more").mkdir()
    box.restart()
    assert sorted(box.directory.rglob("*")) == kept
    box.refresh()


def test_a_damaged_floor_is_begun_anew(box: Box, fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    box.refresh()
    (box.directory / "floor.json").write_bytes(b"{")
    box.restart()
    assert "damaged" in caplog.text
    assert box.refresh().versions["root"] == 1


def test_after_a_stolen_key_was_replaced_versions_may_begin_anew(box: Box, fleet: Fleet) -> None:
    fleet.timestamp.version = fleet.snapshot.version = 1_000_000
    fleet.publish()  # by whoever stole the keys
    box.refresh()
    fleet.timestamp.version = fleet.snapshot.version = 7
    fleet.rotate("timestamp")
    fleet.rotate("snapshot")
    fleet.publish()
    assert box.refresh().versions["timestamp"] == 8
    box.restart()
    assert box.refresh().versions["snapshot"] == 8


def test_a_key_that_is_added_does_not_let_versions_begin_anew(box: Box, fleet: Fleet) -> None:
    old = dict(fleet.metadata)
    fleet.publish()
    box.refresh()
    fleet.give_key("timestamp")
    fleet.publish_root()
    shutil.rmtree(box.directory / "metadata")
    with pytest.raises(UntrustedError, match="timestamp 1 is older than 2"):
        box.trust.refresh(old | {"2.root.json": fleet.metadata["2.root.json"]})


def test_another_root_is_another_fleet_and_begins_anew(box: Box, tmp_path: Path) -> None:
    box.fleet.publish()
    box.refresh()
    box.fleet = Fleet()
    box.restart()
    assert box.refresh().versions["timestamp"] == 1


def test_the_floor_is_written_only_where_something_is_new(box: Box, fleet: Fleet) -> None:
    box.refresh()
    before = (box.directory / "floor.json").stat().st_mtime_ns
    box.clock.now += 60
    box.refresh()
    assert (box.directory / "floor.json").stat().st_mtime_ns == before
    box.clock.now += 7200
    box.refresh()
    assert (box.directory / "floor.json").stat().st_mtime_ns != before


# Forgery


def test_what_was_verified_is_not_verified_again_within_the_hour(box: Box, fleet: Fleet) -> None:
    """The client writes its first root and a link anew whenever it is used."""
    root = box.directory / "metadata" / "root_history" / "1.root.json"
    first = box.refresh()
    written = root.stat().st_ino, root.stat().st_mtime_ns
    box.clock.now += SEEN_SECONDS - 1
    assert box.refresh() is first
    assert (root.stat().st_ino, root.stat().st_mtime_ns) == written
    box.clock.now += 1
    second = box.refresh()
    assert second is not first
    fleet.publish()
    assert box.refresh() is not second


def test_metadata_of_another_fleet_is_refused(box: Box) -> None:
    other = Fleet()
    other.publish()
    with pytest.raises(UntrustedError, match="does not verify"):
        box.trust.refresh(other.metadata)


@pytest.mark.parametrize("file", ["timestamp.json", "2.snapshot.json", "2.targets.json"])
def test_one_file_of_another_fleet_among_ours_is_refused(box: Box, fleet: Fleet, file: str) -> None:
    other = Fleet()
    other.publish()
    fleet.publish()
    with pytest.raises(UntrustedError):
        box.trust.refresh({**fleet.metadata, file: other.metadata[file]})
    box.refresh()


@pytest.mark.parametrize("file", ["snapshot", "targets"])
def test_files_of_two_states_do_not_mix(box: Box, fleet: Fleet, file: str) -> None:
    fleet.publish()
    old = fleet.metadata[f"2.{file}.json"]
    fleet.deploy("box", {})
    fleet.publish()
    with pytest.raises(UntrustedError):
        box.trust.refresh({**fleet.metadata, f"3.{file}.json": old})
    box.refresh()


def test_a_root_needs_the_old_keys(box: Box, fleet: Fleet) -> None:
    fleet.rotate("root", publish=False)
    fleet.publish_root()
    with pytest.raises(UntrustedError):
        box.refresh()


def test_a_root_needs_the_new_keys(box: Box, fleet: Fleet) -> None:
    old = fleet.rotate("root", publish=False)
    fleet.root.version += 1
    fleet.metadata["2.root.json"] = signed(fleet.root, old)
    with pytest.raises(UntrustedError):
        box.refresh()


def test_a_root_needs_as_many_keys_as_its_threshold(tmp_path: Path) -> None:
    fleet = Fleet(threshold=2)
    box = Box(tmp_path, fleet)
    fleet.root.version += 1
    fleet.metadata["2.root.json"] = signed(fleet.root, fleet.signers["root"][:1])
    with pytest.raises(UntrustedError):
        box.refresh()
    fleet.metadata["2.root.json"] = signed(fleet.root, fleet.signers["root"])
    assert box.refresh().versions["root"] == 2


def test_more_than_a_message_holds_is_not_read(box: Box, fleet: Fleet) -> None:
    fleet.metadata["timestamp.json"] += b" " * MAX_METADATA_BYTES
    with pytest.raises(UntrustedError, match="maximum allowed length"):
        box.refresh()


def test_endless_roots_end(box: Box, fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "MAX_ROOT_ROTATIONS", 5)
    for _ in range(10):
        fleet.publish_root()
    assert box.refresh().versions["root"] == 6


@pytest.mark.parametrize("junk", [b"[" * 50_000, b'{"a":' * 10_000, b"1" * 50_000, b"\xff", b"null", b"{}"])
@pytest.mark.parametrize("file", ["timestamp.json", "2.root.json", "1.snapshot.json", "1.targets.json"])
def test_junk_is_refused(box: Box, fleet: Fleet, file: str, junk: bytes) -> None:
    with pytest.raises(UntrustedError, match="does not verify"):
        box.trust.refresh({**fleet.metadata, file: junk})


@pytest.mark.parametrize("hashes", [{"sha512": "0" * 128}, {"sha256": "../../x"}, {"sha256": "A" * 64}])
def test_a_target_without_a_digest_that_we_go_by_is_refused(box: Box, fleet: Fleet, hashes: dict[str, str]) -> None:
    fleet.targets.targets["devices/box.json"] = TargetFile(10, hashes, "devices/box.json")
    fleet.publish()
    with pytest.raises(UntrustedError, match="without a SHA-256"):
        box.refresh().target("devices/box.json")


@pytest.mark.parametrize("path", ["devices/box.json", "handlers/detector/1.0.0.json"])
def test_a_target_that_is_too_long_is_refused_before_it_is_downloaded(box: Box, fleet: Fleet, path: str) -> None:
    fleet.add(path, bytes(49 << 10))
    fleet.publish()
    with pytest.raises(UntrustedError, match="over the limit"):
        box.refresh().target(path)


@pytest.mark.parametrize("content", [b"", b"{}", b"\x00" * 400, b"x" * 100_000])
def test_a_downloaded_file_that_is_another_one_is_refused(box: Box, fleet: Fleet, content: bytes) -> None:
    fleet.deploy("box", {"detector": fleet.bundle()})
    fleet.publish()
    verified = box.refresh()
    file = box.files / "file"
    file.write_bytes(content)
    with pytest.raises(UntrustedError):
        verified.desired(target(verified, "devices/box.json"), file)


def test_a_target_of_an_earlier_state_is_not_read_by_a_later_one(box: Box, fleet: Fleet) -> None:
    fleet.deploy("box", {"detector": fleet.bundle()})
    fleet.publish()
    old = target(box.refresh(), "devices/box.json")
    fleet.deploy("box", {})
    fleet.publish()
    with pytest.raises(UntrustedError, match="signed differently"):
        box.refresh().desired(old, box.downloaded(old))


def _wrong_version(fleet: Fleet, right: Assignment) -> tuple[Assignment, str]:
    return Assignment(version="2.0.0", digest=right.digest), bundle_target("detector", "1.0.0")


def _wrong_digest(fleet: Fleet, right: Assignment) -> tuple[Assignment, str]:
    return Assignment(version="1.0.0", digest="0" * 64), bundle_target("detector", "1.0.0")


def _another_name_inside(fleet: Fleet, right: Assignment) -> tuple[Assignment, str]:
    index = Bundle(name="other", version="3.0.0", files={"handler.toml": BundleFile("0" * 64, 1)})
    path = bundle_target("detector", "3.0.0")
    return Assignment(version="3.0.0", digest=fleet.add(path, encode_bundle(index))), path


def _another_version_inside(fleet: Fleet, right: Assignment) -> tuple[Assignment, str]:
    path = bundle_target("detector", "4.0.0")
    data = next(data for digest, data in fleet.files.items() if digest == right.digest)
    return Assignment(version="4.0.0", digest=fleet.add(path, data)), path


def _no_index(fleet: Fleet, right: Assignment) -> tuple[Assignment, str]:
    path = bundle_target("detector", "5.0.0")
    return Assignment(version="5.0.0", digest=fleet.add(path, b"[]")), path


@pytest.mark.parametrize(
    "wrong", [_wrong_version, _wrong_digest, _another_name_inside, _another_version_inside, _no_index]
)
def test_a_bundle_is_what_was_assigned_or_none(
    box: Box, fleet: Fleet, wrong: Callable[[Fleet, Assignment], tuple[Assignment, str]]
) -> None:
    assignment, path = wrong(fleet, fleet.bundle())
    fleet.publish()
    verified = box.refresh()
    index = target(verified, path)
    with pytest.raises(UntrustedError, match="detector"):
        verified.bundle("detector", assignment, index, box.downloaded(index))


def test_a_desired_state_is_one(box: Box, fleet: Fleet) -> None:
    fleet.add("groups/all.json", b"[]")
    fleet.bundle()
    fleet.publish()
    verified = box.refresh()
    for path in ("groups/all.json", "handlers/detector/1.0.0.json"):
        signed_target = target(verified, path)
        with pytest.raises(UntrustedError, match=path):
            verified.desired(signed_target, box.downloaded(signed_target))


# Every byte


def flips(data: bytes) -> Iterator[bytes]:
    """One bit of every byte, another one each time."""
    for at, byte in enumerate(data):
        yield data[:at] + bytes([byte ^ 1 << at % 8]) + data[at + 1 :]


@pytest.mark.parametrize("file", ["timestamp.json", "2.snapshot.json", "2.targets.json", "2.root.json"])
def test_a_flipped_bit_in_metadata_is_refused_or_changes_nothing(box: Box, fleet: Fleet, file: str) -> None:
    fleet.deploy("box", {"detector": fleet.bundle()})
    fleet.publish_root()
    fleet.publish()
    right = box.refresh()
    signed_target = target(right, "devices/box.json")
    for number, flipped in enumerate(flips(fleet.metadata[file])):
        if number % 2 == 0:  # with and without something stored from before
            shutil.rmtree(box.directory / "metadata", ignore_errors=True)
        try:
            verified = box.trust.refresh({**fleet.metadata, file: flipped})
        except TrustError:
            continue
        assert verified.versions == right.versions
        assert verified.target("devices/box.json") == signed_target
    assert box.refresh().versions == right.versions


@pytest.mark.parametrize("kind", ["devices/box.json", "handlers/detector/1.0.0.json"])
def test_a_flipped_bit_in_a_target_is_refused(box: Box, fleet: Fleet, kind: str) -> None:
    assignment = fleet.bundle()
    fleet.deploy("box", {"detector": assignment})
    fleet.publish()
    verified = box.refresh()
    signed_target = target(verified, kind)
    file = box.downloaded(signed_target)
    for flipped in flips(fleet.files[signed_target.sha256]):
        file.write_bytes(flipped)
        with pytest.raises(UntrustedError):
            verified.read(signed_target, file)


# The box's own


@pytest.mark.parametrize("root", [b"", b"{}", b"\x00\xff", b"x" * (MAX_METADATA_BYTES + 1)])
def test_a_root_that_is_none_is_a_fault_of_the_configuration(tmp_path: Path, root: bytes) -> None:
    with pytest.raises(ConfigError, match=r"fleet\.root"):
        Trust(tmp_path, root)


def test_other_metadata_is_no_root(tmp_path: Path, fleet: Fleet) -> None:
    with pytest.raises(ConfigError, match="this is timestamp metadata"):
        Trust(tmp_path, fleet.metadata["timestamp.json"])
    unsigned = Metadata[Root].from_bytes(fleet.first_root)
    unsigned.signatures.clear()
    with pytest.raises(ConfigError, match=r"fleet\.root"):
        Trust(tmp_path, unsigned.to_bytes())


def test_a_root_is_named_by_its_file(tmp_path: Path) -> None:
    file = tmp_path / "root.json"
    with pytest.raises(ConfigError, match=r"root\.json cannot be read: .*; copy metadata/root\.json"):
        read_root(FleetConfig(name="shops", root=str(file)))
    file.write_text("hello")
    with pytest.raises(ConfigError, match=rf"{file}: no root metadata of a fleet"):
        read_root(FleetConfig(name="shops", root=str(file)))


def test_a_disk_that_cannot_be_written_is_the_devices_fault(tmp_path: Path, fleet: Fleet) -> None:
    (tmp_path / "trust").write_bytes(b"")
    with pytest.raises(DeviceError, match="--state"):
        Trust(tmp_path / "trust", fleet.first_root)


def test_stored_metadata_of_a_developer_that_is_in_the_way_is_thrown_away(box: Box, fleet: Fleet) -> None:
    fleet.delegate("acme", ["handlers/acme-*/*"])
    fleet.bundle("acme-counter", role="acme")
    fleet.publish()
    (box.directory / "metadata" / "acme.json").mkdir(parents=True)
    assert box.refresh().target("handlers/acme-counter/1.0.0.json") is not None


def test_a_snapshot_that_leaves_a_developer_out_is_refused(box: Box, fleet: Fleet) -> None:
    fleet.delegate("acme", ["handlers/acme-*/*"])
    fleet.publish()
    del fleet.snapshot.meta["acme.json"]
    fleet.snapshot.version += 1
    data = signed(fleet.snapshot, fleet.signers["snapshot"])
    fleet.metadata[f"{fleet.snapshot.version}.snapshot.json"] = data
    fleet.timestamp.snapshot_meta = MetaFile.from_data(fleet.snapshot.version, data, ["sha256"])
    fleet.publish_timestamp(raise_version=True)
    with pytest.raises(UntrustedError, match="acme"):
        box.refresh().target("handlers/acme-counter/1.0.0.json")


def test_only_verification_makes_what_may_be_stored() -> None:
    makers = {
        path.name
        for path in PACKAGE.rglob("*.py")
        if re.search(r"(?<!class )\b(SignedTarget|VerifiedBundle)\(", path.read_text("utf-8"))
    }
    assert makers == {"trust.py"}


def test_an_empty_desired_state_is_one(box: Box, fleet: Fleet) -> None:
    fleet.deploy("box", {})
    fleet.publish()
    verified = box.refresh()
    desired = target(verified, "devices/box.json")
    assert verified.desired(desired, box.downloaded(desired)) == Desired()
