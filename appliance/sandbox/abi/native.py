"""The native ABI, version 1, as ``author/sdk/c/appliance.h`` has it. ``docs/handler-abi.md`` is the text of record.

Here pointers become bytes and back; :class:`appliance.sandbox.abi.guest.Guest` checks them.
"""

import math
import struct
from array import array
from collections.abc import Iterable
from time import monotonic_ns

from appliance.inference.messages import LETTERBOX, STRETCH, Crop, TensorInfo, View
from appliance.sandbox.abi.exports import CONSTRUCTORS, initialise
from appliance.sandbox.abi.guest import Guest, Method
from appliance.sandbox.engine import GuestFailedError, HostFunction
from appliance.sandbox.messages import MAX_EMIT_BYTES, MAX_STATE_KEY, MAX_STATE_VALUE, Errno, GuestModel
from appliance.sandbox.services import SAMPLES, RefusalError

MODULE = "appliance"
FORMATS = {"jpeg": 1, "rgb": 2, "gray": 3, "cbor": 4, "json": 5, "bytes": 6}
FORMAT_NAMES = {number: name for name, number in FORMATS.items()}
FITS = {0: STRETCH, 1: LETTERBOX}
DTYPES = {
    "uint8": (1, "B"),
    "int8": (2, "b"),
    "int16": (3, "h"),
    "int32": (4, "i"),
    "int64": (5, "q"),
    "float16": (6, "e"),
    "float32": (7, "f"),
    "float64": (8, "d"),
    "bool": (9, "?"),
}
"""numpy's name -> (number in the ABI, ``struct`` code)."""
UNKNOWN_DTYPE = (0, "")

MAX_GUEST_NAME = 256
"""Bytes of a name that a guest asks for: no model, tensor or setting has a longer one."""
MAX_LOG_READ = 4096
"""Bytes of a log text that are looked at; the rest would be cut off anyway."""

_FRAME = struct.Struct("<QQIIIIII")
_TENSOR = struct.Struct("<II8IIIfi")
_CROP = struct.Struct("<4i")


class Native:
    """The host functions of the module ``appliance``."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._services = guest.services

    def functions(self) -> Iterable[HostFunction]:
        methods: dict[str, Method] = {
            "frame_info": self._frame_info,
            "frame_source": self._frame_source,
            "frame_read": self._frame_read,
            "frame_pixels": self._frame_pixels,
            "model": self._model,
            "model_input": self._model_input,
            "model_output": self._model_output,
            "model_output_named": self._model_output_named,
            "model_label": self._model_label,
            "infer_frame": self._infer_frame,
            "infer_tensor": self._infer_tensor,
            "output_read": self._output_read,
            "output_f32": self._output_f32,
            "emit": self._emit,
            "log": self._log,
            "now_ns": monotonic_ns,
            "setting": self._setting,
            "state_get": self._state_get,
            "state_set": self._state_set,
        }
        return self._guest.provide(MODULE, methods, lambda refusal: int(refusal.code))

    def _write_whole(self, pointer: int, capacity: int, data: bytes) -> int:
        """Texts, state and pixels are never cut: ETOOBIG where the buffer is too small."""
        self._guest.view(pointer, capacity)
        if len(data) > capacity:
            raise RefusalError(Errno.ETOOBIG, f"{len(data)} bytes do not fit the buffer of {capacity}")
        return self._guest.write(pointer, data)

    # --- the current frame ---------------------------------------------------------------------------------

    def _frame_info(self, out: int) -> int:
        job = self._services.job()
        frame = job.frame
        packed = _FRAME.pack(
            job.seq, job.captured_ns, job.tag, FORMATS[frame.format], frame.width, frame.height, frame.length, 0
        )
        self._guest.write(out, packed)
        return 0

    def _frame_source(self, out: int, capacity: int) -> int:
        return self._write_whole(out, capacity, self._services.job().source.encode())

    def _frame_read(self, offset: int, out: int, capacity: int) -> int:
        payload = self._services.payload()
        self._guest.view(out, capacity)
        return self._guest.write(out, payload[offset : offset + capacity])

    def _frame_pixels(self, *arguments: int) -> int:
        crop, format, width, height, out, capacity = arguments
        name = FORMAT_NAMES.get(format, "")
        self._services.job()
        if name not in SAMPLES:
            raise RefusalError(Errno.EINVAL, "pixels are RGB or GRAY")
        self._guest.view(out, capacity)
        if width * height * SAMPLES[name] > capacity:
            raise RefusalError(Errno.ETOOBIG, f"{width} x {height} pixels do not fit the buffer of {capacity}")
        return self._guest.write(out, self._services.pixels(self._crop(crop), name, width, height))

    def _crop(self, pointer: int) -> Crop:
        return Crop(*_CROP.unpack(self._guest.read(pointer, _CROP.size))) if pointer else Crop()

    # --- models --------------------------------------------------------------------------------------------

    def _known(self, model: int) -> GuestModel:
        if model >= len(self._services.models):
            raise RefusalError(Errno.EINVAL, f"{model} is not a model's handle")
        return self._services.models[model]

    def _model(self, name: int, length: int) -> int:
        wanted = self._guest.text(name, length, MAX_GUEST_NAME)
        return _index_of(wanted, (model.name for model in self._services.models))

    def _model_input(self, model: int, index: int, out: int) -> int:
        return self._write_tensor(out, _at(self._known(model).inputs, index))

    def _model_output(self, model: int, index: int, out: int) -> int:
        return self._write_tensor(out, _at(self._known(model).outputs, index))

    def _write_tensor(self, out: int, tensor: TensorInfo) -> int:
        number, _ = DTYPES.get(tensor.dtype, UNKNOWN_DTYPE)
        shape = (*tensor.shape, *(0,) * (8 - len(tensor.shape)))
        count = math.prod(tensor.shape)
        self._guest.write(
            out,
            _TENSOR.pack(number, len(tensor.shape), *shape, tensor.nbytes, count, tensor.scale, tensor.zero_point),
        )
        return 0

    def _model_output_named(self, model: int, name: int, length: int) -> int:
        known = self._known(model)
        return _index_of(self._guest.text(name, length, MAX_GUEST_NAME), (tensor.name for tensor in known.outputs))

    def _model_label(self, model: int, index: int, out: int, capacity: int) -> int:
        labels = self._known(model).labels
        if index >= len(labels):
            raise RefusalError(Errno.ENOENT, f"there is no label {index}")
        return self._write_whole(out, capacity, labels[index].encode())

    def _infer_frame(self, model: int, crop: int, fit: int) -> int:
        self._services.job()
        self._known(model)
        if fit not in FITS:
            raise RefusalError(Errno.EINVAL, f"{fit} is not a way to fit a picture")
        self._services.infer_frame(model, View(self._crop(crop), FITS[fit]))
        return 0

    def _infer_tensor(self, model: int, data: int, length: int) -> int:
        self._services.job()
        inputs = self._known(model).inputs
        if length != sum(tensor.nbytes for tensor in inputs):
            raise RefusalError(Errno.EINVAL, "the data are not as long as all the model's inputs")
        memory = self._guest.view(data, length)
        tensors = []
        for tensor in inputs:
            tensors.append(bytes(memory[: tensor.nbytes]))
            memory = memory[tensor.nbytes :]
        self._services.infer_tensors(model, tensors)
        return 0

    def _output_read(self, model: int, index: int, offset: int, out: int, capacity: int) -> int:
        _at(self._known(model).outputs, index)
        data = self._services.output(model, index)
        self._guest.view(out, capacity)
        return self._guest.write(out, data[offset : offset + capacity])

    def _output_f32(self, model: int, index: int, start: int, out: int, count: int) -> int:
        tensor = _at(self._known(model).outputs, index)
        data = self._services.output(model, index)
        if tensor.dtype not in DTYPES:
            raise RefusalError(Errno.EINVAL, f"elements of type {tensor.dtype} are no numbers that a guest could read")
        self._guest.view(out, 4 * count)
        return self._guest.write(out, dequantised(data, tensor, start, count)) // 4

    # --- results, settings, state --------------------------------------------------------------------------

    def _emit(self, tag: int, format: int, data: int, length: int) -> int:
        self._guest.view(data, length)
        if length > MAX_EMIT_BYTES:
            raise RefusalError(Errno.ETOOBIG, f"{length} bytes are over the limit of {MAX_EMIT_BYTES}")
        self._services.emit(tag, FORMAT_NAMES.get(format, ""), self._guest.read(data, length))
        return 0

    def _log(self, level: int, text: int, length: int) -> int:
        self._guest.view(text, length)
        self._services.log(level, self._guest.read(text, min(length, MAX_LOG_READ)))
        return 0

    def _setting(self, key: int, key_length: int, out: int, capacity: int) -> int:
        value = self._services.settings.get(self._guest.text(key, key_length, MAX_GUEST_NAME))
        if value is None:
            raise RefusalError(Errno.ENOENT, "no such setting")
        return self._write_whole(out, capacity, value.encode())

    def _state_get(self, key: int, key_length: int, out: int, capacity: int) -> int:
        return self._write_whole(out, capacity, self._services.state(self._guest.text(key, key_length, MAX_STATE_KEY)))

    def _state_set(self, key: int, key_length: int, value: int, length: int) -> int:
        name = self._guest.text(key, key_length, MAX_STATE_KEY)
        self._guest.view(value, length)
        if length > MAX_STATE_VALUE:
            raise RefusalError(Errno.ETOOBIG, f"a value over {MAX_STATE_VALUE} bytes")
        self._services.change_state(name, self._guest.read(value, length))
        return 0


class NativeAbi:
    """The convention: ``handle`` for every frame, and perhaps ``init`` before the first; both () -> i32.

    Before both, the constructors of a module that has a C library: ``_initialize``.
    """

    def __init__(self, guest: Guest) -> None:
        self._instance = guest.instance

    def start(self) -> None:
        handle = self._instance.find("handle")
        if handle is None:
            raise GuestFailedError("link", "it does not export handle, a function of type () -> i32")
        self._handle = handle
        initialise(self._instance, (CONSTRUCTORS,))
        init = self._instance.find("init")
        status = 0 if init is None else init()
        if status:
            raise GuestFailedError("init", f"init returned {_describe(status)}; the handler's log may say why")

    def handle(self) -> None:
        status = self._handle()
        if status:
            raise GuestFailedError("error", f"handle returned {_describe(status)}")


def dequantised(data: bytes, tensor: TensorInfo, start: int, count: int) -> bytes:
    """Up to ``count`` elements from ``start`` as little-endian float32: scale * (stored - zero_point), or as stored."""
    _, code = DTYPES[tensor.dtype]
    size = struct.calcsize(f"<{code}")
    part = data[start * size : (start + count) * size]
    part = part[: len(part) // size * size]
    if code == "f" and not tensor.scale:
        return part
    stored = struct.unpack(f"<{len(part) // size}{code}", part)
    if tensor.scale:
        return array("f", [tensor.scale * (value - tensor.zero_point) for value in stored]).tobytes()
    return array("f", stored).tobytes()


def _at(tensors: list[TensorInfo], index: int) -> TensorInfo:
    if index >= len(tensors):
        raise RefusalError(Errno.EINVAL, f"there is no tensor {index}")
    return tensors[index]


def _index_of(wanted: str, names: Iterable[str]) -> int:
    for index, name in enumerate(names):
        if name == wanted:
            return index
    raise RefusalError(Errno.ENOENT, f"there is no {wanted!r}")


def _describe(status: int) -> str:
    names = {int(code): code.name for code in Errno}
    return f"{status} ({names[status]})" if status in names else str(status)
