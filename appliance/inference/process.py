"""The zipper's view of one run of a model's process, from exec to exit. Imports no numpy and no runtime."""

import asyncio
import itertools
import os
import signal
import subprocess
import sys
from asyncio import Future
from collections.abc import Sequence
from dataclasses import astuple
from types import TracebackType
from typing import Self

import msgspec

from appliance.errors import ModelError, PeerError
from appliance.frame import ModelRun
from appliance.inference.messages import (
    DEVICE,
    LOADING,
    Failed,
    FromModel,
    GetPixels,
    InferTensors,
    Outputs,
    Pixels,
    Ready,
    ToModel,
)
from appliance.inference.model import BusyError, ModelSpec, UnavailableError
from appliance.ipc.channel import MAX_QUEUED_BYTES, AsyncChannel
from appliance.ipc.child import kept_environment
from appliance.ipc.packets import socket_pair
from appliance.text import printable

SERVICE = (sys.executable, "-m", "appliance.inference.service")
ENVIRONMENT = {
    # Arenas and threads that gain nothing here cost 4 MiB.
    "MALLOC_ARENA_MAX": "2",
    "OPENBLAS_NUM_THREADS": "1",
    # The buffers of a picture stay with the process from frame to frame: 20 % of decoding is page faults otherwise.
    "MALLOC_MMAP_THRESHOLD_": str(8 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 20),
}
CLOSE_SECONDS = 2.0
"""From closing the socket to SIGKILL: enough to take a delegate down in order."""
MAX_WAITING_BYTES = MAX_QUEUED_BYTES - (1 << 20)
"""Of tensors and pictures that the process has not read yet: beyond its limit the channel breaks. The rest is for
requests that only name a frame, so that large ones of some keep nobody else's out."""
MAX_LAST_WORDS = 2048
"""Bytes kept of what the process wrote to standard error: the end of it, which says why it crashed."""
MAX_TOLD = 1024
"""Characters of anything else it says."""
Answer = Outputs | Pixels


class Died(Exception):  # noqa: N818 - it says what happened, and is caught by those who ask again
    """The process ended before it answered; the text says how."""


class Killed(Died):
    """Somebody else has ended it: Linux does where memory runs out."""


class ModelProcess:
    """One process with one model, or with none. Entering starts it and waits until it is ready.

    Entering raises ModelError where the process says that it cannot load the model, OSError where there can be no
    process, and Died where it ends without a word. A process that leaves a request unanswered for ``timeout`` seconds
    while it answers no other, that breaks the protocol, or does not become ready within ``start_timeout``, is killed.
    """

    def __init__(
        self,
        spec: ModelSpec | None,
        *,
        ring_fd: int,
        timeout: float,
        start_timeout: float,
        command: Sequence[str] = SERVICE,
    ) -> None:
        self._spec = spec
        self._command = command
        self._ring_fd = ring_fd
        self._timeout = timeout
        self._start_timeout = start_timeout
        self._ids = itertools.count(LOADING + 1)
        self._pending: dict[int, Future[Answer]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._fault = ""
        self._code: int | None = None
        self._last_words = b""

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._ended: Future[str] = self._loop.create_future()
        self._ready: Future[Ready] = self._loop.create_future()
        self._spawn()
        self._timer = self._loop.call_later(self._start_timeout, self._hung, self._start_timeout)
        try:
            self.ready = await self._ready
        except BaseException:
            self._popen.kill()  # it loads, and would not see its socket closed
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    @property
    def pid(self) -> int:
        return self._popen.pid

    async def ended(self) -> str:
        """Wait until the process has ended; how it did."""
        return await asyncio.shield(self._ended)

    async def ask(self, request: ToModel) -> Answer:
        """Send a request, under an id of its own, and wait for the answer.

        Died where the process ends first. PeerError where it says that the fault is the frame's, ModelError
        for any other it names: the request does not go with the model, or the model failed. BusyError, a
        ModelError, where it carries bytes of its own and MAX_WAITING_BYTES wait for the process already.
        """
        if self._ended.done():
            raise Died(self._ended.result())
        carried = _carried(request)
        if carried and self._channel.queued + carried > MAX_WAITING_BYTES:
            raise BusyError("it has not taken what it was sent before: its process is busy with large tensors")
        id = next(self._ids)
        answer: Future[Answer] = self._loop.create_future()
        self._pending[id] = answer
        if len(self._pending) == 1:
            self._watch()
        self._channel.send(msgspec.structs.replace(request, id=id))
        return await answer

    # --- messages of the process

    def _on_message(self, message: FromModel) -> None:
        if self._fault:  # it has been killed, and is not believed any more
            return
        if isinstance(message, Ready):
            if self._ready.done():
                self._kill("it said Ready twice")
            else:
                self._ready.set_result(_plain(message))
                self._watch()
            return
        if isinstance(message, Failed) and message.id == LOADING and not self._ready.done():
            kind = UnavailableError if message.fault == DEVICE else ModelError
            self._ready.set_exception(kind(_told(message.message)))
            return
        answer = self._pending.pop(message.id, None)
        if answer is None:
            self._kill(f"it answered request {message.id}, which nobody made")
            return
        self._watch()
        if answer.done():  # who asked has been cancelled
            return
        if isinstance(message, Failed):
            fault = PeerError if message.fault == "frame" else ModelError
            answer.set_exception(fault(_told(message.message)))
        elif isinstance(message, Outputs) and not self._fits(message):
            answer.set_exception(Died("it sent outputs of another size than it had said"))
            self._kill("it sent outputs of another size than it had said")
        else:
            answer.set_result(message)

    def _fits(self, message: Outputs) -> bool:
        return [len(data) for data in message.tensors] == [info.nbytes for info in self.ready.outputs]

    def _on_closed(self, error: Exception | None) -> None:
        if error is not None:
            self._kill(f"it broke the protocol: {error}")
        else:  # it is about to exit; how is known when it has
            self._loop.call_later(CLOSE_SECONDS, self._kill, "it closed its socket")
        self._finish()

    # --- its life and death

    def _spawn(self) -> None:
        ours, theirs = socket_pair()
        words, stderr = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(stderr, True)
        arguments = [str(os.getpid()), str(theirs.fileno()), str(self._ring_fd)]
        if self._spec is not None:
            arguments.append(msgspec.json.encode(self._spec, enc_hook=str).decode())
        try:
            self._popen = subprocess.Popen(
                [*self._command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                pass_fds=(theirs.fileno(), self._ring_fd),
                env=kept_environment() | ENVIRONMENT,
                start_new_session=True,  # a ^C in the terminal is for us, also before it can ignore that
            )
        except OSError:
            ours.close()
            os.close(words)
            raise
        finally:
            theirs.close()
            os.close(stderr)
        self._words = words
        self._pidfd = os.pidfd_open(self._popen.pid)
        self._loop.add_reader(words, self._hear)
        self._loop.add_reader(self._pidfd, self._reap)
        self._channel: AsyncChannel[FromModel] = AsyncChannel(ours, FromModel, self._on_message, self._on_closed)

    def _hear(self) -> None:
        """Keep the end of what the process says on standard error."""
        data = b""
        try:
            data = os.read(self._words, 1 << 16)
        except BlockingIOError:
            return
        if not data:
            self._loop.remove_reader(self._words)
        self._last_words = (self._last_words + data)[-MAX_LAST_WORDS:]

    def _reap(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self._code = self._popen.wait()
        self._finish()

    def _finish(self) -> None:
        """Once the process has exited and all it has sent is read: say how it ended to all who wait for it."""
        if self._code is None or not self._channel.closed or self._ended.done():
            return
        self._hear()
        reason = self._fault or describe_exit(self._code, self._last_words)
        self._ended.set_result(reason)
        if not self._ready.done():
            killed = self._code == -signal.SIGKILL and not self._fault
            self._ready.set_exception(Killed(reason) if killed else Died(reason))
        for answer in self._pending.values():
            if not answer.done():
                answer.set_exception(Died(reason))
        self._pending.clear()
        self._watch()

    def _watch(self) -> None:
        """Give the process ``timeout`` from now for its next answer, where it owes one."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(self._timeout, self._hung, self._timeout) if self._pending else None

    def _hung(self, seconds: float) -> None:
        self._kill(f"it did not answer for {seconds:g} s")

    def _kill(self, fault: str) -> None:
        self._fault = self._fault or fault
        self._popen.kill()

    async def _stop(self) -> None:
        """Close the socket, which ends the process; kill it where that takes too long. Leaves nothing open."""
        self._channel.close()
        self._finish()
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self.ended()
        except TimeoutError:
            self._popen.kill()
            await self.ended()
        finally:
            if not self._ended.done():  # cancelled once more
                self._popen.kill()
                self._reap()
            if self._timer is not None:
                self._timer.cancel()
            self._loop.remove_reader(self._words)
            os.close(self._words)
            os.close(self._pidfd)


def _told(text: str) -> str:
    """What the process says, fit for a log: it may be what a model, or a picture, has made of it."""
    return printable(text[:MAX_TOLD])


def _plain(ready: Ready) -> Ready:
    run = ready.run and ModelRun(*(_told(value) for value in astuple(ready.run)))
    return msgspec.structs.replace(ready, run=run, note=_told(ready.note))


def _carried(request: ToModel) -> int:
    """Bytes of tensors or of a picture that come with a request."""
    if isinstance(request, InferTensors):
        return sum(map(len, request.inputs))
    return len(request.data or b"") if isinstance(request, GetPixels) else 0


def describe_exit(code: int, last_words: bytes) -> str:
    """How a process ended, in words: by which signal or status, and what it said last."""
    if code < 0:
        try:
            how = f"it was ended by {signal.Signals(-code).name}"
        except ValueError:
            how = f"it was ended by signal {-code}"
    else:
        how = f"it exited with status {code}"
    lines = [line for line in last_words.decode("utf-8", "replace").splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith("INFO:")]
    return f"{how} ({printable(said[-1].strip()[:200])})" if said else how
