"""The operator's tools against a real broker."""

import asyncio
import random
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import aiomqtt
import msgspec
import pytest
from mosquitto import PATIENCE, Mosquitto
from scripted_broker import CONNACK, fake_broker, packet, publish, read_packet, says
from signed_fleet import SomeFleet, Watcher, settings

from appliance.backoff import Backoff
from appliance.deploy.desired import Assignment, Desired
from appliance.deploy.report import DeviceReport, HandlerReport, SlotReport, encode_report
from appliance.errors import ConfigError, DeviceError, PeerError
from appliance.fleet import broker as operators_broker
from appliance.fleet import operate
from appliance.fleet.broker import LostError
from appliance.fleet.desk import create
from appliance.fleet.keys import NewKey
from appliance.fleet.ledger import LEDGER_FILE, MAX_BROKERS, Ledger
from appliance.fleet.operate import follow_logs, read_status, synchronise, wait_for
from appliance.fleet.publication import Held
from appliance.fleet.repository import Fleet
from appliance.fleet.watching import Expected

MODEL = random.Random(1).randbytes(300_000)
AT = "2026-11-24T12:00:00.000000000Z"
SUBSCRIBE = 0x82
NOW = 1795521600.0
"""The same."""


@pytest.fixture
def fleet(tmp_path: Path, broker: Mosquitto) -> SomeFleet:
    """A model, a module and an index, signed once."""
    some = SomeFleet(tmp_path, settings(broker.url))
    some.add(MODEL)
    some.add(b"module 1")
    some.add(b"index 1")
    some.sign(1)
    return some


def soon() -> Backoff:
    return Backoff(0.02, limit=0.02)


async def held(port: int) -> dict[str, bytes]:
    """All that a broker has retained of the fleet."""
    found = {}
    async with aiomqtt.Client("127.0.0.1", port) as client, asyncio.timeout(PATIENCE):
        await client.subscribe("#", qos=1)
        await client.publish("end", b"", qos=1)
        async for message in client.messages:
            if str(message.topic) == "end":
                return found
            assert isinstance(message.payload, bytes)
            found[str(message.topic)] = message.payload
    raise AssertionError("the broker ends nothing")


async def say(port: int, messages: Iterable[tuple[str, bytes]], *, retain: bool = True) -> None:
    async with aiomqtt.Client("127.0.0.1", port) as client:
        for topic, payload in messages:
            await client.publish(topic, payload, qos=1, retain=retain)


async def test_the_broker_holds_what_is_needed_and_what_was_sent_is_not_sent_again(
    fleet: SomeFleet, broker: Mosquitto
) -> None:
    first, second, third = Watcher(), Watcher(), Watcher()
    await synchronise(fleet, first)
    assert await held(broker.port) == fleet.retained()
    assert first.sent[0] == (0, first.sent[-1][0])
    assert first.sent[-1][0] > len(MODEL)
    await synchronise(fleet, second)
    assert second.sent == [(0, 0)]
    assert second.said == []
    module = next(digest for digest, length in fleet.needed.items() if length == len(b"module 1"))
    del fleet.needed[module]
    fleet.add(b"module 2")
    fleet.sign(2)
    await synchronise(fleet, third)
    assert third.sent[-1][1] < 200, "the model is there"
    assert await held(broker.port) == fleet.retained()


async def test_a_real_fleet_comes_to_the_broker(
    tmp_path: Path, broker: Mosquitto, role_keys: dict[str, NewKey]
) -> None:
    directory, some = tmp_path / "plant", settings(broker.url)
    now = datetime.now(UTC)
    await asyncio.to_thread(create, directory, some, role_keys, now)
    fleet = Fleet.open(directory)
    await synchronise(fleet, Watcher())
    files = {some.topics.metadata(file): payload for file, payload in fleet.metadata_files().items()}
    assert await held(broker.port) == files
    assert len(files) == len(role_keys)


async def test_a_ledger_that_is_lost_or_damaged_costs_nothing_but_a_look(fleet: SomeFleet, broker: Mosquitto) -> None:
    await synchronise(fleet, Watcher())
    for damage in (b"", b"{", b'{"v":1,"brokers":{"x":{"files":{"y":{}}}}}'):
        (fleet.directory / LEDGER_FILE).write_bytes(damage)
        watcher = Watcher()
        await synchronise(fleet, watcher)
        assert watcher.sent == [(0, 0)]
        assert watcher.said == ["looking at what the broker holds"]


async def test_a_sweep_mends_what_others_have_done_to_the_broker(fleet: SomeFleet, broker: Mosquitto) -> None:
    await synchronise(fleet, Watcher())
    damaged, gone = [topic for topic in sorted(fleet.retained()) if "/chunk/" in topic][:2]
    stray = fleet.settings.topics.chunk("0" * 64, 3)
    await say(broker.port, [(damaged, b"nonsense"), (gone, b""), (stray, b"x"), ("fleet/plant/meta/9.x.json", b"x")])
    watcher = Watcher()
    await synchronise(fleet, watcher, sweep=True)
    assert watcher.sent[-1][1] <= 2 * fleet.settings.chunk_bytes
    assert await held(broker.port) == fleet.retained()


async def test_a_directory_that_is_older_than_what_the_broker_holds_is_not_sent(
    fleet: SomeFleet, broker: Mosquitto
) -> None:
    fleet.metadata["timestamp.json"] = b'{"signed":{"version":3}}'
    await synchronise(fleet, Watcher())
    fleet.metadata["timestamp.json"] = b'{"signed":{"version":2}}'
    (fleet.directory / LEDGER_FILE).unlink()
    with pytest.raises(ConfigError, match=r"the broker has version 3 .* this directory 2: `git pull`"):
        await synchronise(fleet, Watcher())
    await synchronise(fleet, Watcher(), sweep=True)
    assert await held(broker.port) == fleet.retained()


async def test_a_broker_that_has_forgotten_everything_is_told_again(fleet: SomeFleet, broker: Mosquitto) -> None:
    await synchronise(fleet, Watcher())
    broker.kill()
    broker.start()
    await synchronise(fleet, Watcher())
    assert await held(broker.port) == fleet.retained()


async def test_a_broker_that_is_killed_in_the_middle_holds_all_of_it_when_it_has_come_back(
    fleet: SomeFleet, broker: Mosquitto
) -> None:
    """It forgets what it had acknowledged, too."""

    def kill_once(sent: int) -> None:
        if sent > 150_000 and not watcher.said[1:]:
            watcher.on_sending = lambda _: None
            broker.kill()
            broker.start()

    watcher = Watcher(on_sending=kill_once)
    async with asyncio.timeout(PATIENCE):
        await synchronise(fleet, watcher, retry=soon())
    assert any("trying again" in text for text in watcher.said)
    assert await held(broker.port) == fleet.retained()


async def test_a_cancelled_publication_goes_on_where_it_was(fleet: SomeFleet, broker: Mosquitto) -> None:
    def cancel(sent: int) -> None:
        if sent > 150_000:
            task.cancel()

    task = asyncio.create_task(synchronise(fleet, Watcher(on_sending=cancel)))
    with pytest.raises(asyncio.CancelledError):
        await task
    watcher = Watcher()
    await synchronise(fleet, watcher)
    assert 0 < watcher.sent[-1][1] < 150_000 + len(b"module 1 index 1") + 200
    assert await held(broker.port) == fleet.retained()


async def test_a_queue_that_is_too_short_for_all_chunks_is_read_file_by_file(
    tmp_path: Path, mosquitto_binary: str
) -> None:
    rules = ("allow_anonymous true", "max_queued_messages 50", "max_inflight_messages 10")
    with Mosquitto(tmp_path / "broker", *rules) as broker:
        fleet = SomeFleet(tmp_path, settings(broker.url, chunk_kb=1))
        for size in (40_000, 41_000, 42_000, 43_000):
            fleet.add(MODEL[:size])
        fleet.sign(1)
        await synchronise(fleet, Watcher())
        watcher = Watcher()
        await synchronise(fleet, watcher, sweep=True)
        assert watcher.sent == [(0, 0)]


async def test_chunks_that_the_broker_does_not_take_are_refused_with_the_key(
    tmp_path: Path, mosquitto_binary: str
) -> None:
    with Mosquitto(tmp_path / "broker", "allow_anonymous true", "max_packet_size 20000") as broker:
        fleet = SomeFleet(tmp_path, settings(broker.url))
        fleet.add(MODEL)
        fleet.sign(1)
        with pytest.raises(ConfigError, match=r"fleet\.toml: chunk_kb: .* 20000 bytes at most: set it to 19 or less"):
            await synchronise(fleet, Watcher())
        fleet.settings = settings(broker.url, chunk_kb=19)
        await synchronise(fleet, Watcher())
        assert await held(broker.port) == fleet.retained()
        fleet.sign(2)
        fleet.metadata["2.targets.json"] = bytes(30_000)
        with pytest.raises(ConfigError, match=r"2\.targets\.json has 30000: raise its limit"):
            await synchronise(fleet, Watcher())


async def test_a_file_that_is_not_what_its_name_says_is_not_sent(fleet: SomeFleet, broker: Mosquitto) -> None:
    digest = next(iter(fleet.needed))
    fleet.content(digest).write_bytes(MODEL[:-1] + b"x")
    with pytest.raises(ConfigError, match="not what its name says"):
        await synchronise(fleet, Watcher())
    assert await held(broker.port) == {}


async def test_without_a_broker_nothing_is_waited_for(fleet: SomeFleet, broker: Mosquitto) -> None:
    broker.kill()
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(LostError, match="cannot be reached"):
            await synchronise(fleet, Watcher())
        fleet.settings = settings("")
        with pytest.raises(ConfigError, match=r"fleet\.toml: mqtt\.url"):
            await synchronise(fleet, Watcher())


async def test_an_operator_who_may_not_is_told(tmp_path: Path, mosquitto_binary: str) -> None:
    (tmp_path / "acl").write_text("topic read fleet/#\n")
    rules = ("allow_anonymous true", f"acl_file {tmp_path / 'acl'}")
    with Mosquitto(tmp_path / "broker", *rules) as broker:
        fleet = SomeFleet(tmp_path, settings(broker.url))
        fleet.sign(1)
        with pytest.raises(PeerError, match=r"refuses messages on fleet/plant/marker.*access list"):
            await synchronise(fleet, Watcher())


async def test_an_operator_who_may_not_read_is_told(
    tmp_path: Path, mosquitto_binary: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mosquitto lets everybody subscribe, and then shows nothing."""
    monkeypatch.setattr(operators_broker, "SETTLE_SECONDS", 0.1)
    monkeypatch.setattr(operators_broker, "MARKER_SECONDS", 0.05)
    (tmp_path / "acl").write_text("topic write fleet/#\n")
    rules = ("allow_anonymous true", f"acl_file {tmp_path / 'acl'}")
    with Mosquitto(tmp_path / "broker", *rules) as broker:
        fleet = SomeFleet(tmp_path, settings(broker.url))
        fleet.sign(1)
        with pytest.raises(PeerError, match=r"does not show fleet/plant/marker to us; check its access list"):
            await synchronise(fleet, Watcher())


async def test_a_subscription_that_is_refused_is_told(tmp_path: Path) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CONNACK)
        request = await reader.read(1000)
        writer.write(packet(0x90, request[2:4] + b"\0" + bytes([0x87])))
        await reader.read(1000)

    async with fake_broker([refuse]) as endpoint, asyncio.timeout(PATIENCE):
        fleet = SomeFleet(tmp_path, settings(f"mqtt://{endpoint}"))
        fleet.sign(1)
        with pytest.raises(
            PeerError, match=r"does not show fleet/plant/meta/\+: Not authorized; check its access list"
        ):
            await synchronise(fleet, Watcher())


async def test_a_broker_that_never_comes_to_an_end_is_left(tmp_path: Path) -> None:
    async with fake_broker([says(CONNACK)]) as endpoint, asyncio.timeout(PATIENCE):
        with pytest.raises(PeerError, match=r"has not told all within 0 s"):
            await read_status(SomeFleet(tmp_path, settings(f"mqtt://{endpoint}")), 0.2)


async def pours(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, grants: bool) -> None:
    """Sends messages for ever, but never ours."""
    writer.write(CONNACK)

    async def pour() -> None:
        while True:
            writer.write(publish(b"fleet/plant/meta/1.x.json", bytes(1000)))
            await writer.drain()

    pouring = asyncio.create_task(pour())
    try:
        while True:
            kind, body = await read_packet(reader)
            if kind == SUBSCRIBE and grants:
                writer.write(packet(0x90, body[:2] + b"\0\1"))
    except asyncio.IncompleteReadError:
        pouring.cancel()


@pytest.mark.parametrize(
    ("bound", "value", "said"),
    [
        ("SETTLE_TOTAL_SECONDS", 0.3, r"has been waited for 0 s, and what it shows has no end: .*access list"),
        ("MAX_SETTLE", 20_000, r"sent more than 20000 bytes, and what it shows has no end"),
    ],
)
@pytest.mark.parametrize("grants", [True, False])
async def test_a_broker_that_goes_on_sending_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str, value: float, said: str, grants: bool
) -> None:
    if bound == "MAX_SETTLE":
        listen = operators_broker.Session.listen
        monkeypatch.setattr(operators_broker.Session, "listen", lambda *given: listen(*given[:-1], value))
    else:
        monkeypatch.setattr(operators_broker, bound, value)
    async with fake_broker([partial(pours, grants=grants)]) as endpoint, asyncio.timeout(PATIENCE):
        fleet = SomeFleet(tmp_path, settings(f"mqtt://{endpoint}"))
        fleet.sign(1)
        with pytest.raises(PeerError, match=said):
            await synchronise(fleet, Watcher())


async def test_a_login_that_is_refused_names_the_file_and_the_keys(tmp_path: Path) -> None:
    refused = bytes.fromhex("2003008600")
    async with fake_broker([says(refused)]) as endpoint, asyncio.timeout(PATIENCE):
        fleet = SomeFleet(tmp_path, settings(f"mqtt://{endpoint}"))
        with pytest.raises(PeerError, match=r"fleet\.toml: .* check mqtt\.username and mqtt\.password") as raised:
            await read_status(fleet)
    assert not isinstance(raised.value, LostError)


async def test_a_broker_that_stays_away_is_given_up(
    fleet: SomeFleet, broker: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operators_broker, "GIVE_UP_SECONDS", 0.1)

    def kill(sent: int) -> None:
        if sent:
            broker.kill()

    async with asyncio.timeout(PATIENCE):
        with pytest.raises(LostError):
            await synchronise(fleet, Watcher(on_sending=kill), retry=soon())


def test_a_ledger_knows_a_bounded_number_of_brokers(tmp_path: Path) -> None:
    for number in range(MAX_BROKERS + 2):
        Ledger(tmp_path, f"mqtt://{number}", "fleet/plant").write(Held(metadata={"x": str(number)}))
    assert Ledger(tmp_path, "mqtt://0", "fleet/plant").read() is None
    assert Ledger(tmp_path, f"mqtt://{MAX_BROKERS + 1}", "fleet/plant").read() == Held(
        metadata={"x": str(MAX_BROKERS + 1)}
    )
    with pytest.raises(DeviceError, match="cannot be written"):
        Ledger(tmp_path / "absent", "mqtt://0", "fleet/plant").write(Held())


# --- devices ----------------------------------------------------------------------------------------------------


OLD, NEW = SlotReport("1.0.0", "1" * 64), SlotReport("2.0.0", "2" * 64)


def device(name: str, groups: tuple[str, ...] = (), at: str = AT) -> tuple[str, bytes]:
    return f"appliance/{name}/deployment", encode_report(
        DeviceReport(fleet="plant", state="current", at=at, groups=groups)
    )


def parts(name: str, state: str, current: SlotReport | None = NEW, reason: str = "") -> tuple[str, bytes]:
    report = HandlerReport(handler="parts", state=state, since=AT, desired=NEW, current=current, reason=reason)  # type: ignore[arg-type]
    return f"appliance/{name}/deployment/parts", encode_report(report)


@pytest.fixture
def watched(fleet: SomeFleet) -> SomeFleet:
    """``groups/line.json`` gives parts 2.0.0."""
    assignment = Assignment(version="2.0.0", digest=NEW.digest)
    fleet.documents["groups/line.json"] = Desired(handlers={"parts": assignment})
    return fleet


EXPECTED = Expected("parts", NEW.digest, "2.0.0", groups=frozenset({"line"}))


async def test_devices_are_waited_for_until_the_last_has_converged(watched: SomeFleet, broker: Mosquitto) -> None:
    await say(broker.port, [device("a", ("line",)), device("b", ("line",)), device("c"), parts("a", "active")])
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as tasks:
        waiting = asyncio.Event()
        watcher = Watcher(on_devices=lambda _: waiting.set())
        task = tasks.create_task(wait_for(watched, EXPECTED, watcher, PATIENCE, wall=lambda: NOW))
        await waiting.wait()
        assert not task.done()
        await say(broker.port, [parts("b", "canary", OLD)])
        await say(broker.port, [parts("b", "active")])
    assert task.result().exit_code == 0
    assert [(each.device, each.state) for each in task.result().arrivals] == [("a", "active"), ("b", "active")]


async def test_one_that_refuses_and_one_that_does_not_answer_make_the_exit_code(
    watched: SomeFleet, broker: Mosquitto
) -> None:
    await say(broker.port, [device("a", ("line",)), parts("a", "active"), device("b", ("line",))])
    unanswered = await wait_for(watched, EXPECTED, Watcher(), 0.5, wall=lambda: NOW)
    assert unanswered.exit_code == 4
    await say(broker.port, [parts("b", "rolled-back", OLD, "3 faults in a row")])
    failed = await wait_for(watched, EXPECTED, Watcher(), PATIENCE, wall=lambda: NOW)
    assert failed.exit_code == 1
    assert failed.arrivals[1].reason == "3 faults in a row"


async def test_devices_that_are_not_there_are_not_waited_for_as_long_as_others(
    watched: SomeFleet, broker: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operate, "PATIENCE_SECONDS", 0.0)
    lost = ("appliance/b/status", b'{"state":"lost"}')
    async with asyncio.timeout(PATIENCE):
        watcher = Watcher()
        nobody = await wait_for(watched, EXPECTED, watcher, 1000.0, wall=lambda: NOW)
        await say(broker.port, [device("a", ("line",)), parts("a", "active"), device("b", ("line",)), lost])
        silent = await wait_for(watched, EXPECTED, Watcher(), 1000.0, wall=lambda: NOW)
    assert (nobody.arrivals, nobody.exit_code) == ((), 4)
    assert "no device is known that is in line" in watcher.said[-1]
    assert ([each.state for each in silent.arrivals], silent.exit_code) == (["active", "silent"], 4)


async def test_waiting_goes_on_over_a_lost_connection(watched: SomeFleet, broker: Mosquitto) -> None:
    await say(broker.port, [device("a", ("line",))])
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as tasks:
        waiting = asyncio.Event()
        watcher = Watcher(on_devices=lambda _: waiting.set())
        task = tasks.create_task(wait_for(watched, EXPECTED, watcher, PATIENCE, retry=soon(), wall=lambda: NOW))
        await waiting.wait()
        broker.kill()
        broker.start()
        await say(broker.port, [device("a", ("line",)), parts("a", "active")])
    assert task.result().exit_code == 0


async def test_status_tells_of_all_devices_and_of_those_that_never_said_a_word(
    watched: SomeFleet, broker: Mosquitto
) -> None:
    watched.documents["devices/never.json"] = Desired()
    lost = msgspec.json.encode({"state": "lost"})
    await say(
        broker.port,
        [
            device("a"),
            parts("a", "active"),
            device("b"),
            ("appliance/b/status", lost),
            ("appliance/c/status", lost),
            ("appliance/d/deployment", b"\xff nonsense"),
        ],
    )
    table = await read_status(watched, wall=lambda: NOW)
    assert [(row.device, row.handler, row.current, row.silence) for row in table] == [
        ("a", "parts", "2.0.0", ""),
        ("b", "", "", "silent for 0 s"),
        ("never", "", "", "never heard of"),
    ]


async def test_logs_are_followed_over_a_lost_connection(fleet: SomeFleet, broker: Mosquitto) -> None:
    def line(text: str) -> bytes:
        return msgspec.json.encode({"at": AT, "level": "warning", "unit": "zipper", "text": text})

    heard = asyncio.Event()
    watcher, agreed = Watcher(on_line=lambda _: heard.set()), list[str]()
    async with asyncio.timeout(PATIENCE):
        task = asyncio.create_task(follow_logs(fleet, "a", watcher, listening=lambda: agreed.append("a"), retry=soon()))
        for text in ("first", "second"):
            heard.clear()
            while not heard.is_set():  # until it has subscribed
                payload = line(text) + b"\nnonsense\n" + line("more")
                await say(broker.port, [("appliance/a/log", payload), ("appliance/b/log", line("b"))], retain=False)
                await asyncio.sleep(0.02)
            broker.kill()
            broker.start()
        task.cancel()
        await asyncio.wait([task])
    assert {(each.device, each.text) for each in watcher.lines} == {("a", "first"), ("a", "second"), ("a", "more")}
    assert agreed == ["a"]
    with pytest.raises(ConfigError, match="no name of a device"):
        await follow_logs(fleet, "a/+", watcher)
