"""What a host does for a guest, whatever its ABI: the current frame, models, settings, state, what it emits and logs.

An ABI module translates pointers into these calls and their values back; it knows no sockets. Lengths and indices
are checked here as well as there, so that an ABI may hand on what the guest said.
"""

import contextlib
import os
from collections import deque
from random import Random
from time import perf_counter_ns

from appliance.frame import MAX_SIDE, PICTURE_FORMATS
from appliance.inference.messages import PIXEL_BYTES, Crop, View
from appliance.ipc.packets import BlockingChannel
from appliance.ipc.ring import RingReader
from appliance.sandbox.emits import EmitError, Emits
from appliance.sandbox.engine import GuestFailedError
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
    MAX_WISHES,
    MODEL_WISHES,
    Done,
    Emit,
    Errno,
    GuestModel,
    Inferred,
    Job,
    Log,
    ModelLoaded,
    PixelData,
    Refused,
    Setup,
    ToWorker,
    WantInference,
    WantModel,
    WantPixels,
)

WARNING = 30
SAMPLES = {"rgb": 3, "gray": 1}
"""Bytes of a pixel, by format."""


class RefusalError(Exception):
    """The guest may not, or it did not work; ``code`` is the native ABI's, ``str()`` says why."""

    def __init__(self, code: int, message: str, *, busy: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.busy = busy
        """The same, later, may go well."""


class ZipperGoneError(Exception):
    """The other end has closed the socket: nobody wants this worker any more."""


class Services:
    """One guest's host. :meth:`begin` before each frame; :meth:`finish` when it is handled."""

    def __init__(self, setup: Setup, channel: BlockingChannel[ToWorker], ring: RingReader) -> None:
        self.models: list[GuestModel] = list(setup.models)
        self.declared = len(setup.models)
        """How many of them the manifest names; those that the guest brings come after them."""
        self.settings = setup.settings
        self.setup = setup
        self.random = Random(os.urandom(32))  # now: a worker that is locked down cannot ask the kernel for chance
        """Differs from worker to worker and cannot be guessed from outside, but makes no secrets."""
        self.host_calls = 0
        """Calls of host functions since the start: each leaks a little."""
        self._max_calls = setup.host_calls
        self._channel = channel
        self._ring = ring
        self._tags = frozenset(setup.emits)
        self._state = dict(setup.state)
        self._outputs: dict[int, list[bytes]] = {}
        self._waited_ns = 0
        self._ahead: deque[Job] = deque()
        """Sent while the guest still begins, or has the frame before in hand."""
        self._max_brought = setup.guest_models
        self._brought: list[tuple[bytes, int]] = []
        """Models that the guest has brought: what they are, and their handles."""
        self._told_denial = False
        self._clear(None)

    # --- a frame's life ------------------------------------------------------------------------------------

    def next(self) -> ToWorker | None:
        """What comes after the frame in hand; None where the zipper has closed the socket."""
        return self._ahead.popleft() if self._ahead else self._channel.receive()

    def begin(self, job: Job) -> None:
        """``job`` is the current frame from now on; what the frame before left undone is forgotten."""
        self._clear(job)
        self._started_ns = perf_counter_ns()

    def finish(self, gas: int = 0, memory_bytes: int = 0) -> Done:
        """The frame is handled with so much ``gas``, its changes of state final."""
        spent = perf_counter_ns() - self._started_ns - self._waited_ns
        for key, value in self._changes.items():
            if value:
                self._state[key] = value
            else:
                self._state.pop(key, None)
        return Done(self._emits.frames, self._changes, max(0, spent) // 1000, gas, memory_bytes)

    def _clear(self, job: Job | None) -> None:
        self._job = job
        self._emits = Emits(self._tags)
        self._changes: dict[str, bytes] = {}
        self._outputs.clear()  # else a guest could take the last frame's answer for this one's
        self._logs = self._wishes = 0
        self._calls = 0
        self._started_ns = perf_counter_ns()
        self._waited_ns = 0

    def count_call(self) -> None:
        """A host function was called; GuestFailedError ``budget`` beyond what the handler may about one frame."""
        self.host_calls += 1
        self._calls += 1
        if self._calls > self._max_calls:
            raise GuestFailedError(
                "budget", f"more than {self._max_calls} host calls about one frame (limits.host_calls)"
            )

    # --- the frame -----------------------------------------------------------------------------------------

    def job(self) -> Job:
        """The current frame; EFRAME while there is none (in ``init``)."""
        if self._job is None:
            raise RefusalError(Errno.EFRAME, "there is no frame yet")
        return self._job

    def payload(self) -> memoryview:
        """The current frame's bytes, read-only, in shared memory."""
        return self._ring.view(self.job().frame)

    def pixels(self, crop: Crop, format: str, width: int, height: int, data: memoryview | None = None) -> bytes:
        """``width`` x ``height`` pixels in one of PIXEL_BYTES, without padding.

        They are of a part of the frame's picture, or of the whole picture in ``data`` (a JPEG or PNG file).
        """
        needed = width * height * PIXEL_BYTES[format]
        if not needed:
            raise RefusalError(Errno.EINVAL, "no pixels are asked for")
        if needed > MAX_PIXEL_BYTES or max(width, height) > MAX_SIDE:
            raise RefusalError(Errno.ETOOBIG, f"{needed} bytes of pixels are over the limit of {MAX_PIXEL_BYTES}")
        if data is None:
            crop = self._crop(crop)
        elif len(data) > MAX_PICTURE_BYTES:
            raise RefusalError(
                Errno.ETOOBIG, f"a picture of {len(data)} bytes is over the limit of {MAX_PICTURE_BYTES}"
            )
        answer = self._ask(WantPixels(crop, format, width, height, None if data is None else bytes(data)))
        if not isinstance(answer, PixelData) or len(answer.data) != needed:
            raise RefusalError(Errno.EFRAME, "the pixels are not as many as asked for")
        return answer.data

    def _crop(self, crop: Crop) -> Crop:
        """``crop`` where it lies inside the current frame, which must be a picture; EFRAME, EINVAL."""
        frame = self.job().frame
        if frame.format not in PICTURE_FORMATS:
            raise RefusalError(Errno.EFRAME, f"a frame of format {frame.format!r} is not a picture")
        if crop.width == 0:
            return Crop()
        inside = crop.x + crop.width <= frame.width and crop.y + crop.height <= frame.height
        if not inside or min(crop.x, crop.y) < 0 or min(crop.width, crop.height) < 1:
            raise RefusalError(Errno.EINVAL, f"the crop does not lie inside the {frame.width} x {frame.height} picture")
        return crop

    # --- models --------------------------------------------------------------------------------------------

    def load_model(self, data: memoryview) -> int:
        """The handle of a model that the guest brings as a file; brought again, the same costs a comparison.

        EDENIED beyond what the manifest's ``guest_models`` allows, ETOOBIG, EMODEL where it cannot be loaded.
        """
        for known, model in self._brought:
            if len(known) == len(data) and known.startswith(data):  # unlike ==, no copy and no element by element
                return model
        if len(self._brought) >= self._max_brought:
            raise self._denied(f"more than {self._max_brought} models of its own (guest_models in handler.toml)")
        if sum(len(known) for known, _ in self._brought) + len(data) > MAX_GUEST_MODEL_BYTES:
            raise RefusalError(Errno.ETOOBIG, f"models of its own over {MAX_GUEST_MODEL_BYTES} bytes")
        kept = bytes(data)
        answer = self._ask(WantModel(kept))
        if not isinstance(answer, ModelLoaded):
            raise RefusalError(Errno.EMODEL, "the model was not loaded")
        self.models.append(answer.model)
        self._brought.append((kept, len(self.models) - 1))
        return len(self.models) - 1

    def _denied(self, what: str) -> RefusalError:
        """Most guests say no more than a number of it: once, the log says what is wrong."""
        if not self._told_denial:
            self._told_denial = True
            with contextlib.suppress(RefusalError):
                self.log(WARNING, f"refused: the guest brings {what}".encode())
        return RefusalError(Errno.EDENIED, f"the guest brings {what}")

    def infer_frame(self, model: int, view: View) -> None:
        """Run a model on the current frame; then :meth:`output` has its answer."""
        self._infer(model, WantInference(model, View(self._crop(view.crop), view.fit)))

    def infer_tensors(self, model: int, tensors: list[bytes]) -> None:
        """Run a model on raw inputs, one per input in the model's order, each of its exact length."""
        self.job()
        self._infer(model, WantInference(model, View(), tensors))

    def _infer(self, model: int, wish: WantInference) -> None:
        self._outputs.pop(model, None)
        answer = self._ask(wish)
        if not isinstance(answer, Inferred) or len(answer.tensors) != len(self.models[model].outputs):
            raise RefusalError(Errno.EMODEL, "the model's outputs are not as many as declared")
        self._outputs[model] = answer.tensors

    def output(self, model: int, index: int) -> bytes:
        """Raw bytes of an output of the last inference of ``model`` about this frame; ENOENT where there is none."""
        self.job()
        if model not in self._outputs:
            raise RefusalError(Errno.ENOENT, "the model has not answered about this frame")
        return self._outputs[model][index]

    def _ask(self, wish: WantInference | WantModel | WantPixels) -> ToWorker:
        wishes = MODEL_WISHES if isinstance(wish, WantModel) else 1
        if self._wishes + wishes > MAX_WISHES:
            raise RefusalError(Errno.ETOOBIG, f"more than {MAX_WISHES} inferences and pictures about one frame")
        self._wishes += wishes
        started = perf_counter_ns()
        self._channel.send(wish)
        answer = self._answer()
        self._waited_ns += perf_counter_ns() - started
        if answer is None:
            raise ZipperGoneError
        if isinstance(answer, Refused):
            raise RefusalError(answer.code, answer.message, busy=answer.busy)
        return answer

    def _answer(self) -> ToWorker | None:
        """The answer to a wish; jobs that come before it wait their turn."""
        message = self._channel.receive()
        while isinstance(message, Job):
            self._ahead.append(message)
            message = self._channel.receive()
        return message

    # --- what comes out, and what stays --------------------------------------------------------------------

    def emit(self, tag: int, format: str, payload: bytes) -> None:
        """Emit a frame about the current one; it takes effect when the frame is handled."""
        self.job()
        try:
            self._emits.add(Emit(tag, format, payload))
        except EmitError as error:
            raise RefusalError(error.code, str(error)) from error

    def log(self, level: int, text: bytes) -> None:
        """One line, cut at MAX_LOG_LINE bytes; ETOOBIG after MAX_LOGS_PER_FRAME of them."""
        if level not in LOG_LEVELS:
            raise RefusalError(Errno.EINVAL, f"level {level} is none of {LOG_LEVELS}")
        if self._logs >= MAX_LOGS_PER_FRAME:
            raise RefusalError(Errno.ETOOBIG, f"more than {MAX_LOGS_PER_FRAME} lines about one frame")
        self._logs += 1
        self._channel.send(Log(level, text[:MAX_LOG_LINE].decode("utf-8", "replace")))

    def state(self, key: str) -> bytes:
        """The value of a key, as the guest last set it; ENOENT where there is none."""
        value = self._changes.get(key, self._state.get(key, b""))
        if not value:
            raise RefusalError(Errno.ENOENT, "no such key")
        return value

    def change_state(self, key: str, value: bytes) -> None:
        """Set a key, or delete it with an empty value; final when the frame is handled (not in ``init``)."""
        self.job()
        if not key:
            raise RefusalError(Errno.EINVAL, "an empty key")
        if len(key.encode()) > MAX_STATE_KEY or len(value) > MAX_STATE_VALUE:
            raise RefusalError(Errno.ETOOBIG, f"a key over {MAX_STATE_KEY} or a value over {MAX_STATE_VALUE} bytes")
        changes = {**self._changes, key: value}
        if not value and key not in self._state:
            del changes[key]  # nothing to tell: changes are no more than there can be keys, before and after
        kept = {k for k in self._state.keys() | changes.keys() if changes.get(k, self._state.get(k))}
        if len(kept) > MAX_STATE_KEYS:
            raise RefusalError(Errno.ETOOBIG, f"more than {MAX_STATE_KEYS} keys")
        self._changes = changes
