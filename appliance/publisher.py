"""The publisher: results and states to the broker, through the spool where need be.

It carries out what the pure parts decide: :mod:`appliance.mqtt.outbox` (which result is where, and next),
:mod:`appliance.mqtt.retained` (states), :mod:`appliance.mqtt.client` (the connection). SQLite runs in a thread
of its own; nothing here blocks the loop.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec

from appliance.backoff import Backoff
from appliance.config import MqttConfig
from appliance.errors import ConfigError, DeviceError, HandlerError
from appliance.frame import Frame
from appliance.mqtt.client import Client
from appliance.mqtt.endpoint import endpoint_of, tls_context
from appliance.mqtt.link import Message
from appliance.mqtt.outbox import Outbox, Read, Row, Store
from appliance.mqtt.result import encode_result
from appliance.mqtt.retained import Retained
from appliance.mqtt.spool import Spool
from appliance.mqtt.statistics import Latencies, PublisherStats, stats_document
from appliance.mqtt.topics import Topics
from appliance.stats import Histogram

log = logging.getLogger(__name__)

DRAIN_SECONDS = 5.0
"""How long an orderly end waits for the broker to take what is left; the rest stays in the spool."""
MAX_COMPLAINTS = 256
"""Different refusals that are logged, once each; all are counted."""

T = TypeVar("T")
Accepted = Callable[[bool], None]


@dataclass(slots=True)
class _Counts:
    results: int = 0
    published: int = 0
    spooled: int = 0
    lost: int = 0
    refused: Counter[str] = field(default_factory=Counter)


class Publisher:
    """One device's voice. ConfigError and DeviceError on entering say what is wrong with configuration or disk."""

    def __init__(
        self,
        config: MqttConfig,
        device: str,
        spool_path: Path,
        *,
        also: Collection[str] = (),
        extra: Callable[[], Mapping[str, Any]] = dict,
        drain_seconds: float = DRAIN_SECONDS,
        retry: Backoff | None = None,
        retry_refused: Backoff | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """``also`` has the prefixes of topics beside the device's own that retained states may be said on; ``extra``
        gives what else the stats message shall hold; the back-offs are the connection's.
        """
        if not config.url:
            raise ConfigError("mqtt.url: empty, and no private broker was started for it")
        self.topics = Topics(config.prefix, device)
        self._latencies = Latencies()
        self.latency: Mapping[str, Histogram] = self._latencies.since_start
        """Microseconds since the start: by stage, ``publish`` (until acknowledged) and ``total`` (since capture)."""
        self._config = config
        self._endpoint = endpoint_of(config)
        self._spool = Spool(spool_path, config.spool_mb << 20)
        self._roots = tuple(f"{root}/" for root in (self.topics.root, *also))
        self._extra = extra
        self._drain_seconds = drain_seconds
        self._retries = (retry, retry_refused)
        self._clock = clock
        self._wall_ns = wall_ns
        self._retained = Retained()
        self._counts = _Counts()
        self._waiting: dict[int, Accepted] = {}
        self._complaints: set[tuple[str, str]] = set()
        self._idle = asyncio.Event()
        self._roused = asyncio.Event()
        self._wakes_at: float | None = None
        self._spool_trouble = ""
        self._stopping = False
        self._given_up = 0

    # --- life ----------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        context = await asyncio.to_thread(tls_context, self._endpoint) if self._endpoint.tls else None
        async with AsyncExitStack() as stack:
            self._thread = stack.enter_context(ThreadPoolExecutor(1, "spool"))
            stack.push_async_callback(self._in_thread, self._spool.close)
            self._outbox = Outbox(await self._in_thread(self._spool.open))
            if self._outbox.unacknowledged:
                log.info("event=spool_found results=%d", self._outbox.unacknowledged)
            will = Message(self.topics.status, _json({"state": "lost"}), retain=True)
            identifier = f"appliance-{self.topics.device}"
            retry, retry_refused = self._retries
            self._client = Client(
                self._endpoint, context, identifier, will, self, retry=retry, retry_refused=retry_refused
            )
            self.set_retained(self.topics.status, {"state": "init"})
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            self._connecting = tasks.create_task(self._client.run(), name="mqtt client")
            self._storing = tasks.create_task(self._keep_spool(), name="mqtt spool")
            self._reporting = tasks.create_task(self._report(), name="mqtt stats")
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._finish()
        finally:
            for task in (self._reporting, self._connecting, self._storing):
                task.cancel()  # those that are not at their end yet: we are cancelled, or one of them has failed
            # the task group hears of a cancellation alone: another error leaves the body as it is, in no group
            cancelled = isinstance(error, asyncio.CancelledError)
            await self._stack.__aexit__(*((kind, error, trace) if cancelled else (None, None, None)))
            self._given_up = len(self._waiting)  # neither broker nor disk has taken these
            self._counts.lost += self._given_up
            for row_id in list(self._waiting):
                self._answer(row_id, ok=False)

    async def _finish(self) -> None:
        """Take no more; say goodbye; store what the broker has not taken."""
        self._stopping = True
        self._reporting.cancel()
        if self._client.connection.connected:
            self.set_retained(self.topics.status, {"state": "disconnected"})
            await self.drained(self._drain_seconds)
        self._connecting.cancel()
        await asyncio.wait([self._connecting])
        self._roused.set()
        await asyncio.wait([self._storing])

    # --- what others call ----------------------------------------------------------------------------------

    def offer(self, frame: Frame, accepted: Accepted) -> None:
        """Publish a derived frame as a result; call on the loop.

        ``accepted(True)`` comes, once, when the result is in the spool or acknowledged, whichever is first;
        ``accepted(False)`` (perhaps at once) when it is refused: counted, with the reason, in :attr:`stats`.
        """
        if self._stopping:
            self._refuse("stopping", frame, "the publisher is stopping", accepted)
            return
        now_ns = self._wall_ns()
        try:
            payload = encode_result(frame, self.topics.device, now_ns, self._config.format)
            topic = self.topics.result(frame.source, frame.producer.handler if frame.producer else "")
        except (HandlerError, ValueError) as error:
            self._refuse("malformed", frame, str(error), accepted)
            return
        row = self._outbox.offer(topic, payload, frame.captured_ns, now_ns, self._clock())
        if row is None:
            self._refuse("disk", frame, "the broker is away and the disk does not keep up", accepted)
            return
        self._waiting[row.id] = accepted
        self._counts.results += 1
        for stage, spent in frame.spent.items():
            self._latencies.record(stage, spent)
        self._pump()

    def set_retained(self, topic: str, payload: Mapping[str, Any] | bytes, *, again: bool = False) -> None:
        """Say ``payload`` (a mapping as JSON, bytes as they are) on ``topic``, retained: the newest wins, whenever
        connected. What the broker has acknowledged is said once more only if ``again``.

        ValueError for topics beside the device's that this publisher was not told of, and past a bound.
        """
        self._check_topic(topic)
        self._retained.set(topic, payload if isinstance(payload, bytes) else _json(payload), again=again)
        self._pump()

    def clear_retained(self, topic: str) -> None:
        """Let ``topic`` say nothing any more, as soon as connected; ValueError as above."""
        self._check_topic(topic)
        self._retained.clear(topic)
        self._pump()

    def settled(self, topic: str) -> bool:
        """Whether the broker has acknowledged what ``topic`` says, or that it says nothing."""
        return self._retained.settled(topic)

    def _check_topic(self, topic: str) -> None:
        if not topic.startswith(self._roots):
            raise ValueError(f"{topic} is not below {' or '.join(self._roots)}")

    @property
    def stats(self) -> PublisherStats:
        counts = self._counts
        return PublisherStats(
            results=counts.results,
            published=counts.published,
            spooled=counts.spooled,
            lost=counts.lost,
            refused=dict(counts.refused),
            backlog=self._outbox.unacknowledged - self._given_up,
            connection=self._client.connection,
        )

    async def drained(self, seconds: float) -> bool:
        """Wait until the broker has acknowledged everything; False where it has not within ``seconds``."""
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    # --- what the connection says --------------------------------------------------------------------------

    def connected(self) -> None:
        self._outbox.connected()
        self._pump()

    def disconnected(self) -> None:
        self._outbox.disconnected()
        self._retained.disconnected()
        self._settle()

    def acknowledged(self, token: Hashable) -> None:
        if isinstance(token, int):
            row = self._outbox.acknowledged(token)
            if row is not None:
                self._published(row)
        else:
            self._retained.acknowledged(str(token))
        self._pump()

    def _published(self, row: Row) -> None:
        now = self._wall_ns()
        self._counts.published += 1
        self._latencies.record("publish", (now - row.offered_ns) // 1000)
        self._latencies.record("total", (now - row.captured_ns) // 1000)
        self._answer(row.id, ok=True)

    # --- inside --------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Send what may be sent: states first, they are few."""
        while self._client.room:
            message: Message
            token: int | str
            if (state := self._retained.next()) is not None:
                message, token = Message(*state, retain=True), state[0]
            elif (row := self._outbox.next()) is not None:
                message, token = Message(row.topic, row.payload), row.id
            else:
                break
            if message.size <= self._client.max_message:
                self._client.send(message, token)
            else:
                self._drop(message, token)
        self._settle()

    def _drop(self, message: Message, token: int | str) -> None:
        """The broker has said that it takes nothing so large: keeping the message would block all others."""
        log.error("event=message_over_brokers_limit topic=%s bytes=%d", message.topic, message.size)
        if isinstance(token, str):
            self._retained.acknowledged(token)
        else:
            self._outbox.acknowledged(token)
            self._lose(1)
            self._answer(token, ok=False)

    def _lose(self, results: int) -> None:
        """Count; say it when the first is lost and whenever their number has doubled."""
        before = self._counts.lost
        self._counts.lost += results
        if self._counts.lost.bit_length() > before.bit_length():
            log.warning("event=results_lost total=%d", self._counts.lost)

    def _settle(self) -> None:
        """After anything changed: is all acknowledged, and has the spool's task something to do earlier?"""
        if self._outbox.unacknowledged or self._retained.pending:
            self._idle.clear()
        else:
            self._idle.set()
        wake_at = self._outbox.wake_at()
        if wake_at is not None and (self._wakes_at is None or wake_at < self._wakes_at):
            self._roused.set()

    def _refuse(self, reason: str, frame: Frame, why: str, accepted: Accepted) -> None:
        self._counts.refused[reason] += 1
        handler = frame.producer.handler if frame.producer else frame.source
        if (reason, handler) not in self._complaints and len(self._complaints) < MAX_COMPLAINTS:
            self._complaints.add((reason, handler))
            log.warning("event=result_refused handler=%s reason=%s error=%s", handler, reason, why)
        accepted(False)

    def _answer(self, row_id: int, *, ok: bool) -> None:
        accepted = self._waiting.pop(row_id, None)
        if accepted is not None:
            accepted(ok)

    # --- the spool's task ----------------------------------------------------------------------------------

    async def _keep_spool(self) -> None:
        """Carry out the outbox's work, one piece at a time, until stopped; then store the rest."""
        retry = Backoff(0.5, 2.0, 30.0)
        while not (self._stopping and self._connecting.done()):
            work = self._outbox.work(self._clock())
            if work is None:
                await self._sleep_until(self._outbox.wake_at())
            elif await self._carry_out(work):
                retry.ok(self._clock())
            else:
                await self._sleep_until(self._clock() + retry.failed(self._clock()), rousable=False)
        last = self._outbox.last_work()
        if last is not None and not await self._carry_out(last):
            log.error("event=results_not_stored results=%d", len(last.rows))

    async def _sleep_until(self, wake_at: float | None, *, rousable: bool = True) -> None:
        """Sleep; earlier work ends it only if ``rousable``, the end of the publisher always."""
        self._roused.clear()
        self._wakes_at = wake_at if rousable else 0.0
        delay = None if wake_at is None else max(0.0, wake_at - self._clock())
        with suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await self._roused.wait()

    async def _carry_out(self, work: Store | Read) -> bool:
        try:
            if isinstance(work, Read):
                page = await self._in_thread(self._spool.read, work)
                self._outbox.read(page)
                self._lose(page.dropped)
            else:
                state = await self._in_thread(self._spool.store, work)
                self._outbox.stored(state)
                self._lose(state.dropped)
                self._counts.spooled += len(work.rows)
                for row in work.rows:
                    self._answer(row.id, ok=True)
        except DeviceError as error:
            self._outbox.failed()
            self._note_spool(str(error))
            return False
        self._note_spool("")
        self._pump()
        return True

    def _note_spool(self, trouble: str) -> None:
        """Say once that the disk fails, and once that it works again."""
        if trouble and not self._spool_trouble:
            log.error("event=spool_fails error=%s", trouble)
        elif self._spool_trouble and not trouble:
            log.info("event=spool_works")
        self._spool_trouble = trouble

    def _in_thread(self, function: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    # --- the stats message ---------------------------------------------------------------------------------

    async def _report(self) -> None:
        seconds = self._config.stats_seconds
        while True:
            await asyncio.sleep(seconds)
            latency = self._latencies.interval()
            document = stats_document(self.topics.device, self._wall_ns(), seconds, self.stats, latency)
            self._client.send(Message(self.topics.stats, _json({**document, **self._extra()}), qos=0), None)


def _json(value: Mapping[str, Any]) -> bytes:
    return msgspec.json.encode(value)
