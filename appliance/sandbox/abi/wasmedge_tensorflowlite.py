"""WasmEdge's TensorFlow Lite, for both generations of the crate ``wasmedge_tensorflow_interface``.

0.2 (names with a prefix) has handles of 64 bits and says of a failure 0, 1 or nothing at all; 0.3 has handles of 32
bits and an errno of 0 to 5: its crate cannot take another. Tensors are found by their names.
"""

import contextlib
from collections.abc import Iterable
from itertools import chain

from appliance.inference.messages import MAX_TENSOR_NAME
from appliance.inference.model import TFLITE_IDENTIFIER
from appliance.sandbox.abi.guest import Guest, Method, PointerError
from appliance.sandbox.abi.tensors import Contexts, NnErrno, at, errno_of, find, invalid
from appliance.sandbox.engine import HostFunction
from appliance.sandbox.services import RefusalError

MODULE = "wasmedge_tensorflowlite"
PREFIX = "wasmedge_tensorflowlite_"
NONE, FAILED = 0, 1
_TENSOR_BITS = 8
"""A tensor of 0.2 is its session's handle, and below it its index + 1: MAX_TENSORS of them fit."""
_NEAREST = {
    NnErrno.UNSUPPORTED_OPERATION: NnErrno.RUNTIME_ERROR,
    NnErrno.TOO_LARGE: NnErrno.RUNTIME_ERROR,
    NnErrno.NOT_FOUND: NnErrno.INVALID_ARGUMENT,
}


class WasmedgeTensorflowLite:
    """The host functions of the module ``wasmedge_tensorflowlite``."""

    def __init__(self, guest: Guest, contexts: Contexts) -> None:
        self._guest = guest
        self._contexts = contexts

    def functions(self) -> Iterable[HostFunction]:
        handles: dict[str, Method] = {
            "create_session": self._create,
            "get_output_tensor": self._output_tensor,
            "get_tensor_len": self._tensor_length,
        }
        statuses: dict[str, Method] = {"run_session": self._run}
        silent: dict[str, Method] = {
            "append_input": self._append_known,
            "get_tensor_data": self._tensor_data,
            "delete_session": self._contexts.close,
        }
        errnos: dict[str, Method] = {
            "create_session": self._create_session,
            "append_input": self._append_input,
            "run_session": self._run,
            "get_output_tensor": self._get_output_tensor,
            "get_tensor_len": self._get_tensor_len,
            "get_tensor_data": self._get_tensor_data,
            "delete_session": self._delete_session,
        }
        provide = self._guest.provide
        return chain(
            provide(MODULE, _prefixed(handles), lambda _: NONE),
            provide(MODULE, _prefixed(statuses), lambda _: FAILED),
            provide(MODULE, _prefixed(silent), lambda _: None),
            provide(MODULE, errnos, _refused),
        )

    # --- both ----------------------------------------------------------------------------------------------

    def _create(self, model: int, length: int) -> int:
        data = self._guest.view(model, length)
        if data[4:8] != TFLITE_IDENTIFIER:
            raise invalid("not a TFLite model")
        return self._contexts.open(self._contexts.model(self._contexts.load(data)))

    def _run(self, session: int) -> int:
        self._contexts.compute(session)
        return NnErrno.SUCCESS

    def _name(self, name: int, length: int) -> str:
        return self._guest.text(name, length, MAX_TENSOR_NAME)

    # --- 0.2 -----------------------------------------------------------------------------------------------

    def _append_known(self, session: int, name: int, name_length: int, buffer: int, length: int) -> None:
        """An input that the model has not is ignored."""
        self._append_input(session, name, name_length, buffer, length)

    def _output_tensor(self, session: int, name: int, length: int) -> int:
        index = find(self._contexts.outputs(session), self._name(name, length))
        return NONE if index is None else session << _TENSOR_BITS | index + 1

    def _tensor_length(self, tensor: int) -> int:
        session, index = _tensor(tensor)
        return at(self._contexts.outputs(session), index).nbytes

    def _tensor_data(self, tensor: int, destination: int) -> None:
        self._guest.write(destination, self._contexts.output(*_tensor(tensor)))

    # --- 0.3 -----------------------------------------------------------------------------------------------

    def _create_session(self, model: int, length: int, out: int) -> int:
        self._guest.view(out, 4)
        self._guest.write_u32(out, self._create(model, length))
        return NnErrno.SUCCESS

    def _append_input(self, session: int, name: int, name_length: int, buffer: int, length: int) -> int:
        inputs = self._contexts.inputs(session)
        data = self._guest.view(buffer, length)
        index = find(inputs, self._name(name, name_length))
        if index is None:
            raise invalid("no input has this name")
        self._contexts.set_input(session, index, data)
        return NnErrno.SUCCESS

    def _get_output_tensor(self, session: int, name: int, length: int, out: int) -> int:
        outputs = self._contexts.outputs(session)
        self._guest.view(out, 4)
        index = find(outputs, self._name(name, length))
        if index is None:
            raise invalid("no output has this name")
        self._guest.write_u32(out, index)
        return NnErrno.SUCCESS

    def _get_tensor_len(self, session: int, tensor: int, out: int) -> int:
        self._guest.write_u32(out, at(self._contexts.outputs(session), tensor).nbytes)
        return NnErrno.SUCCESS

    def _get_tensor_data(self, session: int, tensor: int, buffer: int, length: int, written: int) -> int:
        outputs = self._contexts.outputs(session)
        self._guest.view(buffer, length)
        self._guest.view(written, 4)
        if at(outputs, tensor).nbytes != length:
            raise invalid("the buffer is not as long as the tensor")
        self._guest.write(buffer, self._contexts.output(session, tensor))
        self._guest.write_u32(written, length)
        return NnErrno.SUCCESS

    def _delete_session(self, session: int) -> int:
        """Never fails: what is not there is deleted, and the crate takes no other answer."""
        with contextlib.suppress(RefusalError):
            self._contexts.close(session)
        return NnErrno.SUCCESS


def _prefixed(methods: dict[str, Method]) -> dict[str, Method]:
    return {PREFIX + name: method for name, method in methods.items()}


def _tensor(handle: int) -> tuple[int, int]:
    """Session and index; EINVAL."""
    index = handle & (1 << _TENSOR_BITS) - 1
    if not index:
        raise invalid(f"{handle} is no tensor")
    return handle >> _TENSOR_BITS, index - 1


def _refused(refusal: RefusalError) -> int:
    if isinstance(refusal, PointerError):
        return NnErrno.MISSING_MEMORY
    errno = errno_of(refusal)
    return _NEAREST.get(errno, errno)
