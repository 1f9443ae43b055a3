"""A day without a broker, by a simulated clock: a result a second into a real spool, and all of them out again."""

import asyncio
from pathlib import Path

import pytest
from mosquitto import Mosquitto, Subscriber
from publishing import frame, in_order, publisher, seqs

from appliance.mqtt.outbox import Outbox, Read, Store
from appliance.mqtt.result import encode_result
from appliance.mqtt.spool import ROW_OVERHEAD, Spool

CAP_BYTES = 256 << 20
START_NS = 1_767_225_600_000_000_000
LATE = 40
TOPIC = "appliance/box/result/camera/parts"


class Shell:
    """What the publisher does with outbox and spool, by a clock of ours and without a thread."""

    def __init__(self, path: Path, cap_bytes: int = CAP_BYTES) -> None:
        self.spool = Spool(path, cap_bytes)
        self.outbox = Outbox(self.spool.open())
        self.now = 0.0
        self.dropped = 0

    def offer(self, seq: int) -> None:
        now_ns = START_NS + int(self.now * 1e9)
        payload = encode_result(frame(seq), "box", now_ns, "json")
        assert self.outbox.offer(TOPIC, payload, now_ns, now_ns, self.now) is not None

    def pass_time(self, until: float) -> None:
        while (at := self.outbox.wake_at()) is not None and at <= until:
            self.now = max(self.now, at)
            self.work()
        self.now = until

    def work(self) -> None:
        work = self.outbox.work(self.now)
        if isinstance(work, Store):
            state = self.spool.store(work)
            self.outbox.stored(state)
            self.dropped += state.dropped
        elif isinstance(work, Read):
            page = self.spool.read(work)
            self.outbox.read(page)
            self.dropped += page.dropped


def day_away(path: Path, results: int, cap_bytes: int = CAP_BYTES) -> Shell:
    """So many seconds without a broker, with a result in each."""
    shell = Shell(path, cap_bytes)
    for second in range(results):
        shell.offer(second)
        shell.pass_time(second + 1.0)
    return shell


@pytest.mark.parametrize("results", [1000, pytest.param(86_400, marks=pytest.mark.slow)])
def test_all_results_of_an_outage_come_in_order_and_once(tmp_path: Path, results: int) -> None:
    path = tmp_path / "spool.db"
    shell = day_away(path, results)
    size = path.stat().st_size
    assert (shell.dropped, shell.outbox.unacknowledged) == (0, results)
    row = len(TOPIC) + len(encode_result(frame(results), "box", START_NS, "json")) + ROW_OVERHEAD
    assert size < 1.3 * results * row + (1 << 20), "the file grows by what is in it"
    shell.outbox.connected()
    came: list[bytes] = []
    late = 0
    while shell.outbox.unacknowledged:
        while (row_sent := shell.outbox.next()) is not None:
            came.append(row_sent.payload)
            shell.outbox.acknowledged(row_sent.id)
        if late < LATE:  # results go on meanwhile
            shell.offer(results + late)
            late += 1
        shell.pass_time(shell.now + 0.01)
    assert seqs(came) == list(range(results + LATE))
    assert shell.dropped == 0
    shell.spool.close()


def test_beyond_the_cap_the_oldest_go_and_are_counted(tmp_path: Path) -> None:
    shell = day_away(tmp_path / "spool.db", 1000, cap_bytes=1 << 18)
    assert shell.dropped > 0
    assert shell.outbox.unacknowledged == 1000 - shell.dropped
    shell.outbox.connected()
    came: list[bytes] = []
    while shell.outbox.unacknowledged:
        while (row := shell.outbox.next()) is not None:
            came.append(row.payload)
            shell.outbox.acknowledged(row.id)
        shell.pass_time(shell.now + 0.01)
    assert seqs(came) == list(range(shell.dropped, 1000))
    shell.spool.close()


@pytest.mark.slow
async def test_a_publisher_brings_a_days_results_to_the_broker_in_order(tmp_path: Path, broker: Mosquitto) -> None:
    day_away(tmp_path / "spool.db", 86_400).spool.close()
    async with (
        Subscriber(broker.port) as subscriber,
        publisher(broker.url, tmp_path / "spool.db", spool_mb=256) as publishing,
    ):
        assert publishing.stats.backlog == 86_400
        assert await publishing.drained(300)
        async with asyncio.timeout(300):
            while len(subscriber.results()) < 86_400:
                await asyncio.sleep(0.5)
        numbers = seqs([message.payload for message in subscriber.results()])
        assert in_order(numbers)
        assert len(set(numbers)) == 86_400
        assert publishing.stats.lost == 0
