"""wasi-nn, preview-1 style: what guests of the crate ``wasi-nn`` up to 0.6 import, and what WasmEdge added to it."""

import math
import struct
from collections.abc import Iterable

from appliance.inference.messages import MAX_RANK, TensorInfo
from appliance.inference.model import TFLITE_IDENTIFIER
from appliance.sandbox.abi.guest import Guest, Method, PointerError
from appliance.sandbox.abi.tensors import Contexts, NnErrno, at, check_type, elements, errno_of, invalid
from appliance.sandbox.engine import HostFunction
from appliance.sandbox.services import RefusalError

MODULE = "wasi_ephemeral_nn"
TENSORFLOWLITE, AUTODETECT = 4, 5
TARGETS = range(4)
"""CPU, GPU, TPU and auto: a wish. Where a model runs is the operator's to say."""
MAX_NAME = 256
"""Bytes of a model's name."""
MAX_CONFIG = 64 << 10
"""Bytes of a configuration that comes with a name; nothing in it applies here."""

_BUILDER = struct.Struct("<II")
_TENSOR = struct.Struct("<IIB3xII")


class WasiEphemeralNn:
    """The host functions of the module ``wasi_ephemeral_nn``; each returns an errno."""

    def __init__(self, guest: Guest, contexts: Contexts) -> None:
        self._guest = guest
        self._contexts = contexts

    def functions(self) -> Iterable[HostFunction]:
        methods: dict[str, Method] = {
            "load": self._load,
            "load_by_name": self._load_by_name,
            "load_by_name_with_config": self._load_by_name_with_config,
            "unload": self._unload,
            "init_execution_context": self._init_execution_context,
            "finalize_execution_context": self._finalize_execution_context,
            "set_input": self._set_input,
            "compute": self._compute,
            "get_output": self._get_output,
            # one token after the other: no TFLite model works like that
            "compute_single": self._unsupported,
            "get_output_single": self._unsupported,
            "fini_single": self._unsupported,
        }
        return self._guest.provide(MODULE, methods, self._refused)

    def _refused(self, refusal: RefusalError) -> int:
        if isinstance(refusal, PointerError) and not self._guest.instance.memory():
            return NnErrno.MISSING_MEMORY
        return errno_of(refusal)

    # --- graphs --------------------------------------------------------------------------------------------

    def _load(self, builders: int, count: int, encoding: int, target: int, out: int) -> int:
        self._guest.view(out, 4)
        if target not in TARGETS:
            raise invalid(f"{target} is no execution target")
        if encoding not in (TENSORFLOWLITE, AUTODETECT):
            return NnErrno.INVALID_ENCODING
        if count != 1:
            raise invalid(f"a TFLite model is one file, not {count}")
        model = self._guest.view(*_BUILDER.unpack(self._guest.view(builders, _BUILDER.size)))
        if model[4:8] != TFLITE_IDENTIFIER:
            return NnErrno.INVALID_ENCODING if encoding == AUTODETECT else NnErrno.INVALID_ARGUMENT
        return self._answer(out, self._contexts.load(model))

    def _load_by_name(self, name: int, length: int, out: int) -> int:
        self._guest.view(out, 4)
        return self._answer(out, self._contexts.load_by_name(self._guest.text(name, length, MAX_NAME)))

    def _load_by_name_with_config(self, name: int, length: int, config: int, config_length: int, out: int) -> int:
        self._guest.text(config, config_length, MAX_CONFIG)
        return self._load_by_name(name, length, out)

    def _unload(self, graph: int) -> int:
        self._contexts.unload(graph)
        return NnErrno.SUCCESS

    # --- contexts ------------------------------------------------------------------------------------------

    def _init_execution_context(self, graph: int, out: int) -> int:
        self._guest.view(out, 4)
        return self._answer(out, self._contexts.open(self._contexts.model(graph)))

    def _finalize_execution_context(self, context: int) -> int:
        self._contexts.close(context)
        return NnErrno.SUCCESS

    def _set_input(self, context: int, index: int, tensor: int) -> int:
        inputs = self._contexts.inputs(context)
        shape, rank, element_type, data, length = _TENSOR.unpack(self._guest.view(tensor, _TENSOR.size))
        wanted = at(inputs, index)
        check_type(wanted, element_type)
        self._check_shape(wanted, shape, rank)
        self._contexts.set_input(context, index, self._guest.view(data, length))
        return NnErrno.SUCCESS

    def _check_shape(self, tensor: TensorInfo, shape: int, rank: int) -> None:
        """As many elements as the model's input has; how guests write its dimensions differs."""
        if rank > MAX_RANK:
            raise invalid(f"{rank} dimensions")
        sides = struct.unpack(f"<{rank}I", self._guest.view(shape, 4 * rank))
        if math.prod(sides) != elements(tensor):
            raise invalid(f"a tensor of {sides} for the input {tensor.name!r} of {tensor.shape}")

    def _compute(self, context: int) -> int:
        self._contexts.compute(context)
        return NnErrno.SUCCESS

    def _get_output(self, context: int, index: int, buffer: int, capacity: int, written: int) -> int:
        self._guest.view(buffer, capacity)
        self._guest.view(written, 4)
        data = self._contexts.output(context, index)
        self._guest.write_u32(written, len(data))  # also where it does not fit: so much is needed
        if len(data) > capacity:
            return NnErrno.TOO_LARGE
        self._guest.write(buffer, data)
        return NnErrno.SUCCESS

    def _unsupported(self, *_arguments: int) -> int:
        return NnErrno.UNSUPPORTED_OPERATION

    def _answer(self, out: int, handle: int) -> int:
        self._guest.write_u32(out, handle)
        return NnErrno.SUCCESS
