"""The zipper's way to inference: one process per model, one inference per question, however many ask it."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self, TypeVar

from appliance.errors import ApplianceError, ModelError
from appliance.frame import ModelRun
from appliance.inference.host import ModelHost, ModelStatus
from appliance.inference.memo import MEMO_BYTES, Identity, Memo, Question
from appliance.inference.messages import (
    MAX_BEGUN,
    PIXEL_BYTES,
    Crop,
    GetPixels,
    Infer,
    InferTensors,
    Outputs,
    Pixels,
    Ready,
    ToModel,
    View,
)
from appliance.inference.model import BusyError, ModelSpec, UnavailableError
from appliance.inference.process import SERVICE, Answer, ModelProcess
from appliance.ipc.ring import FrameRef

MAX_MODELS = 32
START_SECONDS = 60.0
"""For a model to load and run once: large models on a small board take their time."""
MAX_BROUGHT_PICTURES = 2
"""Pictures that guests bring, under way at once: more of them would not fit what may be queued for a process."""
PIXELS, BROUGHT_PIXELS = "pixels", "brought-pixels"
"""Processes without a model: one decodes frames, the other what guests bring, which may be made to crash or hang it."""
UNSENT = 0
"""Id of a request until it is sent; each process counts its own."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Inference:
    """What a model said. Times in microseconds.

    The first who asks is told what decoding and the model took, even where they began before the question;
    to whoever shares the answer both are 0. ``wait_us`` is what else passed between question and answer.
    """

    tensors: list[bytes]
    """Raw bytes of each output, in the order of Ready.outputs."""
    run: ModelRun
    decode_us: int
    invoke_us: int
    wait_us: int


@dataclass(eq=False, slots=True)
class _Shared:
    """One run of a model, for all who ask the same."""

    task: asyncio.Task[Inference | ApplianceError]
    asked: bool = False
    """False while it was only begun."""


class Broker:
    """Starts models' processes as they are asked for and asks them; an async context manager.

    ``ring_fd`` is the descriptor of the frames' ring, ``timeout`` the seconds a process may take for an
    answer before it counts as hung, ``memo`` the bytes of results remembered for further handlers with the
    same question (0: none).
    """

    def __init__(
        self,
        ring_fd: int,
        timeout: float = 10.0,
        memo: int = MEMO_BYTES,
        *,
        start_timeout: float = START_SECONDS,
        command: Sequence[str] = SERVICE,
    ) -> None:
        self._ring_fd = ring_fd
        self._timeout = timeout
        self._start_timeout = start_timeout
        self._command = command
        self._closing = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._hosts: dict[Identity | str, tuple[ModelHost, asyncio.Task[None]]] = {}
        self._memo: Memo[_Shared] = Memo(memo)
        self._underway: dict[Question, _Shared] = {}
        self._begun: Counter[Identity] = Counter()
        self._holders: Counter[Identity] = Counter()
        self._brought = asyncio.Semaphore(MAX_BROUGHT_PICTURES)

    async def __aenter__(self) -> Self:
        self._group = await asyncio.TaskGroup().__aenter__()
        self._loop = asyncio.get_running_loop()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        for _, task in self._hosts.values():
            task.cancel()
        try:
            if self._tasks:  # requests under way fail as their process ends, rather than being cancelled
                await asyncio.wait(self._tasks)
        finally:
            # An error of whoever uses the broker passes as it is, not wrapped in the group of its tasks.
            cancelled = isinstance(error, asyncio.CancelledError)
            await self._group.__aexit__(kind if cancelled else None, error if cancelled else None, trace)

    async def ready(self, model: ModelSpec) -> Ready:
        """Start or join the model's process and wait until it is ready; ModelError where that fails."""
        return await self._host(model).ready()

    def begin(self, model: ModelSpec, frame: FrameRef, view: View) -> None:
        """Run the model before anybody asks; who does, shares the run and what comes of it.

        Nothing where the model does not run, was asked already, or MAX_BEGUN others that were begun are under way.
        """
        question = (identity(model), frame.key, view)
        known = self._hosts.get(question[0])
        if known is None or not known[0].running or self._begun[question[0]] >= MAX_BEGUN:
            return
        if question not in self._underway and question not in self._memo:
            self._begun[question[0]] += 1
            task = self._start(question, model, frame).task
            task.add_done_callback(lambda _: self._begun.subtract([question[0]]))

    async def infer(self, model: ModelSpec, frame: FrameRef, view: View) -> Inference:
        """Run the model on (a view of) a picture, or share what it said about it already.

        PeerError where the frame is no picture that can be decoded. ModelError where the model fails, its
        process died twice on this, the view is not in the picture, or the model takes no picture.
        """
        asked = self._loop.time()
        question = (identity(model), frame.key, view)
        shared = self._memo.get(question) or self._underway.get(question) or self._start(question, model, frame)
        first, shared.asked = not shared.asked, True
        result = await asyncio.shield(shared.task)
        if isinstance(result, ApplianceError):
            raise type(result)(str(result))
        return self._timed(result if first else replace(result, decode_us=0, invoke_us=0), asked)

    async def infer_tensors(self, model: ModelSpec, inputs: list[bytes]) -> Inference:
        """Run the model on raw bytes for each of its inputs; ModelError also where their sizes are not its own."""
        asked = self._loop.time()
        wanted = [info.nbytes for info in (await self.ready(model)).inputs]
        if [len(data) for data in inputs] != wanted:
            raise ModelError(f"inputs of {[len(data) for data in inputs]} bytes for a model that takes {wanted}")
        result = await self._shielded(self._run(model, InferTensors(UNSENT, inputs)))
        return self._timed(result, asked)

    async def pixels(
        self, frame: FrameRef, crop: Crop, format: str, width: int, height: int, data: bytes | None = None
    ) -> bytes:
        """Samples of (a part of) a picture, one of PIXEL_BYTES; of ``data`` (JPEG, PNG) instead of the frame if given.

        PeerError and ModelError as for infer.
        """
        answer = await self._shielded(self._pixels(GetPixels(UNSENT, frame, crop, format, width, height, data)))
        if not isinstance(answer, Pixels) or len(answer.data) != width * height * PIXEL_BYTES[format]:
            raise ModelError("the process that decodes pixels gave another answer than pixels")
        return answer.data

    def forget(self, key: int) -> None:
        """The frame is gone: what is remembered of it, too."""
        self._memo.forget(key)
        for question in [question for question in self._underway if question[1] == key]:
            del self._underway[question]

    def hold(self, model: ModelSpec) -> None:
        """Somebody will ask this model: its process stays, or is tried again, until as many have let go of it."""
        self._holders[identity(model)] += 1

    def release(self, model: ModelSpec) -> None:
        """Who held the model does not want it any more. Where nobody does, its process is stopped, its place free."""
        key = identity(model)
        self._holders[key] -= 1
        if self._holders[key] <= 0:
            del self._holders[key]
            if key in self._hosts:
                self._hosts.pop(key)[1].cancel()

    def status(self) -> tuple[ModelStatus, ...]:
        """Every process there is or should be."""
        return tuple(host.status() for host, _ in self._hosts.values())

    def _host(self, model: ModelSpec | None, decoder: str = PIXELS) -> ModelHost:
        """Of a model, or else of a process that decodes pixels."""
        if self._closing:
            raise UnavailableError("inference is being stopped")
        key = identity(model) if model else decoder
        if key not in self._hosts:
            if len(self._hosts) >= MAX_MODELS:
                raise UnavailableError(f"{MAX_MODELS} models run already; remove a handler that uses another")
            host = ModelHost(model, self._process, model.path.name if model else decoder)
            self._hosts[key] = (host, self._spawn(host.run()))
        return self._hosts[key][0]

    def _process(self, spec: ModelSpec | None) -> ModelProcess:
        return ModelProcess(
            spec,
            ring_fd=self._ring_fd,
            timeout=self._timeout,
            start_timeout=self._start_timeout,
            command=self._command,
        )

    def _start(self, question: Question, model: ModelSpec, frame: FrameRef) -> _Shared:
        task = self._spawn(self._outcome(self._run(model, Infer(UNSENT, frame, question[2]))))
        shared = self._underway[question] = _Shared(task)
        task.add_done_callback(lambda _: self._remember(question, shared))
        return shared

    async def _run(self, model: ModelSpec, request: ToModel) -> Inference:
        answer, ready = await self._host(model).ask(request)
        if not isinstance(answer, Outputs) or ready.run is None:
            raise ModelError(f"{model.path.name}: its process gave another answer than outputs")
        return Inference(answer.tensors, ready.run, answer.decode_us, answer.invoke_us, 0)

    async def _pixels(self, request: GetPixels) -> Answer:
        async with self._brought if request.data is not None else contextlib.nullcontext():
            decoder = PIXELS if request.data is None else BROUGHT_PIXELS
            answer, _ = await self._host(None, decoder).ask(request)
        return answer

    async def _outcome(self, work: Coroutine[Any, Any, Result]) -> Result | ApplianceError:
        """Errors as values: those who share a task all get them, and none ends the task group."""
        try:
            return await work
        except ApplianceError as error:
            return error

    async def _shielded(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Wait for a request that goes on where its asker is cancelled, so that it is counted until answered."""
        result = await asyncio.shield(self._spawn(self._outcome(work)))
        if isinstance(result, ApplianceError):
            raise result
        return result

    def _spawn(self, work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        task = self._group.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _remember(self, question: Question, shared: _Shared) -> None:
        if self._underway.get(question) is not shared:  # the frame is gone
            return
        del self._underway[question]
        if shared.task.cancelled() or shared.task.exception() is not None:
            return
        result = shared.task.result()
        if not isinstance(result, BusyError):  # who asks next may find room
            size = 0 if isinstance(result, ApplianceError) else sum(map(len, result.tensors))
            self._memo.put(question, shared, size)

    def _timed(self, result: Inference, asked: float) -> Inference:
        elapsed = round((self._loop.time() - asked) * 1e6)
        return replace(result, wait_us=max(0, elapsed - result.decode_us - result.invoke_us))


def identity(model: ModelSpec) -> Identity:
    """What models that share a process have in common."""
    return model.digest, model.runtime, model.delegate, model.unit_range
