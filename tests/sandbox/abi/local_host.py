"""A guest of any convention on the real engine in this process, with the zipper's side of its socket in memory."""

from collections.abc import Mapping
from typing import Any, cast

import sandbox_bench
from sandbox_bench import admit

from appliance.ipc.packets import BlockingChannel
from appliance.ipc.ring import FrameRef, RingReader
from appliance.sandbox.abi import bind
from appliance.sandbox.admission.verdict import Admitted
from appliance.sandbox.engine import Function, HostFunction, Instance, open_engine
from appliance.sandbox.host import RESTORED_ABIS
from appliance.sandbox.messages import (
    CommandSpec,
    Emit,
    Errno,
    Job,
    Log,
    PixelData,
    Refused,
    Setup,
    ToWorker,
    WantPixels,
)
from appliance.sandbox.services import Services

MEMORY_BYTES = 16 << 20
TAG = 0x10
CAPTURED_NS = 1_700_000_000_000_000_000


NOWHERE = Admitted("", b"", [], {}, [], 0)
"""What a setup holds of a module that is loaded already."""


def loaded(module: bytes, abi: str, memory_bytes: int) -> Instance:
    admitted = admit(module, sandbox_bench.ENGINE, memory_bytes, restorable=abi in RESTORED_ABIS)
    instance = open_engine(sandbox_bench.ENGINE).load(admitted, memory_bytes)
    instance.allow(1 << 40)
    return instance


class LocalHost:
    """What a worker has around a guest, bound to ``instance``, or to a module loaded here."""

    def __init__(
        self,
        module: bytes = b"",
        abi: str = "command",
        *,
        instance: Instance | None = None,
        emits: tuple[int, ...] = (TAG,),
        observes: tuple[int, ...] = (1,),
        files: Mapping[str, bytes] | None = None,
        command: CommandSpec | None = None,
        host_calls: int = 10_000,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        self.lines: list[tuple[int, str]] = []
        self.asked: list[WantPixels] = []
        self.pixels: bytes | None = None
        self._payload = b""
        self._answer: ToWorker | None = None
        self._seq = 0
        setup = Setup(
            handler="tested",
            module=NOWHERE,
            abi=abi,
            emits=list(emits),
            observes=list(observes),
            models=[],
            settings={},
            state={},
            memory_bytes=memory_bytes,
            cpu_seconds=60,
            host_calls=host_calls,
            files=dict(files or {}),
            command=command,
        )
        # this object has the few methods of both that the services call
        channel, ring = cast("BlockingChannel[ToWorker]", self), cast("RingReader", self)
        self.services = Services(setup, channel, ring)
        self.instance = instance or loaded(module, abi, memory_bytes)
        self.abi = bind(abi, self.instance, self.services)

    def begin(self, payload: bytes = b"", format: str = "jpeg", width: int = 0, height: int = 0, tag: int = 1) -> None:
        """``payload`` is the current frame."""
        self._payload = payload
        self._seq += 1
        ref = FrameRef(1, 0, len(payload), format, width, height)
        self.services.begin(Job(ref, tag, "door", self._seq, CAPTURED_NS))

    def handle(self, payload: bytes = b"", **frame: Any) -> list[Emit]:
        """Have one frame handled: what was emitted; GuestFailedError."""
        self.begin(payload, **frame)
        self.abi.handle()
        return self.services.finish().emits

    # --- the zipper's side ---------------------------------------------------------------------------------

    def send(self, message: Log | WantPixels) -> None:
        if isinstance(message, Log):
            self.lines.append((message.level, message.text))
            return
        self.asked.append(message)
        self._answer = Refused(Errno.EFRAME, "damaged") if self.pixels is None else PixelData(self.pixels)

    def receive(self) -> ToWorker | None:
        return self._answer

    def view(self, _ref: FrameRef) -> memoryview:
        return memoryview(self._payload)


class Memory:
    """An instance that is memory and nothing else; the test calls its imports, as a guest would."""

    def __init__(self, size: int = 1 << 16) -> None:
        self.data = bytearray(size)
        self.imports: dict[tuple[str, str], HostFunction] = {}

    def link(self, functions: Any) -> None:
        self.imports = {(function.module, function.name): function for function in functions}

    def find(self, name: str, signature: str = "i()") -> Function | None:
        raise AssertionError

    def memory(self) -> memoryview:
        return memoryview(self.data)

    def reset(self) -> None:
        raise AssertionError

    def call(self, module: str, name: str, *arguments: int) -> int | None:
        """With arguments as an engine hands them on: signed."""
        function = self.imports[module, name]
        bits = [{"i": 32, "I": 64}[kind] for kind in function.signature.partition("(")[2].rstrip(")")]
        assert len(arguments) == len(bits)
        signed = [
            value - (1 << size) if value >> (size - 1) else value for value, size in zip(arguments, bits, strict=True)
        ]
        return function.call(*signed)
