"""A small host for one guest: the native ABI in plain Python over wasm3, for tests of the handlers' own logic.

It follows docs/handler-abi.md, but is no sandbox: models are Python functions, and nothing is limited in time.
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import wasm3

from appliance.cbor import decode_strict
from appliance.sandbox.messages import MAX_STATE_KEY, MAX_STATE_VALUE

HANDLERS = Path(__file__).resolve().parents[2] / "handlers"

EINVAL, ENOENT, ETOOBIG, EDENIED, EMODEL, EFRAME = range(-1, -7, -1)
FORMATS = {"jpeg": 1, "rgb": 2, "gray": 3, "cbor": 4, "json": 5, "bytes": 6}
STACK_BYTES = 64 << 10
SIGNATURES = {
    "frame_info": "i(i)",
    "frame_source": "i(ii)",
    "frame_read": "i(iii)",
    "frame_pixels": "i(iiiiii)",
    "model": "i(ii)",
    "model_input": "i(iii)",
    "model_output": "i(iii)",
    "model_output_named": "i(iii)",
    "model_label": "i(iiii)",
    "infer_frame": "i(iii)",
    "infer_tensor": "i(iii)",
    "output_read": "i(iiiii)",
    "output_f32": "i(iiiii)",
    "emit": "i(iiii)",
    "log": "i(iii)",
    "now_ns": "I()",
    "setting": "i(iiii)",
    "state_get": "i(iiii)",
    "state_set": "i(iiii)",
}


Array = npt.NDArray[Any]


class RefusedError(Exception):
    """Carries the code that a call of the guest answers with."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@dataclass(frozen=True)
class Picture:
    """The current frame; ``pixels`` stands in for the decoder: (format, width, height) -> samples."""

    width: int = 640
    height: int = 480
    tag: int = 1
    source: str = "camera"
    seq: int = 0
    format: str = "jpeg"
    payload: bytes = b""
    pixels: Callable[[int, int, int], bytes] | None = None


@dataclass(frozen=True)
class FakeModel:
    """``run`` gives the outputs as real numbers; it raises RefusedError to fail."""

    shapes: tuple[tuple[int, ...], ...]
    run: Callable[[Picture], list[Array]]
    labels: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


@dataclass
class Guest:
    """One instance of a module; ``emits`` and ``state`` hold what took effect, ``lines`` what was logged."""

    module: bytes
    models: Mapping[str, FakeModel] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    state: dict[str, bytes] = field(default_factory=dict)
    emits: list[tuple[int, str, bytes]] = field(default_factory=list)
    lines: list[tuple[int, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._frame: Picture | None = None
        self._outputs: dict[int, list[Array]] = {}
        self._pending: list[tuple[int, str, bytes]] = []
        self._changes: dict[str, bytes] = {}
        self._models = list(self.models.values())
        self._environment = wasm3.Environment()
        self._runtime = self._environment.new_runtime(STACK_BYTES)
        module = self._environment.parse_module(self.module)
        self._runtime.load(module)
        for name, signature in SIGNATURES.items():
            module.link_function("appliance", name, signature, self._answering(getattr(self, f"_{name}")))
        self._handle = self._runtime.find_function("handle")

    def init(self) -> int:
        """Call ``init``."""
        return int(self._runtime.find_function("init")())

    def handle(self, frame: Picture) -> int:
        """Call ``handle``; what it emitted and stored takes effect when it returns 0."""
        self._frame = frame
        self._outputs.clear()
        self._pending = []
        self._changes = {}
        status = int(self._handle())
        self._frame = None
        if status == 0:
            self.emits += self._pending
            self.state = {key: value for key, value in (self.state | self._changes).items() if value}
        return status

    def result(self, frame: Picture) -> Any:
        """What the handler emits about one frame, which must be one CBOR value."""
        before = len(self.emits)
        assert self.handle(frame) == 0, self.lines
        assert len(self.emits) == before + 1
        return decode_strict(self.emits[-1][2])

    def _answering(self, function: Callable[..., int]) -> Callable[..., int]:
        def answer(*arguments: int) -> int:
            try:
                return function(*(argument & 0xFFFF_FFFF for argument in arguments))
            except RefusedError as refused:
                return refused.code

        return answer

    def _read(self, pointer: int, length: int) -> bytes:
        memory = self._runtime.get_memory(0)
        if pointer + length > len(memory):
            raise RefusedError(EINVAL)
        return bytes(memory[pointer : pointer + length])

    def _write(self, pointer: int, capacity: int, data: bytes, *, cut: bool = False) -> int:
        memory = self._runtime.get_memory(0)
        if pointer + capacity > len(memory):
            raise RefusedError(EINVAL)
        if len(data) > capacity and not cut:
            raise RefusedError(ETOOBIG)
        data = data[:capacity]
        memory[pointer : pointer + len(data)] = data
        return len(data)

    def _current(self) -> Picture:
        if self._frame is None:
            raise RefusedError(EFRAME)
        return self._frame

    def _model_at(self, handle: int) -> FakeModel:
        if handle >= len(self._models):
            raise RefusedError(EINVAL)
        return self._models[handle]

    def _output_at(self, handle: int, index: int) -> Array:
        model = self._model_at(handle)
        if index >= len(model.shapes):
            raise RefusedError(EINVAL)
        if handle not in self._outputs:
            raise RefusedError(ENOENT)
        return self._outputs[handle][index].astype(np.float32).reshape(-1)

    def _frame_info(self, out: int) -> int:
        f = self._current()
        size = len(f.payload)
        head = struct.pack("<QQIIIIII", f.seq, 10**18, f.tag, FORMATS[f.format], f.width, f.height, size, 0)
        self._write(out, 40, head)
        return 0

    def _frame_source(self, out: int, capacity: int) -> int:
        return self._write(out, capacity, self._current().source.encode())

    def _frame_read(self, offset: int, out: int, capacity: int) -> int:
        return self._write(out, capacity, self._current().payload[offset:], cut=True)

    def _frame_pixels(self, crop: int, kind: int, width: int, height: int, out: int, capacity: int) -> int:
        frame = self._current()
        if frame.pixels is None:
            raise RefusedError(EFRAME)
        assert crop == 0
        return self._write(out, capacity, frame.pixels(kind, width, height))

    def _model(self, name: int, length: int) -> int:
        wanted = self._read(name, length).decode()
        return list(self.models).index(wanted) if wanted in self.models else ENOENT

    def _model_input(self, handle: int, index: int, out: int) -> int:
        raise NotImplementedError

    def _model_output(self, handle: int, index: int, out: int) -> int:
        model = self._model_at(handle)
        if index >= len(model.shapes):
            return EINVAL
        shape = model.shapes[index]
        elements = int(np.prod(shape))
        padded = (*shape, *[0] * (8 - len(shape)))
        self._write(out, 56, struct.pack("<10I2Ifi", 7, len(shape), *padded, 4 * elements, elements, 0.0, 0))
        return 0

    def _model_output_named(self, handle: int, name: int, length: int) -> int:
        names = self._model_at(handle).names
        wanted = self._read(name, length).decode()
        return names.index(wanted) if wanted in names else ENOENT

    def _model_label(self, handle: int, index: int, out: int, capacity: int) -> int:
        labels = self._model_at(handle).labels
        return self._write(out, capacity, labels[index].encode()) if index < len(labels) else ENOENT

    def _infer_frame(self, handle: int, crop: int, fit: int) -> int:
        model = self._model_at(handle)
        assert (crop, fit) == (0, 0)
        self._outputs[handle] = model.run(self._current())
        return 0

    def _infer_tensor(self, handle: int, data: int, length: int) -> int:
        raise NotImplementedError

    def _output_read(self, handle: int, index: int, offset: int, out: int, capacity: int) -> int:
        return self._write(out, capacity, self._output_at(handle, index).tobytes()[offset:], cut=True)

    def _output_f32(self, handle: int, index: int, start: int, out: int, count: int) -> int:
        values = self._output_at(handle, index)[start:]
        return self._write(out, 4 * count, values.tobytes(), cut=True) // 4

    def _emit(self, tag: int, kind: int, data: int, length: int) -> int:
        self._current()
        assert kind == FORMATS["cbor"]
        payload = self._read(data, length)
        try:
            decode_strict(payload)
        except ValueError:
            return EINVAL
        self._pending.append((tag, "cbor", payload))
        return 0

    def _log(self, level: int, text: int, length: int) -> int:
        self.lines.append((level, self._read(text, length).decode()))
        return 0

    def _now_ns(self) -> int:
        return 1

    def _setting(self, key: int, length: int, out: int, capacity: int) -> int:
        value = self.settings.get(self._read(key, length).decode())
        return ENOENT if value is None else self._write(out, capacity, value.encode())

    def _state_get(self, key: int, length: int, out: int, capacity: int) -> int:
        value = (self.state | self._changes).get(self._read(key, length).decode(), b"")
        return self._write(out, capacity, value) if value else ENOENT

    def _state_set(self, key: int, length: int, value: int, value_length: int) -> int:
        self._current()
        name = self._read(key, length).decode()
        if length > MAX_STATE_KEY or value_length > MAX_STATE_VALUE:
            return ETOOBIG
        self._changes[name] = self._read(value, value_length)
        return 0
