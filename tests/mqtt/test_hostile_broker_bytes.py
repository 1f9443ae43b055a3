"""A broker that speaks MQTT badly on the control connection: it is left, come back to, and nothing else notices."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from mosquitto import PATIENCE, Mosquitto
from publishing import publisher
from scripted_broker import CONNACK, Conversation, fake_broker, packet, publish, read_packet

from appliance.backoff import Backoff
from appliance.config import MqttConfig
from appliance.control import Control
from appliance.mqtt import link
from appliance.mqtt.link import MAX_INBOUND_BYTES, MAX_INBOUND_MESSAGES, Message, Received

SUBSCRIBE, SUBACK = 0x82, 0x90
TRUE = publish(b"fleet/f/meta/timestamp.json", b"true", qos=1, number=9)


@asynccontextmanager
async def ears(url: str, heard: list[Received], *filters: str) -> AsyncIterator[Control]:
    retry, refused = (Backoff(0.01, limit=0.01) for _ in range(2))
    control = Control(MqttConfig(url=url), "box", retry=retry, retry_refused=refused)
    control.listen(filters or ["fleet/f/meta/+"], heard.append)
    async with control:
        yield control


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.005)


def suback(body: bytes, *reasons: int) -> bytes:
    return packet(SUBACK, body[:2] + b"\0" + bytes(reasons))


def honest(*more: bytes) -> Conversation:
    """Acknowledges, and sends what is true after ``more``."""

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CONNACK)
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                kind, body = await read_packet(reader)
                if kind == SUBSCRIBE:
                    writer.write(suback(body, 1) + b"".join(more) + TRUE)

    return converse


def bad(*packets: bytes) -> Conversation:
    """Accepts, and says this when it is asked for something; then it hangs up."""

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CONNACK)
        with contextlib.suppress(asyncio.IncompleteReadError):
            await read_packet(reader)
            writer.write(b"".join(packets))
            await writer.drain()
            writer.write_eof()
            await reader.read(1000)

    return converse


ODD_TOPICS = [b"", b"#", b"+", b"fleet/f/meta/+", b"fleet/f/meta/#", b"/" * 2000, b"$SYS/x", b"fleet/f/meta/\xc2\x85",
              b"fleet/f/meta/a\0b", b"\xff\xfe", b"fleet/f/meta/" + b"x" * 60_000]  # fmt: skip
BAD = {
    "a packet that is announced as large": (b"\x30\xff\xff\xff\x7f",),
    "a packet over the limit": (publish(b"fleet/f/meta/a.json", bytes(MAX_INBOUND_BYTES + 1)),),
    "a length without an end": (b"\x30\xff\xff\xff\xff\xff",),
    "a topic longer than its packet": (packet(0x30, b"\xff\xffab"),),
    "nothing in a packet": tuple(packet(kind << 4, b"") for kind in range(16)),
    "a byte in a packet": tuple(packet(kind << 4, b"\x07") for kind in range(16)),
    "QoS 3": (packet(0x36, b"\0\1a\0\1\0x"),),
    "properties without an end": (packet(0x30, b"\0\1a\xff\xff\xff\x7f"),),
    "unknown properties": (publish(b"a", properties=b"\xfe\1"),),
    "acknowledgements of nothing": tuple(packet(kind, b"\x12\x34\0\0") for kind in (0x40, 0x50, 0x62, 0x70)),
    "SUBACK of nothing": (packet(SUBACK, b"\x12\x34\0\1"),),
    "SUBACK with too many reasons": (packet(SUBACK, b"\0\1\0" + b"\1" * 50),),
    "SUBACK with a reason that is none": (packet(SUBACK, b"\0\1\0\x55"),),
    "UNSUBACK of a subscription": (packet(0xB0, b"\0\1\0\0"),),
    "a second CONNACK": (CONNACK, CONNACK),
    "QoS 2 without end": tuple(
        publish(b"fleet/f/meta/a.json", qos=2, number=number + 1) for number in range(4 * MAX_INBOUND_MESSAGES)
    ),
    "DISCONNECT with a reason": (packet(0xE0, b"\x8b\0"),),
    "AUTH": (packet(0xF0, b"\x18\0"),),
    **{f"topic {number}": (publish(topic[:65_000]),) for number, topic in enumerate(ODD_TOPICS)},
}


@pytest.mark.parametrize("packets", BAD.values(), ids=list(BAD))
async def test_what_is_no_mqtt_costs_one_connection(packets: tuple[bytes, ...]) -> None:
    """Two times; then the broker behaves, and is heard."""
    heard: list[Received] = []
    script = [bad(*packets)]
    async with fake_broker(script) as endpoint, ears(f"mqtt://{endpoint}", heard) as control:
        await until(lambda: control.connection.reconnects >= 2)
        script[0] = honest()
        await until(lambda: any(message.payload == b"true" for message in heard))
        assert {message.topic.rpartition("/")[0] for message in heard} == {"fleet/f/meta"}


async def test_a_connection_that_is_cut_anywhere_in_a_packet_is_come_back_to() -> None:
    heard: list[Received] = []
    said = suback(b"\0\1", 1) + publish(b"fleet/f/meta/a.json", b"whole", qos=1) + packet(0xE0, b"\0\0")
    script = [bad()]
    async with fake_broker(script) as endpoint, ears(f"mqtt://{endpoint}", heard) as control:
        for cut in range(len(CONNACK + said)):
            answer = (CONNACK + said)[:cut]

            async def converse(
                reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: bytes = answer
            ) -> None:
                writer.write(answer)
                await writer.drain()

            before, script[0] = len(heard), converse
            came = asyncio.Event()
            script[0] = _noting(converse, came)
            async with asyncio.timeout(PATIENCE):
                await came.wait()
            assert len(heard) - before <= 3
        script[0] = honest()
        await until(lambda: any(message.payload == b"true" for message in heard))
        assert control.connection.connected
    assert {message.payload for message in heard} <= {b"whole", b"true"}


def _noting(converse: Conversation, came: asyncio.Event) -> Conversation:
    async def noting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await converse(reader, writer)
        finally:
            came.set()

    return noting


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 20))])
@pytest.mark.slow
async def test_mutants_of_what_a_broker_says_do_nothing_but_end_connections(seed: int) -> None:
    dice = random.Random(seed)
    right = [
        suback(b"\0\1", 1),
        publish(b"fleet/f/meta/timestamp.json", b"{}", qos=1),
        publish(b"fleet/f/meta/1.root.json", b"{}", qos=2, properties=b"\x08\0\1r\x09\0\1c\x02\0\0\0\1"),
        packet(0xD0, b""),
        packet(0x62, b"\0\1\0\0"),
        packet(0xE0, b"\x81\0"),
    ]
    heard: list[Received] = []
    connections = 0

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        said = bytearray(CONNACK + b"".join(dice.choices(right, k=6)))
        for _ in range(dice.randint(1, 4)):
            at = dice.randrange(len(CONNACK) if dice.random() < 0.9 else 0, len(said))
            said[at] = dice.choice([said[at] ^ 1 << dice.randrange(8), dice.randrange(256)])
        writer.write(said)
        await writer.drain()
        writer.write_eof()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                await reader.read(1000)

    script: list[Conversation] = [converse]
    async with fake_broker(script) as endpoint, ears(f"mqtt://{endpoint}", heard):
        await until(lambda: connections >= 100)
        script[0] = honest()
        await until(lambda: any(message.payload == b"true" for message in heard))


async def test_what_nobody_subscribed_to_and_any_number_of_it_reaches_nobody() -> None:
    """A flood at Receive Maximum, most of it of other topics; what is true comes after it."""
    flood = [
        publish(b"fleet/%s/meta/%d.json" % (dice, number), b"x" * 1000, qos=1, number=number % MAX_INBOUND_MESSAGES + 1)
        for number in range(3000)
        for dice in (b"other",)
    ]
    heard: list[Received] = []
    async with fake_broker([honest(*flood)]) as endpoint, ears(f"mqtt://{endpoint}", heard) as control:
        await until(lambda: any(message.payload == b"true" for message in heard))
        assert len(heard) == 1
        assert control.connection.reconnects == 0


async def test_a_subscription_that_is_refused_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.mqtt.client.REFUSED_SECONDS", 0.02)
    refusals = 0

    async def refusing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal refusals
        writer.write(CONNACK)
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                kind, body = await read_packet(reader)
                if kind == SUBSCRIBE:
                    refusals += 1
                    writer.write(suback(body, 0x87) if refusals < 4 else suback(body, 1) + TRUE)

    heard: list[Received] = []
    async with fake_broker([refusing]) as endpoint, ears(f"mqtt://{endpoint}", heard) as control:
        await until(lambda: heard)
        assert control.connection.refused == ()
        assert control.connection.reconnects == 0


async def test_a_subscription_that_is_never_answered_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "PROGRESS_SECONDS", 0.05)
    heard: list[Received] = []

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CONNACK)
        while await reader.read(1000):
            pass

    script: list[Conversation] = [silent]
    async with fake_broker(script) as endpoint, ears(f"mqtt://{endpoint}", heard) as control:
        await until(lambda: control.connection.reconnects >= 1)
        script[0] = honest()
        await until(lambda: heard)


async def test_results_leave_whatever_the_control_connection_hears(broker: Mosquitto, tmp_path: Path) -> None:
    """Each has its own connection: here even its own broker."""
    heard: list[Received] = []
    attacks = [bad(*packets) for packets in BAD.values()]
    script = [attacks[0]]
    async with (
        publisher(broker.url, tmp_path / "spool") as results,
        fake_broker(script) as endpoint,
        ears(f"mqtt://{endpoint}", heard) as control,
    ):
        await until(lambda: results.stats.connection.connected)
        for attack in attacks:
            before, script[0] = control.connection.reconnects, attack
            await until(lambda before=before: control.connection.reconnects > before)
        control.send(Message("a", b"x"))
        assert results.stats.connection.connected
        assert results.stats.connection.reconnects == 0
