"""The control connection with a real broker."""

import asyncio
import contextlib
import struct
from collections.abc import Callable
from pathlib import Path

import aiomqtt
import pytest
from mosquitto import PATIENCE, Mosquitto
from publishing import publisher
from scripted_broker import CONNACK, PUBACK, fake_broker, publish, read_packet

from appliance.backoff import Backoff
from appliance.config import MqttConfig
from appliance.control import MAX_QUEUED, Control
from appliance.mqtt.client import Connection
from appliance.mqtt.link import Message, Received

PUBLISH = 0x30


def control_at(url: str) -> Control:
    retry, retry_refused = (Backoff(0.02, limit=0.02) for _ in range(2))
    return Control(MqttConfig(url=url), "box", retry=retry, retry_refused=retry_refused)


def control_of(broker: Mosquitto) -> Control:
    return control_at(broker.url)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


async def connected(control: Control) -> None:
    """It connects when there is something to say, and not before."""
    control.say(Message("hello", b"", qos=0))
    await until(lambda: control.connection.connected)


async def until_it_ends(control: Control) -> None:
    async with asyncio.timeout(PATIENCE), control:
        await connected(control)
        await asyncio.Event().wait()


async def test_listeners_hear_what_their_filters_match_once_each(broker: Mosquitto) -> None:
    one: list[Received] = []
    other: list[Received] = []
    hear_one, hear_other = one.append, other.append
    control = control_of(broker)
    control.listen(["fleet/+/meta", "fleet/#"], hear_one)
    async with control:
        await connected(control)
        control.listen(["fleet/a/meta", "$SYS/nothing"], hear_other)
        control.listen(["end"], hear_one)
        for topic in ("fleet/a/meta", "fleet/a/chunk", "elsewhere", "end"):
            control.send(Message(topic, b"x"))
        await until(lambda: "end" in [message.topic for message in one])
        assert {message.topic for message in one} == {"fleet/a/meta", "fleet/a/chunk", "end"}
        assert {message.topic for message in other} == {"fleet/a/meta"}


async def test_what_is_ignored_is_heard_no_more(broker: Mosquitto) -> None:
    heard: list[str] = []
    async with control_of(broker) as control:
        await connected(control)
        control.listen(["a", "b", "c"], lambda message: heard.append(message.topic))
        control.ignore(["a", "unknown"])
        control.listen(["b"], lambda message: heard.append(f"new {message.topic}"))
        for topic in "abc":
            control.send(Message(topic, b"x"))
        await until(lambda: "c" in heard)
        assert heard == ["new b", "c"]


async def test_pieces_of_files_come_and_go_by_the_thousand(broker: Mosquitto) -> None:
    """As a download does it: a window of topics, each asked for, heard, and left again."""
    heard: dict[str, bytes] = {}
    pieces = 2000

    def have(message: Received) -> None:
        heard[message.topic] = message.payload
        control.ignore([message.topic])
        following = int(message.topic.removeprefix("chunk/")) + 8
        if following < pieces:
            control.listen([f"chunk/{following}"], have)

    async with aiomqtt.Client("127.0.0.1", broker.port) as operator:
        for number in range(pieces):
            await operator.publish(f"chunk/{number}", str(number).encode(), retain=True)
    async with control_of(broker) as control:
        await connected(control)
        control.listen([f"chunk/{n}" for n in range(8)], have)
        await until(lambda: len(heard) == pieces)
        assert heard == {f"chunk/{n}": str(n).encode() for n in range(pieces)}
        assert control._listeners == {}
        assert control._matcher._root._children == {}
        assert control._client is not None
        assert control._client._filters == {}
        link = control._client._link
        assert link is not None
        await until(lambda: not link._asked)


async def test_subscriptions_and_what_was_to_be_sent_outlive_the_broker(absent_broker: Mosquitto) -> None:
    heard: list[bytes] = []
    connections = 0

    def connected() -> None:
        nonlocal connections
        connections += 1

    async with control_of(absent_broker) as control:
        control.on_connected(connected)
        control.listen(["a"], lambda message: heard.append(message.payload))
        control.send(Message("a", b"before"))
        absent_broker.start()
        await until(lambda: heard == [b"before"])
        absent_broker.kill()
        await until(lambda: not control.connection.connected)
        assert control.max_message == 0
        absent_broker.start()
        await until(lambda: control.connection.connected)
        control.send(Message("a", b"after"))
        await until(lambda: heard == [b"before", b"after"])
        assert connections == 2
        assert control.connection.reconnects == 1


async def test_what_may_wait_is_bounded_and_the_rest_counted(
    absent_broker: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    async with control_of(absent_broker) as control:
        for number in range(MAX_QUEUED + 3):
            control.send(Message("a", str(number).encode()))
        assert control.dropped == 3
        assert not control.say(Message("a", b"now", qos=0))
        heard: list[bytes] = []
        control.listen(["a"], lambda message: heard.append(message.payload))
        absent_broker.start()
        await until(lambda: len(heard) == MAX_QUEUED)
        assert heard == [str(number).encode() for number in range(MAX_QUEUED)]
        assert control.say(Message("a", b"now", qos=0))
        await until(lambda: heard[-1] == b"now")
    assert sum("mqtt_dropped" in record.message for record in caplog.records) == 2  # the first and the second


async def test_what_is_larger_than_the_broker_takes_is_dropped(tmp_path: Path, mosquitto_binary: str) -> None:
    with Mosquitto(tmp_path, "allow_anonymous true", "max_packet_size 2000") as broker:
        async with control_of(broker) as control:
            await connected(control)
            assert control.max_message == 2000
            control.send(Message("a", bytes(3000)))
            assert not control.say(Message("a", bytes(3000), qos=0))
            assert control.dropped == 1
            assert control.connection.connected


async def refuse_some(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A broker that refuses messages on ``forbidden``, and tells about others (as on a subscription)."""
    writer.write(CONNACK)
    with contextlib.suppress(asyncio.IncompleteReadError):
        while True:
            kind, body = await read_packet(reader)
            if kind & 0xF0 == PUBLISH:
                length = struct.unpack("!H", body[:2])[0]
                topic, number = body[2 : 2 + length], body[2 + length : 4 + length]
                writer.write(bytes((PUBACK, 3)) + number + bytes((0x87 if topic == b"forbidden" else 0,)))
                if topic != b"forbidden":
                    writer.write(publish(topic, b"taken"))


async def test_a_message_that_the_broker_refuses_does_not_cost_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    """Mosquitto before 2.0.13 hangs up all the same, so the broker is the test's own."""
    heard: list[bytes] = []
    async with fake_broker([refuse_some]) as endpoint, control_at(f"mqtt://{endpoint}") as control:
        control.listen(["allowed"], lambda message: heard.append(message.payload))
        await connected(control)
        for topic in ("forbidden", "forbidden", "allowed"):
            control.send(Message(topic, b"x"))
        await until(lambda: heard == [b"taken"])
        assert control.connection.connected
        assert control.connection.reconnects == 0
    said = [record.getMessage() for record in caplog.records if "mqtt_message_refused" in record.message]
    assert len(said) == 1
    assert "forbidden: Not authorized" in said[0]
    assert "access list" in said[0]


async def test_what_a_listener_raises_ends_the_body(broker: Mosquitto) -> None:
    def broken(message: Received) -> None:
        raise ZeroDivisionError(message.topic)

    control = control_of(broker)
    control.listen(["a"], broken)
    control.send(Message("a", b"x"))
    with pytest.raises(ExceptionGroup) as raised:
        await until_it_ends(control)
    assert raised.group_contains(ZeroDivisionError)


async def test_what_a_call_at_the_connection_raises_ends_the_body(broker: Mosquitto) -> None:
    control = control_of(broker)
    control.on_connected(lambda: 1 // 0)  # type: ignore[arg-type, return-value]
    with pytest.raises(ExceptionGroup) as raised:
        await until_it_ends(control)
    assert raised.group_contains(ZeroDivisionError)


async def test_nobody_connects_for_nothing(broker: Mosquitto, tmp_path: Path) -> None:
    async with control_of(broker) as control, publisher(broker.url, tmp_path / "spool") as results:
        await until(lambda: results.stats.connection.connected)
        assert control.connection == Connection()


async def test_an_error_of_the_body_leaves_it_as_it_is(broker: Mosquitto) -> None:
    with pytest.raises(KeyError):
        async with control_of(broker):
            raise KeyError("mine")


async def test_results_and_control_are_two_connections_that_leave_each_other_alone(
    broker: Mosquitto, tmp_path: Path
) -> None:
    async with publisher(broker.url, tmp_path / "spool") as results, control_of(broker) as control:
        await connected(control)
        await until(lambda: results.stats.connection.connected)
        assert await results.drained(PATIENCE)
        heard: list[Received] = []
        control.listen([results.topics.status], heard.append)
        await until(lambda: bool(heard))
        assert (control.connection.reconnects, results.stats.connection.reconnects) == (0, 0)
