"""What the operator's commands do at the broker: bring it what was signed, wait for devices, and look at them.

Each opens a connection of its own, and another when that one is lost.
"""

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from appliance.backoff import Backoff
from appliance.config import MqttConfig
from appliance.deploy.desired import Assignment, Desired, merged, targets_of
from appliance.deploy.fleet_topics import FleetTopics
from appliance.errors import ConfigError, PeerError
from appliance.fleet.broker import MAX_SETTLE_BYTES, MAX_SETTLE_CHUNK_BYTES, Session, persistently
from appliance.fleet.ledger import Ledger
from appliance.fleet.log_lines import LogLine, log_lines
from appliance.fleet.publication import (
    TIMESTAMP,
    ChunkStep,
    Held,
    MetadataStep,
    Needed,
    Plan,
    Step,
    Survey,
    plan,
    version_of,
)
from appliance.fleet.settings import SETTINGS_FILE, FleetSettings, mqtt_config
from appliance.fleet.watching import Arrival, Device, Effective, Expected, Outcome, Reports, Row, outcome, rows
from appliance.frame import is_name
from appliance.mqtt.link import PUBLISH_OVERHEAD, Message

LOOK_SECONDS = 0.25
"""Devices' reports are looked at so often."""
PATIENCE_SECONDS = 15.0
"""Devices that are not there are waited for so long when all others have answered: they may be starting."""
STATUS_SECONDS = 30.0
PIECE_BYTES = 1 << 20


class SignedFleet(Protocol):
    """A fleet's directory: :class:`appliance.fleet.repository.Fleet`. Its methods read files."""

    @property
    def directory(self) -> Path: ...

    @property
    def settings(self) -> FleetSettings: ...

    def metadata_files(self) -> Mapping[str, bytes]: ...

    def needed_content(self) -> Mapping[str, int]: ...

    def content(self, digest: str) -> Path: ...

    def targets(self) -> Sequence[str]: ...

    def desired(self, target: str) -> Desired: ...


class Display(Protocol):
    """Where the operator sees what happens."""

    def say(self, text: str) -> None:
        """One line."""

    def sending(self, sent: int, total: int) -> None:
        """Bytes that the broker has taken, of all."""

    def devices(self, arrivals: Sequence[Arrival]) -> None:
        """How far each device is; called again and again."""

    def log_line(self, line: LogLine) -> None: ...


# --- bringing it to the broker ----------------------------------------------------------------------------------


async def synchronise(
    fleet: SignedFleet, display: Display, *, sweep: bool = False, retry: Backoff | None = None
) -> None:
    """Make the broker hold what the fleet's devices need, and nothing else.

    What was sent before is not sent again. Where the broker does not hold what the ledger says, when a connection was
    lost, or with ``sweep``, all that it holds is read back and mended. ConfigError or PeerError say what to do.

    A directory that is older than what the broker holds is not sent, but for ``sweep``: devices would not take it.
    """
    needed = await asyncio.to_thread(lambda: Needed(fleet.metadata_files(), fleet.needed_content()))
    ledger = Ledger(fleet.directory, fleet.settings.mqtt.url, fleet.settings.topics.root)
    doubtful = sweep

    async def once(session: Session) -> None:
        nonlocal doubtful
        known = None if doubtful else await asyncio.to_thread(ledger.read)
        doubtful = True  # for another connection: this one was lost, and perhaps the broker with all that it held
        held = await _held(session, fleet, needed, known, display, any_age=sweep)
        await _publish(session, fleet, needed, held, ledger, display)

    await _persistently(fleet, once, display, retry)


async def _held(
    session: Session, fleet: SignedFleet, needed: Needed, known: Held | None, display: Display, *, any_age: bool
) -> Held:
    """What the broker holds: as ``known``, if its metadata is what that says, else as it shows itself."""
    topics, chunk_bytes = fleet.settings.topics, fleet.settings.chunk_bytes
    survey = Survey(topics)
    await _read(session, topics.all_metadata, topics, survey.received)
    if not any_age:
        _check_age(survey, fleet, needed)
    if known is not None and survey.confirms(known):
        return known
    display.say("looking at what the broker holds")
    await _read(session, topics.all_chunks, topics, survey.received, MAX_SETTLE_CHUNK_BYTES)
    for digest in survey.incomplete(needed.content, chunk_bytes):  # a broker's queue may hold less than all chunks
        await _read(session, topics.chunks_of(digest), topics, survey.received, MAX_SETTLE_CHUNK_BYTES)
    return await asyncio.to_thread(survey.held, needed.content, _reader(fleet), chunk_bytes)


def _check_age(survey: Survey, fleet: SignedFleet, needed: Needed) -> None:
    theirs, ours = version_of(survey.timestamp), version_of(needed.metadata.get(TIMESTAMP, b""))
    if theirs > ours:
        raise ConfigError(
            f"{fleet.directory}: the broker has version {theirs} of this fleet's timestamp, and this directory {ours}: "
            "`git pull`, or whoever signed the other sends it; `appliance fleet refresh --sweep` sends this one anyway"
        )


async def _read(
    session: Session,
    topic_filter: str,
    topics: FleetTopics,
    heard: Callable[[str, bytes], None],
    most: int = MAX_SETTLE_BYTES,
) -> None:
    await session.listen([topic_filter], heard, most)
    await session.settled(topics.marker)
    session.leave([topic_filter])


async def _publish(
    session: Session, fleet: SignedFleet, needed: Needed, held: Held, ledger: Ledger, display: Display
) -> None:
    planned = plan(needed, held, fleet.settings.chunk_bytes)
    _check_fits(planned, fleet, session.max_message)
    await asyncio.to_thread(_check_content, planned, fleet)
    sent, total = 0, planned.length
    display.sending(sent, total)

    def acknowledged(step: Step) -> None:
        nonlocal sent
        held.acknowledged(step)
        sent += step.length
        display.sending(sent, total)

    for stage in planned.stages:
        for step in stage:
            held.sending(step)
        await asyncio.to_thread(ledger.write, held)
        await session.send(_messages(stage, fleet), acknowledged)
    await asyncio.to_thread(ledger.write, held)


async def _messages(stage: Sequence[Step], fleet: SignedFleet) -> AsyncIterator[tuple[Message, Step]]:
    topics, read = fleet.settings.topics, _reader(fleet)
    for step in stage:
        if isinstance(step, MetadataStep):
            payload = step.payload
        else:
            payload = await asyncio.to_thread(read, step.digest, step.offset, step.length) if step.length else b""
        yield Message(_topic(step, topics), payload, retain=True), step


def _topic(step: Step, topics: FleetTopics) -> str:
    return topics.metadata(step.file) if isinstance(step, MetadataStep) else topics.chunk(step.digest, step.index)


def _check_fits(planned: Plan, fleet: SignedFleet, limit: int) -> None:
    """ConfigError before anything is sent, where the broker would not take all of it."""
    source = fleet.directory / SETTINGS_FILE
    for step in planned:
        overhead = len(_topic(step, fleet.settings.topics)) + PUBLISH_OVERHEAD
        if overhead + step.length > limit:
            takes = f"the broker takes messages of {limit} bytes at most"
            fitting = (limit - overhead) >> 10
            if isinstance(step, ChunkStep) and fitting > 0:
                raise ConfigError(f"{source}: chunk_kb: {takes}: set it to {fitting} or less")
            raise ConfigError(
                f"{source}: {takes}, and {_topic(step, fleet.settings.topics)} has {step.length}: raise its limit "
                "(Mosquitto: max_packet_size)"
            )


def _check_content(planned: Plan, fleet: SignedFleet) -> None:
    """ConfigError where a file that would be sent is not what its name says."""
    for digest in dict.fromkeys(step.digest for step in planned if isinstance(step, ChunkStep) and step.length):
        path, found = fleet.content(digest), hashlib.sha256()
        with path.open("rb") as file:
            while data := file.read(PIECE_BYTES):
                found.update(data)
        if found.hexdigest() != digest:
            raise ConfigError(f"{path}: is not what its name says; bring it back from git or a backup")


def _reader(fleet: SignedFleet) -> Callable[[str, int, int], bytes]:
    def read(digest: str, offset: int, length: int) -> bytes:
        with fleet.content(digest).open("rb") as file:
            file.seek(offset)
            return file.read(length)

    return read


# --- looking at devices -----------------------------------------------------------------------------------------


async def wait_for(
    fleet: SignedFleet,
    expected: Expected,
    display: Display,
    seconds: float,
    *,
    retry: Backoff | None = None,
    wall: Callable[[], float] = time.time,
) -> Outcome:
    """Wait until every device has converged or failed, ``seconds`` at most; the outcome says how it went.

    Devices that are not there, or a group that nobody is in, are not waited for longer than ``PATIENCE_SECONDS``.
    """
    effective = await asyncio.to_thread(_effective, fleet)
    last = Outcome(())

    async def once(session: Session) -> None:
        nonlocal last
        reports = await _reports(session, fleet, wall)
        others_until = time.monotonic()
        while True:
            last = outcome(expected, reports.devices(), effective, wall())
            display.devices(last.arrivals)
            now = time.monotonic()
            others_until = others_until if last.only_silent else now
            if last.settled or now - others_until > PATIENCE_SECONDS:
                return
            await asyncio.sleep(LOOK_SECONDS)

    try:
        async with asyncio.timeout(seconds):
            await _persistently(fleet, once, display, retry)
    except TimeoutError:
        display.devices(last.arrivals)
    if not last.arrivals:
        groups = ", ".join(sorted(expected.groups))
        display.say(f"no device is known that is in {groups}; `fleet.groups` in a device's configuration says so")
    return last


async def read_status(
    fleet: SignedFleet, seconds: float = STATUS_SECONDS, *, wall: Callable[[], float] = time.time
) -> tuple[Row, ...]:
    """What all devices of the fleet have said, and which of those it names have never said a word."""
    named = {
        target.removeprefix("devices/").removesuffix(".json") for target in fleet.targets() if "devices/" in target
    }

    async def once(session: Session) -> tuple[Row, ...]:
        heard = {device.name: device for device in (await _reports(session, fleet, wall)).devices()}
        devices = {name: Device(name) for name in named} | heard
        return rows((devices[name] for name in sorted(devices)), wall())

    try:
        async with asyncio.timeout(seconds):
            return await persistently(once, *await asyncio.to_thread(_broker, fleet), lost=lambda _: None)
    except TimeoutError as error:
        raise PeerError(f"the broker at {fleet.settings.mqtt.url} has not told all within {seconds:.0f} s") from error


async def follow_logs(
    fleet: SignedFleet,
    device: str | None,
    display: Display,
    *,
    listening: Callable[[], None] = lambda: None,
    retry: Backoff | None = None,
) -> None:
    """Show the logs of a device, or of all, until cancelled. ConfigError for what is no name of a device.

    ``listening`` is called once, when the broker has agreed.
    """
    if device is not None and not is_name(device):
        raise ConfigError(f"{device!r} is no name of a device: lower-case letters, digits, - and _")
    prefix = fleet.settings.mqtt.prefix
    told = False

    def heard(topic: str, payload: bytes) -> None:
        name = topic.removeprefix(f"{prefix}/").partition("/")[0]
        for line in log_lines(name, payload):
            display.log_line(line)

    async def once(session: Session) -> None:
        nonlocal told
        await session.listen([f"{prefix}/{device or '+'}/log"], heard)
        if not told:
            told = True
            listening()
        await asyncio.Event().wait()

    await _persistently(fleet, once, display, retry)


async def _reports(session: Session, fleet: SignedFleet, wall: Callable[[], float]) -> Reports:
    """All that devices have said so far; what they say from now on is taken in, too."""
    settings = fleet.settings
    reports = Reports(settings.mqtt.prefix, settings.name)
    fresh = False

    def heard(topic: str, payload: bytes) -> None:
        reports.received(topic, payload, wall() if fresh else None)

    await session.listen(reports.filters, heard)
    await session.settled(settings.topics.marker)
    fresh = True
    return reports


def _effective(fleet: SignedFleet) -> Effective:
    documents = {target: fleet.desired(target) for target in fleet.targets()}

    def effective(device: str, groups: tuple[str, ...]) -> Mapping[str, Assignment]:
        return merged(documents[target] for target in targets_of(device, groups) if target in documents)

    return effective


# --- the connection ---------------------------------------------------------------------------------------------


def _broker(fleet: SignedFleet) -> tuple[MqttConfig, str]:
    return mqtt_config(fleet.settings, fleet.directory, os.environ), str(fleet.directory / SETTINGS_FILE)


async def _persistently(
    fleet: SignedFleet, work: Callable[[Session], Awaitable[None]], display: Display, retry: Backoff | None
) -> None:
    config, source = await asyncio.to_thread(_broker, fleet)
    await persistently(work, config, source, lost=lambda why: display.say(f"{why}; trying again"), retry=retry)
