"""TFLite runtimes behind one small interface, chosen by name. Only a model's process imports a runtime."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from appliance.errors import ConfigError, DeviceError, ModelError
from appliance.inference.first_model import FIRST_MODEL
from appliance.inference.messages import (
    MAX_FLOAT32,
    MAX_RANK,
    MAX_TENSOR_BYTES,
    MAX_TENSOR_NAME,
    MAX_TENSORS,
    TensorInfo,
)

MAX_REASON = 300
"""Characters kept of what a runtime says about a model: some of it comes from the model file."""
DTYPES = frozenset({"uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64", "bool"})
"""Element types a tensor may have: those a guest can name."""

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Package:
    """Where a runtime comes from."""

    package: str
    remedy: str


RUNTIMES: Mapping[str, Package] = {
    "litert": Package("ai_edge_litert", "install ai-edge-litert"),
    "tflite": Package(
        "tflite_runtime",
        "install tflite-runtime 2.14.0 (Python 3.11 or older), or set inference.runtime to 'litert'",
    ),
}


class Runtime:
    """One of RUNTIMES, imported. ConfigError for an unknown name, DeviceError where it is not installed."""

    def __init__(self, name: str) -> None:
        package = RUNTIMES.get(name)
        if package is None:
            raise ConfigError(f"inference.runtime: no runtime is called {name!r}; there are {', '.join(RUNTIMES)}")
        try:
            self._interpreter = importlib.import_module(f"{package.package}.interpreter")
            version = importlib.import_module(package.package).__version__
        except ImportError as error:
            raise DeviceError(f"the runtime {name!r} cannot be imported ({error}): {package.remedy}") from error
        self.label = f"{name} {version}"

    def warm_up(self) -> None:
        """Open and import all that the runtime opens and imports when it is first used."""
        try:
            self.load(FIRST_MODEL)
        except ModelError as error:
            raise DeviceError(f"the runtime {self.label} does not work here: {error}") from error

    def load_delegate(self, library: str, options: Mapping[str, str]) -> object:
        """A delegate for :meth:`load`; DeviceError where the library is missing or finds no device."""
        try:
            return self._interpreter.load_delegate(library, dict(options))
        except (OSError, ValueError, AttributeError) as error:  # AttributeError: a library, but no delegate
            raise DeviceError(f"the delegate {library} cannot be loaded: {reason_of(error)}") from error

    def load(self, content: bytes, threads: int = 1, delegate: object | None = None) -> "Model":
        """Load a model from verified bytes and run it once on zeros.

        The first run packs weights and faults memory in, settles the shapes of dynamic outputs, and shows a
        model that cannot run before anybody relies on it. ModelError says what the runtime said.
        """
        try:
            interpreter = self._interpreter.Interpreter(
                model_content=content,
                num_threads=threads,
                experimental_delegates=None if delegate is None else [delegate],
            )
            # Before tensors are allocated only the given delegate can have taken nodes: the runtime adds its
            # own CPU delegate (XNNPACK) afterwards.
            delegated = any(node["op_name"] == "DELEGATE" for node in interpreter._get_ops_details())  # noqa: SLF001
            interpreter.allocate_tensors()
            return Model(interpreter, delegate, delegated=delegated)
        except (ValueError, RuntimeError, TypeError, MemoryError) as error:
            raise ModelError(f"the model cannot be loaded: {reason_of(error)}") from error


class Model:
    """A loaded model, ready to run; not for two threads at once."""

    def __init__(self, interpreter: Any, delegate: object | None, *, delegated: bool) -> None:
        self._interpreter = interpreter
        self._delegate = delegate
        self.delegated = delegated
        """Whether the given delegate really took a part of the model."""
        details = interpreter.get_input_details()
        self.inputs = [describe(detail) for detail in details]
        self._input_indices = [detail["index"] for detail in details]
        self._output_indices = [detail["index"] for detail in interpreter.get_output_details()]
        check_size("inputs", self.inputs)
        self.outputs: list[TensorInfo] = []
        self.run([np.zeros(info.shape, info.dtype) for info in self.inputs])
        self.outputs = [describe(detail) for detail in interpreter.get_output_details()]
        check_size("outputs", self.outputs)

    def run(self, tensors: Sequence[Array]) -> list[bytes]:
        """Run once on one array for each input (its shape and dtype); the raw bytes of each output.

        ModelError where the runtime fails, or an output has another size than ``outputs`` says.
        """
        try:
            for index, tensor in zip(self._input_indices, tensors, strict=True):
                self._interpreter.set_tensor(index, tensor)
            self._interpreter.invoke()
            results = [self._interpreter.get_tensor(index).tobytes() for index in self._output_indices]
        except (ValueError, RuntimeError, MemoryError) as error:
            raise ModelError(f"the model failed: {reason_of(error)}") from error
        for info, result in zip(self.outputs, results, strict=False):
            if len(result) != info.nbytes:
                raise ModelError(f"output {info.name!r} has {len(result)} bytes now, and had {info.nbytes}")
        return results

    def close(self) -> None:
        """Release the interpreter, then the delegate: the other way round, or at exit, is a crash."""
        self._interpreter = None
        self._delegate = None


def array_of(info: TensorInfo, data: bytes) -> Array:
    """Raw bytes of exactly ``info.nbytes`` as the array that :meth:`Model.run` takes."""
    return np.frombuffer(data, info.dtype).reshape(info.shape)


def describe(detail: Mapping[str, Any]) -> TensorInfo:
    """What a runtime says of a tensor, within the bounds of messages.py; ModelError beyond them."""
    name = detail["name"][:MAX_TENSOR_NAME]
    dtype = np.dtype(detail["dtype"])
    shape = tuple(int(side) for side in detail["shape"])
    if dtype.name not in DTYPES:
        raise ModelError(f"tensor {name!r} holds {dtype.name}, which no handler can use")
    if len(shape) > MAX_RANK or any(side < 0 for side in shape):
        raise ModelError(f"tensor {name!r} has the shape {shape}; at most {MAX_RANK} dimensions")
    nbytes = dtype.itemsize
    for side in shape:
        nbytes *= side
    scale, zero_point = detail["quantization"]
    if not 0 <= scale <= MAX_FLOAT32 or not -(1 << 31) <= zero_point < 1 << 31:
        raise ModelError(f"tensor {name!r} is quantised with the scale {scale} and the zero point {zero_point}")
    return TensorInfo(name, dtype.name, shape, nbytes, float(scale), int(zero_point))


def check_size(what: str, tensors: Sequence[TensorInfo]) -> None:
    """ModelError where the inputs or outputs together would not fit one message."""
    if not 1 <= len(tensors) <= MAX_TENSORS:
        raise ModelError(f"the model has {len(tensors)} {what}; 1 to {MAX_TENSORS} can be used")
    total = sum(info.nbytes for info in tensors)
    if total > MAX_TENSOR_BYTES:
        raise ModelError(f"the model's {what} hold {total} bytes; {MAX_TENSOR_BYTES} can be used")


def reason_of(error: Exception) -> str:
    """One bounded line of what a library said."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= MAX_REASON else text[: MAX_REASON - 1] + "…"
