"""The convention of the crate ``wasmedge-bindgen``: ``infer(bytes) -> String``, called with each frame's payload.

The guest owns its input and lets go of its results, which are freed where it has ``deallocate``. What leaks all the
same ends when the guest is worn: it begins anew, between two frames.
"""

import struct
from collections.abc import Iterator

from appliance.sandbox.abi.exports import exports, initialise, required
from appliance.sandbox.abi.guest import Guest
from appliance.sandbox.abi.results import emit_bytes, emit_text
from appliance.sandbox.engine import Function, GuestFailedError
from appliance.sandbox.messages import MAX_EMIT_BYTES, MAX_EMITS
from appliance.sandbox.services import RefusalError

NAME = "bindgen"
BYTE_ARRAY, STRING = 21, 31
MAX_RESULTS = MAX_EMITS
MAX_ERROR_TEXT = 512
WORN = 0.5
"""Part of the memory left after the start that it grows into before the guest begins anew: memory never shrinks."""
OLDER = "__wbindgen_malloc"
"""Exported by modules of rustwasmc's older convention."""

_INPUT = struct.Struct("<II")
_RETURNED = struct.Struct("<BII")
_RESULT = struct.Struct("<III")
_U32 = 0xFFFF_FFFF


class Bindgen:
    """The convention."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._services = guest.services
        self._limit = guest.services.setup.memory_bytes
        self._stopped = False
        """In the middle of a frame: its allocator is in an unknown state, or out of memory."""

    def start(self) -> None:
        instance = self._guest.instance
        if exports(instance, OLDER) and not exports(instance, "allocate"):
            raise GuestFailedError(
                "link",
                f"it exports {OLDER}: it is compiled for rustwasmc's older convention, which is not supported; "
                "use the crate wasmedge-bindgen",
            )
        self._allocate = required(instance, "allocate", "i(i)", NAME)
        self._infer = required(instance, "infer", "i(ii)", NAME)
        self._deallocate = instance.find("deallocate", "v(ii)")
        initialise(instance)
        first = len(instance.memory())
        self._worn_at = first + max(0, int((self._limit - first) * WORN))

    def handle(self) -> None:
        if self._stopped or len(self._guest.instance.memory()) > self._worn_at:
            self._guest.reset()
            self.start()
        self._stopped = True
        try:
            self._handle()
        except RefusalError as refusal:  # a pointer of the guest's is outside its memory
            raise GuestFailedError("output", f"what infer returned is not as {NAME} has it: {refusal}") from refusal

    def _handle(self) -> None:
        payload = self._services.payload()
        inputs = self._put(_INPUT.pack(self._put(payload), len(payload)))
        returned = self._called(self._infer, inputs, 1)
        self._stopped = False
        failed, pointer, length = _RETURNED.unpack(self._guest.read(returned, _RETURNED.size))
        if failed:
            text = self._guest.read(pointer, length)[:MAX_ERROR_TEXT]
            self._free((pointer, length), (returned, _RETURNED.size))
            raise GuestFailedError("error", f"infer failed: {text.decode('utf-8', 'replace')}")
        if length > MAX_RESULTS:
            raise GuestFailedError("output", f"infer returned {length} results, more than {MAX_RESULTS}")
        results = list(self._results(pointer, length))
        self._free(*((at, size) for at, _, size in results), (pointer, length * _RESULT.size))
        self._free((returned, _RETURNED.size))

    def _put(self, data: bytes | memoryview) -> int:
        """``data`` in memory that the guest allocates."""
        pointer = self._called(self._allocate, len(data))
        self._guest.write(pointer, data)
        return pointer

    def _called(self, function: Function, *arguments: int) -> int:
        result = function(*arguments)
        self._guest.forget_view()
        return int(result) & _U32

    def _results(self, pointer: int, count: int) -> Iterator[tuple[int, int, int]]:
        """Emit each result; (pointer, type, length) of them."""
        for at, type, length in _RESULT.iter_unpack(self._guest.read(pointer, count * _RESULT.size)):
            if type not in (BYTE_ARRAY, STRING):
                raise GuestFailedError(
                    "output", f"infer returned a value of type {type}: only texts and bytes are known"
                )
            self._guest.view(at, length)
            if length > MAX_EMIT_BYTES:
                raise GuestFailedError("output", f"infer returned {length} bytes, more than {MAX_EMIT_BYTES}")
            (emit_text if type == STRING else emit_bytes)(self._services, self._guest.read(at, length))
            yield at, type, length

    def _free(self, *parts: tuple[int, int]) -> None:
        """Nothing of no length: such a text was never allocated."""
        for pointer, length in parts:
            if self._deallocate and length:
                self._deallocate(pointer, length)
                self._guest.forget_view()
