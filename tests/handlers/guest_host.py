"""One guest on the appliance's own engine and native ABI, with the zipper's side of the worker's socket in memory.

Models and the decoder are Python functions, so that a test says what a handler is told. What emits, logs and
state pass through is the real thing.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from appliance.cbor import decode_strict
from appliance.inference.messages import TensorInfo, View
from appliance.ipc.packets import BlockingChannel
from appliance.ipc.ring import FrameRef, RingReader
from appliance.sandbox.abi import bind
from appliance.sandbox.admission.judge import engine_for, judge
from appliance.sandbox.admission.verdict import Admitted, EngineName, Order
from appliance.sandbox.engine import GuestFailedError, open_engine
from appliance.sandbox.messages import (
    Emit,
    Errno,
    GuestModel,
    Inferred,
    Job,
    Log,
    PixelData,
    Refused,
    Setup,
    ToWorker,
    WantInference,
    WantPixels,
)
from appliance.sandbox.services import Services

HANDLERS = Path(__file__).resolve().parents[2] / "handlers"
MEMORY_BYTES = 16 << 20
GAS = 10**12
"""Of all frames together."""
TAGS = [1, 2, *range(0x10, 0x15), 0x20]
CAPTURED_NS = 10**18

Array = npt.NDArray[Any]


class RefusedError(Exception):
    """Raised by a test's model: the code that the guest is given."""

    def __init__(self, code: Errno) -> None:
        super().__init__(code)
        self.code = code


@dataclass(frozen=True)
class Picture:
    """A frame; ``pixels`` stands in for the decoder: (``rgb`` or ``gray``, width, height) -> samples."""

    width: int = 640
    height: int = 480
    tag: int = 1
    source: str = "camera"
    seq: int = 0
    format: str = "jpeg"
    payload: bytes = b""
    pixels: Callable[[str, int, int], bytes] | None = None


@dataclass(frozen=True)
class FakeModel:
    """Float32 outputs of these shapes; ``run`` gives them, or raises RefusedError."""

    shapes: tuple[tuple[int, ...], ...]
    run: Callable[[Picture], list[Array]]
    labels: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    def seen_by_guest(self, name: str) -> GuestModel:
        """With one input of 1 x 1 x 1 x 3, as float32."""
        names = self.names or tuple(f"output {index}" for index in range(len(self.shapes)))
        outputs = [_float32(name, shape) for name, shape in zip(names, self.shapes, strict=True)]
        return GuestModel(name, [_float32("input", (1, 1, 1, 3))], outputs, list(self.labels))


def _float32(name: str, shape: tuple[int, ...]) -> TensorInfo:
    return TensorInfo(name, "float32", shape, 4 * int(np.prod(shape)), 0.0, 0)


class Guest:
    """One instance of a module, started. Holds what it emitted, logged, stored and asked for."""

    def __init__(
        self,
        module: bytes,
        models: Mapping[str, FakeModel] | None = None,
        settings: Mapping[str, str] | None = None,
        state: Mapping[str, bytes] | None = None,
        admitted: Admitted | None = None,
        engine: EngineName = "wasm3",
    ) -> None:
        """``admitted`` stands for what admission makes of ``module``."""
        self.emits: list[Emit] = []
        self.lines: list[tuple[int, str]] = []
        self.views: list[View] = []
        self.state = dict(state or {})
        self._models = dict(models or {})
        self._frame = Picture()
        self._answer: ToWorker | None = None
        seen = [model.seen_by_guest(name) for name, model in self._models.items()]
        admitted = admitted or admit(module, engine)
        setup = Setup(
            handler="tested",
            module=admitted,
            abi="native",
            emits=TAGS,
            models=seen,
            settings=dict(settings or {}),
            state=self.state,
            memory_bytes=MEMORY_BYTES,
            cpu_seconds=60,
        )
        # this object has the few methods of both that the services call
        channel, ring = cast("BlockingChannel[ToWorker]", self), cast("RingReader", self)
        self._services = Services(setup, channel, ring)
        instance = open_engine(engine).load(admitted, MEMORY_BYTES)
        instance.allow(GAS)
        self.abi = bind("native", instance, self._services)
        self._init_status = _status(self.abi.start)

    def init(self) -> int:
        """What ``init`` returned."""
        return self._init_status

    def handle(self, frame: Picture) -> int:
        """Have one frame handled; what ``handle`` returned. GuestFailedError where it trapped."""
        self._frame = frame
        ref = FrameRef(1, 0, len(frame.payload), frame.format, frame.width, frame.height)
        self._services.begin(Job(ref, frame.tag, frame.source, frame.seq, CAPTURED_NS))
        status = _status(self.abi.handle)
        if status == 0:
            done = self._services.finish()
            self.emits += done.emits
            self.state = {key: value for key, value in (self.state | done.state).items() if value}
        return status

    def result(self, frame: Picture) -> Any:
        """What the handler emits about one frame, which must be one CBOR value."""
        before = len(self.emits)
        assert self.handle(frame) == 0, self.lines
        (emitted,) = self.emits[before:]
        assert emitted.format == "cbor"
        return decode_strict(emitted.payload)

    # --- the zipper's side ---------------------------------------------------------------------------------

    def send(self, message: Log | WantInference | WantPixels) -> None:
        """From the worker."""
        if isinstance(message, Log):
            self.lines.append((message.level, message.text))
        elif isinstance(message, WantPixels):
            self._answer = self._decode(message)
        else:
            self.views.append(message.view)
            self._answer = self._infer(list(self._models.values())[message.model])

    def receive(self) -> ToWorker | None:
        """To the worker: the answer to what it sent last."""
        return self._answer

    def view(self, _ref: FrameRef) -> memoryview:
        """The frame's payload, as the ring would have it."""
        return memoryview(self._frame.payload)

    def _infer(self, model: FakeModel) -> ToWorker:
        try:
            return Inferred([np.asarray(output, np.float32).tobytes() for output in model.run(self._frame)])
        except RefusedError as refused:
            return Refused(refused.code, "as the test wants it")

    def _decode(self, wish: WantPixels) -> ToWorker:
        if self._frame.pixels is None:
            return Refused(Errno.EFRAME, "as the test wants it")
        return PixelData(self._frame.pixels(wish.format, wish.width, wish.height))


def admit(module: bytes, engine: EngineName = "wasm3") -> Admitted:
    """Judge a module in this process."""
    order = Order(module, engine, MEMORY_BYTES)
    verdict = judge(order, engine_for(order))
    assert isinstance(verdict, Admitted), verdict
    return verdict


def _status(function: Callable[[], None]) -> int:
    """0, or what the guest returned instead; a trap is passed on."""
    try:
        function()
    except GuestFailedError as failure:
        returned = re.search(r"returned (-?\d+)", str(failure))
        if returned is None:
            raise
        return int(returned[1])
    return 0
