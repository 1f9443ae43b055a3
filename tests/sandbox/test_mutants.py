"""Thousands of modules that are nearly right: refused, trapped or run. None hurts anything but its own worker."""

import asyncio
import itertools
import multiprocessing
import struct
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import cbor2
import pytest
import wasmtime
from mutations import Donor, donor, mutant
from sandbox_bench import NOTHING, RUN, TIMEOUT, Answer, FakeInference, driver, script, spec, until

from appliance.config import HandlerConfig, InferenceConfig
from appliance.inference.messages import Ready, TensorInfo
from appliance.inference.model import ModelSpec
from appliance.ipc.ring import FrameRef, RingWriter
from appliance.manifest import EngineName, Limits
from appliance.sandbox.admission.admit import Admission, RefusedError
from appliance.sandbox.admission.judge import engine_for, judge
from appliance.sandbox.admission.verdict import Admitted, Order, Rejected, Verdict
from appliance.sandbox.host import HandlerHost
from appliance.sandbox.messages import CommandSpec, Job
from appliance.sandbox.session import Finished
from appliance.sandbox.spawning import Zygote
from appliance.sandbox.spec import HandlerSpec, load_handler

HANDLERS = Path(__file__).parents[2] / "handlers"
SEED = "mutants of 2024"
LANES = 2
"""Mutants under way at a time: each with a judge of its own, and all on one zygote."""
JUDGE_SECONDS = 30.0
"""One that takes longer hangs. No mutant of these modules takes a tenth of a second."""
LIMITS = Limits(deadline_ms=40, memory_mb=2, host_calls=2000)
WASMTIME_EVERY, CHILD_EVERY = 6, 100
"""Every so many are run on wasmtime, too, where they are admitted, and judged by the child that judges in earnest."""
LEAST_ADMITTED = 0.3
FATAL = frozenset({"crash", "deadline", "forbidden", "protocol"})
"""Outcomes with which a worker ends."""
OUTCOMES = frozenset(
    {"ok", "error", "trap", "gas", "budget", "output", "init", "load", "link", "memory", "crash", "deadline"}
)
"""What may become of a mutant that runs. Not ``forbidden`` and not ``protocol``: no guest gets a worker to do that."""
BOUNDS = frozenset({"gas", "deadline", "budget"})
"""Outcomes that depend on how fast an engine is, and on how it counts."""
USUAL = {"error": 0, "ok": 1}
"""The frames are of several kinds, and few guests take them all: that one did not go well is not what is told."""

PROGRAM = """(module
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $sizes (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_get" (func $args (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_seek" (func $seek (param i32 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1 4)
  (data (i32.const 16) "frame.jpg") (data (i32.const 32) "\\00\\10\\00\\00\\00\\04\\00\\00")
  (data (i32.const 64) "42\\0a")
  (data (i32.const 48) "\\40\\00\\00\\00\\03\\00\\00\\00")
  (func (export "_start")
    (drop (call $sizes (i32.const 128) (i32.const 132)))
    (drop (call $args (i32.const 256) (i32.const 512)))
    (drop (call $open (i32.const 3) (i32.const 0) (i32.const 16) (i32.const 9) (i32.const 0)
      (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 136)))
    (drop (call $read (i32.load (i32.const 136)) (i32.const 32) (i32.const 1) (i32.const 140)))
    (drop (call $seek (i32.load (i32.const 136)) (i64.const 0) (i32.const 0) (i32.const 144)))
    (drop (call $random (i32.const 1024) (i32.const 32)))
    (drop (call $write (i32.const 1) (i32.const 48) (i32.const 1) (i32.const 152)))
    (if (i32.eqz (i32.load (i32.const 140))) (then (call $exit (i32.const 0))))))"""
FLOATS = struct.pack("<8f", *(0.125 * number for number in range(8)))
OUTPUTS = {
    "detect": (((1, 2, 4), FLOATS), ((1, 2), FLOATS[:8]), ((1, 2), FLOATS[8:16]), ((1,), FLOATS[16:20])),
    "": (((1, 4), FLOATS[:16]),),
}
"""Of the models, by handler: shapes and contents."""


@dataclass
class Models(FakeInference):
    """Always the same answer."""

    handler: str = ""

    async def ready(self, model: ModelSpec) -> Ready:
        outputs = OUTPUTS.get(self.handler, OUTPUTS[""])
        infos = [TensorInfo(f"{number}", "float32", s, len(d), 0.0, 0) for number, (s, d) in enumerate(outputs)]
        return Ready(RUN, [TensorInfo("in", "uint8", (1, 2, 2, 3), 12, 0.0, 0)], infos)

    async def _answer(self, question: object) -> Answer:
        return Answer([data for _, data in OUTPUTS.get(self.handler, OUTPUTS[""])])


@dataclass
class Told:
    """An admission that has judged already."""

    verdict: Verdict

    async def admit(self, order: Order) -> Admitted:
        if isinstance(self.verdict, Rejected):
            raise RefusedError(self.verdict.rule, self.verdict.message)
        return self.verdict


class Handler:
    """A handler's host whose frames can be waited for."""

    def __init__(self, handler: HandlerSpec, zygote: Zygote, verdict: Verdict) -> None:
        self.host = HandlerHost(handler, zygote, Models(handler=handler.name), self._finished, admission=Told(verdict))
        self._waiting: dict[int, asyncio.Future[Finished]] = {}
        self._numbers = itertools.count(1)

    def _finished(self, finished: Finished) -> None:
        self._waiting.pop(finished.job.seq).set_result(finished)

    async def handle(self, frame: FrameRef) -> Finished:
        seq = next(self._numbers)
        self._waiting[seq] = asyncio.get_running_loop().create_future()
        self.host.submit(Job(frame, 1, "camera", seq, seq))
        async with asyncio.timeout(TIMEOUT):
            return await self._waiting[seq]


@cache
def _engine(engine: EngineName, memory_bytes: int) -> wasmtime.Engine:
    return engine_for(Order(b"", engine, memory_bytes))


def judged(order: Order) -> Verdict:
    """In a process of its own, which may die of it: it is the real judge without the start of a Python for each."""
    return judge(order, _engine(order.engine, order.memory_bytes))


class Judge:
    """That process, and the next one where it has died."""

    def __init__(self) -> None:
        self._pool = self._start()

    def _start(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))

    async def judge(self, order: Order) -> Verdict:
        try:
            async with asyncio.timeout(JUDGE_SECONDS):
                return await asyncio.get_running_loop().run_in_executor(self._pool, judged, order)
        except BrokenProcessPool:
            self.close()
            self._pool = self._start()
            return Rejected("crashed", "the process that judged it died")

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


@dataclass
class Tally:
    """What became of them."""

    rules: Counter[str] = field(default_factory=Counter)
    """Of those refused, by rule."""
    admitted: Counter[str] = field(default_factory=Counter)
    """By engine."""
    outcomes: Counter[str] = field(default_factory=Counter)
    """By engine and the worst that became of a frame, or why there was none."""
    strange: list[str] = field(default_factory=list)
    """Mutants whose outcome no guest may have."""

    @property
    def total(self) -> int:
        return self.rules.total() + self.admitted["wasm3"]

    def told(self) -> str:
        lines = (f"refused: {dict(self.rules)}", f"admitted: {dict(self.admitted)}", f"ended: {dict(self.outcomes)}")
        return "\n".join(("", *lines, *self.strange, ""))


@dataclass
class Place:
    """Where mutants run: one zygote, and a neighbour that must not notice."""

    zygote: Zygote
    neighbour: Handler
    frames: Sequence[FrameRef]
    specs: dict[str, HandlerSpec]
    admission: Admission
    tally: Tally = field(default_factory=Tally)

    async def try_all(self, mutants: Iterator[tuple[int, Donor, bytes]]) -> None:
        judge = Judge()
        try:
            for number, donor, module in mutants:
                await self._try(judge, number, self.specs[donor.name], module)
        finally:
            judge.close()

    async def _try(self, judge: Judge, number: int, handler: HandlerSpec, module: bytes) -> None:
        verdict = await self._judged(judge, handler, module, "wasm3")
        if number % CHILD_EVERY == 0:
            await self._judged_in_earnest(handler, module, verdict)
        if isinstance(verdict, Rejected):
            self.tally.rules[verdict.rule] += 1
        else:
            ends = await self._run(number, replace(handler, module=module), verdict)
            if number % WASMTIME_EVERY == 0:
                verdict = await self._judged(judge, handler, module, "wasmtime")
                others = await self._run(number, replace(handler, module=module, engine="wasmtime"), verdict)
                assert alike(ends, others), (number, ends, others)
        finished = await self.neighbour.handle(self.frames[0])
        assert finished.outcome == "ok", (number, finished)

    async def _judged(self, judge: Judge, handler: HandlerSpec, module: bytes, engine: EngineName) -> Verdict:
        return await judge.judge(Order(module, engine, handler.limits.memory_mb << 20, handler.abi == "command"))

    async def _judged_in_earnest(self, handler: HandlerSpec, module: bytes, expected: Verdict) -> None:
        order = Order(module, "wasm3", handler.limits.memory_mb << 20, handler.abi == "command")
        try:
            assert await self.admission.admit(order) == expected
        except RefusedError as refused:
            assert isinstance(expected, Rejected), refused
            assert refused.rule == expected.rule

    async def _run(self, number: int, handler: HandlerSpec, verdict: Verdict) -> list[tuple[str, str]]:
        assert isinstance(verdict, Admitted), verdict
        self.tally.admitted[handler.engine] += 1
        mutant = Handler(handler, self.zygote, verdict)
        async with mutant.host:
            ends = await self._ends(mutant)
        outcome, message = max(ends, key=lambda end: USUAL.get(end[0], len(USUAL)))
        self.tally.outcomes[f"{handler.engine} {outcome}"] += 1
        if outcome not in OUTCOMES or outcome == "crash":
            self.tally.strange.append(f"{number} of {handler.name} in {handler.engine}: {outcome}: {message}")
        return ends

    async def _ends(self, mutant: Handler) -> list[tuple[str, str]]:
        """How each of its frames ended, or why none was begun."""
        await until(lambda: mutant.host.status.state == "running" or mutant.host.status.last_failure is not None)
        if failure := mutant.host.status.last_failure:
            return [(failure.kind, failure.message)]
        ends = []
        for frame in self.frames:
            finished = await mutant.handle(frame)
            ends.append((finished.outcome, finished.message))
            if finished.outcome in FATAL:
                break
        return ends


def alike(ends: list[tuple[str, str]], others: list[tuple[str, str]]) -> bool:
    """Whether a mutant fares the same on both engines, up to the first frame that a bound of its own has ended."""
    for (one, text), (other, other_text) in zip(ends, others, strict=False):
        if {one, other} & BOUNDS or "stack overflow" in text + other_text:
            return True
        if one != other:
            return False
    return len(ends) == len(others)


def specs(directory: Path) -> dict[str, HandlerSpec]:
    """The handlers as they ship, a guest that makes any call of the native ABI, and a WASI program."""
    model, labels = directory / "model.tflite", directory / "labels.txt"
    model.write_bytes(b"a model")
    labels.write_text("cat\ndog\nbird\n")
    files = {"model": str(model), "labels": str(labels)}
    handlers = {
        name: load_handler(
            HandlerConfig(path=str(HANDLERS / name), settings=files if name in {"classify", "detect"} else {}),
            InferenceConfig(),
        )
        for name in ("classify", "count", "detect", "motion", "parts")
    }
    handlers["driver"] = spec(driver(), name="driver")
    command = CommandSpec(["program", "{frame}"], "frame.jpg")
    handlers["program"] = spec(bytes(wasmtime.wat2wasm(PROGRAM)), name="program", abi="command", command=command)
    return {name: replace(handler, limits=LIMITS) for name, handler in handlers.items()}


@asynccontextmanager
async def place(directory: Path) -> AsyncIterator[Place]:
    handlers = specs(directory)
    calls = [("frame_read", 0, 0x1000, 64), ("model", 0x800, 5), ("infer_frame", 0, 0, 0), ("emit", 0x10, 6, 0, 8)]
    objects = cbor2.dumps({"objects": [{"label": "cat", "score": 0.5, "box": [0, 0, 1, 1]}] * 2})
    with RingWriter(1 << 20) as ring:
        written = (
            ring.write(b"\xff\xd8\xff\xe0" + bytes(3000), "jpeg", 640, 480),
            ring.write(objects, "cbor", 0, 0),
            ring.write(script(calls, b"model"), "bytes", 0, 0),
        )
        frames = [frame for frame in written if frame is not None]
        assert len(frames) == len(written)
        async with Zygote(ring.fd) as zygote:
            good = spec(NOTHING, models=0, name="neighbour")
            neighbour = Handler(good, zygote, judged(Order(NOTHING, "wasm3", 1 << 20)))
            async with neighbour.host:
                yield Place(zygote, neighbour, frames, handlers, Admission(directory / "modules"))


@pytest.mark.parametrize(
    "count", [pytest.param(150), pytest.param(5000, marks=pytest.mark.slow)], ids=["some", "thousands"]
)
async def test_a_mutant_is_refused_or_trapped_or_run_and_nobody_else_notices(count: int, tmp_path: Path) -> None:
    async with place(tmp_path) as here:
        donors = [donor(name, handler.module) for name, handler in here.specs.items()]
        mutants = ((number, *mutant(donors, number, SEED)) for number in range(count))
        zygote = here.zygote.pid
        async with asyncio.TaskGroup() as group:
            for _ in range(LANES):
                group.create_task(here.try_all(mutants))
        status, tally = here.neighbour.host.status, here.tally
        sys.stdout.write(tally.told())
        assert here.zygote.pid == zygote
        assert (status.handled, status.faults, status.restarts) == (count, {}, 0)
    assert tally.total == count
    assert tally.outcomes.total() == tally.admitted.total()
    assert tally.admitted["wasm3"] >= LEAST_ADMITTED * count
    assert tally.admitted["wasmtime"] > 0
    assert "crashed" not in tally.rules
    assert {outcome.split()[1] for outcome in tally.outcomes} <= OUTCOMES
