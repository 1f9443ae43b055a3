"""One worker as the zipper lives through it: its socket, its deadline, its wishes, its death."""

import asyncio
import contextlib
import signal
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Protocol

from appliance.errors import DeviceError, HandlerError, ModelError, PeerError
from appliance.inference.messages import Crop, Ready, View
from appliance.inference.model import BusyError, ModelSpec
from appliance.ipc.channel import AsyncChannel
from appliance.ipc.packets import MessageTooLongError
from appliance.ipc.ring import FrameRef
from appliance.sandbox.guest_log import GuestLog
from appliance.sandbox.guest_models import BroughtModels
from appliance.sandbox.messages import (
    Errno,
    FromWorker,
    GuestModel,
    Inferred,
    Job,
    Loaded,
    Log,
    ModelLoaded,
    PixelData,
    Refused,
    Setup,
    WantInference,
    WantModel,
    WantPixels,
)
from appliance.sandbox.session import (
    LOAD_SECONDS,
    Broken,
    Event,
    Fault,
    Finished,
    InferenceResult,
    LineDropped,
    Running,
    Session,
    Wish,
)
from appliance.sandbox.spawning import WorkerProcess
from appliance.sandbox.spec import HandlerSpec

EXIT_SECONDS = 2.0
"""For a worker that was killed, or has closed its socket, to be reaped."""
FINAL_FAULTS = frozenset({"load", "link", "memory"})
"""Before the first frame these lie in the module itself: another try cannot help."""
MAX_REFUSAL_TEXT = 256
_EXITED_IN_ORDER = 0


class Inference(Protocol):
    """What handlers ask of the inference broker."""

    def hold(self, model: ModelSpec) -> None:
        """The model will be asked for; once for each that holds it."""

    def release(self, model: ModelSpec) -> None:
        """It will not any more, by this one."""

    async def ready(self, model: ModelSpec) -> Ready:
        """Start or join the model's process and wait until it is loaded; raises ModelError."""

    async def infer(self, model: ModelSpec, frame: FrameRef, view: View) -> InferenceResult:
        """Raises ModelError, or PeerError where the frame cannot be decoded."""

    async def infer_tensors(self, model: ModelSpec, inputs: list[bytes]) -> InferenceResult:
        """Raises ModelError."""

    async def pixels(
        self, frame: FrameRef, crop: Crop, format: str, width: int, height: int, data: bytes | None = None
    ) -> bytes:
        """``width`` x ``height`` pixels of the frame, or of the picture in ``data``; raises PeerError, ModelError."""


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a worker's life ended; ``fault`` None: it was worn, and has left nothing undone."""

    fault: Fault | None
    message: str = ""
    final: bool = False
    """Another worker would end in the same way."""
    backtrace: tuple[str, ...] = ()


_KILLED_FOR = {
    int(signal.SIGSYS): Ending("forbidden", "it made a system call that workers may not make"),
    int(signal.SIGXCPU): Ending("deadline", "it used up the CPU time of its worker"),
}
"""Signals with which the kernel enforces what the worker has laid down in its lockdown."""


class WorkerLife:
    """From setup to death. ``on_event`` gets what the worker achieves; :meth:`run` ends with it."""

    def __init__(
        self,
        spec: HandlerSpec,
        worker: WorkerProcess,
        session: Session,
        inference: Inference,
        on_event: Callable[[Running | Finished], None],
        guest_log: GuestLog,
        brought: BroughtModels,
    ) -> None:
        self.session = session
        self._spec = spec
        self._worker = worker
        self._inference = inference
        self._on_event = on_event
        self._guest_log = guest_log
        self._brought = brought
        self._models = [use.model for use in spec.models]
        self._ending: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self._timer: asyncio.TimerHandle | None = None
        self._channel: AsyncChannel[FromWorker] = AsyncChannel(worker.sock, FromWorker, self._heard, self._closed)
        self._wishes: asyncio.Queue[tuple[Wish, Job | None]] = asyncio.Queue()

    def give(self, job: Job) -> None:
        """Send a job; it is in the worker's socket at once."""
        self._channel.send(job)
        self.session.give(job, monotonic())
        self._watch()

    def retire(self) -> None:
        """Nobody wants this worker any more: what it has in hand is not its fault, nor finished."""
        self._end(Ending(None))

    async def run(self, setup: Setup, waiting: deque[Job]) -> Ending:
        """Set the worker up, give it the jobs that wait, and live with it to its end; it is dead when this returns."""
        try:
            self._set_up(setup)
            while waiting:
                self.give(waiting.popleft())
            self._watch()
            async with asyncio.TaskGroup() as group:
                answering = group.create_task(self._answer_wishes(), name=f"{self._spec.name}: wishes")
                ending = await self._ending
                answering.cancel()
            return await self._buried(ending)
        finally:
            self._unwatch()
            self._channel.close()
            self._worker.close()

    def _set_up(self, setup: Setup) -> None:
        """Its parts have bounds of their own; all of them at their largest do not fit one message."""
        try:
            self._channel.send(setup)
        except MessageTooLongError as error:
            message = f"its module (as it is run), files and labels are too much for a worker together: {error}"
            self._end(Ending("refused", message, final=True))

    async def _buried(self, ending: Ending) -> Ending:
        """Kill what may be left; a death without a word is explained by the exit status."""
        self._unwatch()
        exited = self._worker.exited
        untold = ending.fault == "crash" and not ending.message
        if not untold:
            self._worker.kill()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(EXIT_SECONDS):
                await asyncio.shield(exited)
        if not untold:
            return ending
        if not exited.done():
            return Ending("crash", "the worker closed its socket and went on running")
        if exited.result() == _EXITED_IN_ORDER and self.session.told_nothing_since_a_frame:
            return Ending(None)
        return _ending_of(exited.result())

    # --- what the worker does ------------------------------------------------------------------------------

    def _heard(self, message: FromWorker) -> None:
        if self._ending.done():
            return  # too late: it is being killed, and what it has in hand is accounted for by that
        try:
            event = self.session.receive(message, monotonic())
            self._watch()
            self._act_on(event)
        except PeerError as error:
            self._end(Ending("protocol", str(error)))
        except Exception as error:  # noqa: BLE001 - a defect of ours: the loop would only log it, run() raises it
            if not self._ending.done():
                self._ending.set_exception(error)

    def _act_on(self, event: Event) -> None:
        match event:
            case Loaded():
                pass  # the deadline is armed anew
            case Log():
                self._guest_log.say(event)
            case LineDropped():
                self._guest_log.drop()
            case WantInference() | WantModel() | WantPixels():
                self._wishes.put_nowait((event, self.session.job))
            case Broken():
                final = self.session.starting and event.fault in FINAL_FAULTS
                self._end(Ending(event.fault, event.message, final, event.backtrace))
            case Running() | Finished():
                self._on_event(event)

    def _closed(self, error: Exception | None) -> None:
        if isinstance(error, PeerError):
            self._end(Ending("protocol", str(error)))
        else:
            self._end(Ending("crash"))

    def _end(self, ending: Ending) -> None:
        if not self._ending.done():
            self._ending.set_result(ending)

    # --- the deadline --------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Arm the timer for when the guest's own time is over."""
        self._unwatch()
        if self.session.deadline is not None:
            delay = max(0.0, self.session.deadline - monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay, self._overdue)

    def _unwatch(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _overdue(self) -> None:
        self._worker.kill()
        if self.session.loading:
            message = f"loading the module took more than {LOAD_SECONDS:g} s"
        else:
            what = "init" if self.session.starting else "handle"
            message = f"{what} took more than {self._spec.limits.deadline_ms} ms of the guest's own time"
        self._end(Ending("deadline", message))

    # --- what the guest asks for ---------------------------------------------------------------------------

    async def _answer_wishes(self) -> None:
        while True:
            wish, job = await self._wishes.get()
            result: InferenceResult | None = None
            answer: Inferred | ModelLoaded | PixelData | Refused
            try:
                if isinstance(wish, WantModel):
                    answer = await self._load(wish)
                elif job is None:
                    raise AssertionError("the session lets no guest ask about a frame before there is one")
                elif isinstance(wish, WantPixels):
                    answer = PixelData(await self._pixels(wish, job))
                else:
                    result = await self._infer(wish, job)
                    answer = Inferred(list(result.tensors))
            except (ModelError, DeviceError) as error:
                answer = Refused(Errno.EMODEL, str(error)[:MAX_REFUSAL_TEXT], busy=isinstance(error, BusyError))
            except PeerError as error:
                answer = Refused(Errno.EFRAME, str(error)[:MAX_REFUSAL_TEXT])
            except HandlerError as error:
                answer = Refused(Errno.EDENIED, str(error)[:MAX_REFUSAL_TEXT])
            self.session.answered(monotonic(), result, answer.message if isinstance(answer, Refused) else "")
            self._channel.send(answer)
            self._watch()

    async def _load(self, wish: WantModel) -> ModelLoaded:
        """A model that the guest brings: from now on it may use it as those of its manifest."""
        model, ready = await self._brought.load(wish.data)
        self._models.append(model)
        self.session.brought([tensor.nbytes for tensor in ready.inputs])
        return ModelLoaded(GuestModel(model.digest, ready.inputs, ready.outputs, []))

    async def _infer(self, wish: WantInference, job: Job) -> InferenceResult:
        model = self._models[wish.model]
        if wish.tensors is None:
            return await self._inference.infer(model, job.frame, wish.view)
        return await self._inference.infer_tensors(model, wish.tensors)

    async def _pixels(self, wish: WantPixels, job: Job) -> bytes:
        return await self._inference.pixels(job.frame, wish.crop, wish.format, wish.width, wish.height, wish.data)


def _ending_of(status: int) -> Ending:
    """What the exit status of a worker that said nothing tells."""
    if status >= 0:
        return Ending("crash", f"the worker ended with status {status}")
    if -status in _KILLED_FOR:
        return _KILLED_FOR[-status]
    try:
        return Ending("crash", f"the worker was killed by {signal.Signals(-status).name}")
    except ValueError:
        return Ending("crash", f"the worker was killed by signal {-status}")
