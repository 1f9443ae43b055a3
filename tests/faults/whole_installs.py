"""Whole installs, to be cut anywhere: what an operator may want next, and a box that does it.

Nothing of the box is replaced from the broker's messages to the disk: metadata is verified, files are downloaded, kept
and activated. Only the broker is one in memory, and handlers run on paper: what each was told to run is written down
by the digests of its bytes.
"""

import asyncio
import contextlib
import hashlib
import json
import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
from fleet_double import START, Fleet, messages
from retained_double import Message
from rollout_doubles import BAD, GOOD, PaperServing

import appliance.deployer
import appliance.rollout.rollout
from appliance.config import FleetConfig, InferenceConfig
from appliance.deploy.desired import Assignment
from appliance.deploy.download import Downloads
from appliance.deploy.fleet_topics import FleetTopics
from appliance.deploy.record import Record, decode_record
from appliance.deploy.report import DeviceReport, HandlerReport
from appliance.deploy.store import Store
from appliance.deploy.trust import Trust
from appliance.deploy.watch import Sample
from appliance.deployer import Deployer
from appliance.rollout.admitting import load_slot
from appliance.sandbox.spec import HandlerSpec

DEVICE = "box"
NAME, NEIGHBOUR = "parts", "door"
TOPICS = FleetTopics("fleet", "plant")
CHUNK_BYTES = 4 << 10
NOW = (START + timedelta(days=1)).timestamp()
CONFIG = FleetConfig(name=TOPICS.fleet, canary_frames=30, canary_seconds=3600.0, trial_seconds=3600.0)
SHORT_TRIAL_SECONDS = 0.02
PATIENCE = 20.0
IDLE_SECONDS = 0.1
"""Without a change on the disk: an install is over."""
SPARE_BYTES = 48 << 10
"""Of the quota, beside bundles: metadata and records."""

Retained = Mapping[str, bytes]


def contents(name: str, version: str, model: bytes) -> dict[str, bytes]:
    manifest = (
        f'name = "{name}"\nversion = "{version}"\nobserves = [1]\nsettings = {{ least = "1" }}\n'
        f'models = [{{ name = "m", file = "model.tflite" }}]\n'
    )
    return {
        "handler.toml": manifest.encode(),
        "handler.wasm": b"\0asm" + f"{name} {version}".encode() * 300,
        "model.tflite": model,
    }


OLD_MODEL, NEW_MODEL = b"old" * 4000, b"new" * 4500
BUNDLES = {
    (NAME, "1.0.0"): contents(NAME, "1.0.0", OLD_MODEL),
    (NAME, "2.0.0"): contents(NAME, "2.0.0", NEW_MODEL),
    (NEIGHBOUR, "1.0.0"): contents(NEIGHBOUR, "1.0.0", OLD_MODEL),
}


def ran_as(name: str, version: str, least: str = "1") -> str:
    """What is written down of a handler that runs as it should."""
    bundle = BUNDLES[name, version]
    return _written(name, version, _short(bundle["handler.wasm"]), _short(bundle["model.tflite"]), least)


def _written(name: str, version: str, module: str, model: str, least: str) -> str:
    return f"{name} {version} module={module} model={model} least={least}"


def _short(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


ONE, TWO, ONE_CHANGED = ran_as(NAME, "1.0.0"), ran_as(NAME, "2.0.0"), ran_as(NAME, "1.0.0", "7")
NEIGHBOURS = ran_as(NEIGHBOUR, "1.0.0")


@dataclass(frozen=True)
class Scene:
    """What is published ``before``, and then ``after``; ``may_run``: what may be in service from then on."""

    name: str
    root: bytes
    before: tuple[tuple[Retained, str | None], ...]
    """With what runs then."""
    after: Retained
    may_run: frozenset[str | None]
    ends_with: str | None
    bad_in_service: frozenset[str] = frozenset()
    bad_as_canary: frozenset[str] = frozenset()
    proven: bool = False
    """What is in service before has been through its trial: starts of the box are not held against it."""

    def kind(self, running: str | None) -> str:
        return "new" if running == self.ends_with else "old"


# --- what an operator does ----------------------------------------------------------------------------------------


class _Desk:
    """Somebody who publishes, one state after another."""

    def __init__(self) -> None:
        self.fleet = Fleet()
        self._signed = {key: self.fleet.bundle(*key, contents=files) for key, files in BUNDLES.items()}

    def publish(self, version: str | None, **changes: Any) -> Retained:
        handlers: dict[str, Assignment | None] = {NEIGHBOUR: self._signed[NEIGHBOUR, "1.0.0"]}
        if version is not None:
            handlers[NAME] = msgspec.structs.replace(self._signed[NAME, version], **changes)
        self.fleet.deploy(DEVICE, handlers)
        self.fleet.publish()
        return messages(self.fleet, TOPICS, CHUNK_BYTES)

    def rotate_all(self) -> None:
        for role in ("root", "timestamp", "snapshot", "targets"):
            self.fleet.rotate(role)


def _scenes() -> dict[str, Scene]:
    made = [
        _scene("first install", [None], "2.0.0", {None, TWO}, TWO),
        _scene("upgrade", ["1.0.0"], "2.0.0", {ONE, TWO}, TWO),
        _scene("upgrade while all keys are rotated", ["1.0.0"], "2.0.0", {ONE, TWO}, TWO, rotate=True),
        _scene("other settings", ["1.0.0"], "1.0.0", {ONE, ONE_CHANGED}, ONE_CHANGED, settings={"least": "7"}),
        _scene("downgrade", ["1.0.0", "2.0.0"], "1.0.0", {ONE, TWO}, ONE, proven=True),
        _scene("going back from a bad version", ["1.0.0", "2.0.0"], "2.0.0", {ONE, TWO}, ONE, bad_in_service={"2.0.0"}),
        _scene("quarantine of a bad canary", ["1.0.0"], "2.0.0", {ONE}, ONE, bad_as_canary={"2.0.0"}),
        _scene("undeploy", ["1.0.0"], None, {ONE, None}, None),
    ]
    return {scene.name: scene for scene in made}


def _scene(
    name: str,
    before: Iterable[str | None],
    after: str | None,
    may_run: Iterable[str | None],
    ends_with: str | None,
    *,
    rotate: bool = False,
    bad_in_service: Iterable[str] = (),
    bad_as_canary: Iterable[str] = (),
    proven: bool = False,
    **changes: Any,
) -> Scene:
    desk = _Desk()
    published = tuple((desk.publish(version), version and ran_as(NAME, version)) for version in before)
    if rotate:
        desk.rotate_all()
    return Scene(
        name,
        desk.fleet.first_root,
        published,
        desk.publish(after, **changes),
        frozenset(may_run),
        ends_with,
        frozenset(bad_in_service),
        frozenset(bad_as_canary),
        proven,
    )


SCENES = _scenes()


# --- the box ------------------------------------------------------------------------------------------------------


class Ears:
    """A broker's retained messages, which come when they are asked for; ``+`` may be a filter's last level."""

    def __init__(self) -> None:
        self._retained: Retained = {}
        self._listening: dict[str, Callable[[Any], None]] = {}

    def listen(self, filters: Iterable[str], on_message: Callable[[Any], None]) -> None:
        for topic in filters:
            self._listening[topic] = on_message
            asyncio.get_running_loop().call_soon(self._deliver, topic)

    def ignore(self, filters: Iterable[str]) -> None:
        for topic in filters:
            del self._listening[topic]

    def publish(self, retained: Retained) -> None:
        """From now on it is these."""
        self._retained = retained
        for topic in self._listening:
            self._deliver(topic)

    def _deliver(self, wanted: str) -> None:
        if wanted not in self._listening:
            return
        prefix = wanted.removesuffix("+")
        for topic, payload in self._retained.items():
            if topic == wanted or (prefix != wanted and topic.startswith(prefix)):
                self._listening[wanted](Message(topic, payload))


class Serving(PaperServing):
    """What runs, on paper; ``healthy``: even what is bad is not bad yet."""

    def __init__(self, scene: Scene, *, healthy: bool) -> None:
        super().__init__()
        self._in_service = frozenset() if healthy else scene.bad_in_service
        self._as_canary = frozenset() if healthy else scene.bad_as_canary

    def sample(self, name: str, *, shadow: bool = False) -> Sample | None:
        spec = (self.shadows if shadow else self.live).get(name)
        if spec is None:
            return None
        return BAD if spec.version in (self._as_canary if shadow else self._in_service) else GOOD

    def runs(self, name: str) -> str | None:
        spec = self.live.get(name)
        if spec is None:
            return None
        model = spec.models[0].model
        assert model.digest == hashlib.sha256(model.path.read_bytes()).hexdigest(), "the model changes while it runs"
        return _written(spec.name, spec.version, _short(spec.module), model.digest[:12], spec.settings["least"])


@dataclass
class Box:
    """A box that has started: nothing has come from the broker yet."""

    scene: Scene
    directory: Path
    ears: Ears
    serving: Serving
    deployer: Deployer
    reports: dict[str | None, HandlerReport | DeviceReport | None] = field(default_factory=dict)

    def check(self) -> str | None:
        """What is in service, which has to be something that may."""
        running = self.serving.runs(NAME)
        assert running in self.scene.may_run, f"{running} is in service"
        assert self.serving.runs(NEIGHBOUR) == NEIGHBOURS
        return running

    async def until(self, condition: Callable[[], bool], what: Callable[[], str]) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                while not condition():
                    await asyncio.sleep(0.002)
        except TimeoutError:
            raise AssertionError(f"{what()}; {self.reports}") from None

    async def until_settled(self, retained: Retained, runs: str | None) -> None:
        """It is as these messages say, and nothing changes on the disk any more."""
        timestamp = msgspec.json.decode(retained[TOPICS.metadata("timestamp.json")])["signed"]["version"]

        def settled() -> bool:
            deployer = self.deployer
            ordered = deployer._ordered is not None and deployer._ordered["timestamp"] == timestamp
            clean = not deployer._garbage.is_set() and not deployer._parts.turn.locked()
            records = [rollout.record for rollout in deployer._rollouts.values()]
            return ordered and clean and self.serving.runs(NAME) == runs and all(_is_settled(each) for each in records)

        await self.until(settled, lambda: f"not settled: {tree(self.directory)}")
        loop = asyncio.get_running_loop()
        seen, since = tree(self.directory), loop.time()
        while loop.time() - since < IDLE_SECONDS:
            await asyncio.sleep(0.01)
            if (now := tree(self.directory)) != seen:
                seen, since = now, loop.time()


def _is_settled(record: Record) -> bool:
    return record.candidate is None and record.stage in ("settled", "gone")


@asynccontextmanager
async def running(scene: Scene, directory: Path, *, healthy: bool = False) -> AsyncIterator[Box]:
    """As ``appliance run`` joins the parts."""
    _hurry()
    config = CONFIG
    if healthy and scene.proven:
        config = msgspec.structs.replace(CONFIG, trial_seconds=SHORT_TRIAL_SECONDS)
    ears, serving = Ears(), Serving(scene, healthy=healthy)
    store = Store(directory, quota(scene))
    reports: dict[str | None, HandlerReport | DeviceReport | None] = {}
    deployer = Deployer(
        config,
        DEVICE,
        topics=TOPICS,
        ears=ears,
        trust=Trust(directory, scene.root, wall=lambda: NOW),
        store=store,
        downloads=Downloads(TOPICS, ears, store),
        serving=serving,
        load=lambda path, name, slot: load_slot(path, name, slot, InferenceConfig()),
        admit=_admitted,
        report=reports.__setitem__,
        wall=lambda: NOW,
    )
    async with deployer:
        await deployer.start_active()
        yield Box(scene, directory, ears, serving, deployer, reports)


async def _admitted(_spec: HandlerSpec) -> None:
    pass


def _hurry() -> None:
    """Nothing waits for long: there is nobody to be spared."""
    for module, names in {
        appliance.deployer: ("SETTLE_SECONDS", "REFRESH_SECONDS", "FIRST_RETRY"),
        appliance.rollout.rollout: ("POLL_SECONDS", "FIRST_RETRY", "FIRST_SAVE"),
    }.items():
        for name in names:
            setattr(module, name, 0.002)


def quota(scene: Scene) -> int:
    """All bundles once, and a little: rubbish has no room beside them."""
    return sum(len(data) for files in BUNDLES.values() for data in files.values()) + SPARE_BYTES


# --- what is on the disk ------------------------------------------------------------------------------------------


def tree(directory: Path) -> dict[str, str]:
    """All files, and empty directories, by what is in them; of records what does not depend on when and how often."""
    found = {}
    for parent, directories, files in os.walk(directory):
        for name in (*directories, *files):
            path = Path(parent, name)
            with contextlib.suppress(FileNotFoundError):  # just renamed
                found[str(path.relative_to(directory))] = _content(path)
    return found


def _content(path: Path) -> str:
    if path.is_symlink():
        return f"link to {path.readlink()}"
    if path.is_dir():
        return "directory"
    data = path.read_bytes()
    if path.parent.name == "records" and path.suffix == ".json":
        return msgspec.json.encode(_timeless(decode_record(data, path.stem))).decode()
    return _short(data)


def _timeless(record: Record) -> Record:
    bad = tuple(msgspec.structs.replace(each, reason="") for each in record.bad)
    return msgspec.structs.replace(record, since_ns=0, reason="", trial=None, bad=bad)


def difference(found: Mapping[str, str], expected: Mapping[str, str]) -> str:
    more = {name: found[name] for name in found.keys() - expected.keys()}
    less = {name: expected[name] for name in expected.keys() - found.keys()}
    other = {name: (found[name], expected[name]) for name in found.keys() & expected if found[name] != expected[name]}
    return json.dumps({"too much": more, "missing": less, "different": other}, indent=1)
