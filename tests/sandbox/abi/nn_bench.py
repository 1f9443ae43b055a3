"""The host modules with the guest's memory and the zipper's answers in the test's hands: no engine, no processes."""

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from sandbox_bench import BOXES, INPUT, OUTPUT

from appliance.inference.messages import PIXEL_BYTES, TensorInfo
from appliance.ipc.packets import BlockingChannel
from appliance.ipc.ring import FrameRef, RingReader
from appliance.sandbox.abi import bind
from appliance.sandbox.engine import Function, HostFunction
from appliance.sandbox.messages import (
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
from appliance.sandbox.services import Services

MEMORY = 1 << 16
"""Bytes of the guest's memory: a pointer past it is one too far."""
OUT = 0x8000
"""Where a test has the host write."""
MakeGuest = Callable[[str, Path], bytes]
"""Name of a guest in guests/ and file of the model that it has in it; the module."""
JPEG = b"\xff\xd8 the frame's own picture"

CLASSIFIER = GuestModel("classifier", [INPUT], [OUTPUT, BOXES], ["cat", "dog"])
LEFT = TensorInfo("left", "int32", (1, 2), 8, 0.0, 0)
RIGHT = TensorInfo("right", "float32", (1,), 4, 0.0, 0)
SUM = TensorInfo("sum", "int32", (1, 2), 8, 0.0, 0)
ADDER = GuestModel("adder", [LEFT, RIGHT], [SUM], [])
MANIFEST = [CLASSIFIER, ADDER]


def tflite(tag: bytes = b"") -> bytes:
    """What passes for a model."""
    return b"\x1c\0\0\0TFL3" + tag


@dataclass
class Zipper:
    """Answers as the zipper would; ``refuse`` has it refuse what is asked next."""

    asked: list[object] = field(default_factory=list)
    logs: list[Log] = field(default_factory=list)
    refuse: Refused | None = None
    answer: ToWorker | None = None

    def send(self, message: object) -> None:
        if isinstance(message, Log):
            self.logs.append(message)
            return
        self.asked.append(message)
        refused, self.refuse = self.refuse, None
        self.answer = refused or self._answer(message)

    def _answer(self, message: object) -> ToWorker:
        match message:
            case WantModel():
                return ModelLoaded(GuestModel("brought", CLASSIFIER.inputs, CLASSIFIER.outputs, []))
            case WantInference(model=1, tensors=[left, _]):
                return Inferred([left])
            case WantInference(tensors=[data]):
                return Inferred([data[:4], struct.pack("<2f", 1, -2)])
            case WantPixels():
                return PixelData(bytes(message.width * message.height * PIXEL_BYTES[message.format]))
        raise AssertionError(message)

    def receive(self) -> ToWorker | None:
        return self.answer


class Host:
    """A guest's memory, and every host function by ``call``. A frame is current, unless ``frame`` is None."""

    def __init__(
        self, *, memory: int = MEMORY, guest_models: int = 2, frame: bytes | None = JPEG, host_calls: int = 100_000
    ) -> None:
        self.data = bytearray(memory)
        self.zipper = Zipper()
        self._payload = frame or b""
        self._functions: dict[tuple[str, str], HostFunction] = {}
        setup = Setup("h", b"", "native", [1], MANIFEST, {}, {}, 0, 0, guest_models=guest_models, host_calls=host_calls)
        channel, ring = cast("BlockingChannel[ToWorker]", self.zipper), cast("RingReader", self)
        self.services = Services(setup, channel, ring)
        bind("native", self, self.services)
        if frame is not None:
            self.next_frame()

    def next_frame(self, payload: bytes | None = None, format: str = "jpeg") -> None:
        self._payload = self._payload if payload is None else payload
        frame = FrameRef(1, 0, len(self._payload), format, 640, 480)
        self.services.begin(Job(frame, 1, "camera", 1, 1))

    def call(self, module: str, name: str, *arguments: int) -> int | None:
        """As an engine calls: integers are signed."""
        function = self._functions[module, name]
        widths = [1 << (32 if kind == "i" else 64) for kind in function.signature.partition("(")[2].rstrip(")")]
        assert len(widths) == len(arguments), function.signature
        signed = [(a & w - 1) - (w if (a & w - 1) >= w // 2 else 0) for a, w in zip(arguments, widths, strict=True)]
        return function.call(*signed)

    def put(self, pointer: int, data: bytes) -> int:
        self.data[pointer : pointer + len(data)] = data
        return pointer

    def words(self, pointer: int, *values: int) -> int:
        return self.put(pointer, struct.pack(f"<{len(values)}I", *values))

    def word(self, pointer: int = OUT) -> int:
        return int.from_bytes(self.data[pointer : pointer + 4], "little")

    def read(self, pointer: int, length: int) -> bytes:
        return bytes(self.data[pointer : pointer + length])

    # --- an instance, and a ring ---------------------------------------------------------------------------

    def link(self, functions: Iterable[HostFunction]) -> None:
        self._functions = {(each.module, each.name): each for each in functions}

    def find(self, name: str, signature: str = "i()") -> Function | None:
        raise AssertionError

    def memory(self) -> memoryview:
        return memoryview(self.data)

    def view(self, _ref: FrameRef) -> memoryview:
        return memoryview(self._payload)


BUSY = Refused(Errno.EMODEL, "68 requests are waiting", busy=True)
FAILED = Refused(Errno.EMODEL, "its process died 2 times on this")
DENIED = Refused(Errno.EDENIED, "as the zipper says")
EDGES = (MEMORY - 3, MEMORY, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF)
"""Pointers at which four bytes do not lie inside the memory."""
