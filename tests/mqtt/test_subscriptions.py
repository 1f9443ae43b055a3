"""What a client subscribes to, and what comes of it: with a real broker, and with ones that misbehave."""

import asyncio
import struct

import pytest
from mosquitto import PATIENCE, Mosquitto
from scripted_broker import (
    CONNACK,
    Conversation,
    Listener,
    error_with,
    fake_broker,
    packet,
    publish,
    read_packet,
    running,
    says,
)

from appliance.deploy.chunks import MAX_WINDOW
from appliance.deploy.fleet_topics import MAX_CHUNK_BYTES, MAX_METADATA_BYTES, FleetTopics
from appliance.mqtt.client import MAX_COMPLAINTS, MAX_FILTERS, Client
from appliance.mqtt.endpoint import Endpoint
from appliance.mqtt.link import (
    MAX_CORRELATION_BYTES,
    MAX_INBOUND_BYTES,
    MAX_INBOUND_MESSAGES,
    MAX_OUTBOUND_PACKETS,
    MAX_TOPIC_BYTES,
    Message,
    Received,
)

SUBACK, SUBSCRIBE, UNSUBSCRIBE, UNSUBACK = 0x90, 0x82, 0xA2, 0xB0


def endpoint_of(broker: Mosquitto) -> Endpoint:
    return Endpoint("127.0.0.1", broker.port)


def tell(client: Client, topic: str, payload: bytes = b"x", *, retain: bool = False) -> None:
    client.send(Message(topic, payload, retain=retain), topic)


def answers(reason: int, asked: list[bytes], news: asyncio.Event, extra: int = 0) -> Conversation:
    """Answers each subscription with ``reason`` (and ``extra`` more), and writes down what was asked."""

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CONNACK)
        while True:
            try:
                kind, body = await read_packet(reader)
            except asyncio.IncompleteReadError:
                return
            if kind in (SUBSCRIBE, UNSUBSCRIBE):
                asked.append(bytes((kind,)) + body)
                answer, step = (SUBACK, 3) if kind == SUBSCRIBE else (UNSUBACK, 2)
                number, rest = 0, body[3:]
                while rest:
                    number += 1
                    rest = rest[step + struct.unpack("!H", rest[:2])[0] :]
                writer.write(packet(answer, body[:2] + b"\0" + bytes((reason,)) * (number + extra)))
                news.set()

    return converse


async def test_messages_of_a_filter_come_whole(broker: Mosquitto) -> None:
    listener = Listener()
    async with running(endpoint_of(broker), listener) as client:
        client.subscribe(["a/+", "b/#"])
        await listener.until(lambda: listener.events == ["connected"])
        for topic in ("a/1", "b/2/3", "c/1", "a/1/2", "a/2"):
            tell(client, topic, topic.encode())
        await listener.until(lambda: len(listener.messages) == 3)
        assert listener.messages == [Received(topic, topic.encode()) for topic in ("a/1", "b/2/3", "a/2")]


async def test_retained_messages_come_first_and_fresh_ones_say_that_they_are_retained(broker: Mosquitto) -> None:
    listener = Listener()
    async with running(endpoint_of(broker), listener) as client:
        await listener.until(lambda: listener.events == ["connected"])
        tell(client, "a/old", b"old", retain=True)
        await listener.until(lambda: listener.tokens == ["a/old"])
        client.subscribe(["a/+"])
        await listener.until(lambda: len(listener.messages) == 1)
        tell(client, "a/new", b"new", retain=True)
        tell(client, "a/passing", b"passing")
        await listener.until(lambda: len(listener.messages) == 3)
        assert [(m.payload, m.retain) for m in listener.messages] == [
            (b"old", True),
            (b"new", True),
            (b"passing", False),
        ]


async def test_what_was_unsubscribed_comes_no_more(broker: Mosquitto) -> None:
    listener = Listener()
    async with running(endpoint_of(broker), listener) as client:
        client.subscribe(["a", "b"])
        await listener.until(lambda: listener.events == ["connected"])
        client.unsubscribe(["a", "never"])
        tell(client, "a")
        tell(client, "b")
        await listener.until(lambda: bool(listener.messages))
        assert [message.topic for message in listener.messages] == ["b"]


async def test_subscriptions_outlive_the_connection(broker: Mosquitto) -> None:
    listener = Listener()
    async with running(endpoint_of(broker), listener) as client:
        client.subscribe(["a", "b"])
        client.unsubscribe(["b"])
        await listener.until(lambda: listener.events == ["connected"])
        broker.kill()
        await listener.until(lambda: listener.events == ["connected", "disconnected"])
        client.subscribe(["c"])
        broker.start()
        await listener.until(lambda: client.room)
        for topic in "abc":
            tell(client, topic)
        await listener.until(lambda: len(listener.messages) == 2)
        assert [message.topic for message in listener.messages] == ["a", "c"]


async def test_a_request_brings_where_to_answer_and_an_answer_goes_out_with_it(broker: Mosquitto) -> None:
    listener = Listener()
    async with running(endpoint_of(broker), listener) as client:
        client.subscribe(["command"])
        await listener.until(lambda: listener.events == ["connected"])
        command = (
            f"mosquitto_rr -h 127.0.0.1 -p {broker.port} -V 5 -t command -e answer -m hello -W 10 -F %t|%p|%D "
            "-D publish correlation-data 4711 -D publish message-expiry-interval 30"
        ).split()
        asking = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        await listener.until(lambda: bool(listener.messages))
        assert listener.messages == [
            Received("command", b"hello", response_topic="answer", correlation=b"4711", expiry=30)
        ]
        client.send(Message("answer", b"{}", content_type="application/json", correlation=b"4711"), 1)
        async with asyncio.timeout(PATIENCE):
            said, _ = await asking.communicate()
        assert asking.returncode == 0
        assert said == b"answer|{}|4711\n"


async def test_the_largest_pieces_of_a_fleet_fit(broker: Mosquitto) -> None:
    topics = FleetTopics("p" * 128, "f" * 32)
    listener = Listener()
    chunk = Message(topics.chunk("0" * 64, 999_999), bytes(MAX_CHUNK_BYTES), retain=True)
    metadata = Message(topics.metadata("999999999." + "r" * 64 + ".json"), bytes(MAX_METADATA_BYTES), retain=True)
    async with running(endpoint_of(broker), listener) as client:
        client.subscribe([topics.all_metadata, chunk.topic])
        await listener.until(lambda: listener.events == ["connected"])
        for message in (chunk, metadata):
            assert message.size < MAX_INBOUND_BYTES
            client.send(message, 1)
        await listener.until(lambda: len(listener.messages) == 2)
        assert client.connection.connected


async def test_a_flood_is_heard_whole_and_in_order(broker: Mosquitto) -> None:
    listener = Listener()
    async with running(endpoint_of(broker), listener) as client:
        client.subscribe(["flood"])
        await listener.until(lambda: listener.events == ["connected"])
        sent = 0
        while sent < 2000:
            while client.room and sent < 2000:
                client.send(Message("flood", str(sent).encode()), sent)
                sent += 1
            await listener.until(lambda: client.room)
        await listener.until(lambda: len(listener.messages) == 2000)
        assert [int(message.payload) for message in listener.messages] == list(range(2000))


async def test_thousands_of_short_subscriptions_leave_nothing_behind(broker: Mosquitto) -> None:
    listener = Listener()
    async with running(endpoint_of(broker), listener) as client:
        await listener.until(lambda: listener.events == ["connected"])
        for start in range(0, 4000, 8):
            filters = [f"chunk/{number}" for number in range(start, start + 8)]
            client.subscribe(filters)
            client.unsubscribe(filters)
            await asyncio.sleep(0)
        client.subscribe(["last"])
        tell(client, "chunk/1")
        tell(client, "last")
        await listener.until(lambda: bool(listener.messages))
        assert [message.topic for message in listener.messages] == ["last"]
        assert client._filters == {"last": None}
        assert client._link is not None
        assert client._link._asked == {}


async def test_too_many_subscriptions_are_the_callers_mistake(broker: Mosquitto) -> None:
    async with running(endpoint_of(broker), Listener()) as client:
        client.subscribe(str(number) for number in range(MAX_FILTERS))
        client.subscribe(["1", "2"])
        with pytest.raises(ValueError, match="more than"):
            client.subscribe(["one more"])


async def test_a_refused_filter_is_shown_and_said_once_and_the_connection_stays(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.mqtt.client.REFUSED_SECONDS", 0.02)
    listener, asked, news = Listener(), list[bytes](), asyncio.Event()
    script = [answers(0x87, asked, news)]
    async with fake_broker(script) as endpoint, running(endpoint, listener) as client:
        client.subscribe(["secret/+"])
        async with asyncio.timeout(PATIENCE):
            while len(asked) < 3:  # it is asked for again
                news.clear()
                await news.wait()
        assert client.connection.connected
        assert client.connection.refused == ("secret/+",)
        said = [record.getMessage() for record in caplog.records if "subscription_refused" in record.message]
        assert len(said) == 1
        assert "secret/+" in said[0]
        assert "Not authorized" in said[0]
        assert "access list" in said[0]
        client.unsubscribe(["secret/+"])
        assert client.connection.refused == ()


async def test_a_filter_that_is_not_refused_any_more_is_not_shown_any_more() -> None:
    listener, asked, news = Listener(), list[bytes](), asyncio.Event()
    script = [answers(0x87, asked, news)]
    async with fake_broker(script) as endpoint, running(endpoint, listener) as client:
        client.subscribe(["a"])
        async with asyncio.timeout(PATIENCE):
            while client.connection.refused != ("a",):
                await asyncio.sleep(0.01)
            script[0] = answers(0x01, asked, news)
            assert client._link is not None
            client._link._end(ConnectionError("the test wants another connection"))
            while len(listener.events) < 3 or not client.connection.connected:
                await asyncio.sleep(0.01)
            while len(asked) < 2:
                await asyncio.sleep(0.01)
        assert client.connection.refused == ()


async def test_refusals_without_end_do_not_flood_the_log(caplog: pytest.LogCaptureFixture) -> None:
    listener, asked, news = Listener(), list[bytes](), asyncio.Event()
    async with fake_broker([answers(0x87, asked, news)]) as endpoint, running(endpoint, listener) as client:
        await listener.until(lambda: client.connection.connected)
        client.subscribe(str(number) for number in range(3 * MAX_COMPLAINTS))
        async with asyncio.timeout(PATIENCE):
            while len(client.connection.refused) < 3 * MAX_COMPLAINTS:
                await asyncio.sleep(0.01)
    assert sum("subscription_refused" in record.message for record in caplog.records) == MAX_COMPLAINTS


async def test_another_number_of_reasons_than_filters_ends_the_connection() -> None:
    listener, asked, news = Listener(), list[bytes](), asyncio.Event()
    async with fake_broker([answers(0, asked, news, extra=1)]) as endpoint, running(endpoint, listener) as client:
        client.subscribe(["a"])
        await error_with(client, "answered 1 subscriptions with 2 reasons")


async def test_a_broker_that_answers_no_subscription_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.mqtt.link.PROGRESS_SECONDS", 0.05)
    async with fake_broker([says(CONNACK)]) as endpoint, running(endpoint, Listener()) as client:
        client.subscribe(["a"])
        await error_with(client, "has not answered a subscription")


@pytest.mark.parametrize(
    "message",
    [
        publish(b"t" * (MAX_TOPIC_BYTES + 1)),
        publish(b"t", properties=b"\x08" + struct.pack("!H", MAX_TOPIC_BYTES + 1) + b"r" * (MAX_TOPIC_BYTES + 1)),
        publish(
            b"t", properties=b"\x09" + struct.pack("!H", MAX_CORRELATION_BYTES + 1) + bytes(MAX_CORRELATION_BYTES + 1)
        ),
    ],
)
async def test_what_is_too_long_is_dropped_alone(message: bytes) -> None:
    listener = Listener()
    script = [says(CONNACK + message + publish(b"after"))]
    async with fake_broker(script) as endpoint, running(endpoint, listener) as client:
        await listener.until(lambda: bool(listener.messages))
        assert [each.topic for each in listener.messages] == ["after"]
        assert client.connection.connected


async def test_a_topic_that_is_no_text_ends_the_connection() -> None:
    async with fake_broker([says(CONNACK + publish(b"\xff\xfe"))]) as endpoint, running(endpoint, Listener()) as client:
        await error_with(client, "not UTF-8")


async def test_the_broker_may_send_a_downloads_window_at_a_time() -> None:
    told = asyncio.get_running_loop().create_future()

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        told.set_result(await reader.read(1000))
        writer.transport.abort()

    server = await asyncio.start_server(converse, "127.0.0.1", 0)
    endpoint = Endpoint("127.0.0.1", server.sockets[0].getsockname()[1])
    async with server, running(endpoint, Listener()), asyncio.timeout(PATIENCE):
        assert b"\x21" + struct.pack("!H", MAX_WINDOW) in await told, "Receive Maximum"
        server.close()


async def test_messages_that_are_begun_and_never_finished_are_bounded() -> None:
    """QoS 2, which nobody asked for: the library keeps each until the broker releases it."""
    begun = b"".join(publish(b"t", bytes(1000), qos=2, number=number) for number in range(1, 200))
    listener = Listener()
    async with fake_broker([says(CONNACK + begun)]) as endpoint, running(endpoint, listener) as client:
        await error_with(client, f"more than {MAX_INBOUND_MESSAGES} messages")
        assert listener.messages == []


async def test_a_broker_that_sends_and_does_not_read_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    flood = b"".join(publish(b"t", qos=1, number=number % 60_000 + 1) for number in range(2 * MAX_OUTBOUND_PACKETS))
    listener = Listener()

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CONNACK)
        await listener.until(lambda: listener.events == ["connected"])
        assert client._link is not None
        # as if the socket's buffer were full: filling a real one takes half a million acknowledgements
        monkeypatch.setattr(client._link._client, "loop_write", lambda: 0)
        writer.write(flood)
        while await reader.read(1000):
            pass

    async with fake_broker([converse]) as endpoint, running(endpoint, listener, 60) as client:
        await error_with(client, "sends and does not read")


async def test_what_a_receiver_raises_ends_the_client_with_it(broker: Mosquitto) -> None:
    listener = Listener()

    def broken(message: Received) -> None:
        raise ZeroDivisionError(message.topic)

    client = Client(endpoint_of(broker), None, "client", None, listener, on_message=broken)
    client.subscribe(["a"])
    running = asyncio.create_task(client.run())
    await listener.until(lambda: listener.events == ["connected"])
    tell(client, "a")
    with pytest.raises(ZeroDivisionError):
        async with asyncio.timeout(PATIENCE):
            await running
    assert listener.events == ["connected", "disconnected"]
    assert not client.connection.connected
