"""The publisher against real brokers that come, go, refuse and die."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import cbor2
import pytest
from mosquitto import PATIENCE, Gate, Mosquitto, Subscriber
from publishing import Answers, frame, in_order, publisher, quick, seqs

from appliance.backoff import Backoff
from appliance.config import MqttConfig
from appliance.errors import ConfigError, DeviceError
from appliance.mqtt.outbox import MAX_PENDING_ROWS
from appliance.publisher import Publisher


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return tmp_path / "spool.db"


async def eventually(publishing: Publisher, error: str) -> None:
    """Wait until the connection is down for a reason with these words."""
    async with asyncio.timeout(PATIENCE):
        while error not in publishing.stats.connection.error:
            await asyncio.sleep(0.01)
    assert not publishing.stats.connection.connected


async def test_results_and_states_reach_a_subscriber(broker: Mosquitto, spool: Path) -> None:
    answers = Answers()
    async with Subscriber(broker.port) as subscriber:
        async with publisher(broker.url, spool) as publishing:
            publishing.set_retained(publishing.topics.status, {"state": "ready"})
            publishing.set_retained(publishing.topics.camera("camera"), {"state": "streaming"})
            for seq in range(100):
                publishing.offer(frame(seq), answers.of(seq))
            assert await publishing.drained(PATIENCE)
            stats = publishing.stats
            assert (stats.results, stats.published, stats.lost, stats.backlog) == (100, 100, 0, 0)
            assert stats.connection.connected
        await subscriber.until(lambda: b'{"state":"disconnected"}' in subscriber.states("box/status"))
        results = subscriber.results()
        assert seqs([result.payload for result in results]) == list(range(100))
        assert {(result.topic, result.qos) for result in results} == {("appliance/box/result/camera/parts", 1)}
        assert subscriber.states("box/status")[-2:] == [b'{"state":"ready"}', b'{"state":"disconnected"}']
        assert subscriber.states("camera/camera") == [b'{"state":"streaming"}']
    assert answers.accepted == list(range(100))
    async with Subscriber(broker.port) as late:
        await late.until(lambda: len(late.received) >= 2)
        assert {(message.topic, message.retain) for message in late.received} == {
            ("appliance/box/status", True),
            ("appliance/box/camera/camera", True),
        }


async def test_results_as_cbor(broker: Mosquitto, spool: Path) -> None:
    async with Subscriber(broker.port) as subscriber, publisher(broker.url, spool, format="cbor") as publishing:
        publishing.offer(frame(3, cbor2.dumps({"raw": b"\x00\x01"})), Answers().of(3))
        await subscriber.until(lambda: len(subscriber.results()) == 1)
        document = cbor2.loads(subscriber.results()[0].payload)
        assert (document["seq"], document["value"]) == (3, {"raw": b"\x00\x01"})


async def test_stats_are_published(broker: Mosquitto, spool: Path) -> None:
    async with Subscriber(broker.port) as subscriber:
        extra = lambda: {"cameras": {"camera": 5}}  # noqa: E731
        async with publisher(broker.url, spool, stats_seconds=0.2, extra=extra) as publishing:
            publishing.offer(frame(0), Answers().of(0))
            publishing.offer(frame(1, b"\xff"), Answers().of(1))
            assert await publishing.drained(PATIENCE)
            await subscriber.until(lambda: len(subscriber.states("/stats")) >= 2)
        first, second = (json.loads(payload) for payload in subscriber.states("/stats")[:2])
        assert not [message for message in subscriber.received if message.topic.endswith("/stats") and message.retain]
    assert (first["v"], first["device"], first["cameras"]) == (1, "box", {"camera": 5})
    assert (first["results"], first["published"], first["refused"]) == (1, 1, {"malformed": 1})
    assert set(first["latency_us"]) == {"capture", "wire", "publish", "total"}
    assert first["latency_us"]["total"]["count"] == 1
    assert first["latency_us"]["capture"]["p50"] == pytest.approx(1000, rel=0.1)
    assert second["published"] == 1
    assert second["latency_us"]["total"] == {"count": 0, "p50": 0, "p95": 0, "p99": 0}, (
        "percentiles are of the interval"
    )


async def test_a_broker_killed_in_midstream_loses_nothing(broker: Mosquitto, spool: Path) -> None:
    """The broker forgets all it had; whoever has subscribed again before we are back sees every result."""
    answers = Answers()
    seq = 0
    async with (
        Gate(broker.port) as gate,
        # QoS 0: a subscriber that acknowledges to a dead broker fails before it has read what that one wrote
        Subscriber(broker.port, qos=0) as subscriber,
        publisher(gate.url, spool) as publishing,
    ):
        for _ in range(3):
            enough = seq + 100
            for _ in range(200):
                publishing.offer(frame(seq), answers.of(seq))
                seq += 1
                await asyncio.sleep(0)
            await subscriber.until(lambda enough=enough: subscriber.distinct() >= enough)  # type: ignore[misc]
            broker.kill()
            await subscriber.subscribed(False)
            await gate.shut()
            for _ in range(100):
                publishing.offer(frame(seq), answers.of(seq))
                seq += 1
            await answers.count(seq)
            assert not publishing.stats.connection.connected
            broker.start()
            await subscriber.subscribed()
            await gate.open()
        assert await publishing.drained(PATIENCE)
        stats = publishing.stats
        assert (stats.results, stats.lost, stats.connection.reconnects) == (seq, 0, 3)
        assert stats.spooled >= 300
        await subscriber.until(lambda: subscriber.distinct() >= seq)
    received = seqs([result.payload for result in subscriber.results()])
    assert set(received) == set(range(seq)) == set(answers.accepted)
    assert in_order(received)


async def test_a_broker_that_comes_late(absent_broker: Mosquitto, spool: Path) -> None:
    answers = Answers()
    async with publisher(absent_broker.url, spool) as publishing:
        for seq in range(500):
            publishing.offer(frame(seq), answers.of(seq))
        await answers.count(500)
        assert answers.accepted == list(range(500)), "the spool has them"
        assert not await publishing.drained(0)
        await eventually(publishing, "cannot be reached")
        absent_broker.start()
        async with Subscriber(absent_broker.port) as subscriber:
            assert await publishing.drained(PATIENCE)
            assert publishing.stats.published == 500
            assert subscriber.states("box/status")[-1:] == [b'{"state":"init"}']


async def test_an_end_without_a_broker_leaves_all_in_the_spool(absent_broker: Mosquitto, spool: Path) -> None:
    answers = Answers()
    async with publisher(absent_broker.url, spool) as publishing:
        for seq in range(50):
            publishing.offer(frame(seq), answers.of(seq))
    assert answers.accepted == list(range(50)), "stored at the end, before the interval was over"
    absent_broker.start()
    async with Subscriber(absent_broker.port) as subscriber:
        async with publisher(absent_broker.url, spool) as publishing:
            publishing.offer(frame(50), answers.of(50))
            assert await publishing.drained(PATIENCE)
            assert publishing.stats.published == 51
        await subscriber.until(lambda: len(subscriber.results()) == 51)
    assert seqs([result.payload for result in subscriber.results()]) == list(range(51)), "what was there goes first"
    async with publisher(absent_broker.url, spool) as publishing:
        assert publishing.stats.backlog == 0


async def test_beyond_the_cap_the_oldest_are_lost_and_counted(absent_broker: Mosquitto, spool: Path) -> None:
    answers = Answers()
    count = 300
    async with publisher(absent_broker.url, spool, spool_mb=1) as publishing:
        for seq in range(count):
            publishing.offer(frame(seq, cbor2.dumps("x" * 10_000)), answers.of(seq))
            if seq % 50 == 49:
                await answers.count(seq + 1)
        lost = publishing.stats.lost
        assert count - 110 < lost < count - 90, "a megabyte holds about a hundred"
        assert publishing.stats.backlog == count - lost
        absent_broker.start()
        assert await publishing.drained(PATIENCE)
        assert publishing.stats.published == count - lost
    assert os.stat(spool).st_size < 2 << 20  # noqa: PTH116


async def killed(url: str, spool: Path, first: int, enough: int) -> list[int]:
    """Run a publisher in a process and kill it once it has told of ``enough`` accepted results."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name("publishing.py")),
        url,
        str(spool),
        str(first),
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE):
        accepted = [int(await process.stdout.readline()) for _ in range(enough)]
        process.send_signal(signal.SIGKILL)
        accepted += [int(line) for line in (await process.stdout.read()).split()]
        await process.wait()
    return accepted


async def test_a_killed_publisher_loses_nothing_it_had_accepted(broker: Mosquitto, spool: Path) -> None:
    async with Subscriber(broker.port) as subscriber:
        with_broker = await killed(broker.url, spool, 0, 100)
        await subscriber.until(lambda: b'{"state":"lost"}' in subscriber.states("box/status"))
        without_broker = await killed("mqtt://127.0.0.1:1", spool, 1_000_000, 100)
        again = await killed("mqtt://127.0.0.1:1", spool, 2_000_000, 100)
        async with publisher(broker.url, spool) as publishing:
            assert publishing.stats.backlog >= 200
            assert await publishing.drained(PATIENCE)
            published = publishing.stats.published
        await subscriber.until(lambda: subscriber.states("box/status")[-1:] == [b'{"state":"disconnected"}'])
    received = seqs([result.payload for result in subscriber.results()])
    assert set(with_broker + without_broker + again) <= set(received)
    assert in_order(received)
    assert published >= 200


class CountedBackoff(Backoff):
    def __init__(self) -> None:
        super().__init__(0.01, 1.0, 0.01)
        self.failures = 0

    def failed(self, now: float) -> float:
        self.failures += 1
        return super().failed(now)


async def test_a_wrong_password_is_an_error_that_waits_for_the_operator(tmp_path: Path, mosquitto_binary: str) -> None:
    passwords = tmp_path / "passwords"
    command = ["mosquitto_passwd", "-b", "-c", str(passwords), "box", "right password"]
    await (await asyncio.create_subprocess_exec(*command)).wait()
    secret = tmp_path / "secret"
    secret.write_text("wrong password\n")
    refused = CountedBackoff()
    answers = Answers()
    with Mosquitto(tmp_path / "broker", "allow_anonymous false", f"password_file {passwords}") as broker:
        login = {"username": "box", "password": f"file:{secret}"}
        async with publisher(broker.url, tmp_path / "spool.db", retry_refused=refused, **login) as publishing:
            publishing.offer(frame(0), answers.of(0))
            await eventually(publishing, "refuses this login: Not authorized; check mqtt.username and mqtt.password")
            await answers.count(1)
            assert answers.accepted == [0], "the spool has it"
            assert publishing.stats.published == 0
            assert refused.failures >= 1
            assert "wrong password" not in repr(publishing._endpoint)
        secret.write_text("right password\n")
        async with publisher(broker.url, tmp_path / "spool.db", **login) as publishing:
            assert await publishing.drained(PATIENCE)
            assert publishing.stats.published == 1


@pytest.mark.slow
async def test_a_topic_that_the_access_list_forbids_is_not_taken_for_published(
    tmp_path: Path, mosquitto_binary: str
) -> None:
    """Such a broker acknowledges the message: the reason in the acknowledgement is what counts."""
    acl = tmp_path / "acl"
    acl.write_text("topic write appliance/box/status\n")
    answers = Answers()
    refused = CountedBackoff()
    broker = Mosquitto(tmp_path / "broker", "allow_anonymous true", f"acl_file {acl}")
    with broker:
        async with publisher(broker.url, tmp_path / "spool.db", retry_refused=refused) as publishing:
            for seq in range(3):
                publishing.offer(frame(seq), answers.of(seq))
            await eventually(publishing, "refuses messages on appliance/box/result/camera/parts: Not authorized")
            await answers.count(3)
            assert publishing.stats.published == 0
            assert publishing.stats.backlog == 3
            assert refused.failures >= 1
            broker.kill()
            broker.settings = ["allow_anonymous true"]
            broker.start()
            assert await publishing.drained(PATIENCE)
            assert publishing.stats.published == 3


async def test_a_result_too_large_for_the_broker_does_not_block_the_others(
    tmp_path: Path, spool: Path, mosquitto_binary: str
) -> None:
    answers = Answers()
    with Mosquitto(tmp_path / "broker", "allow_anonymous true", "max_packet_size 20000") as broker:
        async with publisher(broker.url, spool) as publishing:
            publishing.offer(frame(0), answers.of(0))
            assert await publishing.drained(PATIENCE)
            publishing.offer(frame(1, cbor2.dumps("x" * 30_000)), answers.of(1))
            publishing.offer(frame(2), answers.of(2))
            assert await publishing.drained(PATIENCE)
            assert (publishing.stats.published, publishing.stats.lost) == (2, 1)
            publishing.set_retained(publishing.topics.camera("camera"), {"state": "x" * 30_000})
            assert await publishing.drained(PATIENCE)
            assert publishing.stats.lost == 1, "results are counted, states are not"
    assert (answers.accepted, answers.refused) == ([0, 2], [1])


async def test_refusals_are_counted_with_their_reason(broker: Mosquitto, spool: Path) -> None:
    answers = Answers()
    async with publisher(broker.url, spool) as publishing:
        publishing.offer(frame(0, b"\xff"), answers.of(0))
        publishing.offer(frame(1, producer=None), answers.of(1))
        publishing.offer(frame(2, b"{", format="json"), answers.of(2))
    publishing.offer(frame(3), answers.of(3))
    assert answers.refused == [0, 1, 2, 3]
    assert answers.accepted == []
    assert publishing.stats.refused == {"malformed": 3, "stopping": 1}


@pytest.mark.slow
async def test_a_disk_that_fails_is_waited_for(
    absent_broker: Mosquitto, spool: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    answers = Answers()
    async with publisher(absent_broker.url, spool) as publishing:
        store = publishing._spool.store
        failures = 0

        def fail_twice(work: object) -> object:
            nonlocal failures
            failures += 1
            if failures <= 2:
                raise DeviceError("the disk is full")
            return store(work)  # type: ignore[arg-type]

        monkeypatch.setattr(publishing._spool, "store", fail_twice)
        for seq in range(MAX_PENDING_ROWS + 5):
            publishing.offer(frame(seq), answers.of(seq))
        assert len(answers.refused) == 5
        await answers.count(MAX_PENDING_ROWS + 5)
        assert len(answers.accepted) == MAX_PENDING_ROWS
        assert publishing.stats.refused == {"disk": 5}
    assert [record.message for record in caplog.records if "disk is full" in record.message] == [
        "event=spool_fails error=the disk is full"
    ]
    assert "event=spool_works" in caplog.text


async def test_an_end_with_a_broken_disk_says_so(
    absent_broker: Mosquitto, spool: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answers = Answers()

    def fail(work: object) -> object:
        raise DeviceError("the disk is gone")

    async with publisher(absent_broker.url, spool) as publishing:
        monkeypatch.setattr(publishing._spool, "store", fail)
        publishing.offer(frame(0), answers.of(0))
    assert answers.refused == [0], "never accepted"
    assert (publishing.stats.lost, publishing.stats.backlog) == (1, 0)
    assert "event=results_not_stored results=1" in caplog.text


async def test_a_broker_that_does_not_answer_does_not_hold_up_the_end(
    spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.mqtt.link.CONNECT_SECONDS", 0.2)
    came = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.set()
        while await reader.read(1000):
            pass
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    url = f"mqtt://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, asyncio.timeout(PATIENCE), publisher(url, spool):
        await came.wait()


async def test_cancelled_in_midstream_everything_is_accounted_for(broker: Mosquitto, spool: Path) -> None:
    answers = Answers()
    started = asyncio.Event()

    async def publish() -> None:
        async with publisher(broker.url, spool) as publishing:
            for seq in range(100):
                publishing.offer(frame(seq), answers.of(seq))
            started.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(publish())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(answers.accepted) == list(range(100))


async def test_a_wrong_configuration_is_refused_before_anything_starts(spool: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mqtt\.url"):
        Publisher(MqttConfig(), "box", spool)
    with pytest.raises(ConfigError, match=r"device\.name"):
        Publisher(MqttConfig(url="mqtt://localhost"), "The Box", spool)
    with pytest.raises(ConfigError, match=r"mqtt\.ca_file"):
        async with publisher("mqtts://localhost", spool, ca_file=str(tmp_path / "absent.pem")):
            raise AssertionError("entered")
    (tmp_path / "file").write_text("")
    with pytest.raises(DeviceError, match="spool"):
        async with publisher("mqtt://localhost", tmp_path / "file" / "spool.db"):
            raise AssertionError("entered")


async def test_a_topic_of_somebody_else_is_not_set(broker: Mosquitto, spool: Path) -> None:
    async with publisher(broker.url, spool, also=("homeassistant",)) as publishing:
        for topic in ("appliance/box2/status", "homeassistant", "homeassistant2/device/box/config"):
            with pytest.raises(ValueError, match="is not below appliance/box/ or homeassistant/"):
                publishing.set_retained(topic, {"state": "ready"})
            with pytest.raises(ValueError, match="is not below"):
                publishing.clear_retained(topic)


async def test_retained_states_are_set_elsewhere_said_again_and_cleared(broker: Mosquitto, spool: Path) -> None:
    elsewhere = "homeassistant/device/box/config"
    async with (
        Subscriber(broker.port) as subscriber,
        publisher(broker.url, spool, also=("homeassistant",)) as publishing,
    ):
        publishing.set_retained(elsewhere, b'{"v": 1}')
        publishing.set_retained(publishing.topics.handler("parts"), {"state": "running"})
        await subscriber.until(lambda: subscriber.states(elsewhere) == [b'{"v": 1}'])
        assert await publishing.drained(PATIENCE)
        assert publishing.settled(elsewhere)
        publishing.set_retained(elsewhere, b'{"v": 1}')
        publishing.set_retained(elsewhere, b'{"v": 1}', again=True)
        await subscriber.until(lambda: subscriber.states(elsewhere) == [b'{"v": 1}'] * 2)
        publishing.clear_retained(elsewhere)
        assert not publishing.settled(elsewhere)
        publishing.clear_retained(publishing.topics.handler("parts"))
        assert await publishing.drained(PATIENCE)
    async with Subscriber(broker.port) as late:
        await late.until(lambda: bool(late.states("box/status")))
        assert [message.topic for message in late.received] == ["appliance/box/status"]


async def test_what_was_cleared_without_a_broker_is_cleared_when_it_is_back(broker: Mosquitto, spool: Path) -> None:
    async with Gate(broker.port) as gate, publisher(gate.url, spool) as publishing:
        publishing.set_retained(publishing.topics.handler("parts"), {"state": "running"})
        assert await publishing.drained(PATIENCE)
        await gate.shut()
        await eventually(publishing, "cannot be reached")
        publishing.clear_retained(publishing.topics.handler("parts"))
        await gate.open()
        assert await publishing.drained(PATIENCE)
        async with Subscriber(broker.port) as late:
            await late.until(lambda: bool(late.states("box/status")))
            assert late.states("handler/parts") == []


async def test_back_offs_have_sane_defaults(broker: Mosquitto, spool: Path) -> None:
    async with Publisher(MqttConfig(url=broker.url), "box", spool) as publishing:
        assert await publishing.drained(PATIENCE)
        assert publishing._client._retry_refused.failed(0.0) >= 5.0
        assert publishing._client._retry.failed(0.0) <= 0.5
    assert quick().failed(0.0) < 1.0
