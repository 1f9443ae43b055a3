"""Real zygote, real workers, real guests written in WebAssembly text; only inference is a double."""

import asyncio
import contextlib
import struct
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import wasmtime

from appliance.frame import ModelRun
from appliance.inference.messages import PIXEL_BYTES, Crop, Ready, TensorInfo, View
from appliance.inference.model import ModelSpec
from appliance.ipc.ring import FrameRef, RingWriter
from appliance.manifest import EngineName, Limits
from appliance.sandbox.admission.admit import RefusedError
from appliance.sandbox.admission.judge import engine_for, judge
from appliance.sandbox.admission.verdict import Admitted, Order, Rejected
from appliance.sandbox.guest_models import GuestModelStore
from appliance.sandbox.host import HandlerHost
from appliance.sandbox.life import Inference
from appliance.sandbox.messages import Job
from appliance.sandbox.session import Finished
from appliance.sandbox.spawning import Zygote
from appliance.sandbox.spec import HandlerModel, HandlerSpec

TIMEOUT = 20.0
"""Seconds until a test that waits for something fails: far more than anything takes."""
TAG = 0x10
ENGINE: EngineName = "wasm3"
"""Of handlers that say nothing of it."""

IMPORTS = {
    "frame_info": "(param i32) (result i32)",
    "frame_source": "(param i32 i32) (result i32)",
    "frame_read": "(param i32 i32 i32) (result i32)",
    "frame_pixels": "(param i32 i32 i32 i32 i32 i32) (result i32)",
    "model": "(param i32 i32) (result i32)",
    "model_input": "(param i32 i32 i32) (result i32)",
    "model_output": "(param i32 i32 i32) (result i32)",
    "model_output_named": "(param i32 i32 i32) (result i32)",
    "model_label": "(param i32 i32 i32 i32) (result i32)",
    "infer_frame": "(param i32 i32 i32) (result i32)",
    "infer_tensor": "(param i32 i32 i32) (result i32)",
    "output_read": "(param i32 i32 i32 i32 i32) (result i32)",
    "output_f32": "(param i32 i32 i32 i32 i32) (result i32)",
    "emit": "(param i32 i32 i32 i32) (result i32)",
    "log": "(param i32 i32 i32) (result i32)",
    "now_ns": "(result i64)",
    "setting": "(param i32 i32 i32 i32) (result i32)",
    "state_get": "(param i32 i32 i32 i32) (result i32)",
    "state_set": "(param i32 i32 i32 i32) (result i32)",
}


def guest(handle: str, *, init: str = "", data: str = "", memory: str = "1 4", extra: str = "") -> bytes:
    """A module with every import, one page of memory, and ``handle`` (and ``init``) with these bodies."""
    imports = "".join(f'(import "appliance" "{name}" (func ${name} {kind}))' for name, kind in IMPORTS.items())
    start = f'(func (export "init") (result i32) (local $i i32) {init})' if init else ""
    return assemble(
        f"""(module {imports} (memory (export "memory") {memory}) {data} {extra} {start}
        (func (export "handle") (result i32) (local $i i32) (local $j i32) {handle}))"""
    )


def assemble(text: str) -> bytes:
    return bytes(wasmtime.wat2wasm(text))


def admit(
    module: bytes, engine: EngineName = "wasm3", memory_bytes: int = 1 << 20, *, restorable: bool = False
) -> Admitted:
    """A module of a test, judged in this process."""
    order = Order(module, engine, memory_bytes, restorable)
    verdict = judge(order, engine_for(order))
    assert isinstance(verdict, Admitted), verdict
    return verdict


class JudgedHere:
    """Admission without its process, and the same verdicts."""

    async def admit(self, order: Order) -> Admitted:
        verdict = judge(order, engine_for(order))
        if isinstance(verdict, Rejected):
            raise RefusedError(verdict.rule, verdict.message, verdict.offset)
        return verdict


def data(offset: int, content: bytes | str) -> str:
    """A data segment."""
    raw = content.encode() if isinstance(content, str) else content
    text = "".join(f"\\{byte:02x}" for byte in raw)
    return f'(data (i32.const {offset}) "{text}")'


NOTHING = guest("i32.const 0")
FOREVER = guest("(loop $l br $l) i32.const 0")
TRAP = guest("unreachable")

INPUT = TensorInfo("input", "uint8", (1, 2, 2, 3), 12, 1 / 255, 0)
OUTPUT = TensorInfo("scores", "uint8", (1, 4), 4, 0.5, 2)
BOXES = TensorInfo("boxes", "float32", (2,), 8, 0.0, 0)
RUN = ModelRun("double", "0" * 64, "double 1.0", "cpu")


@dataclass(frozen=True)
class Answer:
    tensors: list[bytes]
    run: ModelRun = RUN
    decode_us: int = 3
    invoke_us: int = 5


@dataclass
class FakeInference:
    """Answers at once, or when ``gate`` is set; remembers what it was asked."""

    asked: list[Any] = field(default_factory=list)
    error: Exception | None = None
    not_ready: list[Exception] = field(default_factory=list)
    gate: asyncio.Event | None = None
    asking: asyncio.Event = field(default_factory=asyncio.Event)
    held: Counter[str] = field(default_factory=Counter)
    """By digest of a model."""

    def hold(self, model: ModelSpec) -> None:
        self.held[model.digest] += 1

    def release(self, model: ModelSpec) -> None:
        self.held[model.digest] -= 1

    async def ready(self, model: ModelSpec) -> Ready:
        if self.not_ready:
            raise self.not_ready.pop(0)
        return Ready(RUN, [INPUT], [OUTPUT, BOXES])

    async def infer(self, model: ModelSpec, frame: FrameRef, view: View) -> Answer:
        return await self._answer((frame, view))

    async def infer_tensors(self, model: ModelSpec, inputs: list[bytes]) -> Answer:
        return await self._answer(inputs)

    async def pixels(
        self, frame: FrameRef, crop: Crop, format: str, width: int, height: int, data: bytes | None = None
    ) -> bytes:
        await self._answer((crop, format, width, height, *([] if data is None else [data])))
        return bytes(index % 251 for index in range(width * height * PIXEL_BYTES[format]))

    async def _answer(self, question: object) -> Answer:
        self.asked.append(question)
        self.asking.set()
        if self.gate:
            await self.gate.wait()
        if self.error:
            raise self.error
        return Answer([bytes([2, 4, 6, 0]), bytes.fromhex("0000803f000000c0")])


@dataclass
class Bench:
    """A handler's host with a ring to put frames in, and what it finished."""

    spec: HandlerSpec
    zygote: Zygote
    ring: RingWriter
    inference: Inference
    guest_models: GuestModelStore | None = None
    finished: list[Finished] = field(default_factory=list)
    submitted: list[int] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    on_finish: Callable[[Finished], None] = lambda _: None

    def __post_init__(self) -> None:
        self.host = HandlerHost(
            self.spec,
            self.zygote,
            self.inference,
            self._take,
            admission=JudgedHere(),
            guest_models=self.guest_models,
        )

    def _take(self, finished: Finished) -> None:
        self.finished.append(finished)
        self.changed.set()
        self.on_finish(finished)

    def submit(self, payload: bytes = b"", format: str = "bytes", width: int = 0, height: int = 0) -> Job:
        ref = self.ring.write(payload, format, width, height)
        assert ref is not None
        seq = len(self.submitted) + 1
        job = Job(ref, 1, "camera", seq, 1_700_000_000_000_000_000 + seq)
        self.host.submit(job)
        self.submitted.append(seq)
        return job

    async def finish(self, job: Job) -> Finished:
        """Wait until a job is finished."""
        async with asyncio.timeout(TIMEOUT):
            while True:
                for one in self.finished:
                    if one.job is job:
                        return one
                self.changed.clear()
                await self.changed.wait()

    async def handle(self, payload: bytes = b"", format: str = "bytes", width: int = 0, height: int = 0) -> Finished:
        """Submit one frame and wait until it is finished."""
        return await self.finish(self.submit(payload, format, width, height))

    async def calls(
        self, calls: Sequence["Call"], texts: bytes = b"", format: str = "bytes", width: int = 0, height: int = 0
    ) -> "Report":
        """Have a :func:`driver` make these calls about one frame."""
        return report(await self.handle(script(calls, texts), format, width, height), len(calls))

    async def running(self) -> int:
        """The worker's pid, once its guest is initialised."""
        await until(lambda: self.host.status.state == "running")
        pid = self.host.status.pid
        assert pid is not None
        return pid


def proc(pid: int | None, name: str) -> str:
    """A file of a process below /proc."""
    return Path(f"/proc/{pid}/{name}").read_bytes().decode()


def is_alive(pid: int) -> bool:
    """There, and not a zombie that its parent has not reaped."""
    try:
        return proc(pid, "stat").rsplit(") ", 1)[1][0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def until(holds: Callable[[], bool]) -> None:
    """Wait for something that tells nobody when it comes about."""
    async with asyncio.timeout(TIMEOUT):
        while not holds():
            await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def bench(
    handler: bytes | HandlerSpec, inference: FakeInference | None = None, guest_models: GuestModelStore | None = None
) -> AsyncIterator[Bench]:
    """A running handler; its jobs have all finished, and once, when the context ends."""
    handler = handler if isinstance(handler, HandlerSpec) else spec(handler)
    inference = inference or FakeInference()
    with RingWriter(1 << 20) as ring:
        async with Zygote(ring.fd) as zygote:
            running = Bench(handler, zygote, ring, inference, guest_models)
            async with running.host:
                yield running
        assert sorted(one.job.seq for one in running.finished) == sorted(running.submitted)


def spec(module: bytes, models: int = 1, **changes: Any) -> HandlerSpec:
    """A handler ``guest`` with ``models`` models, that may emit TAG."""
    model = ModelSpec(Path("model.tflite"), "0" * 64)
    return replace(
        HandlerSpec(
            name="guest",
            version="1.0.0",
            module=module,
            abi="native",
            observes=(1,),
            emits={TAG: True},
            models=(HandlerModel("model", model, ("cat", "dog"), "stretch", True),) * models,
            settings={"threshold": "0.5"},
            limits=Limits(deadline_ms=2000, memory_mb=1),
            engine=ENGINE,
        ),
        **changes,
    )


# --- a guest that calls what it is told to ------------------------------------------------------------------

RECORD = struct.Struct("<iiiiiiii")
"""Function number (-1 ends), six arguments, room for the result."""
MAX_CALLS = 32
TEXT = 0x0800
"""Where a script's texts lie, and 1 KiB below OUT."""
OUT = 0x1000
"""Where a script has the host write."""
REPORT_BYTES = 0x4000
INIT_REPORT = 0x8000
FUNCTIONS = tuple(name for name in IMPORTS if name != "now_ns")


def _dispatch() -> str:
    """Code that calls function number ``$f`` with the arguments of the record at ``$i``."""
    code = ""
    for number, name in enumerate(FUNCTIONS):
        count = IMPORTS[name].split(")")[0].count("i32")
        arguments = "".join(f"(i32.load offset={4 + 4 * index} (local.get $i))" for index in range(count))
        code += (
            f"(if (i32.eq (i32.load (local.get $i)) (i32.const {number}))"
            f" (then (i32.store offset=28 (local.get $i) (call ${name} {arguments}))))"
        )
    return (
        f"(func $run (param $i i32) (block $end (loop $next"
        f" (br_if $end (i32.lt_s (i32.load (local.get $i)) (i32.const 0))) {code}"
        f" (local.set $i (i32.add (local.get $i) (i32.const {RECORD.size}))) (br $next))))"
    )


Call = tuple[str | int, ...]
"""Name of a function and its arguments."""


def script(calls: Sequence[Call], texts: bytes = b"") -> bytes:
    """Memory from 0 on: records of calls, then at TEXT some texts."""
    assert len(calls) <= MAX_CALLS
    records = b"".join(
        RECORD.pack(FUNCTIONS.index(str(name)), *(_signed(int(a)) for a in arguments), *(0,) * (7 - len(arguments)))
        for name, *arguments in calls
    )
    return (records + RECORD.pack(-1, *(0,) * 7)).ljust(TEXT, b"\0") + texts


def _signed(value: int) -> int:
    return value - (1 << 32) if value > 0x7FFF_FFFF else value


def driver(init: Sequence[Call] = (), texts: bytes = b"") -> bytes:
    """Runs the calls of the payload for each frame, and emits its memory afterwards.

    Where the payload is ``init``, it emits what became of the calls made in ``init``.
    """
    return guest(
        f"""(drop (call $frame_read (i32.const 0) (i32.const 0) (i32.const {OUT})))
        (if (i32.eq (i32.load (i32.const 0)) (i32.const {int.from_bytes(b"init", "little")}))
          (then (drop (call $emit (i32.const {TAG}) (i32.const 6) (i32.const {INIT_REPORT}) (i32.const {OUT}))))
          (else (call $run (i32.const 0))
            (drop (call $emit (i32.const {TAG}) (i32.const 6) (i32.const 0) (i32.const {REPORT_BYTES})))))
        i32.const 0""",
        init=f"(call $run (i32.const {INIT_REPORT})) (i32.const 0)",
        data=data(INIT_REPORT, script(init, texts)),
        extra=_dispatch(),
        memory="2 4",
    )


@dataclass(frozen=True)
class Report:
    """What a driver's calls returned, and its memory after them."""

    results: list[int]
    memory: bytes
    finished: Finished

    @property
    def out(self) -> bytes:
        return self.memory[OUT:]


def report(finished: Finished, count: int) -> Report:
    assert finished.outcome == "ok", finished
    memory = finished.emits[-1].payload
    return Report([RECORD.unpack_from(memory, RECORD.size * i)[7] for i in range(count)], memory, finished)
