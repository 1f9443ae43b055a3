"""The zipper's side of admission: a child process for each module that is not known yet, and what it said before.

Nothing here parses a module.
"""

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from appliance.errors import DeviceError, HandlerError
from appliance.ipc.child import kept_environment
from appliance.sandbox.admission.cache import MAX_FILE_BYTES, VerdictCache, key_of
from appliance.sandbox.admission.verdict import Admitted, Order, Rejected, Verdict
from appliance.text import printable

DEADLINE_SECONDS = 60.0
"""For one module. One of 10 KB takes 0.3 s, most of it to start Python; one of MAX_MODULE_BYTES, all code, some ten."""
MAX_CHILDREN = 2
MAX_VERDICT_BYTES = MAX_FILE_BYTES
CHILD = (sys.executable, "-m", "appliance.sandbox.admission.child")
_CHUNK = 1 << 16
_WHY = {"SIGSYS": ", as it is where memory runs out: compile it in smaller functions, or with less data"}
"""What wasmtime then does is a system call that it may not make."""
_DECODER: msgspec.msgpack.Decoder[Verdict] = msgspec.msgpack.Decoder(Verdict)

log = logging.getLogger(__name__)


class RefusedError(HandlerError):
    """The module may not run: ``rule`` says why for machines, the text for people."""

    def __init__(self, rule: str, message: str, offset: int | None = None, *, judged: bool = True) -> None:
        super().__init__(f"the module is refused ({rule}): {message}")
        self.rule = rule
        self.judged = judged
        """False where no verdict was reached: another time there may be one."""
        self.offset = offset
        """In the module's file, where the fault is at one place."""


class _FailedError(Exception):
    """The child gave no verdict. It is not kept: another time it may."""

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(message)
        self.rule = rule


class Admission:
    """Judges modules, MAX_CHILDREN at a time, and remembers in ``directory`` what it found."""

    def __init__(
        self, directory: Path, *, child: Sequence[str] = CHILD, deadline_seconds: float = DEADLINE_SECONDS
    ) -> None:
        self._cache = VerdictCache(directory)
        self._child = child
        self._deadline = deadline_seconds
        self._slots = asyncio.Semaphore(MAX_CHILDREN)
        self._storing = asyncio.Lock()

    async def admit(self, order: Order) -> Admitted:
        """RefusedError where the module may not run; DeviceError where there is no process, or no memory, to tell."""
        key = await asyncio.to_thread(key_of, order)
        verdict = await asyncio.to_thread(self._cache.load, key)
        if verdict is None:
            try:
                async with self._slots:
                    verdict = await self._ask(order)
            except _FailedError as error:
                raise RefusedError(error.rule, str(error), judged=False) from error
            await self._store(key, verdict)
        if isinstance(verdict, Rejected):
            # the words are those of a process that has read the module, and of the module itself
            raise RefusedError(printable(verdict.rule), printable(verdict.message), verdict.offset)
        return verdict

    async def _store(self, key: str, verdict: Verdict) -> None:
        try:
            async with self._storing:
                await asyncio.to_thread(self._cache.store, key, verdict)
        except OSError as error:  # it will be judged again, that is all
            log.warning("event=verdict_not_stored error=%s", error)

    async def _ask(self, order: Order) -> Verdict:
        """Start a child and take its verdict."""
        pipe, nowhere = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
        try:
            process = await asyncio.create_subprocess_exec(
                *self._child, stdin=pipe, stdout=pipe, stderr=nowhere, env=kept_environment(), start_new_session=True
            )
        except OSError as error:
            raise DeviceError(f"no process can be started to judge a module: {error.strerror}") from error
        try:
            async with asyncio.timeout(self._deadline):
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(_write(process, msgspec.msgpack.encode(order)))
                    said = tasks.create_task(_read(process))
                status = await process.wait()
        except TimeoutError:
            raise _FailedError("deadline", f"judging it takes over {self._deadline:g} s") from None
        finally:
            await _end(process)
        return _verdict(said.result(), status)


async def _write(process: asyncio.subprocess.Process, order: bytes) -> None:
    assert process.stdin is not None
    with contextlib.suppress(ConnectionError):  # it died without listening: its status says more
        process.stdin.write(order)
        await process.stdin.drain()
        process.stdin.close()
        await process.stdin.wait_closed()


async def _read(process: asyncio.subprocess.Process) -> bytes:
    """All that it says; no more than MAX_VERDICT_BYTES and a little are kept, then it is ended."""
    assert process.stdout is not None
    said = bytearray()
    while chunk := await process.stdout.read(_CHUNK):
        said += chunk
        if len(said) > MAX_VERDICT_BYTES:
            process.kill()
            break
    return bytes(said)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Dead and buried, however it went."""
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()


def _verdict(said: bytes, status: int) -> Verdict:
    if len(said) > MAX_VERDICT_BYTES:
        raise _FailedError("crashed", f"the process that judged it said more than {MAX_VERDICT_BYTES} bytes")
    if status == -signal.SIGKILL:  # neither by us nor, locked down as it is, by itself
        raise DeviceError("the process that judges the module was killed, as Linux does where memory runs out")
    if status < 0:
        with contextlib.suppress(ValueError):
            name = signal.Signals(-status).name
            raise _FailedError("crashed", f"the process that judged it was ended by {name}{_WHY.get(name, '')}")
    if status:
        raise _FailedError("crashed", f"the process that judged it ended with status {status}")
    try:
        return _DECODER.decode(said)
    except msgspec.MsgspecError as error:
        raise _FailedError("crashed", f"the process that judged it gave no verdict: {error}") from error
