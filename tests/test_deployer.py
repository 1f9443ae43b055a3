"""The deployer with the real trust, store and downloads, a fleet that signs, and handlers that run on paper."""

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fleet_double import START, Fleet, digest_of, messages
from memory_broker import MemoryBroker
from rollout_doubles import BAD, GOOD, PATIENCE, PaperServing, spec_of, until

from appliance import deployer as module
from appliance.config import FleetConfig
from appliance.deploy import download
from appliance.deploy.desired import Assignment, Desired, encode_desired, group_target
from appliance.deploy.download import Downloads
from appliance.deploy.fleet_topics import FleetTopics
from appliance.deploy.record import slot_of
from appliance.deploy.report import DeviceReport, HandlerReport
from appliance.deploy.store import Store
from appliance.deploy.trust import Trust, VerifiedBundle
from appliance.deployer import Deployer
from appliance.errors import DeviceError
from appliance.rollout import rollout, running
from appliance.sandbox.spec import HandlerSpec
from appliance.standing import NAME_TAKEN

TOPICS = FleetTopics("fleet", "f")
CONFIG = FleetConfig(name="f", groups=("door",), canary_frames=30, canary_seconds=3600.0, trial_seconds=3600.0)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for where, name in (
        (module, "REFRESH_SECONDS"),
        (module, "SETTLE_SECONDS"),
        (module, "SILENCE_SECONDS"),
        (module, "FIRST_RETRY"),
        (rollout, "POLL_SECONDS"),
        (rollout, "FIRST_RETRY"),
        (running, "FIRST_SERVE"),
    ):
        monkeypatch.setattr(where, name, 0.002)
    monkeypatch.setattr(download, "STALL_SECONDS", 0.1)


class Device:
    """A box on a fleet's broker. What it stores survives a restart."""

    def __init__(self, path: Path, fleet: Fleet) -> None:
        self.path = path
        self.fleet = fleet
        self.now = START + timedelta(hours=1)
        self.broker = MemoryBroker()
        self.serving = PaperServing()
        self.store = Store(path / "deploy", 64 << 20)
        self.taken: tuple[str, ...] = ()
        self.of_device: list[DeviceReport] = []
        self.of_handlers: dict[str, list[HandlerReport | None]] = {}

    def publish(self) -> None:
        """Sign what has changed, and all of it is on the broker."""
        self.fleet.publish()
        self.broker.publish(messages(self.fleet, TOPICS))

    @asynccontextmanager
    async def deployer(self) -> AsyncIterator[Deployer]:
        self.serving = PaperServing()

        def wall() -> float:
            return self.now.timestamp()

        deployer = Deployer(
            CONFIG,
            "box",
            topics=TOPICS,
            ears=self.broker,
            trust=Trust(self.path / "trust", self.fleet.first_root, wall=wall),
            store=self.store,
            downloads=Downloads(TOPICS, self.broker, self.store),
            serving=self.serving,
            load=spec_of,
            admit=self._admit,
            report=self._report,
            taken=self.taken,
            wall=wall,
        )
        async with deployer:
            await deployer.start_active()
            yield deployer

    async def _admit(self, spec: HandlerSpec) -> None:
        self.serving.samples.setdefault(spec.version, GOOD)

    def _report(self, name: str | None, document: HandlerReport | DeviceReport | None) -> None:
        if isinstance(document, DeviceReport):
            assert name is None
            self.of_device.append(document)
        else:
            assert name is not None
            self.of_handlers.setdefault(name, []).append(document)

    @property
    def running(self) -> dict[str, str]:
        return {name: spec.version for name, spec in self.serving.live.items()}

    @property
    def said(self) -> DeviceReport:
        return self.of_device[-1]

    def said_of(self, name: str) -> HandlerReport:
        report = self.of_handlers.get(name, [None])[-1]
        return report or HandlerReport(handler=name, state="waiting", reason="(nothing was said)", since="")


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path, Fleet())


def deploy(device: Device, *names: str, version: str = "1.0.0") -> dict[str, Assignment]:
    """To this device, and nothing else; published."""
    assigned = {name: device.fleet.bundle(name, version, {"m.bin": f"{name} {version}".encode()}) for name in names}
    device.fleet.deploy("box", assigned)
    device.publish()
    return assigned


async def test_what_is_desired_runs_and_the_reports_prove_it(device: Device) -> None:
    assigned = deploy(device, "detector", "counter")
    async with device.deployer():
        await until(lambda: device.running == {"detector": "1.0.0", "counter": "1.0.0"})
        await until(lambda: device.said_of("detector").state == "active")
        current = device.said_of("detector").current
        assert current is not None
        assert current.digest == assigned["detector"].digest
        await until(lambda: device.said.state == "current")
        assert device.said.metadata == {"root": 1, "timestamp": 2, "snapshot": 2, "targets": 2}
        assert device.said.groups == ("all", "door")
        assert device.said.expires.startswith("2027-01-31")


async def test_nothing_is_there_yet(device: Device) -> None:
    async with device.deployer():
        await until(lambda: device.of_device)
        assert device.said.state == "waiting"
        deploy(device, "detector")
        await until(lambda: device.running)


async def test_documents_go_from_all_to_the_device(device: Device) -> None:
    fleet = device.fleet
    one, two = (fleet.bundle("detector", version, {"m.bin": version.encode()}) for version in ("1.0.0", "2.0.0"))
    counter = fleet.bundle("counter")
    fleet.add(group_target("all"), encode_desired(Desired(handlers={"detector": one, "counter": counter})))
    fleet.add(group_target("door"), encode_desired(Desired(handlers={"detector": two})))
    device.publish()
    async with device.deployer():
        await until(lambda: device.running == {"detector": "2.0.0", "counter": "1.0.0"})
        fleet.deploy("box", {"counter": None})
        device.publish()
        await until(lambda: device.running == {"detector": "2.0.0"})
        await until(lambda: device.of_handlers["counter"][-1] is None)


async def test_where_nothing_comes_at_all_the_device_says_what_to_look_at(device: Device) -> None:
    async with device.deployer():
        await until(lambda: f"nothing has come on {TOPICS.all_metadata}" in device.said.reason)
        assert device.said.state == "waiting"


async def test_metadata_may_take_some_seconds_to_come(
    device: Device, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "SILENCE_SECONDS", 3600.0)
    async with device.deployer() as deployer:
        await deployer._refresh()
        assert [(report.state, report.reason) for report in device.of_device] == [
            ("waiting", "for the fleet's metadata")
        ]
        deploy(device, "detector")
        await until(lambda: device.running)
    assert not [record for record in caplog.records if "state=waiting" in record.message]


async def test_no_document_is_nothing_desired(device: Device) -> None:
    deploy(device, "detector")
    async with device.deployer():
        await until(lambda: device.running)
        del device.fleet.targets.targets["devices/box.json"]
        device.publish()
        await until(lambda: not device.running)
        await until(lambda: device.of_handlers["detector"][-1] is None)


async def test_a_new_version_replaces_the_old_which_is_kept(device: Device) -> None:
    old = deploy(device, "detector")["detector"]
    async with device.deployer():
        await until(lambda: device.running)
        new = deploy(device, "detector", version="1.1.0")["detector"]
        await until(lambda: device.running == {"detector": "1.1.0"})
        await until(lambda: slots(device) == {old.digest, new.digest})
        newest = deploy(device, "detector", version="1.2.0")["detector"]
        await until(lambda: device.running == {"detector": "1.2.0"})
        await until(lambda: slots(device) == {old.digest, newest.digest})


def slots(device: Device) -> set[str]:
    """A glob would fail where a directory goes meanwhile."""
    walk = os.walk(device.path / "deploy" / "slots")
    return {Path(directory).name for directory, _, files in walk if files}


async def test_a_bad_version_is_not_what_runs_in_the_end(device: Device) -> None:
    deploy(device, "detector")
    async with device.deployer():
        await until(lambda: device.running)
        device.serving.samples["1.1.0"] = BAD
        deploy(device, "detector", version="1.1.0")
        await until(lambda: device.said_of("detector").state == "refused")
        assert device.running == {"detector": "1.0.0"}
        device.fleet.now += timedelta(hours=1)
        device.publish()
        await until(lambda: device.said.metadata["timestamp"] == 4)
        assert device.said_of("detector").state == "refused"


# --- starting again ------------------------------------------------------------------------------------------------


async def test_a_start_needs_neither_broker_nor_fleet(device: Device) -> None:
    deploy(device, "detector")
    async with device.deployer():
        await until(lambda: device.running)
    device.broker = MemoryBroker()
    async with device.deployer():
        assert device.running == {"detector": "1.0.0"}
        assert device.serving.done == [("start", "1.0.0")]


async def test_nothing_that_is_here_is_asked_for_again(device: Device) -> None:
    deploy(device, "detector")
    async with device.deployer():
        await until(lambda: device.running)
        await until(lambda: device.said.state == "current")
    device.broker.heard.clear()
    device.of_device.clear()
    async with device.deployer():
        await until(lambda: device.of_device and device.said.state == "current")
        assert [topic for topic in device.broker.heard if "/chunk/" in topic] == []


async def test_records_that_cannot_be_listed_stop_nothing(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[str]:
        raise DeviceError("the disk fails")

    monkeypatch.setattr(device.store, "records", broken)
    deploy(device, "detector")
    async with device.deployer():
        await until(lambda: device.running)


async def test_nothing_is_collected_until_the_records_have_been_read(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = deploy(device, "detector")["detector"]
    async with device.deployer():
        await until(lambda: device.said_of("detector").state == "active")
    records, fails, reads = device.store.records, True, 0

    def reading() -> list[str]:
        nonlocal reads
        reads += 1
        if fails:
            raise DeviceError("the disk fails")
        return records()

    monkeypatch.setattr(device.store, "records", reading)
    two = deploy(device, "counter")["counter"]
    async with device.deployer():
        await until(lambda: device.said_of("counter").state == "active")
        seen = reads
        await until(lambda: reads >= seen + 2)
        assert slots(device) == {one.digest, two.digest}
        fails = False
        await until(lambda: device.of_handlers["detector"][-1] is None)  # it is known now, and nobody wants it
        await until(lambda: slots(device) == {two.digest})
        assert device.running == {"counter": "1.0.0"}


async def test_a_record_that_cannot_be_read_is_read_later_and_nothing_is_done_about_its_handler_before(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = deploy(device, "detector", "counter")["detector"]
    async with device.deployer():
        await until(lambda: {device.said_of(name).state for name in ("detector", "counter")} == {"active"})
    record = device.path / "deploy" / "records" / "detector.json"
    kept = record.read_bytes()
    fails = fail_to_read(device, "detector", monkeypatch)
    deploy(device, "detector", version="1.1.0")
    async with device.deployer() as deployer:
        assert device.running == {"counter": "1.0.0"}
        await until(lambda: deployer._ordered is not None and device.running == {})  # nobody wants the counter
        await until(lambda: slots(device) == {detector.digest})  # and what it left has been collected
        assert record.read_bytes() == kept
        assert not device.store.has(digest_of(b"detector 1.1.0")), "nothing of it is begun with"
        assert device.said_of("detector").state == "waiting"
        assert "cannot be read: input/output error" in device.said_of("detector").reason
        fails.clear()
        await until(lambda: device.running == {"detector": "1.1.0"})
        assert device.serving.done[-3:] == [("start", "1.0.0"), ("shadow", "1.1.0"), ("promote", "1.1.0")]


async def test_a_record_that_can_be_read_later_is_started_without_any_order(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    deploy(device, "detector")
    async with device.deployer():
        await until(lambda: device.said_of("detector").state == "active")
    fails = fail_to_read(device, "detector", monkeypatch)
    device.broker = MemoryBroker()
    async with device.deployer():
        assert device.running == {}
        fails.clear()
        await until(lambda: device.running == {"detector": "1.0.0"})
        await until(lambda: device.said_of("detector").state == "active")


async def test_a_record_that_could_not_be_read_and_is_gone_is_nothing_to_report(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    deploy(device, "detector")
    async with device.deployer():
        await until(lambda: device.said_of("detector").state == "active")
    fails = fail_to_read(device, "detector", monkeypatch)
    device.broker = MemoryBroker()
    async with device.deployer():
        assert device.said_of("detector").state == "waiting"
        device.store.remove_record("detector")
        fails.clear()
        await until(lambda: device.of_handlers["detector"][-1] is None)
        assert device.running == {}


def fail_to_read(device: Device, handler: str, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of handlers whose records cannot be read."""
    read, failing = device.store.read_record, {handler}

    def reading(name: str) -> bytes | None:
        if name in failing:
            raise DeviceError("input/output error")
        return read(name)

    monkeypatch.setattr(device.store, "read_record", reading)
    return failing


# --- when metadata is not what it should be ---------------------------------------------------------------------------


async def test_expired_metadata_stops_nothing_and_begins_nothing(device: Device) -> None:
    deploy(device, "detector")
    async with device.deployer():
        await until(lambda: device.running and device.said.state == "current")
        device.now = START + timedelta(days=31)
        deploy(device, "detector", version="1.1.0")
        await until(lambda: device.said.state == "stale")
        assert "expired" in device.said.reason
        assert device.running == {"detector": "1.0.0"}
        device.fleet.now = device.now
        device.publish()
        await until(lambda: device.running == {"detector": "1.1.0"})
        await until(lambda: device.said.state == "current")


async def test_metadata_that_expires_without_a_word_is_noticed(device: Device) -> None:
    deploy(device, "detector")
    expires = START + timedelta(days=30)
    device.now = expires - timedelta(milliseconds=20)
    async with device.deployer():
        await until(lambda: device.running and device.said.state == "current")
        device.now = expires + timedelta(seconds=1)
        await until(lambda: device.said.state == "stale")
        assert device.running == {"detector": "1.0.0"}


async def test_a_download_is_given_up_when_metadata_expires(device: Device) -> None:
    expires = START + timedelta(days=30)
    device.now = expires - timedelta(milliseconds=20)
    assigned = device.fleet.bundle("detector", contents={"m.bin": b"model"})
    device.fleet.deploy("box", {"detector": assigned})
    del device.fleet.files[digest_of(b"model")]
    device.publish()
    async with device.deployer():
        await until(lambda: "detector" in device.of_handlers)
        device.now = expires + timedelta(seconds=1)
        await until(lambda: "has expired" in device.said_of("detector").reason)
        assert device.said_of("detector").state == "waiting"


async def test_forged_metadata_leaves_what_was_verified_in_force(device: Device) -> None:
    deploy(device, "detector")
    topic = TOPICS.metadata("timestamp.json")
    async with device.deployer():
        await until(lambda: device.running and device.said.state == "current")
        good = device.broker.retained[topic]
        device.broker.publish(
            {topic: good.replace(b'"version":2', b'"version":3').replace(b'"version": 2', b'"version": 3')}
        )
        await until(lambda: device.said.state == "untrusted")
        assert device.running == {"detector": "1.0.0"}
        assert device.said.metadata["timestamp"] == 2
        device.broker.publish({topic: good})
        await until(lambda: device.said.state == "current")


async def test_a_device_with_the_root_of_another_fleet_says_so(device: Device) -> None:
    device.fleet.first_root = Fleet().first_root
    deploy(device, "detector")
    async with device.deployer():
        await until(lambda: device.said.state == "untrusted")
        assert "is fleet.root the root.json of this fleet?" in device.said.reason
    assert device.running == {}


async def test_a_forgery_does_not_hide_that_the_metadata_has_expired(device: Device) -> None:
    deploy(device, "detector")
    async with device.deployer():
        await until(lambda: device.running and device.said.state == "current")
        device.now = START + timedelta(days=31)
        device.broker.publish({TOPICS.metadata("timestamp.json"): b"{}"})
        await until(lambda: device.said.state == "stale")


async def test_a_forgery_does_not_hide_what_expires_before_the_timestamp(device: Device) -> None:
    device.fleet.days = 1
    deploy(device, "detector")
    device.fleet.days = 30
    device.fleet.publish_timestamp(raise_version=True)
    device.broker.publish(messages(device.fleet, TOPICS))
    async with device.deployer():
        await until(lambda: device.running and device.said.state == "current")
        assert device.said.expires.startswith("2027-01-02")
        device.now = START + timedelta(days=2)
        device.broker.publish({TOPICS.metadata("timestamp.json"): b"{}"})
        await until(lambda: device.said.state in ("untrusted", "stale"))
        assert device.said.state == "stale"


async def test_metadata_that_is_not_all_there_is_waited_for(device: Device) -> None:
    deploy(device, "detector")
    late = {topic: device.broker.retained.pop(topic) for topic in list(device.broker.retained) if "targets" in topic}
    async with device.deployer():
        await until(lambda: device.of_device and "targets.json" in device.said.reason)
        assert device.said.state == "waiting"
        device.broker.publish(late)
        await until(lambda: device.running)


async def test_news_that_has_not_all_come_changes_nothing_yet(device: Device) -> None:
    deploy(device, "detector")
    async with device.deployer():
        await until(lambda: device.running and device.said.state == "current")
        before = set(device.broker.retained)
        device.fleet.deploy("box", {})
        device.fleet.publish()
        news = messages(device.fleet, TOPICS)
        late = {topic: news.pop(topic) for topic in list(news) if topic not in before and "snapshot" in topic}
        device.broker.publish(news)
        await until(lambda: "snapshot" in device.said.reason)
        assert device.said.state == "current"
        assert device.running == {"detector": "1.0.0"}
        device.broker.publish(late)
        await until(lambda: not device.running)
        await until(lambda: device.said.reason == "")


async def test_a_disk_that_fails_at_metadata_is_said(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_args: object) -> None:
        raise DeviceError("the disk fails")

    deploy(device, "detector")
    with monkeypatch.context() as patch:
        patch.setattr(Trust, "refresh", broken)
        async with device.deployer():
            await until(lambda: device.of_device and device.said.reason == "the disk fails")
            assert device.said.state == "waiting"


async def test_what_is_no_metadata_is_nothing(device: Device) -> None:
    async with device.deployer() as deployer:
        device.broker.publish({f"{TOPICS.root}/meta/../secrets": b"x", f"{TOPICS.root}/meta/UPPER.json": b"x"})
        deploy(device, "detector")
        await until(lambda: device.running)
        assert set(deployer._cache.snapshot()) == set(device.fleet.metadata)


async def test_a_document_that_does_not_come_is_waited_for(device: Device) -> None:
    deploy(device, "detector")
    document = device.fleet.targets.targets["devices/box.json"].hashes["sha256"]
    topic = TOPICS.chunk(document, 0)
    late = device.broker.retained.pop(topic)
    async with device.deployer():
        await until(lambda: device.of_device and document in device.said.reason)
        assert device.said.state == "waiting"
        device.broker.publish({topic: late})
        await until(lambda: device.running)
        await until(lambda: device.said.state == "current")


# --- when one bundle is not what it should be: the others go on -----------------------------------------------


async def test_a_bundle_that_nobody_signed_is_refused(device: Device) -> None:
    fleet = device.fleet
    good, never = fleet.bundle("counter"), Assignment(version="1.0.0", digest="0" * 64)
    fleet.deploy("box", {"counter": good, "detector": never})
    device.publish()
    async with device.deployer():
        await until(lambda: device.running == {"counter": "1.0.0"})
        await until(lambda: device.said_of("detector").state == "refused")
        assert "not signed by anybody who may" in device.said_of("detector").reason
        fleet.deploy("box", {"counter": good, "detector": fleet.bundle("detector")})
        device.publish()
        await until(lambda: device.running == {"counter": "1.0.0", "detector": "1.0.0"})


async def test_a_developer_signs_within_the_prefix_alone(device: Device) -> None:
    fleet = device.fleet
    fleet.delegate("dora", ["handlers/dora-*/*"])
    fleet.deploy(
        "box",
        {
            "dora-parts": fleet.bundle("dora-parts", role="dora"),
            "detector": fleet.bundle("detector", role="dora"),
        },
    )
    device.publish()
    async with device.deployer():
        await until(lambda: device.running == {"dora-parts": "1.0.0"})
        await until(lambda: device.said_of("detector").state == "refused")


async def test_the_expired_role_of_one_developer_is_that_handlers_affair(device: Device) -> None:
    fleet = device.fleet
    fleet.delegate("dora", ["handlers/dora-*/*"])
    parts = fleet.bundle("dora-parts", role="dora")
    fleet.deploy("box", {"dora-parts": parts, "detector": fleet.bundle("detector")})
    fleet.days = 1
    fleet.publish()
    dora = fleet.delegates["dora"].signed.expires
    fleet.days = 30
    device.now = START + timedelta(days=2)
    published = fleet._publish_targets
    fleet._publish_targets = lambda role, targets: keep_expiry(fleet, published, role, targets, dora)  # type: ignore[method-assign]
    device.publish()
    async with device.deployer():
        await until(lambda: device.running == {"detector": "1.0.0"})
        await until(lambda: "expired" in device.said_of("dora-parts").reason)
        assert device.said_of("dora-parts").state == "waiting"
        fleet._publish_targets = published  # type: ignore[method-assign]
        device.publish()
        await until(lambda: device.running == {"detector": "1.0.0", "dora-parts": "1.0.0"})


def keep_expiry(fleet: Fleet, publish, role: str, targets, expires) -> None:  # type: ignore[no-untyped-def]
    if role == "dora":
        targets.expires = expires
    publish(role, targets)


async def test_a_bundle_that_was_signed_anew_is_not_what_was_deployed(device: Device) -> None:
    deploy(device, "detector")
    async with device.deployer():
        await until(lambda: device.running)
        device.fleet.bundle("detector", "1.0.0", {"other.bin": b"other"})
        device.publish()
        await until(lambda: device.said.metadata["timestamp"] == 3)
        await until(lambda: device.said_of("detector").state == "active")
        assert device.running == {"detector": "1.0.0"}
    fresh = Device(device.path / "fresh", device.fleet)
    fresh.broker = device.broker
    async with fresh.deployer():
        await until(lambda: fresh.said_of("detector").state == "refused")
        assert "signed anew" in fresh.said_of("detector").reason


@pytest.mark.parametrize("missing", ["index", "file"])
async def test_files_that_are_not_there_hold_up_no_other_handler(device: Device, missing: str) -> None:
    assigned = deploy(device, "counter", "detector")
    digest = assigned["counter"].digest if missing == "index" else digest_of(b"counter 1.0.0")
    late = {topic: device.broker.retained.pop(topic) for topic in list(device.broker.retained) if digest in topic}
    async with device.deployer():
        await until(lambda: device.running == {"detector": "1.0.0"})
        await until(lambda: digest in device.said_of("counter").reason)
        assert device.said_of("counter").state == "waiting"
        device.broker.publish(late)
        await until(lambda: len(device.running) == 2)


async def test_documents_of_orders_that_were_never_carried_out_do_not_pile_up(device: Device) -> None:
    lost = device.fleet.bundle("lost")
    del device.fleet.files[lost.digest]  # for good: no order is carried out whole
    documents = []
    async with device.deployer():
        for number in range(4):
            version = f"1.{number}.0"
            wanted = {"lost": lost, "detector": device.fleet.bundle("detector", version, {"m.bin": version.encode()})}
            documents.append(device.fleet.deploy("box", wanted))
            device.publish()
            await until(lambda version=version: device.running == {"detector": version})  # type: ignore[misc]
        await until(lambda: not any(device.store.has(each) for each in documents[:-1]))
        assert device.store.has(documents[-1])


async def test_a_damaged_file_is_not_taken(device: Device) -> None:
    deploy(device, "detector")
    topic = TOPICS.chunk(digest_of(b"detector 1.0.0"), 0)
    good = device.broker.retained[topic]
    device.broker.retained[topic] = good[::-1]
    async with device.deployer():
        await until(
            lambda: device.said_of("detector").state == "waiting" and "nothing" not in device.said_of("detector").reason
        )
        assert not device.running
        device.broker.publish({topic: good})
        await until(lambda: device.running)


async def test_the_configurations_handlers_are_not_deployed_over(device: Device) -> None:
    device.taken = ("detector",)
    deploy(device, "detector", "counter")
    async with device.deployer():
        await until(lambda: device.running == {"counter": "1.0.0"})
        assert device.said_of("detector").state == "refused"
        assert "configuration" in device.said_of("detector").reason
        reports = len(device.of_handlers["detector"])
        deploy(device, "detector", "counter", version="1.1.0")
        await until(lambda: device.running == {"counter": "1.1.0"})
        assert len(device.of_handlers["detector"]) == reports + 1
        deploy(device, "counter", version="1.1.0")
        await until(lambda: device.of_handlers["detector"][-1] is None)


async def test_a_name_that_is_taken_while_its_deployment_is_under_way_stays_the_configurations(device: Device) -> None:
    assigned = deploy(device, "detector")["detector"]
    topic = TOPICS.chunk(digest_of(b"detector 1.0.0"), 0)
    late = {topic: device.broker.retained.pop(topic)}
    async with device.deployer() as deployer:
        await until(lambda: device.said_of("detector").state == "fetching")
        theirs = spec_of(device.path, "detector", slot_of(msgspec.structs.replace(assigned, version="9.0.0")))
        await device.serving.start(theirs)
        deployer.configure(CONFIG, ("detector",))
        await until(lambda: device.said_of("detector").reason == NAME_TAKEN)
        device.broker.publish(late)
        await until(lambda: device.said.state == "current" and deployer._content)
        assert device.said_of("detector").state == "refused"
        deploy(device)  # nobody wants it any more
        await until(lambda: device.of_handlers["detector"][-1] is None)
        assert device.serving.done == [("start", "9.0.0")]
        assert device.running == {"detector": "9.0.0"}


async def test_a_deployed_handler_whose_name_was_taken_since_is_not_started(device: Device) -> None:
    deploy(device, "detector")
    async with device.deployer():
        await until(lambda: device.running)
    device.taken = ("detector",)
    async with device.deployer():
        assert device.running == {}


async def test_a_canary_takes_the_place_of_a_restart_that_is_under_way(device: Device) -> None:
    deploy(device, "detector")
    async with device.deployer():
        await until(lambda: device.said_of("detector").state == "active")
        device.serving.shadows["detector"] = device.serving.live["detector"]
        deploy(device, "detector", version="1.1.0")
        await until(lambda: device.running == {"detector": "1.1.0"})


async def test_names_and_groups_may_change(device: Device) -> None:
    device.taken = ("detector",)
    deploy(device, "detector")
    counter = device.fleet.bundle("counter")
    device.fleet.add(group_target("window"), encode_desired(Desired(handlers={"counter": counter})))
    device.publish()
    async with device.deployer() as deployer:
        await until(lambda: device.said_of("detector").state == "refused")
        assert device.running == {}
        deployer.configure(CONFIG, ())
        await until(lambda: device.running == {"detector": "1.0.0"})
        deployer.configure(msgspec.structs.replace(CONFIG, groups=("window",)), ())
        await until(lambda: device.running == {"detector": "1.0.0", "counter": "1.0.0"})
        await until(lambda: device.said_of("detector").state == "active")
        deployer.configure(CONFIG, ())
        await until(lambda: device.running == {"detector": "1.0.0"})


# --- upkeep ----------------------------------------------------------------------------------------------------


async def test_the_device_says_that_it_is_there(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REPORT_SECONDS", 0.01)
    async with device.deployer():
        await until(lambda: len(device.of_device) >= 3)
        first = device.said.at
        device.now += timedelta(minutes=1)
        await until(lambda: device.said.at > first)


async def test_what_cannot_be_collected_is_a_warning(
    device: Device, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_args: Iterable[object]) -> None:
        raise DeviceError("the disk fails")

    monkeypatch.setattr(device.store, "collect", broken)
    deploy(device, "detector")
    async with device.deployer():
        await until(lambda: device.running)
        await until(lambda: "event=not_collected" in caplog.text)


async def test_leaving_ends_everything_wherever_it_is(device: Device) -> None:
    deploy(device, "detector")
    before = asyncio.all_tasks()
    async with device.deployer():
        await until(lambda: device.of_handlers)
    await until(lambda: asyncio.all_tasks() <= before)
    device.broker.publish({TOPICS.metadata("timestamp.json"): b"x"})


# --- power cuts --------------------------------------------------------------------------------------------------


class PowerCutError(BaseException):
    """Nobody catches it."""


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("calls", range(1, 13))
async def test_power_may_fail_at_any_step_on_the_disk(
    device: Device, calls: int, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Just before or just after the store did something for the so-manieth time."""
    deploy(device, "detector")
    async with device.deployer():
        await until(lambda: device.running)
        await until(lambda: device.said_of("detector").state == "active")
    deploy(device, "detector", version="1.1.0")
    left = calls

    def cut(method: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object) -> object:
            nonlocal left
            left -= 1
            if left <= 0 and not late:
                raise PowerCutError
            result = method(*args)
            if left <= 0:
                raise PowerCutError
            return result

        return call

    with monkeypatch.context() as patch:
        for name in ("check_room", "stage", "keep", "collect", "write_record"):
            patch.setattr(device.store, name, cut(getattr(device.store, name)))
        with contextlib.suppress(BaseExceptionGroup, PowerCutError):
            async with device.deployer():
                await until(lambda: device.running == {"detector": "1.1.0"} and left <= 2)
    device.store = Store(device.path / "deploy", 64 << 20)
    async with device.deployer():
        assert device.running in ({"detector": "1.0.0"}, {"detector": "1.1.0"})
        device.serving.samples["1.1.0"] = GOOD
        await until(lambda: device.running == {"detector": "1.1.0"})
        await until(lambda: device.said_of("detector").state == "active")
        previous = device.said_of("detector").previous
        assert previous is not None
        assert previous.version == "1.0.0"


async def test_a_start_collects_nothing_of_handlers_that_are_yet_to_be_started(device: Device) -> None:
    device.serving.samples["0.1.0"] = BAD
    async with device.deployer():
        device.serving.samples["0.1.0"] = BAD
        bad = device.fleet.bundle("a", "0.1.0", {"m.bin": b"bad"})
        good = device.fleet.bundle("b", "1.0.0", {"m.bin": b"good"})
        device.fleet.deploy("box", {"a": bad, "b": good})
        device.publish()
        await until(lambda: device.said_of("a").state == "refused" and device.said_of("b").state == "active")
        device.fleet.deploy("box", {"b": good})
        device.publish()
        await until(lambda: device.of_handlers["a"][-1] is None)
    assert device.store.records() == ["a", "b"], "what is in quarantine is remembered"
    for _ in range(5):
        device.broker = MemoryBroker()  # nobody is there to bring it again
        async with device.deployer():
            assert device.running == {"b": "1.0.0"}
        assert device.store.slot("b", good.digest) is not None


async def test_no_more_than_so_many_quarantines_of_removed_handlers_are_kept(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_GONE", 2)
    async with device.deployer() as deployer:
        for number in range(5):
            device.serving.samples["0.1.0"] = BAD
            name = f"h{number}"
            device.fleet.deploy("box", {name: device.fleet.bundle(name, "0.1.0", {"m.bin": name.encode()})})
            device.publish()
            await until(lambda name=name: device.said_of(name).state == "refused")  # type: ignore[misc]
        device.fleet.deploy("box", {})
        device.publish()
        await until(lambda: device.of_handlers["h4"][-1] is None)
        for _ in range(3):  # what goes in this very moment is looked at the next time
            device.fleet.deploy("box", {})
            device.publish()
            await until(lambda: device.said.metadata == deployer._ordered)
            deployer._collect_soon()
            await until(lambda: not deployer._garbage.is_set())
        await until(lambda: device.store.records() == ["h3", "h4"])
        assert sorted(deployer._rollouts) == ["h3", "h4"]


async def test_one_that_comes_back_while_others_are_forgotten_is_deployed(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove, begun, let = device.store.remove_record, threading.Event(), threading.Event()
    removed: list[str] = []

    def slow(name: str) -> None:
        begun.set()
        let.wait(PATIENCE)
        remove(name)
        removed.append(name)

    async with device.deployer() as deployer:
        device.serving.samples["0.1.0"] = BAD
        deploy(device, "a", "b", version="0.1.0")
        await until(lambda: {device.said_of(name).state for name in "ab"} == {"refused"})
        deploy(device)
        await until(lambda: all(device.of_handlers[name][-1] is None for name in "ab"))
        await until(lambda: all(each.over for each in deployer._rollouts.values()))
        monkeypatch.setattr(module, "MAX_GONE", 0)
        monkeypatch.setattr(device.store, "remove_record", slow)
        deployer._collect_soon()
        await until(begun.is_set)
        left = next(iter(deployer._rollouts))
        deploy(device, left)
        await until(lambda: device.running == {left: "1.0.0"})
        assert len(removed) == 0
        let.set()
        await until(lambda: len(removed) == 1 and not deployer._garbage.is_set())
        assert list(deployer._rollouts) == [left]
        await until(lambda: device.said_of(left).state == "active")
        assert device.store.records() == [left]


async def test_what_is_begun_while_it_ends_ends_too(device: Device) -> None:
    """The task of a new rollout: the order that begins it may not yet have heard that it is cancelled."""

    async def late(deployer: Deployer) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            deployer._begin(asyncio.Event().wait())

    async with asyncio.timeout(5), device.deployer() as deployer:
        deployer._begin(late(deployer))
        await asyncio.sleep(0)


async def test_what_is_fetched_while_the_disk_is_tidied_stays(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """A collection that has begun does not know of what comes meanwhile."""
    collect, begun = device.store.collect, threading.Event()
    let = threading.Event()

    def slow(*what: Collection[Any]) -> None:
        begun.set()
        let.wait(0.3)
        collect(*what)

    deploy(device, "detector")
    async with device.deployer():
        await until(lambda: device.said_of("detector").state == "active")
        monkeypatch.setattr(device.store, "collect", slow)
        begun.clear()
        index = deploy(device, "detector", version="1.1.0")["detector"].digest
        await until(begun.is_set)
        index = deploy(device, "detector", version="1.2.0")["detector"].digest
        await until(lambda: device.running == {"detector": "1.2.0"})
        assert device.broker.heard.count(TOPICS.chunk(index, 0)) == 1  # it was not lost, and fetched again
    let.set()


async def test_an_index_that_is_gone_is_fetched_again(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk loses it while the rollout is at work: it does not wait for other metadata."""
    check_room = device.store.check_room

    def lose(bundle: VerifiedBundle) -> None:
        check_room(bundle)
        device.store.object(bundle.digest).unlink(missing_ok=True)

    monkeypatch.setattr(device.store, "check_room", lose)
    deploy(device, "detector")
    async with device.deployer():
        await until(lambda: device.running == {"detector": "1.0.0"})
