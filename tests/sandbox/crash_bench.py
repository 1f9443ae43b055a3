"""A handler that fails on demand, in a zipper that keeps what comes of it."""

import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sandbox_bench import TAG, JudgedHere, data, guest, spec, until

from appliance.faults import FaultKeeper
from appliance.frame import Frame
from appliance.inference.broker import Broker
from appliance.ipc.ring import RingWriter
from appliance.manifest import Limits
from appliance.sandbox.host import HandlerStatus
from appliance.sandbox.spawning import Zygote
from appliance.sandbox.spec import HandlerSpec
from appliance.zipper.core import Zipper
from appliance.zipper.handlers import LocalHandler

LIMITS = Limits(deadline_ms=300, memory_mb=1, gas=1_000_000)
"""So much gas that an endless loop meets the deadline first, on any machine."""
FAILING = guest(
    f"""(drop (call $state_get (i32.const 0) (i32.const 1) (i32.const 16) (i32.const 4)))
    (i32.store (i32.const 16) (i32.add (i32.load (i32.const 16)) (i32.const 1)))
    (drop (call $state_set (i32.const 0) (i32.const 1) (i32.const 16) (i32.const 4)))
    (drop (call $emit (i32.const {TAG}) (i32.const 6) (i32.const 16) (i32.const 4)))
    (i32.store8 (i32.const 32) (i32.const 0))
    (drop (call $frame_read (i32.const 0) (i32.const 32) (i32.const 1)))
    (local.set $i (i32.load8_u (i32.const 32)))
    (if (i32.eq (local.get $i) (i32.const 116)) (then (drop (call $deep (i32.const 0)))))
    (if (i32.and (i32.eq (local.get $i) (i32.const 51)) (i32.eq (i32.load (i32.const 16)) (i32.const 3)))
      (then unreachable))
    (if (i32.eq (local.get $i) (i32.const 108)) (then (loop $l br $l)))
    (i32.eq (local.get $i) (i32.const 101))""",
    data=data(0, "n"),
    extra='(func $deep (export "deep") (param i32) (result i32) unreachable)',
)
"""Counts frames in its state and emits the count. Traps at ``t``, loops at ``l``, fails at ``e``; at ``3`` it traps
where that is the third frame that it counts."""


def failing(**changes) -> HandlerSpec:
    return spec(FAILING, models=0, limits=LIMITS, **changes)


@dataclass
class Box:
    """A zipper with one handler, and a state directory."""

    zipper: Zipper
    handler: LocalHandler
    directory: Path
    keeper: FaultKeeper
    done: int = 0
    given: int = 0
    results: list[Frame] = field(default_factory=list)

    @property
    def status(self) -> HandlerStatus:
        return self.handler.status

    async def see(self, payload: bytes) -> None:
        """Give the handler a frame, and wait until it is done with it."""
        self.given += 1
        frame = Frame(1, "camera", self.given, 1_700_000_000_000_000_000 + self.given, "bytes", payload)
        self.zipper.receive(frame, on_done=self._count)
        await until(lambda: self.done == self.given)

    def _count(self) -> None:
        self.done += 1

    def capsules(self) -> list[Path]:
        directory = self.directory / "capsules"
        return sorted(directory.iterdir()) if directory.exists() else []

    def record(self) -> Path:
        return self.directory / "quarantine" / f"{self.handler.spec.name}.json"


@contextlib.asynccontextmanager
async def box(directory: Path, handler: HandlerSpec | None = None) -> AsyncIterator[Box]:
    """The parts as the appliance joins them; on leaving, everything is on the disk."""
    handler = handler or failing()
    with RingWriter(1 << 20) as ring:
        async with Zygote(ring.fd) as zygote, Broker(ring.fd) as broker:
            zipper = Zipper(ring, broker.forget)
            async with FaultKeeper(directory / "capsules", directory / "quarantine") as keeper:
                quarantined = await keeper.quarantined(handler)
                local = LocalHandler(
                    handler,
                    zipper,
                    zygote,
                    broker,
                    admission=JudgedHere(),
                    quarantined=quarantined,
                    on_crash=keeper.crashed,
                )
                keeper.watch(local, recorded=quarantined is not None)
                async with local:
                    yield Box(zipper, local, directory, keeper)


@contextlib.contextmanager
def few_strikes(count: int = 4) -> Iterator[None]:
    """Quarantine comes sooner."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("appliance.sandbox.quarantine.QUARANTINE_STRIKES", count)
        yield


def directory_of(handler: HandlerSpec, path: Path, *, module: bytes | None = None) -> Path:
    """The handler's directory, as its developer has it."""
    path.mkdir()
    given = handler.limits
    limits = f"[limits]\ndeadline_ms = {given.deadline_ms}\nmemory_mb = {given.memory_mb}\n"
    limits += f"gas = {given.gas}\n" if given.gas else ""
    (path / "handler.toml").write_text(
        f'name = "{handler.name}"\nversion = "{handler.version}"\nobserves = [1]\nemits = [{{ tag = {TAG} }}]\n'
        f'settings = {{ threshold = "0.5" }}\n{limits}'
    )
    (path / "handler.wasm").write_bytes(handler.module if module is None else module)
    return path
