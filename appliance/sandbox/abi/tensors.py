"""Graphs, execution contexts and tensors, as the tensor ABIs of other systems know them. They only translate.

A *graph* is a model that the guest has loaded or named; a *context* (WasmEdge calls it a session) is a set of inputs
for it and what came of them. Both are handles from 1 on, so that 0 can mean that there is none, and no handle is
given twice. Loading the same model again gives the same graph. Some of these ABIs have no way to close a context, and
guests that open one for every frame: beyond the bounds, the one that was used least recently is closed.
"""

import math
import struct
from array import array
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import count

from appliance.inference.messages import TensorInfo
from appliance.sandbox.messages import Errno, Job
from appliance.sandbox.services import RefusalError, Services

MAX_CONTEXTS = 32
MAX_HELD_BYTES = 24 << 20
"""Inputs and outputs of all contexts: the largest model's twelve and twelve MiB."""

ELEMENT_TYPES = {
    "float16": {0},
    "float32": {1},
    "float64": {2},
    "uint8": {2, 3},
    "int8": {2, 3},
    "bool": {2, 3},
    "int32": {3, 4},
    "int64": {5},
}
"""A model's dtype -> the numbers that guests have for it. Two generations of them are in use, and they overlap: u8 is 2
and i32 is 3 in the older, f64 is 2 and u8 is 3 in the newer. What is meant can be told by the model alone. Bytes that
are signed have no number of their own and pass as u8."""
INTEGERS = {"uint8": (0, 255, "B"), "int8": (-128, 127, "b"), "int16": (-(1 << 15), (1 << 15) - 1, "h")}
"""Types of quantised tensors -> least and greatest value, code of ``array``."""


class NnErrno(IntEnum):
    """wasi-nn's, as its preview-1 interface numbers them; the other ABIs have the first of them."""

    SUCCESS = 0
    INVALID_ARGUMENT = 1
    INVALID_ENCODING = 2
    MISSING_MEMORY = 3
    BUSY = 4
    RUNTIME_ERROR = 5
    UNSUPPORTED_OPERATION = 6
    TOO_LARGE = 7
    NOT_FOUND = 8


ERRNO = {
    Errno.EINVAL: NnErrno.INVALID_ARGUMENT,
    Errno.ENOENT: NnErrno.NOT_FOUND,
    Errno.ETOOBIG: NnErrno.TOO_LARGE,
    Errno.EDENIED: NnErrno.UNSUPPORTED_OPERATION,
    Errno.EMODEL: NnErrno.RUNTIME_ERROR,
    Errno.EFRAME: NnErrno.UNSUPPORTED_OPERATION,
}


def errno_of(refusal: RefusalError) -> NnErrno:
    """wasi-nn's number for a refusal."""
    return NnErrno.BUSY if refusal.busy else ERRNO[Errno(refusal.code)]


def invalid(message: str) -> RefusalError:
    """An argument that cannot be; raise it."""
    return RefusalError(Errno.EINVAL, message)


@dataclass(slots=True)
class Context:
    """Inputs for one model, and its answer to them."""

    model: int
    inputs: dict[int, bytes] = field(default_factory=dict)
    outputs: list[bytes] = field(default_factory=list)
    job: Job | None = None
    """The frame that ``outputs`` is about: they end with it."""

    def held(self) -> int:
        return sum(map(len, self.inputs.values())) + sum(map(len, self.outputs))


class Contexts:
    """A guest's graphs and contexts; every method raises RefusalError."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self.forget()

    def forget(self) -> None:
        """The guest begins anew, and knows none of its handles any more. The models themselves are kept."""
        self._handles = count(1)
        self._graphs: dict[int, int] = {}
        self._contexts: dict[int, Context] = {}
        """By handle, the one used least recently first."""

    # --- graphs --------------------------------------------------------------------------------------------

    def load(self, data: memoryview) -> int:
        """The graph of a model that the guest brings."""
        return self._graph(self._services.load_model(data))

    def load_by_name(self, name: str) -> int:
        """The graph of a model of the manifest; ENOENT. What a guest has brought is not found by a name."""
        for model, known in enumerate(self._services.models[: self._services.declared]):
            if known.name == name:
                return self._graph(model)
        raise RefusalError(Errno.ENOENT, f"there is no model {name!r}")

    def unload(self, graph: int) -> None:
        """Forget a graph; its contexts go on."""
        self.model(graph)
        del self._graphs[graph]

    def model(self, graph: int) -> int:
        """Index of a graph's model."""
        if graph not in self._graphs:
            raise invalid(f"{graph} is no graph")
        return self._graphs[graph]

    def _graph(self, model: int) -> int:
        for graph, known in self._graphs.items():
            if known == model:
                return graph
        graph = next(self._handles)
        self._graphs[graph] = model
        return graph

    # --- contexts ------------------------------------------------------------------------------------------

    def open(self, model: int) -> int:
        handle = next(self._handles)
        self._contexts[handle] = Context(model)
        if len(self._contexts) > MAX_CONTEXTS:
            self._close_oldest()
        return handle

    def close(self, handle: int) -> None:
        self._context(handle)
        del self._contexts[handle]

    def inputs(self, handle: int) -> list[TensorInfo]:
        """What the context's model takes."""
        return self._services.models[self._context(handle).model].inputs

    def outputs(self, handle: int) -> list[TensorInfo]:
        """What the context's model answers."""
        return self._services.models[self._context(handle).model].outputs

    def set_input(self, handle: int, index: int, data: bytes | memoryview) -> None:
        """One input, of its exact length. It stays for later frames, until it is set again."""
        tensor = at(self.inputs(handle), index)
        if len(data) != tensor.nbytes:
            raise invalid(f"{len(data)} bytes for the input {tensor.name!r} of {tensor.nbytes}")
        self._contexts[handle].inputs[index] = bytes(data)
        self._make_room()

    def compute(self, handle: int) -> None:
        """Run the model; all its inputs must have been set."""
        context = self._context(handle)
        context.outputs, context.job = [], None
        wanted = len(self.inputs(handle))
        if len(context.inputs) != wanted:
            raise invalid(f"{len(context.inputs)} of the model's {wanted} inputs have been set")
        self._services.infer_tensors(context.model, [context.inputs[index] for index in range(wanted)])
        job = self._services.job()
        outputs = [self._services.output(context.model, index) for index in range(len(self.outputs(handle)))]
        context.outputs, context.job = outputs, job
        self._make_room()

    def output(self, handle: int, index: int) -> bytes:
        """Raw bytes of an output; EMODEL where the model has not answered about the current frame."""
        context = self._context(handle)
        at(self.outputs(handle), index)
        if not context.outputs or context.job is not self._services.job():
            raise RefusalError(Errno.EMODEL, "the model has not answered about this frame")
        return context.outputs[index]

    def _context(self, handle: int) -> Context:
        context = self._contexts.pop(handle, None)
        if context is None:
            raise invalid(f"{handle} is no execution context")
        self._contexts[handle] = context
        return context

    def _make_room(self) -> None:
        while sum(context.held() for context in self._contexts.values()) > MAX_HELD_BYTES:
            self._close_oldest()

    def _close_oldest(self) -> None:
        del self._contexts[next(iter(self._contexts))]


def at(tensors: list[TensorInfo], index: int) -> TensorInfo:
    """The tensor of that index; EINVAL."""
    if index >= len(tensors):
        raise invalid(f"there is no tensor {index}")
    return tensors[index]


def find(tensors: list[TensorInfo], name: str) -> int | None:
    """Index of the tensor of that name."""
    return next((index for index, tensor in enumerate(tensors) if tensor.name == name), None)


def elements(tensor: TensorInfo) -> int:
    return math.prod(tensor.shape)


def check_type(tensor: TensorInfo, number: int) -> None:
    """EINVAL where no generation of the numbers has ``number`` for the tensor's type."""
    if number not in ELEMENT_TYPES.get(tensor.dtype, ()):
        raise invalid(f"element type {number} for a tensor of {tensor.dtype}")


def quantised(data: memoryview, tensor: TensorInfo) -> bytes:
    """Little-endian float32 as the tensor stores them: value / scale + zero point, cut to an integer in its range."""
    low, high, code = INTEGERS[tensor.dtype]
    scale, zero = tensor.scale, tensor.zero_point
    values = [each / scale + zero for each in struct.unpack(f"<{len(data) // 4}f", data)]
    try:
        return array(code, map(int, values)).tobytes()
    except (OverflowError, ValueError):  # some are out of range, or not numbers: several times slower
        return array(code, (int(max(low, min(high, each))) for each in values)).tobytes()
