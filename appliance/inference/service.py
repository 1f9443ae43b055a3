"""The process of one model, or of none: the one without a model decodes pixels for guests that ask for them.

Started as ``python -m appliance.inference.service PARENT SOCKET_FD RING_FD [SPEC]``, SPEC being a ModelSpec
in JSON. Two threads, so that the picture of the next frame is decoded while the model runs on this one (both
let go of the interpreter lock): the main thread reads requests and decodes, the other runs the model.
"""

import contextlib
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import msgspec

from appliance.errors import ApplianceError, ConfigError, DeviceError, HandlerError, ModelError, PeerError
from appliance.inference.delegate import Opened, open_model, read_contents
from appliance.inference.lockdown import lock_down
from appliance.inference.messages import (
    DEVICE,
    LOADING,
    Failed,
    GetPixels,
    Infer,
    InferTensors,
    Outputs,
    Pixels,
    Ready,
    ToModel,
)
from appliance.inference.model import ModelSpec
from appliance.inference.preprocessing import Array, PictureInput, pixels, warm_up
from appliance.inference.runtime import Model, Runtime, array_of
from appliance.ipc.child import die_with_parent, spare_the_parent
from appliance.ipc.packets import BlockingChannel
from appliance.ipc.report import Lockdown
from appliance.ipc.ring import FrameRef, RingReader

CLOSE_SECONDS = 1.0
"""How long the inference under way may take to end when the zipper closes the socket."""
CRASHED = 70
"""Exit status after an error that is a defect of ours."""
NO_MODEL = "this process has no model"
NO_MEMORY = "the picture takes more memory than a model's process may have"
FAULTS: dict[type[ApplianceError], str] = {
    PeerError: "frame",
    HandlerError: "request",
    ModelError: "model",
    DeviceError: DEVICE,
    ConfigError: "model",
}


@dataclass(frozen=True, slots=True)
class Run:
    """A request whose inputs are made."""

    id: int
    tensors: list[Array]
    decode_us: int = 0


class Service:
    """Answers the zipper's requests with one model (or none) until the socket is closed."""

    def __init__(
        self, channel: BlockingChannel[ToModel], ring: RingReader, model: Model | None, *, unit_range: bool = False
    ) -> None:
        self._channel = channel
        self._sending = threading.Lock()
        self._ring = ring
        self._model = model
        self._runs: queue.Queue[Run | None] = queue.Queue(maxsize=1)  # None: no more will come
        self._spare: deque[Array] = deque()  # input tensors to be filled again
        self._picture: PictureInput | None = None
        self._why_not = NO_MODEL
        try:
            if model is not None:
                self._picture = PictureInput(model.inputs, unit_range=unit_range)
        except HandlerError as error:
            self._why_not = str(error)

    def run(self) -> bool:
        """Serve until the socket is closed; whether the thread that runs the model has ended then, too.

        Two threads: this one decodes the next input while the other runs the model on this one. An input that
        waits for the model holds this thread back, and with it what still waits in the socket.
        """
        invoking = threading.Thread(target=self._invoke, daemon=True)
        invoking.start()
        while (request := self._channel.receive()) is not None:
            try:
                self._begin(request)
            except ApplianceError as error:
                self._fail(request.id, error)
            except MemoryError:
                self._fail(request.id, PeerError(NO_MEMORY))
        deadline = time.monotonic() + CLOSE_SECONDS
        with contextlib.suppress(queue.Full):
            self._runs.put(None, timeout=CLOSE_SECONDS)
        invoking.join(max(0.0, deadline - time.monotonic()))
        return not invoking.is_alive()

    def _begin(self, request: ToModel) -> None:
        """Do what comes before the model, and hand the rest to the thread that runs it."""
        if isinstance(request, GetPixels):
            payload = self._payload(request.frame) if request.data is None else None
            self._send(Pixels(request.id, pixels(payload, request)))
        elif isinstance(request, InferTensors):
            self._runs.put(Run(request.id, self._tensors(request)))
        else:
            started = time.perf_counter_ns()
            tensor = self._input(request)
            self._runs.put(Run(request.id, [tensor], (time.perf_counter_ns() - started) // 1000))

    def _invoke(self) -> None:
        while self._model is not None and (run := self._runs.get()) is not None:
            started = time.perf_counter_ns()
            try:
                outputs = self._model.run(run.tensors)
            except ModelError as error:
                self._fail(run.id, error)
            else:
                self._send(Outputs(run.id, outputs, run.decode_us, (time.perf_counter_ns() - started) // 1000))
            self._spare.extend(tensor for tensor in run.tensors if tensor.flags.writeable)

    def _input(self, request: Infer) -> Array:
        if self._picture is None:
            raise HandlerError(self._why_not)
        tensor = self._spare.popleft() if self._spare else self._picture.buffer()
        self._picture.fill(tensor, self._payload(request.frame), request.frame, request.view)
        return tensor

    def _tensors(self, request: InferTensors) -> list[Array]:
        if self._model is None:
            raise HandlerError(NO_MODEL)
        infos = self._model.inputs
        sizes, wanted = [len(data) for data in request.inputs], [info.nbytes for info in infos]
        if sizes != wanted:
            raise HandlerError(f"inputs of {sizes} bytes for a model that takes {wanted}")
        return [array_of(info, data) for info, data in zip(infos, request.inputs, strict=True)]

    def _payload(self, frame: FrameRef) -> memoryview:
        try:
            return self._ring.view(frame)
        except IndexError as error:
            raise PeerError(str(error)) from error

    def _fail(self, id: int, error: ApplianceError) -> None:
        self._send(Failed(id, FAULTS[type(error)], str(error)))

    def _send(self, message: Outputs | Pixels | Failed) -> None:
        # Where the zipper is gone the reading thread sees it, too, and ends the process.
        with self._sending, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._channel.send(message)


def main(arguments: list[str]) -> int:
    """Load the model, say Ready, serve. The exit status is 1 where the model could not be loaded."""
    parent, socket_fd, ring_fd = map(int, arguments[:3])
    die_with_parent(parent)
    spare_the_parent()
    for ignored in (signal.SIGINT, signal.SIGTERM):  # they go to the whole group; when to end is the zipper's to say
        signal.signal(ignored, signal.SIG_IGN)
    threading.excepthook = _die
    channel: BlockingChannel[ToModel] = BlockingChannel(socket.socket(fileno=socket_fd), ToModel)
    ring = RingReader(ring_fd)
    os.close(ring_fd)  # the mapping is all it needs
    spec: ModelSpec | None = None
    try:
        if len(arguments) > 3:
            spec = msgspec.json.decode(arguments[3], type=ModelSpec, dec_hook=lambda _, text: Path(text))
        lockdown, opened = _open(spec)
    except ApplianceError as error:
        channel.send(Failed(LOADING, FAULTS[type(error)], str(error)))
        return 1
    if spec is None or opened is None:
        channel.send(Ready(None, [], [], lockdown=lockdown))
        service = Service(channel, ring, None)
    else:
        channel.send(Ready(opened.run, opened.model.inputs, opened.model.outputs, opened.note, lockdown))
        service = Service(channel, ring, opened.model, unit_range=spec.unit_range)
    if not service.run():
        os._exit(0)  # a model that still runs cannot be taken down in order
    if opened is not None:
        opened.model.close()
    return 0


def _open(spec: ModelSpec | None) -> tuple[Lockdown, Opened | None]:
    """Read and import everything, lock the process down, and only then look at what the model's file holds."""
    try:
        warm_up()
        if spec is None:
            return lock_down(0, ""), None
        runtime = Runtime(spec.runtime)
        contents = read_contents(spec)
        runtime.warm_up()
        lockdown = lock_down(contents.size, spec.delegate)
    except MemoryError as error:
        raise DeviceError("there is no memory left for a model's process") from error
    return lockdown, open_model(spec, runtime, contents)


def _die(arguments: threading.ExceptHookArgs) -> None:
    """A thread that ends by a defect takes the process along; the zipper starts another."""
    threading.__excepthook__(arguments)
    os._exit(CRASHED)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
