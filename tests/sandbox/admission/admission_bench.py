"""Modules judged in this process, and run by a bare wasm3 as workers do. Only for modules that are harmless."""

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import wasm3
import wasmtime

from appliance.sandbox.admission.binary import PAGE_BYTES
from appliance.sandbox.admission.judge import engine_for, judge
from appliance.sandbox.admission.verdict import Admitted, EngineName, Order, Rejected, Verdict

HANDLERS = Path(__file__).resolve().parents[3] / "handlers"
MODULES = sorted(HANDLERS.glob("*/handler.wasm"))
LIMIT = 16 * PAGE_BYTES
PLENTY = 1e9
"""More gas than any harmless module uses, in wasm3's unit."""
GAS_UNIT = 10_000
STACK_BYTES = 64 << 10
FRAME, TENSOR, FLOAT32 = struct.Struct("<QQIIIIII"), struct.Struct("<II8IIIfi"), 1
"""Of the native ABI."""


def verdict_on(
    module: str | bytes, engine: EngineName = "wasm3", *, memory_bytes: int = LIMIT, restorable: bool = False
) -> Verdict:
    code = bytes(wasmtime.wat2wasm(module)) if isinstance(module, str) else module
    order = Order(code, engine, memory_bytes, restorable)
    return judge(order, engine_for(order))


def admitted(
    module: str | bytes, engine: EngineName = "wasm3", *, memory_bytes: int = LIMIT, restorable: bool = False
) -> Admitted:
    verdict = verdict_on(module, engine, memory_bytes=memory_bytes, restorable=restorable)
    assert isinstance(verdict, Admitted), verdict
    return verdict


def rejected(module: str | bytes, engine: EngineName = "wasm3", *, memory_bytes: int = LIMIT) -> Rejected:
    verdict = verdict_on(module, engine, memory_bytes=memory_bytes)
    assert isinstance(verdict, Rejected), verdict
    return verdict


@dataclass
class Run:
    """One instance. ``heard`` is what its imports were called with, and what they were told."""

    code: bytes
    imports: list[tuple[str, str, str]]
    gas: float = PLENTY
    heard: list[tuple[object, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        environment = wasm3.Environment()
        self.runtime = environment.new_runtime(STACK_BYTES)
        self.module = environment.parse_module(self.code)
        self.module.gasLimit = self.gas
        self.runtime.load(self.module)
        for module, name, signature in self.imports:
            self.module.link_function(module, name, signature, self._answer(name, signature))

    def _answer(self, name: str, signature: str) -> Callable[..., int | None]:
        """A stand-in for the host: small numbers that depend on all it was asked before; pixels for a picture."""

        def answer(*arguments: int) -> int | None:
            value = (len(self.heard) * 7 + sum(arguments)) % 13
            if name == "frame_pixels":
                out, capacity = arguments[4:]
                self._write(out, bytes(index * (value + 3) % 251 for index in range(min(capacity, 1 << 20))))
                value = capacity
            elif name == "frame_info":
                self._write(arguments[0], FRAME.pack(value, value, 1, 1, 640, 480, 50_000, 0))
                value = 0
            elif name == "model_output":
                self._write(arguments[2], TENSOR.pack(FLOAT32, 2, 1, value + 1, *(0,) * 6, 4, value + 1, 0.0, 0))
                value = 0
            self.heard.append((name, arguments, value))
            return None if signature.startswith("v") else value

        return answer

    def _write(self, out: int, data: bytes) -> None:
        self.memory()[out : out + len(data)] = data

    def memory(self) -> memoryview:
        view: memoryview = self.runtime.get_memory(0)
        return view

    def call(self, name: str, *arguments: float) -> Any:
        """The result, or the text of the trap."""
        try:
            return self.runtime.find_function(name)(*arguments)
        except RuntimeError as error:
            return str(error)

    @property
    def used(self) -> int:
        """Gas."""
        return round(self.module.gasUsed * GAS_UNIT)


def run_plain(module: str | bytes) -> Run:
    """As it came."""
    code = bytes(wasmtime.wat2wasm(module)) if isinstance(module, str) else module
    return Run(code, admitted(code).imports)


def run(module: str | bytes, gas: float = PLENTY, *, restorable: bool = False) -> Run:
    """As it was rewritten."""
    verdict = admitted(module, restorable=restorable)
    return Run(verdict.code, verdict.imports, gas)
