"""Remote operation: requests over MQTT that the configuration allows, carried out and answered.

Who may send them is for the broker's access list to say; docs/mqtt.md has one. What comes is judged by
:mod:`appliance.mqtt.requests`.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable
from types import TracebackType
from typing import Any, Protocol, Self

from appliance.device.log_levels import LogLevels
from appliance.errors import ApplianceError, PeerError
from appliance.mqtt.link import Message, Received
from appliance.mqtt.requests import (
    Ignored,
    Inbox,
    LogArguments,
    Refused,
    Reply,
    Request,
    RestartArguments,
    SnapshotArguments,
    done,
    failed,
)
from appliance.mqtt.topics import Topics
from appliance.snapshot import Snapshot
from appliance.text import printable

log = logging.getLogger(__name__)

MAX_UNDER_WAY = 4
"""Requests that are carried out at a time."""


class Voice(Protocol):
    """What of :class:`appliance.control.Control` is needed."""

    @property
    def max_message(self) -> int: ...
    def listen(self, filters: Iterable[str], on_message: Callable[[Received], None]) -> None: ...
    def ignore(self, filters: Iterable[str]) -> None: ...
    def send(self, message: Message) -> None: ...


class Changes(Protocol):
    """:class:`appliance.reload.Reloading`."""

    async def reload(self) -> list[str]: ...
    async def restart(self, name: str) -> None: ...


class Pictures(Protocol):
    """:class:`appliance.snapshot.Snapshots`."""

    async def take(self, camera: str, max_bytes: int) -> Snapshot: ...


class Remote:
    """``async with``: hears requests while the block lasts. What is not deliberate of an error ends the body."""

    def __init__(
        self,
        control: Voice,
        topics: Topics,
        commands: Collection[str],
        *,
        changes: Changes,
        pictures: Pictures,
        levels: LogLevels,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``commands``: those that are carried out (``mqtt.commands``); where there are none, nothing is heard."""
        self._control = control
        self._filter = topics.command("+")
        self._inbox = Inbox(topics)
        self._commands = frozenset(commands)
        self._changes = changes
        self._pictures = pictures
        self._levels = levels
        self._clock = clock
        self._turn = asyncio.Lock()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self.ignored = 0
        """Requests that got no answer."""

    async def __aenter__(self) -> Self:
        self._tasks = asyncio.TaskGroup()
        await self._tasks.__aenter__()
        self._open: set[asyncio.Task[None]] = set()
        self.allow(self._commands)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._control.ignore([self._filter])
        for unit in list(self._timers):
            self._restore(unit)
        for task in self._open:
            task.cancel()
        # the task group hears of a cancellation alone: another error leaves the body as it is, in no group
        cancelled = isinstance(error, asyncio.CancelledError)
        await self._tasks.__aexit__(*((kind, error, trace) if cancelled else (None, None, None)))

    def allow(self, commands: Collection[str]) -> None:
        """From now on these are carried out, and no others."""
        self._commands = frozenset(commands)
        if self._commands:
            self._control.listen([self._filter], self._hear)
        else:
            self._control.ignore([self._filter])

    # --- requests --------------------------------------------------------------------------------------------

    def _hear(self, message: Received) -> None:
        outcome = self._inbox.judge(message, self._commands, self._clock())
        if isinstance(outcome, Request):
            if len(self._open) < MAX_UNDER_WAY:
                task = self._tasks.create_task(self._answer(outcome), name=f"request {outcome.command}")
                self._open.add(task)
                task.add_done_callback(self._open.discard)
                return
            outcome = Refused(outcome.command, f"{MAX_UNDER_WAY} other requests are under way", outcome.back)
        if isinstance(outcome, Refused):
            self._log_refused(outcome.command, outcome.error)
            self._control.send(failed(outcome.error).to(outcome.back))
        else:
            self._ignore(message, outcome)

    async def _answer(self, request: Request) -> None:
        try:
            reply = await self._carry_out(request)
        except ApplianceError as error:
            self._log_refused(request.command, str(error))
            reply = failed(str(error))
        else:
            log.info("event=request_done command=%s answer=%s", request.command, request.back.topic)
        self._control.send(reply.to(request.back))

    async def _carry_out(self, request: Request) -> Reply:
        arguments = request.arguments
        if isinstance(arguments, SnapshotArguments):
            room = self._control.max_message - Reply(b"", "image/jpeg").to(request.back).size
            picture = await self._pictures.take(arguments.camera, room)
            return Reply(picture.payload, picture.content_type)
        async with self._turn:
            if request.deadline is not None and self._clock() > request.deadline:
                raise PeerError("the request expired before its turn came; nothing was done")
            if isinstance(arguments, LogArguments):
                return self._set_level(arguments)
            if isinstance(arguments, RestartArguments):
                await self._changes.restart(arguments.handler)
                return done()
            return done({"changed": await self._changes.reload()})

    # --- levels of the log -----------------------------------------------------------------------------------

    def _set_level(self, arguments: LogArguments) -> Reply:
        unit, seconds = arguments.unit, arguments.seconds
        self._levels.change(unit, arguments.level)
        if (timer := self._timers.pop(unit, None)) is not None:
            timer.cancel()
        answer: dict[str, Any] = {"unit": unit, "level": arguments.level}
        if seconds is not None:
            self._timers[unit] = asyncio.get_running_loop().call_later(seconds, self._restore, unit)
            answer["seconds"] = seconds
        return done(answer)

    def _restore(self, unit: str) -> None:
        self._timers.pop(unit).cancel()
        self._levels.restore(unit)

    # --- what is said of it ----------------------------------------------------------------------------------

    def _log_refused(self, command: str, error: str) -> None:
        log.warning("event=request_refused command=%s error=%s", printable(command), error)

    def _ignore(self, message: Received, outcome: Ignored) -> None:
        """Count; say it of the first and whenever their number has doubled."""
        self.ignored += 1
        if self.ignored & (self.ignored - 1) == 0:
            text = "event=request_ignored topic=%s total=%d error=%s"
            log.warning(text, printable(message.topic), self.ignored, outcome.reason)
