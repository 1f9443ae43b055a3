"""What one worker owes the zipper, from its fork to its death. Sans-IO: messages and times in, events out.

Nothing a worker says is believed: a message that is not due, or passes a bound, is a PeerError, and the worker is
killed for it.
"""

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from appliance.errors import PeerError
from appliance.frame import MAX_MODEL_RUNS, MAX_SIDE, ModelRun
from appliance.inference.messages import LETTERBOX, PIXEL_BYTES, STRETCH, Crop
from appliance.ipc.report import Lockdown
from appliance.manifest import Limits
from appliance.sandbox.budget import Budgets
from appliance.sandbox.emits import EmitError, Emits
from appliance.sandbox.messages import (
    LOG_LEVELS,
    MAX_GUEST_MODEL_BYTES,
    MAX_LOG_LINE,
    MAX_LOGS_PER_FRAME,
    MAX_PICTURE_BYTES,
    MAX_PIXEL_BYTES,
    MAX_STATE_KEY,
    MAX_STATE_KEYS,
    MAX_STATE_VALUE,
    MAX_TRAP_TEXT,
    MAX_WISHES,
    MODEL_WISHES,
    Done,
    Emit,
    FromWorker,
    GuestFault,
    Job,
    Loaded,
    Log,
    Started,
    Trapped,
    WantInference,
    WantModel,
    WantPixels,
)
from appliance.text import printable

Fault = (
    GuestFault
    | Literal[
        "deadline",
        "forbidden",  # it made a system call that workers may not make
        "protocol",  # its process said what no honest worker says
        "refused",  # admission does not let its module run
        "model",  # a model it needs cannot be loaded
        "device",  # there is no process, or no memory, for it on this device
        "unavailable",  # it failed for good, or so often that the next try is a while away
        "stopped",  # it is being shut down
    ]
)
LOAD_SECONDS = 3.0
"""For the worker to be locked down and to load the module: no code of the guest's runs meanwhile."""
HARD_GRACE = 0.025
"""Seconds after a handler's deadline at which its worker is killed: a guest that ran out of gas has said so by then."""


class InferenceResult(Protocol):
    """What an inference yields, as far as a handler is told; times in microseconds."""

    @property
    def tensors(self) -> list[bytes]: ...
    @property
    def run(self) -> ModelRun: ...
    @property
    def decode_us(self) -> int: ...
    @property
    def invoke_us(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Finished:
    """A job's end: every job has exactly one."""

    job: Job
    outcome: Literal["ok"] | Fault
    message: str = ""
    """What went wrong, for a person; empty when all went well."""
    backtrace: tuple[str, ...] = ()
    """Where in its code the guest failed, innermost function first; empty where that is not known."""
    emits: tuple[Emit, ...] = ()
    """Validated: allowed tags, bounded sizes, well-formed documents."""
    models: tuple[ModelRun, ...] = ()
    """Which models answered, and where they really ran; each once."""
    guest_us: int = 0
    """Time in the guest itself."""
    gas: int = 0
    """Instructions of the guest, as far as they were counted; 0 for a frame that failed."""
    memory_bytes: int = 0
    """Of the guest's memory afterwards, where that is measured."""
    decode_us: int = 0
    """Time in which pictures were decoded and resized for it."""
    invoke_us: int = 0
    """Time in which models ran for it."""
    wait_us: int = 0
    """Time it waited for the zipper beyond that: for other handlers' turns, and for the way there and back."""


@dataclass(frozen=True, slots=True)
class Running:
    """The guest is initialised."""

    lockdown: Lockdown = field(default_factory=Lockdown)


@dataclass(frozen=True, slots=True)
class Broken:
    """The worker says that it cannot go on."""

    fault: Fault
    message: str
    backtrace: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LineDropped:
    """The guest has said more than its budget allows."""


Wish = WantInference | WantModel | WantPixels
Event = Loaded | Running | Finished | Broken | Wish | Log | LineDropped


@dataclass(frozen=True, slots=True)
class Rules:
    """What a worker is held to."""

    deadline: float
    """Seconds of the guest's own per frame, after which it is killed."""
    tags: Collection[int]
    inputs: Sequence[Sequence[int]]
    """Bytes of each input of each model it may use; those it brings come after them."""


class Session:
    """One worker's life. ``deadline`` says when it must be killed, None while it owes nothing."""

    def __init__(self, rules: Rules, state: Mapping[str, bytes], now: float, budgets: Budgets | None = None) -> None:
        """``budgets`` outlive the worker: those of a handler's last one are those of its next."""
        self.state = dict(state)
        """The guest's keys and values after the last frame that was handled."""
        self.starting = True
        self.told_nothing_since_a_frame = False
        """Its last word was the end of a frame: an orderly exit now loses nothing."""
        self._rules = rules
        self._inputs = list(rules.inputs)
        self._budgets = budgets or Budgets(Limits(), now)
        self._lockdown: Lockdown | None = None
        self._jobs: deque[Job] = deque()
        self._asked_at: float | None = None
        self._running_since: float | None = None
        self._account: Finished
        self._begin(LOAD_SECONDS, now)

    @property
    def deadline(self) -> float | None:
        """When the guest's own time is over; None while it waits for the zipper or has nothing to do."""
        return None if self._running_since is None else self._running_since + self._left

    @property
    def loading(self) -> bool:
        """No code of the guest's has run yet."""
        return self._lockdown is None

    @property
    def asking(self) -> bool:
        """The worker waits for an answer."""
        return self._asked_at is not None

    @property
    def job(self) -> Job | None:
        """The job the worker has in hand."""
        return self._jobs[0] if self._jobs and not self.starting else None

    def give(self, job: Job, now: float) -> None:
        """``job`` was sent to the worker."""
        self._jobs.append(job)
        if len(self._jobs) == 1 and not self.starting:
            self._begin(self._rules.deadline, now)

    def receive(self, message: FromWorker, now: float) -> Event:
        """What a message means; PeerError where it is not due or passes a bound."""
        if self.asking:
            raise PeerError("the worker speaks while it waits for an answer")
        if not self.starting and not self._jobs:
            raise PeerError("the worker speaks without a frame")
        self.told_nothing_since_a_frame = False
        match message:
            case Log():
                return self._logged(message, now)
            case Trapped():
                return self._trapped(message, now)
            case Loaded() if self._lockdown is None:
                self._lockdown = message.lockdown
                self._begin(self._rules.deadline, now)
                return message
            case Started() if self.starting and self._lockdown is not None:
                self.starting = False
                self._next(now)
                return Running(self._lockdown)
            case Done() if not self.starting:
                return self._done(message, now)
            case WantInference() | WantModel() | WantPixels() if self._may_wish(message):
                return self._wished(message, now)
            case _:
                raise PeerError(f"a {type(message).__name__} is not due")

    def answered(self, now: float, result: InferenceResult | None = None, refusal: str = "") -> None:
        """The wish was answered: with ``result`` where it was an inference that went well, or with a refusal."""
        if self._asked_at is None:
            raise RuntimeError("nothing was asked")
        if not self.starting:
            self._account = _charged(self._account, round((now - self._asked_at) * 1e6), result)
        if refusal:
            self._refusal = refusal
        self._asked_at = None
        self._running_since = now

    def brought(self, inputs: Sequence[int]) -> None:
        """The worker has been told of one more model, with inputs of so many bytes."""
        self._inputs.append(inputs)

    def abandon(self, fault: Fault, message: str, now: float, backtrace: tuple[str, ...] = ()) -> Finished | None:
        """The worker is dead: the end of the job it had in hand, if any. :meth:`unread` has the others."""
        if self.job is None:
            return None
        return replace(self._end(fault, message, self._own_us(now)), backtrace=backtrace)

    def unread(self) -> deque[Job]:
        """Take back the jobs that the worker cannot have looked at."""
        jobs, self._jobs = self._jobs, deque()
        return jobs

    # --- messages ------------------------------------------------------------------------------------------

    def _logged(self, line: Log, now: float) -> Log | LineDropped:
        self._logs += 1
        if self._logs > MAX_LOGS_PER_FRAME or len(line.text) > MAX_LOG_LINE or line.level not in LOG_LEVELS:
            raise PeerError("more log than an honest worker sends")
        return line if self._budgets.log(now) else LineDropped()

    def _trapped(self, trapped: Trapped, now: float) -> Finished | Broken:
        if len(trapped.message) > MAX_TRAP_TEXT:
            raise PeerError("a longer explanation than an honest worker gives")
        message = printable(f"{trapped.message}; {self._refusal}" if self._refusal else trapped.message)
        backtrace = tuple(map(printable, trapped.backtrace))
        if trapped.fatal or self.starting:
            return Broken(trapped.kind, message, backtrace)
        return replace(self._finish(trapped.kind, message, self._own_us(now), now), backtrace=backtrace)

    def _done(self, done: Done, now: float) -> Finished:
        emits = Emits(self._rules.tags)
        try:
            for emit in done.emits:
                emits.add(emit)
        except EmitError as error:
            raise PeerError(f"an honest worker would not have passed this on: {error}") from error
        self.state = _changed(self.state, done.state)
        guest_us = min(max(0, done.guest_us), self._own_us(now))
        told = self._finish("ok", "", guest_us, now)
        finished = replace(told, gas=max(0, done.gas), memory_bytes=max(0, done.memory_bytes))
        excess = self._budgets.emit(emits.frames, now)
        if excess:  # the worker has handled the frame and holds its new state: only what it emitted is withheld
            return replace(finished, outcome="budget", message=excess)
        return replace(finished, emits=tuple(emits.frames))

    def _may_wish(self, wish: Wish) -> bool:
        """Models may be loaded before there is a frame."""
        return not self.loading if isinstance(wish, WantModel) else not self.starting

    def _wished(self, wish: Wish, now: float) -> Wish:
        self._wishes += MODEL_WISHES if isinstance(wish, WantModel) else 1
        if self._wishes > MAX_WISHES:
            raise PeerError(f"more than {MAX_WISHES} wishes about one frame")
        if isinstance(wish, WantInference):
            self._check_inference(wish)
        elif isinstance(wish, WantPixels):
            _check_pixels(wish)
        elif len(wish.data) > MAX_GUEST_MODEL_BYTES:
            raise PeerError("a model over the limit")
        self._left -= self._running(now)
        self._running_since = None
        self._asked_at = now
        return wish

    def _check_inference(self, wish: WantInference) -> None:
        if not 0 <= wish.model < len(self._inputs):
            raise PeerError(f"a wish for model {wish.model}, which the handler has not declared")
        if wish.tensors is None:
            _check_crop(wish.view.crop)
            if wish.view.fit not in (STRETCH, LETTERBOX):
                raise PeerError("an unknown way to fit a picture")
        elif [len(tensor) for tensor in wish.tensors] != list(self._inputs[wish.model]):
            raise PeerError("tensors that are not as long as the model's inputs")

    # --- accounts ------------------------------------------------------------------------------------------

    def _begin(self, budget: float, now: float) -> None:
        """The guest's own time runs from now on."""
        self._budget = self._left = budget
        self._running_since = now
        self._logs = self._wishes = 0
        self._refusal = ""
        if self._jobs:
            self._account = Finished(self._jobs[0], "ok")

    def _next(self, now: float) -> None:
        if self._jobs:
            self._begin(self._rules.deadline, now)
        else:
            self._running_since = None

    def _own_us(self, now: float) -> int:
        """Microseconds of the guest's own for the frame in hand, as seen from here."""
        return max(0, round((self._budget - self._left + self._running(now)) * 1e6))

    def _running(self, now: float) -> float:
        """Seconds since the guest's own time runs again."""
        return 0.0 if self._running_since is None else now - self._running_since

    def _end(self, outcome: Literal["ok"] | Fault, message: str, guest_us: int) -> Finished:
        self._jobs.popleft()
        return replace(self._account, outcome=outcome, message=message, guest_us=guest_us)

    def _finish(self, outcome: Literal["ok"] | Fault, message: str, guest_us: int, now: float) -> Finished:
        finished = self._end(outcome, message, guest_us)
        self.told_nothing_since_a_frame = True
        self._next(now)
        return finished


def _charged(account: Finished, waited_us: int, result: InferenceResult | None) -> Finished:
    """``account`` with one wait added, and the inference it was for."""
    if result is None:
        return replace(account, wait_us=account.wait_us + waited_us)
    models = account.models
    if result.run not in models and len(models) < MAX_MODEL_RUNS:
        models = (*models, result.run)
    return replace(
        account,
        models=models,
        decode_us=account.decode_us + result.decode_us,
        invoke_us=account.invoke_us + result.invoke_us,
        wait_us=account.wait_us + max(0, waited_us - result.decode_us - result.invoke_us),
    )


def _changed(state: Mapping[str, bytes], changes: Mapping[str, bytes]) -> dict[str, bytes]:
    for key, value in changes.items():
        if not 1 <= len(key.encode()) <= MAX_STATE_KEY or len(value) > MAX_STATE_VALUE:
            raise PeerError("a key or a value of state over its limit")
    changed = {key: value for key, value in {**state, **changes}.items() if value}
    if len(changed) > MAX_STATE_KEYS:
        raise PeerError(f"more than {MAX_STATE_KEYS} keys of state")
    return changed


def _check_crop(crop: Crop) -> None:
    if not all(0 <= side <= MAX_SIDE for side in (crop.x, crop.y, crop.width, crop.height)):
        raise PeerError("a crop outside any picture")


def _check_pixels(wish: WantPixels) -> None:
    _check_crop(wish.crop)
    samples = PIXEL_BYTES.get(wish.format)
    if samples is None or not (1 <= wish.width <= MAX_SIDE and 1 <= wish.height <= MAX_SIDE):
        raise PeerError("a wish for pixels of unknown format or size")
    if wish.width * wish.height * samples > MAX_PIXEL_BYTES:
        raise PeerError("a wish for more pixels than the limit")
    if wish.data is not None and len(wish.data) > MAX_PICTURE_BYTES:
        raise PeerError("a picture over the limit")
