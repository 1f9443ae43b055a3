"""What a rollout works with, in memory: a store, downloads, and handlers that run only on paper."""

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from appliance.config import FleetConfig
from appliance.deploy.bundle import Bundle, BundleFile
from appliance.deploy.events import Wanted
from appliance.deploy.record import Record, Slot, decode_record
from appliance.deploy.report import HandlerReport
from appliance.deploy.trust import VerifiedBundle
from appliance.deploy.watch import Sample
from appliance.errors import DeviceError
from appliance.manifest import Limits
from appliance.rollout.parts import Parts
from appliance.rollout.rollout import Rollout
from appliance.sandbox.spec import HandlerSpec

PATIENCE = 10.0
FLEET = FleetConfig(name="f", canary_frames=30, canary_seconds=3600.0, trial_seconds=3600.0)
QUIET = Sample(state="running", handled=0, faults=0, deadlines=0, in_a_row=0, offered=0, dropped=0, reason="")
GOOD = replace(QUIET, handled=30, offered=30)
BAD = replace(QUIET, faults=3, in_a_row=3, offered=3, reason="trap: unreachable")


def bundle_of(version: str, name: str = "parts") -> VerifiedBundle:
    """Two files, of which all versions share one."""
    digest = hashlib.sha256(f"{name} {version}".encode()).hexdigest()
    files = {"handler.toml": BundleFile(digest[::-1], 100), "model.tflite": BundleFile("f" * 64, 900)}
    return VerifiedBundle(Bundle(name=name, version=version, files=files), digest, 300)


def slot(version: str, name: str = "parts", **settings: str) -> Slot:
    return Slot(version=version, digest=bundle_of(version, name).digest, settings=settings)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.001)


class MemoryStore:
    """``broken[method]``: what it raises."""

    def __init__(self) -> None:
        self.objects: set[str] = set()
        self.slots: set[tuple[str, str]] = set()
        self.records_kept: dict[str, bytes] = {}
        self.broken: dict[str, Exception] = {}
        self.calls: Counter[str] = Counter()
        self.collected: list[tuple[set[tuple[str, str]], set[str]]] = []

    def has(self, digest: str) -> bool:
        return digest in self.objects

    def check_room(self, bundle: VerifiedBundle) -> None:
        self._call("check_room")
        self.objects.add(bundle.digest)  # it was verified, so its index is here

    def stage(self, bundle: VerifiedBundle) -> Path:
        self._call("stage")
        assert {file.sha256 for file in bundle.bundle.files.values()} <= self.objects
        return Path("/staging", bundle.digest)

    def keep(self, bundle: VerifiedBundle) -> Path:
        self._call("keep")
        self.slots.add((bundle.bundle.name, bundle.digest))
        return Path("/slots", bundle.bundle.name, bundle.digest)

    def slot(self, name: str, digest: str) -> Path | None:
        self._call("slot")
        return Path("/slots", name, digest) if (name, digest) in self.slots else None

    def collect(
        self,
        used: Collection[tuple[str, str]],
        wanted: Collection[str] = (),
        documents: Collection[str] = (),
        unknown: Collection[str] = (),
    ) -> None:
        self._call("collect")
        self.collected.append((set(used), set(wanted)))
        self.slots = {slot for slot in self.slots if slot in used or slot[0] in unknown}

    def read_record(self, name: str) -> bytes | None:
        self._call("read_record")
        return self.records_kept.get(name)

    def write_record(self, name: str, data: bytes) -> None:
        self._call("write_record")
        self.records_kept[name] = data

    def remove_record(self, name: str) -> None:
        self._call("remove_record")
        self.records_kept.pop(name, None)

    def records(self) -> list[str]:
        self._call("records")
        return sorted(self.records_kept)

    def record(self, name: str = "parts") -> Record:
        return decode_record(self.records_kept[name], name)

    def _call(self, method: str) -> None:
        self.calls[method] += 1
        if method in self.broken:
            raise self.broken[method]


class MemoryDownloads:
    """``gate``: files come when it is set."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked: list[str] = []
        self.broken: Exception | None = None
        self.ended: list[str] = []

    async def fetch(self, digest: str, length: int, on_progress: Callable[[int], None]) -> Path:
        self.asked.append(digest)
        try:
            on_progress(length // 2)
            await self.gate.wait()
        finally:
            self.ended.append(digest)
        if self.broken:
            raise self.broken
        self.store.objects.add(digest)
        on_progress(length)
        return Path("/objects", digest)


class PaperServing:
    """``samples`` by version; ``broken[method, version]``: what it raises."""

    def __init__(self) -> None:
        self.live: dict[str, HandlerSpec] = {}
        self.shadows: dict[str, HandlerSpec] = {}
        self.samples: dict[str, Sample] = {}
        self.broken: dict[tuple[str, str], Exception] = {}
        self.done: list[tuple[str, str]] = []

    async def start(self, spec: HandlerSpec) -> None:
        self._do("start", spec.version)
        assert spec.name not in self.live
        self.live[spec.name] = spec

    async def stop(self, name: str) -> None:
        self._do("stop", self.live.pop(name).version)

    async def shadow(self, spec: HandlerSpec) -> None:
        self._do("shadow", spec.version)
        assert spec.name not in self.shadows
        self.shadows[spec.name] = spec

    async def unshadow(self, name: str) -> None:
        self._do("unshadow", self.shadows.pop(name).version)

    async def promote(self, name: str) -> None:
        self._do("promote", self.shadows[name].version)
        self.live[name] = self.shadows.pop(name)

    def sample(self, name: str, *, shadow: bool = False) -> Sample | None:
        spec = (self.shadows if shadow else self.live).get(name)
        return self.samples.get(spec.version, QUIET) if spec else None

    def _do(self, what: str, version: str) -> None:
        self.done.append((what, version))
        if (what, version) in self.broken:
            raise self.broken[what, version]


def spec_of(_directory: Path, name: str, slot: Slot) -> HandlerSpec:
    return HandlerSpec(
        name=name,
        version=slot.version,
        module=b"",
        abi="native",
        observes=slot.observes or (1,),
        emits={},
        models=(),
        settings=slot.settings,
        limits=Limits(),
    )


@dataclass
class Box:
    """A device, as far as rollouts see it. It survives restarts; what runs does not."""

    store: MemoryStore = field(default_factory=MemoryStore)
    admit_error: Exception | None = None
    fleet: FleetConfig = FLEET

    def __post_init__(self) -> None:
        self.reports: list[HandlerReport | None] = []
        self.admitted: list[HandlerSpec] = []
        self.restart()

    def restart(self) -> None:
        self.serving = PaperServing()
        self.downloads = MemoryDownloads(self.store)
        self.collections = 0
        self.parts = Parts(
            store=self.store,
            downloads=self.downloads,
            serving=self.serving,
            load=spec_of,
            admit=self.admit,
            report=self._report,
            collect=self._collect,
        )

    async def admit(self, spec: HandlerSpec) -> None:
        self.admitted.append(spec)
        if self.admit_error:
            raise self.admit_error

    def _report(self, _name: str, document: HandlerReport | None) -> None:
        self.reports.append(document)

    def _collect(self) -> None:
        self.collections += 1

    @property
    def states(self) -> list[str]:
        """That were reported, one after another."""
        states = [report.state if report else "cleared" for report in self.reports]
        return [state for state, before in zip(states, ["", *states], strict=False) if state != before]

    @property
    def last(self) -> HandlerReport:
        report = self.reports[-1]
        assert report is not None
        return report

    @asynccontextmanager
    async def rollout(self) -> AsyncIterator[Rollout]:
        """One that has started; what ran on the device before does not any more."""
        self.restart()
        rollout = Rollout("parts", self.parts, self.fleet)
        await rollout.boot()
        task = asyncio.create_task(rollout.run())
        try:
            yield rollout
        finally:
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.result()

    def keep(self, version: str) -> None:
        """As if it had been fetched before."""
        bundle = bundle_of(version)
        self.store.slots.add(("parts", bundle.digest))


def want(rollout: Rollout, version: str, **settings: str) -> None:
    rollout.order(Wanted(slot(version, **settings)), bundle_of(version))


async def deploy(rollout: Rollout, box: Box, version: str) -> None:
    """Into service, whatever it takes."""
    box.serving.samples[version] = GOOD
    want(rollout, version)
    await until(lambda: rollout.record.active == slot(version) and "parts" in box.serving.live)
    await until(lambda: box.serving.live["parts"].version == version)


FULL = DeviceError("the disk is full")
