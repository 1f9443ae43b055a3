"""The zipper's side of one handler: keeps a worker running and gives it jobs.

Whatever happens to workers, every job has exactly one :class:`Finished`.
"""

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import monotonic
from types import TracebackType
from typing import Literal, Protocol, Self

import msgspec

from appliance.errors import DeviceError, ModelError
from appliance.ipc.report import Lockdown
from appliance.sandbox.admission.admit import RefusedError
from appliance.sandbox.admission.verdict import Admitted, Order
from appliance.sandbox.budget import Budgets
from appliance.sandbox.failure import FAULTS, MAX_MESSAGE, Failure
from appliance.sandbox.guest_log import GuestLog
from appliance.sandbox.guest_models import BroughtModels, GuestModelStore
from appliance.sandbox.life import Ending, Inference, WorkerLife
from appliance.sandbox.messages import GuestModel, Job, Setup
from appliance.sandbox.quarantine import Strikes
from appliance.sandbox.restarts import Restarts
from appliance.sandbox.session import HARD_GRACE, Fault, Finished, Rules, Running, Session
from appliance.sandbox.spawning import WorkerProcess, Zygote
from appliance.sandbox.spec import HandlerSpec
from appliance.text import printable

CPU_SECONDS = 600
"""RLIMIT_CPU of a worker: behind the deadline, should nobody be there to enforce that. Workers are replaced at half."""
PATIENCE_SECONDS = 1.0
"""Jobs wait so long for the next worker; where it takes longer, they end as ``unavailable`` at once."""

MAX_JUDGINGS = 3
"""A module that is not judged in so many tries (its judge dies or takes too long) is not to be had: trying costs a
minute of a core each time."""
RESTORED_ABIS = frozenset({"command", "bindgen"})
"""Conventions that have an instance begin anew between frames."""

State = Literal["starting", "running", "backoff", "quarantined", "failed", "stopped"]


class Admits(Protocol):
    """What judges modules before they run: :class:`appliance.sandbox.admission.admit.Admission`."""

    async def admit(self, order: Order) -> Admitted:
        """Raises RefusedError, DeviceError."""


@dataclass(frozen=True, slots=True)
class HandlerStatus:
    """How a handler is, for people and for health."""

    state: State
    pid: int | None
    since: float
    """``time.monotonic()`` at which the state began."""
    handled: int
    """Frames that went well."""
    restarts: int
    """Workers started because the one before died."""
    recycled: int
    """Workers replaced in good order, because they were worn."""
    faults: Mapping[str, int]
    """How often, by kind."""
    last_failure: Failure | None
    lockdown: Lockdown | None = None
    """What the worker has given up, by its own word; None before the first has started."""
    in_a_row: int = 0
    """Faults since the last frame that went well, workers that died without a frame in hand included."""
    log_dropped: int = 0
    """Lines of log over the handler's budget."""


class HandlerHost:
    """One handler: ``async with HandlerHost(…) as host``, then :meth:`submit`.

    ``on_finish`` is called on the loop, once for each job, and may submit the next. A defect of ours, there or
    here, ends the ``async with`` body with an exception. ``quarantined`` is the failure for which no worker may run
    until :meth:`release`; ``state`` is the guest's keys and values to begin with; ``measure`` has each
    :class:`Finished` say how large the guest's memory is.
    """

    CAPACITY = 2
    """Jobs in flight: the one being handled, and the next, already in the worker's socket."""

    def __init__(
        self,
        spec: HandlerSpec,
        zygote: Zygote,
        inference: Inference,
        on_finish: Callable[[Finished], None],
        *,
        admission: Admits,
        guest_models: GuestModelStore | None = None,
        quarantined: Failure | None = None,
        state: Mapping[str, bytes] | None = None,
        measure: bool = False,
    ) -> None:
        self.spec = spec
        self._zygote = zygote
        self._inference = inference
        self._admission = admission
        self._module: Admitted | None = None
        self._undecided = 0
        self._on_finish = on_finish
        self._brought = BroughtModels(spec.guest_models, guest_models, inference)
        self._log = logging.getLogger(f"handler.{spec.name}")
        self._group = asyncio.TaskGroup()
        self._supervisor: asyncio.Task[None] | None = None
        self._restarts = Restarts()
        self._strikes = Strikes()
        self._budgets = Budgets(spec.limits, monotonic())
        self._guest_log = GuestLog(spec.name)
        self._quarantined = quarantined is not None
        self._released = asyncio.Event()
        self._life: WorkerLife | None = None
        self._worker: WorkerProcess | None = None
        self._waiting: deque[Job] = deque()
        self._in_flight = 0
        self._refusing: Fault | None = None
        self._guest_state: Mapping[str, bytes] = state or {}
        self._measure = measure
        self._faults: Counter[str] = Counter()
        self._last_failure = quarantined
        self._lockdown: Lockdown | None = None
        self._handled = self._restarted = self._recycled = self._in_a_row = 0
        self._enter("starting")

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        for use in self.spec.models:
            self._inference.hold(use.model)
        self._supervisor = self._group.create_task(self._supervise(), name=f"handler {self.spec.name}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._supervisor:
            self._supervisor.cancel()
        try:
            # an error of the body's own passes as it is; a cancellation may be the group's, for a defect of ours
            theirs = isinstance(error, asyncio.CancelledError)
            await self._group.__aexit__(*((kind, error, trace) if theirs else (None, None, None)))
        finally:
            self._guest_log.close()
            self._brought.close()
            for use in self.spec.models:
                self._inference.release(use.model)
            self._enter("stopped")
            self._refuse("stopped")

    @property
    def status(self) -> HandlerStatus:
        return HandlerStatus(
            state=self._state,
            pid=self._worker.pid if self._worker else None,
            since=self._since,
            handled=self._handled,
            restarts=self._restarted,
            recycled=self._recycled,
            faults=dict(self._faults),
            last_failure=self._last_failure,
            lockdown=self._lockdown,
            in_a_row=self._in_a_row,
            log_dropped=self._guest_log.dropped,
        )

    @property
    def accepting(self) -> bool:
        """Jobs are handled, now or soon; else they end at once."""
        return self._refusing is None

    @property
    def guest_state(self) -> Mapping[str, bytes]:
        """The guest's keys and values after the last frame that went well."""
        return self._life.session.state if self._life else self._guest_state

    def release(self) -> None:
        """Out of quarantine, with a clean slate; nothing where it is not in quarantine."""
        self._released.set()

    def written(self, failure: Failure, capsule: str) -> None:
        """The crash capsule of ``failure`` is in the file of that name."""
        if self._last_failure is failure:
            self._last_failure = msgspec.structs.replace(failure, capsule=capsule)

    def submit(self, job: Job) -> None:
        """Take a job; never blocks. The caller keeps to CAPACITY jobs that are not finished."""
        if self._in_flight >= self.CAPACITY:
            raise RuntimeError(f"handler {self.spec.name!r} has {self._in_flight} jobs in flight already")
        self._in_flight += 1
        if self._refusing:  # not from inside submit: the caller would be called back before it is done
            asyncio.get_running_loop().call_soon(self._finish, self._refusal(job, self._refusing))
        elif self._life:
            self._life.give(job)
        else:
            self._waiting.append(job)

    # --- workers, one after another ------------------------------------------------------------------------

    async def _supervise(self) -> None:
        while True:
            if self._quarantined:
                await self._sit_out()
            ending = await self._live()
            if self._quarantined:
                continue
            if ending.fault is None:
                self._recycled += 1  # to everybody else it goes on running
                continue
            if ending.final:
                self._enter("failed")
                self._refuse("unavailable")
                return
            await self._back_off()
            self._restarted += 1
            self._enter("starting")

    async def _sit_out(self) -> None:
        """Be in quarantine."""
        self._released.clear()
        self._enter("quarantined")
        last = self._last_failure
        if last is not None:
            self._log.error(
                "event=handler_quarantined version=%s until=released kind=%s error=%s",
                self.spec.version,
                last.kind,
                last.message,
            )
        self._refuse("unavailable")
        await self._released.wait()
        self._log.warning("event=handler_released")
        self._quarantined, self._refusing = False, None
        self._strikes, self._restarts = Strikes(), Restarts()
        self._enter("starting")

    async def _back_off(self) -> None:
        delay = self._restarts.died(monotonic()) - monotonic()
        self._enter("backoff")
        if delay > PATIENCE_SECONDS:
            self._refuse("unavailable")
        await asyncio.sleep(max(0.0, delay))
        self._refusing = None

    async def _live(self) -> Ending:
        """One worker's life, if one can be had. Its jobs are finished, or wait for the next one."""
        try:
            setup, rules = await self._prepare()
            self._worker = await self._zygote.spawn()
        except DeviceError as error:  # some errors of models are
            return self._failed(Ending("device", str(error)), None)
        except ModelError as error:
            return self._failed(Ending("model", str(error)), None)
        except RefusedError as error:
            self._undecided += not error.judged
            final = error.judged or self._undecided >= MAX_JUDGINGS
            return self._failed(Ending("refused", str(error), final=final), None)
        session = Session(rules, self._guest_state, monotonic(), self._budgets)
        self._life = WorkerLife(
            self.spec, self._worker, session, self._inference, self._progress, self._guest_log, self._brought
        )
        ending = Ending("stopped", "the handler was stopped")
        try:
            ending = await self._life.run(setup, self._waiting)
        finally:
            self._life = self._worker = None
            self._guest_state = session.state
            fault, message, trace = ending.fault, ending.message, ending.backtrace
            cut = session.abandon(fault, message, monotonic(), trace) if fault else None
            self._waiting = session.unread()
            if fault:
                self._strike(fault)
                self._in_a_row += fault != "stopped"
                self._failed(ending, cut)
        return ending

    async def _prepare(self) -> tuple[Setup, Rules]:
        """What a worker is told and what it is held to; the models are loaded when this returns."""
        memory_bytes = self.spec.limits.memory_mb << 20
        if self._module is None:  # once: another worker must come in milliseconds
            restorable = self.spec.abi in RESTORED_ABIS
            order = Order(self.spec.module, self.spec.engine, memory_bytes, restorable)
            self._module = await self._admission.admit(order)
        models, inputs = [], []
        for use in self.spec.models:
            ready = await self._inference.ready(use.model)
            models.append(GuestModel(use.name, ready.inputs, ready.outputs, list(use.labels)))
            inputs.append([tensor.nbytes for tensor in ready.inputs])
        setup = Setup(
            handler=self.spec.name,
            module=self._module,
            abi=self.spec.abi,
            engine=self.spec.engine,
            observes=list(self.spec.observes),
            emits=list(self.spec.emits),
            models=models,
            settings=dict(self.spec.settings),
            state=dict(self._guest_state),
            memory_bytes=memory_bytes,
            deadline_ms=self.spec.limits.deadline_ms,
            gas=self.spec.limits.gas and self.spec.limits.gas * 1_000_000,
            host_calls=self.spec.limits.host_calls,
            guest_models=self.spec.guest_models,
            files=dict(self.spec.files),
            command=self.spec.command,
            cpu_seconds=CPU_SECONDS,
            measure=self._measure,
        )
        return setup, Rules(self.spec.limits.deadline_ms / 1000 + HARD_GRACE, frozenset(self.spec.emits), inputs)

    # --- what comes of it ----------------------------------------------------------------------------------

    def _progress(self, event: Running | Finished) -> None:
        if isinstance(event, Running):
            level = logging.INFO if self._state == "starting" else logging.DEBUG
            self._log.log(level, "event=handler_running version=%s", self.spec.version)
            self._locked_down(event.lockdown)
            self._enter("running")
            return
        if event.outcome == "ok":
            self._handled += 1
            self._in_a_row = 0
            self._restarts.handled()
            self._strikes.handled()
        else:
            self._count(event.outcome, event.message, event.job.seq, event.backtrace)
            self._strike(event.outcome)
            self._in_a_row += event.outcome in FAULTS
        self._finish(event)
        if self._quarantined and self._life:
            self._life.retire()

    def _locked_down(self, lockdown: Lockdown) -> None:
        first, self._lockdown = self._lockdown is None, lockdown
        if first and "seccomp" in lockdown.missing:
            reason = printable(lockdown.missing["seccomp"])
            self._log.warning("event=calls_not_filtered reason=%s", reason)

    def _failed(self, ending: Ending, cut: Finished | None) -> Ending:
        """A worker ended badly, with the frame it had in hand."""
        if ending.fault and ending.fault != "stopped":
            self._count(ending.fault, ending.message, cut.job.seq if cut else None, ending.backtrace)
        if cut:
            self._finish(cut)
        return ending

    def _strike(self, fault: Fault) -> None:
        self._strikes.failed(fault)
        self._quarantined = self._strikes.out

    def _count(self, fault: Fault, message: str, seq: int | None, backtrace: tuple[str, ...]) -> None:
        self._faults[fault] += 1
        self._last_failure = Failure(fault, message[:MAX_MESSAGE], seq, time.time_ns(), list(backtrace))
        count = self._faults[fault]
        if count & (count - 1) == 0:  # the 1st, 2nd, 4th, 8th …: a handler that fails on every frame fills no disk
            frame = "" if seq is None else f" frame={seq}"
            at = f" backtrace={' | '.join(backtrace)}" if backtrace else ""
            self._log.warning("event=handler_fault kind=%s count=%d%s error=%s%s", fault, count, frame, message, at)

    def _refuse(self, fault: Fault) -> None:
        """From now on no job waits for a worker, nor do those that wait already."""
        self._refusing = fault
        while self._waiting:
            self._finish(self._refusal(self._waiting.popleft(), fault))

    def _refusal(self, job: Job, fault: Fault) -> Finished:
        reason = f"; last failure: {self._last_failure.message}" if self._last_failure else ""
        return Finished(job, fault, f"the handler is not running{reason}")

    def _finish(self, finished: Finished) -> None:
        self._in_flight -= 1
        self._on_finish(finished)

    def _enter(self, state: State) -> None:
        self._state = state
        self._since = monotonic()
