"""Keeps one model's process running: restarts it, and asks again for what it did not answer."""

import asyncio
import logging
from asyncio import Future
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import msgspec

from appliance.backoff import Backoff
from appliance.errors import ModelError
from appliance.frame import ModelRun
from appliance.inference.messages import MAX_REQUESTS, Ready, ToModel
from appliance.inference.model import BusyError, ModelSpec, UnavailableError
from appliance.inference.process import Answer, Died, Killed, ModelProcess
from appliance.ipc.report import Lockdown

ATTEMPTS = 2
"""How often a request is sent: a second time where the process died, which may have been another's fault."""
PATIENCE_SECONDS = 1.0
"""A restart that is further away is not waited for: requests fail at once instead."""
FIRST_DELAY, LIMIT_DELAY = 0.05, 30.0
RELOAD_SECONDS = 5.0
"""A model that cannot be loaded is tried again no sooner: files and devices do not heal in milliseconds."""

logger = logging.getLogger("inference")


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """What is to be known of one model's process."""

    name: str
    digest: str
    """SHA-256 of the model as configured; empty for the process that decodes pixels."""
    state: str
    """``starting``, ``running``, ``backoff`` (it died) or ``failed`` (it cannot be loaded); both are tried again."""
    pid: int | None
    run: ModelRun | None
    """What runs, or ran last, and where."""
    note: str
    """Why it does not run as configured, with the remedy; empty where it does."""
    restarts: int
    inferences: int
    last_error: str
    lockdown: Lockdown | None = None
    """What its process has given up; None until one has run."""


class ModelHost:
    """One model, whatever happens to its process. :meth:`run` is a task; it ends by being cancelled."""

    def __init__(self, spec: ModelSpec | None, start: Callable[[ModelSpec | None], ModelProcess], name: str) -> None:
        self._spec = spec
        self._start = start
        self._name = name
        self._next: Future[ModelProcess] = asyncio.get_running_loop().create_future()
        self._process: ModelProcess | None = None
        self._shape: Sequence[object] = ()
        self._note = ""
        self._left_out = ""
        self._state = "starting"
        self._run: ModelRun | None = None
        self._restarts = 0
        self._inferences = 0
        self._asking = 0
        self._last_error = ""
        self._lockdown: Lockdown | None = None

    async def run(self) -> None:
        """Start the process, and again whenever it ends, with growing delays."""
        backoff = Backoff(FIRST_DELAY, limit=LIMIT_DELAY)
        loop = asyncio.get_running_loop()
        try:
            while True:
                error = await self._live(backoff)
                delay = max(backoff.failed(loop.time()), RELOAD_SECONDS if self._state == "failed" else 0)
                self._last_error = str(error)
                event = "model_failed" if self._state == "failed" else "model_died"
                logger.error("event=%s model=%s retry_s=%.2g error=%s", event, self._name, delay, error)
                if delay > PATIENCE_SECONDS:
                    self._refuse(error)
                await asyncio.sleep(delay)
                self._expect()
                self._restarts += 1
        finally:
            self._refuse(UnavailableError(f"{self._name}: inference has been stopped"))

    async def ready(self) -> Ready:
        """What the running process said; waits for it to start. ModelError where it does not."""
        return self._described((await self._running()).ready)

    @property
    def running(self) -> bool:
        """Whether a request would be sent at once."""
        return self._process is not None

    async def ask(self, request: ToModel) -> tuple[Answer, Ready]:
        """The answer to a request, and the Ready of the process that gave it. A process that dies is replaced.

        BusyError where MAX_REQUESTS are under way; PeerError and ModelError as the process says.
        """
        if self._asking >= MAX_REQUESTS:
            raise BusyError(f"{self._name}: {MAX_REQUESTS} requests are waiting for it already")
        self._asking += 1
        try:
            return await self._ask(request)
        finally:
            self._asking -= 1

    def status(self) -> ModelStatus:
        return ModelStatus(
            name=self._name,
            digest=self._spec.digest if self._spec else "",
            state=self._state,
            pid=self._process.pid if self._process else None,
            run=self._run,
            note=self._note,
            restarts=self._restarts,
            inferences=self._inferences,
            last_error=self._last_error,
            lockdown=self._lockdown,
        )

    async def _ask(self, request: ToModel) -> tuple[Answer, Ready]:
        reasons = []
        for _ in range(ATTEMPTS):
            process = await self._running()
            try:
                answer = await process.ask(request)
            except Died as death:
                reasons.append(str(death))
                self._lost(process)
            else:
                self._inferences += 1
                return answer, process.ready
        raise ModelError(f"{self._name}: its process died {ATTEMPTS} times on this: {', then '.join(reasons)}")

    async def _running(self) -> ModelProcess:
        return await asyncio.shield(self._next)  # shared by all who wait: none of them may cancel it

    async def _live(self, backoff: Backoff) -> ModelError:
        """One life of the process; why it ended."""
        self._state = "starting"
        try:
            async with self._start(self._spec) as process:
                self._up(process)
                backoff.ok(asyncio.get_running_loop().time())
                reason = await process.ended()
                self._state = "backoff"
                self._lost(process)
                return ModelError(f"{self._name}: its process died: {reason}")
        except ModelError as cause:
            self._state = "failed"
            error = type(cause)(str(cause))
        except OSError as cause:
            self._state = "failed"
            error = UnavailableError(f"{self._name}: no process can be started for it just now: {cause}")
        except Died as death:
            self._state = "backoff"
            kind = UnavailableError if isinstance(death, Killed) else ModelError
            error = kind(f"{self._name}: its process died while loading: {death}")
            if self._leave_delegate_out(str(death)):
                return error  # those who wait go on waiting: without the delegate it may well start
        finally:
            self._process = None
        self._refuse(error)
        self._expect()
        return error

    def _up(self, process: ModelProcess) -> None:
        ready = process.ready
        shape = [(info.dtype, info.shape, info.scale, info.zero_point) for info in (*ready.inputs, *ready.outputs)]
        if self._shape and shape != self._shape:  # handlers go by what they were told at first
            raise ModelError(f"{self._name}: its twin has other inputs or outputs than the model; compile it again")
        self._shape = shape
        self._process = process
        self._state = "running"
        self._run = ready.run
        note = ready.note or self._left_out
        if note and note != self._note:
            logger.warning("event=model_note model=%s note=%s", self._name, note)
        self._note = note
        if ready.run is not None:
            run = ready.run
            logger.info("event=model_running model=%s device=%s runtime=%s", self._name, run.device, run.runtime)
        self._locked_down(ready.lockdown)
        self._next.set_result(process)

    def _locked_down(self, lockdown: Lockdown) -> None:
        first, self._lockdown = self._lockdown is None, lockdown
        if first and "seccomp" in lockdown.missing:
            logger.warning("event=calls_not_filtered model=%s reason=%r", self._name, lockdown.missing["seccomp"])

    def _lost(self, process: ModelProcess) -> None:
        """Whoever notices first that the process has died has everybody wait for the next one."""
        if self._process is process:
            self._process = None
            self._expect()

    def _expect(self) -> None:
        """From now on wait for the next process, where the last word was another."""
        if self._next.done():
            self._next = asyncio.get_running_loop().create_future()

    def _refuse(self, error: ModelError) -> None:
        """Have all who wait, and all who come until further notice, fail with ``error``."""
        self._expect()
        self._next.set_exception(error)
        self._next.exception()  # nobody may be waiting, and that is no defect

    def _leave_delegate_out(self, reason: str) -> bool:
        """A delegate that takes the process along while loading (libedgetpu aborts) is not tried again."""
        if self._spec is None or not self._spec.delegate:
            return False
        self._left_out = (
            f"{self._name} runs on the CPU: loading it with {self._spec.delegate} ended the process ({reason}); "
            "check the device, then restart"
        )
        self._spec = replace(self._spec, delegate="", delegate_options=(), twin=None)
        return True

    def _described(self, ready: Ready) -> Ready:
        return ready if ready.note else msgspec.structs.replace(ready, note=self._note)
