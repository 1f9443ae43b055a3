"""A worker that has been taken over: the host's end of the socket, played by hand."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sandbox_bench import NOTHING, TAG, TIMEOUT, Bench, FakeInference, spec, until

from appliance.inference.messages import Crop, View
from appliance.ipc.channel import AsyncChannel, socket_pair
from appliance.ipc.packets import MAX_MESSAGE_BYTES, PACKET_BYTES, pack
from appliance.ipc.ring import FrameRef, RingWriter
from appliance.manifest import Limits
from appliance.sandbox.messages import (
    Done,
    Emit,
    FromWorker,
    Inferred,
    Job,
    Loaded,
    Log,
    Setup,
    Started,
    ToWorker,
    Trapped,
    WantInference,
    WantPixels,
)
from appliance.sandbox.spawning import Zygote


class FakeProcess:
    """Has a socket instead of a body."""

    def __init__(self) -> None:
        self.sock, theirs = socket_pair()
        self.pid = 4_000_000
        self.exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.heard: list[ToWorker] = []
        self.news = asyncio.Event()
        self.channel: AsyncChannel[ToWorker] = AsyncChannel(theirs, ToWorker, self._hear, lambda _: None)
        self._theirs = theirs

    def _hear(self, message: ToWorker) -> None:
        self.heard.append(message)
        self.news.set()

    async def hear(self, count: int) -> list[ToWorker]:
        """The first messages, once there are so many."""
        async with asyncio.timeout(TIMEOUT):
            while len(self.heard) < count:
                self.news.clear()
                await self.news.wait()
        return self.heard[:count]

    def say(self, *messages: FromWorker) -> None:
        for message in messages:
            self.channel.send(message)

    def say_bytes(self, *packets: bytes) -> None:
        for packet in packets:
            self._theirs.send(packet)

    def exit(self, status: int = 0) -> None:
        self.channel.close()
        if not self.exited.done():
            self.exited.set_result(status)

    def kill(self) -> None:
        self.exit(-signal.SIGKILL)

    def close(self) -> None:
        self.kill()
        self.sock.close()


@dataclass
class FakeZygote:
    """Hands out such processes, and remembers them."""

    workers: list[FakeProcess] = field(default_factory=list)

    async def spawn(self) -> FakeProcess:
        self.workers.append(FakeProcess())
        return self.workers[-1]

    async def worker(self, number: int) -> FakeProcess:
        """The ``number``-th worker, started, once it is there."""
        await until(lambda: len(self.workers) > number)
        worker = self.workers[number]
        await worker.hear(1)
        worker.say(Loaded(), Started())
        return worker


@contextlib.asynccontextmanager
async def hostile(inference: FakeInference | None = None, **changes: Any) -> AsyncIterator[tuple[Bench, FakeZygote]]:
    zygote = FakeZygote()
    with RingWriter(1 << 16) as ring:
        handler = Bench(spec(NOTHING, **changes), cast("Zygote", zygote), ring, inference or FakeInference())
        async with handler.host:
            yield handler, zygote
        assert sorted(one.job.seq for one in handler.finished) == sorted(handler.submitted)


GARBAGE: list[tuple[str, list[bytes]]] = [
    ("no first byte", [b"\xffhello"]),
    ("no message", [b"\x00"]),
    ("no such type", [b"\x00" + msgspec.msgpack.encode({"type": "conquer"})]),
    ("wrong field", [b"\x00" + msgspec.msgpack.encode({"type": "done", "emits": 3, "state": {}, "guest_us": 1})]),
    ("text that is not UTF-8", [b"\x00" + b"\x83\xa4type\xa3log\xa5level\x14\xa4text\xa1\xff"]),
    ("endless empty pieces", [b"\x01"]),
    (
        "a message for the other side",
        pack(Job(FrameRef(1, 0, 0, "", 0, 0), 1, "", 1, 1)),
    ),
]


@pytest.mark.parametrize("packets", [packets for _, packets in GARBAGE], ids=[name for name, _ in GARBAGE])
async def test_garbage_is_a_protocol_fault(packets: list[bytes]) -> None:
    async with hostile() as (handler, zygote):
        bad, good = handler.submit(), handler.submit()
        worker = await zygote.worker(0)
        await worker.hear(3)
        worker.say_bytes(*packets)
        assert (await handler.finish(bad)).outcome == "protocol"
        assert worker.exited.result() == -signal.SIGKILL
        (await zygote.worker(1)).say(Done([], {}, 0))
        assert (await handler.finish(good)).outcome == "ok"
        assert handler.host.status.faults == {"protocol": 1}


MESSAGES: list[tuple[str, FromWorker]] = [
    ("a model it has not declared", WantInference(1, View())),
    ("a reserved tag", Done([Emit(0xF000, "bytes", b"")], {}, 0)),
    ("a tag that is not its own", Done([Emit(TAG + 1, "bytes", b"")], {}, 0)),
    ("too large a state", Done([], {"key": bytes(5000)}, 0)),
    ("more changes than there can be keys", Done([], {str(number): b"" for number in range(129)}, 0)),
    ("too many frames", Done([Emit(TAG, "bytes", b"")] * 17, {}, 0)),
    ("too many tensors", WantInference(0, View(), [b""] * 17)),
    ("too large a picture", WantPixels(Crop(), "rgb", 10_000, 10_000)),
    ("started again", Started()),
    ("unknown level", Log(99, "x")),
]


@pytest.mark.parametrize("message", [message for _, message in MESSAGES], ids=[name for name, _ in MESSAGES])
async def test_what_no_honest_worker_says_kills_it(message: FromWorker) -> None:
    async with hostile() as (handler, zygote):
        job = handler.submit()
        worker = await zygote.worker(0)
        worker.say(message)
        assert (await handler.finish(job)).outcome == "protocol"
        assert worker.exited.result() == -signal.SIGKILL


async def test_a_done_without_a_job() -> None:
    async with hostile() as (handler, zygote):
        worker = await zygote.worker(0)
        worker.say(Done([], {}, 0))
        await until(lambda: handler.host.status.faults == {"protocol": 1})
        assert worker.exited.done()


async def test_a_message_over_the_limit_is_not_buffered() -> None:
    async with hostile() as (handler, zygote):
        job = handler.submit()
        worker = await zygote.worker(0)
        piece = b"\x01" + bytes(PACKET_BYTES - 1)
        pieces = 0
        while not worker.channel.closed:
            with contextlib.suppress(OSError):  # the buffer is full, or it has been thrown out
                worker.say_bytes(piece)
                pieces += 1
            assert pieces < 2 * MAX_MESSAGE_BYTES // len(piece)
            await asyncio.sleep(0)
        assert (await handler.finish(job)).outcome == "protocol"


async def test_what_it_says_after_its_deadline_is_too_late() -> None:
    async with hostile(limits=Limits(deadline_ms=30)) as (handler, zygote):
        late, next_job = handler.submit(), handler.submit()
        worker = await zygote.worker(0)
        assert (await handler.finish(late)).outcome == "deadline"
        assert worker.exited.done()
        (await zygote.worker(1)).say(Done([], {}, 0))
        assert (await handler.finish(next_job)).outcome == "ok"


async def test_a_worker_that_closes_its_socket_and_runs_on_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.sandbox.life.EXIT_SECONDS", 0.01)
    async with hostile() as (handler, zygote):
        job = handler.submit()
        worker = await zygote.worker(0)
        worker.channel.close()
        finished = await handler.finish(job)
        assert (finished.outcome, finished.message) == ("crash", "the worker closed its socket and went on running")
        assert worker.exited.result() == -signal.SIGKILL


async def test_what_was_said_before_the_end_counts_even_if_the_next_job_was_not_read() -> None:
    """The kernel reports a reset first where a socket is closed with unread messages in it."""
    async with hostile() as (handler, zygote):
        one, two = handler.submit(), handler.submit()
        worker = await zygote.worker(0)
        worker.channel.close = lambda: None  # type: ignore[method-assign]
        asyncio.get_running_loop().remove_reader(worker._theirs.fileno())  # the second job stays unread
        worker.say_bytes(*pack(Done([], {}, 0)))
        worker._theirs.close()
        worker.exited.set_result(0)
        assert (await handler.finish(one)).outcome == "ok"
        (await zygote.worker(1)).say(Done([], {}, 0))
        assert (await handler.finish(two)).outcome == "ok"
        status = handler.host.status
        assert (status.recycled, status.restarts, status.faults) == (1, 0, {})


async def test_a_job_sent_to_a_worker_that_has_just_ended_in_order_is_not_lost() -> None:
    async with hostile() as (handler, zygote):
        one = handler.submit()
        worker = await zygote.worker(0)
        await worker.hear(2)
        worker.say(Done([], {}, 0))
        worker.exit()
        two = handler.submit()  # meets a broken pipe, before the loop has read what came
        assert (await handler.finish(one)).outcome == "ok"
        (await zygote.worker(1)).say(Done([], {}, 0))
        assert (await handler.finish(two)).outcome == "ok"
        assert handler.host.status.faults == {}


async def test_an_orderly_exit_in_the_middle_of_a_frame_is_a_crash() -> None:
    async with hostile() as (handler, zygote):
        job = handler.submit()
        worker = await zygote.worker(0)
        worker.say(Log(20, "I have begun"))
        worker.exit()
        assert (await handler.finish(job)).message == "the worker ended with status 0"


async def test_a_worker_may_say_that_it_cannot_go_on() -> None:
    async with hostile() as (handler, zygote):
        bad, good = handler.submit(), handler.submit()
        (await zygote.worker(0)).say(Trapped("memory", "nothing\nleft", fatal=True))
        finished = await handler.finish(bad)
        assert (finished.outcome, finished.message) == ("memory", "nothing left")
        (await zygote.worker(1)).say(Done([], {}, 0))
        assert (await handler.finish(good)).outcome == "ok"
        assert handler.host.status.state == "running"


async def test_a_worker_that_dies_while_an_inference_runs_for_it() -> None:
    inference = FakeInference(gate=asyncio.Event())
    async with hostile(inference) as (handler, zygote):
        job = handler.submit()
        worker = await zygote.worker(0)
        worker.say(WantInference(0, View()))
        await inference.asking.wait()
        worker.exit(-signal.SIGSEGV)
        assert (await handler.finish(job)).message == "the worker was killed by SIGSEGV"


async def test_a_worker_gets_what_it_is_set_up_with_and_what_it_asks_for() -> None:
    async with hostile(emits={TAG: True, 3: False}) as (handler, zygote):
        job = handler.submit(b"x", "jpeg", 4, 4)
        worker = await zygote.worker(0)
        setup, given_job = await worker.hear(2)
        assert isinstance(setup, Setup)
        assert (setup.handler, setup.emits, setup.state, setup.memory_bytes) == ("guest", [TAG, 3], {}, 1 << 20)
        assert [(model.name, model.labels) for model in setup.models] == [("model", ["cat", "dog"])]
        assert given_job == job
        worker.say(WantInference(0, View()))
        assert isinstance((await worker.hear(3))[2], Inferred)
        worker.say(Done([], {"k": b"v"}, 0))
        await handler.finish(job)
        worker.exit()
        again = (await (await zygote.worker(1)).hear(1))[0]
        assert isinstance(again, Setup)
        assert again.state == {"k": b"v"}


def test_any_packets_at_all() -> None:
    """Nothing that comes through the socket gets further than the host: the job ends, the body lives."""

    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.binary(min_size=1, max_size=60) | st.sampled_from(_SEEDS), min_size=1, max_size=6))
    def attack(packets: list[bytes]) -> None:
        asyncio.run(play(packets))

    async def play(packets: list[bytes]) -> None:
        async with hostile() as (handler, zygote):
            job = handler.submit()
            worker = await zygote.worker(0)
            with contextlib.suppress(OSError):  # it may have been thrown out already
                worker.say_bytes(*packets)
            worker.exit(-signal.SIGKILL)
            assert (await handler.finish(job)).outcome in {"ok", "protocol", "crash", "trap", "memory"}

    attack()


_SEEDS = [
    packet
    for message in (
        Done([], {}, 0),
        Done([Emit(TAG, "cbor", b"\x01")], {"a": b"b"}, 7),
        Log(20, "hello"),
        Trapped("trap", "ouch", fatal=False),
        Trapped("memory", "ouch", fatal=True),
        WantInference(0, View()),
        WantPixels(Crop(), "gray", 2, 2),
    )
    for packet in pack(message)
]
