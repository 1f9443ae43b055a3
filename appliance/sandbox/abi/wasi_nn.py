"""WAMR's older wasi-nn: structures of C are passed by pointers, and tensors are float32 whatever the model stores.

As WAMR's TFLite backend does, a float32 input is quantised for a model whose input is, and a quantised output is given
as float32. Errors are numbered 0 to 5 only: what has a number of its own in wasi-nn since has the nearest of these.
"""

import math
import struct
from collections.abc import Iterable

from appliance.inference.messages import MAX_RANK, TensorInfo
from appliance.inference.model import TFLITE_IDENTIFIER
from appliance.sandbox.abi.guest import Guest, Method, PointerError
from appliance.sandbox.abi.native import dequantised
from appliance.sandbox.abi.tensors import (
    INTEGERS,
    Contexts,
    NnErrno,
    at,
    check_type,
    elements,
    errno_of,
    invalid,
    quantised,
)
from appliance.sandbox.engine import HostFunction
from appliance.sandbox.services import RefusalError

MODULE = "wasi_nn"
TENSORFLOWLITE = 4
TARGETS = range(3)
FLOAT32 = 1

_PAIR = struct.Struct("<II")
"""Pointer and length: of the builders, of a builder, of the dimensions."""
_TENSOR = struct.Struct("<III")
"""Pointer to the dimensions, type, pointer to the data."""
_NEAREST = {
    NnErrno.UNSUPPORTED_OPERATION: NnErrno.RUNTIME_ERROR,
    NnErrno.TOO_LARGE: NnErrno.MISSING_MEMORY,
    NnErrno.NOT_FOUND: NnErrno.INVALID_ARGUMENT,
}


class WasiNn:
    """The host functions of the module ``wasi_nn``; each returns an errno."""

    def __init__(self, guest: Guest, contexts: Contexts) -> None:
        self._guest = guest
        self._contexts = contexts

    def functions(self) -> Iterable[HostFunction]:
        methods: dict[str, Method] = {
            "load": self._load,
            "init_execution_context": self._init_execution_context,
            "set_input": self._set_input,
            "compute": self._compute,
            "get_output": self._get_output,
        }
        return self._guest.provide(MODULE, methods, self._refused)

    def _refused(self, refusal: RefusalError) -> int:
        if isinstance(refusal, PointerError) and not self._guest.instance.memory():
            return NnErrno.MISSING_MEMORY
        errno = errno_of(refusal)
        return _NEAREST.get(errno, errno)

    def _pair(self, pointer: int) -> tuple[int, int]:
        first, second = _PAIR.unpack(self._guest.view(pointer, _PAIR.size))
        return first, second

    def _load(self, builders: int, encoding: int, target: int, out: int) -> int:
        self._guest.view(out, 4)
        if encoding != TENSORFLOWLITE:
            return NnErrno.INVALID_ENCODING
        if target not in TARGETS:
            raise invalid(f"{target} is no execution target")
        first, count = self._pair(builders)
        if count != 1:
            raise invalid(f"a TFLite model is one file, not {count}")
        model = self._guest.view(*self._pair(first))
        if model[4:8] != TFLITE_IDENTIFIER:
            raise invalid("not a TFLite model")
        self._guest.write_u32(out, self._contexts.load(model))
        return NnErrno.SUCCESS

    def _init_execution_context(self, graph: int, out: int) -> int:
        self._guest.view(out, 4)
        self._guest.write_u32(out, self._contexts.open(self._contexts.model(graph)))
        return NnErrno.SUCCESS

    def _set_input(self, context: int, index: int, tensor: int) -> int:
        inputs = self._contexts.inputs(context)
        shape, element_type, data = _TENSOR.unpack(self._guest.view(tensor, _TENSOR.size))
        wanted = at(inputs, index)
        self._check_shape(wanted, shape)
        if element_type == FLOAT32 and wanted.scale and wanted.dtype in INTEGERS:
            floats = self._guest.view(data, 4 * elements(wanted))
            self._contexts.set_input(context, index, quantised(floats, wanted))
        else:
            check_type(wanted, element_type)
            self._contexts.set_input(context, index, self._guest.view(data, wanted.nbytes))
        return NnErrno.SUCCESS

    def _check_shape(self, tensor: TensorInfo, pointer: int) -> None:
        sides, rank = self._pair(pointer)
        if rank > MAX_RANK:
            raise invalid(f"{rank} dimensions")
        shape = struct.unpack(f"<{rank}I", self._guest.view(sides, 4 * rank))
        if math.prod(shape) != elements(tensor):
            raise invalid(f"a tensor of {shape} for the input {tensor.name!r} of {tensor.shape}")

    def _compute(self, context: int) -> int:
        self._contexts.compute(context)
        return NnErrno.SUCCESS

    def _get_output(self, context: int, index: int, buffer: int, size: int) -> int:
        """``size`` points to the buffer's room, and then to what was written: both count float32."""
        room = self._guest.u32(size)
        tensor = at(self._contexts.outputs(context), index)
        data = self._contexts.output(context, index)
        if tensor.scale:
            data = dequantised(data, tensor, 0, elements(tensor))
        if len(data) > 4 * room:
            return NnErrno.MISSING_MEMORY
        self._guest.write(buffer, data)
        self._guest.write_u32(size, len(data) // 4)
        return NnErrno.SUCCESS
