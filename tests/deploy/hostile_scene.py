"""A box whose broker is hostile: the real trust, downloads, store, deployer and rollouts; a serving that writes down.

Whatever the broker did, :meth:`HostileScene.check` says whether anything came in that the operator had not signed.
"""

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from fleet_double import START, Fleet, digest_of, messages
from memory_broker import Message
from rollout_doubles import GOOD, PaperServing

from appliance import deployer as module
from appliance.config import FleetConfig, InferenceConfig
from appliance.deploy import asking, download
from appliance.deploy.bundle import bundle_target, decode_bundle
from appliance.deploy.chunks import MAX_WINDOW
from appliance.deploy.desired import Assignment, targets_of
from appliance.deploy.download import AT_A_TIME, Downloads, Incoming
from appliance.deploy.fleet_topics import MAX_METADATA_BYTES, MIN_CHUNK_BYTES, FleetTopics
from appliance.deploy.metadata import MAX_CACHED_BYTES, MAX_METADATA_FILES
from appliance.deploy.report import DeviceReport, HandlerReport
from appliance.deploy.store import INDEX_FILE, Store
from appliance.deploy.trust import Trust
from appliance.deployer import Deployer
from appliance.rollout import rollout, running
from appliance.rollout.admitting import load_slot
from appliance.sandbox.spec import HandlerSpec

TOPICS = FleetTopics("fleet", "farm")
CONFIG = FleetConfig(name="farm", groups=("door",), canary_frames=30, canary_seconds=3600.0, trial_seconds=3600.0)
CHUNK = MIN_CHUNK_BYTES
QUICK = 0.002
PATIENCE = 20.0

Tell = Callable[[Incoming], None]


@contextmanager
def quick() -> Iterator[None]:
    """Whatever is waited for comes soon, and so does the next try."""
    with pytest.MonkeyPatch.context() as patch:
        for where, *names in (
            (module, "REFRESH_SECONDS", "SETTLE_SECONDS", "FIRST_RETRY", "LAST_RETRY"),
            (asking, "FIRST_ASK", "LAST_ASK"),
            (rollout, "POLL_SECONDS", "FIRST_RETRY", "LAST_RETRY"),
            (running, "FIRST_SERVE"),
        ):
            for name in names:
                patch.setattr(where, name, QUICK)
        patch.setattr(asking, "CONTENT_SECONDS", 0.1)
        patch.setattr(download, "STALL_SECONDS", 0.05)
        yield


class HostileBroker:
    """Holds ``honest`` and shows something else: ``lies`` by topic (None: nothing), and whatever ``more`` says.

    It may ``shuffle``, and say everything ``times``. ``flips`` are shown one after another, each time its topic is
    asked for.
    """

    def __init__(self, seed: int = 0) -> None:
        self.honest: dict[str, bytes] = {}
        self.lies: dict[str, bytes | None] = {}
        self.flips: dict[str, Iterator[bytes]] = {}
        self.asked: Counter[str] = Counter()
        """How often each filter was."""
        self.more: list[Message] = []
        self.shuffle = False
        self.times = 1
        self.listening: dict[str, Tell] = {}
        self.most = 0
        """Filters that were listened to at a time."""
        self._random = random.Random(seed)

    # what the box calls

    def listen(self, filters: Iterable[str], on_message: Tell) -> None:
        filters = list(filters)
        self.asked.update(filters)
        self.listening |= dict.fromkeys(filters, on_message)
        self.most = max(self.most, len(self.listening))
        asyncio.get_running_loop().call_soon(self._show, filters)

    def ignore(self, filters: Iterable[str]) -> None:
        for each in filters:
            self.listening.pop(each, None)

    # what the test calls

    @property
    def view(self) -> dict[str, bytes]:
        """What it would show now."""
        return {topic: payload for topic, payload in {**self.honest, **self.lies}.items() if payload is not None}

    def publish(self, messages: Mapping[str, bytes]) -> None:
        """The operator's messages; subscribers hear of them, unless there is a lie about the topic."""
        for topic, payload in messages.items():
            self.honest[topic] = payload
            if topic not in self.lies and topic not in self.flips:
                self.send(topic, payload)

    def send(self, topic: str, payload: bytes) -> None:
        """To whoever listens, as ``Control`` hands it on."""
        for filter_, tell in list(self.listening.items()):
            if matches(filter_, topic):
                tell(Message(topic, payload))

    def lie(self, topic: str, payload: bytes | None) -> None:
        """From now on, and at once where somebody listens."""
        self.lies[topic] = payload
        self.send(topic, payload or b"")

    def behave(self) -> None:
        """From now on it shows what is true to whoever asks. Nobody is told."""
        self.lies.clear()
        self.flips.clear()
        self.more.clear()
        self.shuffle, self.times = False, 1

    def reconnect(self) -> None:
        self._show(list(self.listening))

    def _show(self, filters: list[str]) -> None:
        told = [Message(topic, self._flipped(topic, payload)) for topic, payload in self._asked(filters)] * self.times
        told += self.more
        if self.shuffle:
            self._random.shuffle(told)
        for each in told:
            self.send(each.topic, each.payload)

    def _asked(self, filters: list[str]) -> list[tuple[str, bytes]]:
        exact = {each for each in filters if not each.endswith("+")}
        wild = [each for each in filters if each.endswith("+")]
        view = self.view
        found = [(topic, view[topic]) for topic in exact if topic in view]
        return found + [(t, payload) for t, payload in view.items() if any(matches(each, t) for each in wild)]

    def _flipped(self, topic: str, payload: bytes) -> bytes:
        if topic not in self.flips:
            return payload
        flipped = next(self.flips[topic], None)
        if flipped is None:
            del self.flips[topic]
            return payload
        return flipped


def matches(filter_: str, topic: str) -> bool:
    return topic == filter_ or (filter_.endswith("/+") and topic.rpartition("/")[0] == filter_[:-2])


class WatchedServing(PaperServing):
    """Every module that it is told to run is in ``ran``: (name, version, SHA-256)."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: set[tuple[str, str, str]] = set()

    async def start(self, spec: HandlerSpec) -> None:
        self._note(spec)
        await super().start(spec)

    async def shadow(self, spec: HandlerSpec) -> None:
        self._note(spec)
        await super().shadow(spec)

    def _note(self, spec: HandlerSpec) -> None:
        self.samples.setdefault(spec.version, GOOD)
        self.ran.add((spec.name, spec.version, digest_of(spec.module)))


class HostileScene:
    """An operator, his broker, and a box ``box``. What the operator signed is remembered, for :meth:`check`."""

    def __init__(self, path: Path, seed: int = 0, fleet: Fleet | None = None) -> None:
        self.path = path
        self.fleet = fleet or Fleet()
        self.now = START + timedelta(hours=1)
        self.broker = HostileBroker(seed)
        self.serving = WatchedServing()
        self.store = Store(path / "deploy", 64 << 20)
        self.wanted: dict[str, str] = {}
        """What the operator wants this box to run: version by name."""
        self.signed: set[tuple[str, str, str]] = set()
        """All that he ever wanted it to run: as ``WatchedServing.ran``."""
        self.states: list[dict[str, bytes]] = []
        """Metadata as it was published, one after another."""
        self.of_device: list[DeviceReport] = []
        self.of_handlers: dict[str, HandlerReport | None] = {}
        self.deployer: Deployer | None = None

    # the operator

    def bundle(self, name: str, version: str, role: str | None = None, says: bytes = b"") -> Assignment:
        """Sign one; nobody is to run it yet."""
        contents = {"handler.toml": manifest(name, version), "handler.wasm": wasm(name, version, says)}
        return self.fleet.bundle(name, version, contents, role)

    def deploy(self, wanted: Mapping[str, str], role: str | None = None, says: bytes = b"") -> None:
        """These versions, for this box, and on the broker."""
        self.sign(wanted, role, says)
        self.send()

    def sign(self, wanted: Mapping[str, str], role: str | None = None, says: bytes = b"") -> None:
        assigned = {}
        for name, version in wanted.items():
            digest = self.bundle(name, version, role, says).digest
            assigned[name] = Assignment(version=version, digest=digest)
            self.signed.add((name, version, digest_of(wasm(name, version, says))))
        self.fleet.deploy("box", assigned)
        self.wanted = dict(wanted)
        self.fleet.publish()
        self.states.append(dict(self.fleet.metadata))

    def send(self) -> None:
        """What is signed, the timestamp last."""
        order = sorted(messages(self.fleet, TOPICS, CHUNK).items(), key=lambda each: each[0].endswith("timestamp.json"))
        self.broker.publish({topic: payload for topic, payload in order if self.broker.honest.get(topic) != payload})

    def chunk(self, file: str, index: int = 0) -> str:
        """The topic of a piece of what was signed last: ``desired``, ``index``, ``handler.toml``, ``handler.wasm``."""
        return TOPICS.chunk(self.digest(file), index)

    def digest(self, file: str) -> str:
        signed = self.fleet.targets.targets
        ((name, version),) = self.wanted.items()
        if file == "desired":
            return signed["devices/box.json"].hashes["sha256"]
        index = signed[bundle_target(name, version)].hashes["sha256"]
        return index if file == "index" else decode_bundle(self.fleet.files[index]).files[file].sha256

    # the box

    @asynccontextmanager
    async def box(self) -> AsyncIterator[None]:
        """It runs. What it stores survives."""
        self.serving.live.clear()
        self.serving.shadows.clear()
        self.broker.listening.clear()

        def wall() -> float:
            return self.now.timestamp()

        self.deployer = Deployer(
            CONFIG,
            "box",
            topics=TOPICS,
            ears=self.broker,
            trust=Trust(self.path / "trust", self.fleet.first_root, wall=wall),
            store=self.store,
            downloads=Downloads(TOPICS, self.broker, self.store),
            serving=self.serving,
            load=lambda path, name, slot: load_slot(path, name, slot, InferenceConfig()),
            admit=_admitted,
            report=self._report,
            wall=wall,
        )
        async with self.deployer:
            await self.deployer.start_active()
            yield

    def _report(self, name: str | None, document: HandlerReport | DeviceReport | None) -> None:
        if isinstance(document, DeviceReport):
            self.of_device.append(document)
        elif name is not None:
            self.of_handlers[name] = document

    @property
    def standing(self) -> str:
        return self.of_device[-1].state if self.of_device else ""

    @property
    def running(self) -> dict[str, str]:
        return {name: spec.version for name, spec in self.serving.live.items()}

    @property
    def converged(self) -> bool:
        reports = {name: each for name, each in self.of_handlers.items() if each is not None}
        return (
            self.standing == "current"
            and self.of_device[-1].metadata.get("timestamp") == self.fleet.timestamp.version
            and self.running == self.wanted
            and {name: each.current.version for name, each in reports.items() if each.current} == self.wanted
            and all(each.state == "active" for each in reports.values())
        )

    async def until(self, condition: Callable[[], object], patience: float = PATIENCE) -> None:
        async with asyncio.timeout(patience):
            while not condition():
                await asyncio.sleep(QUICK)

    async def until_converged(self) -> None:
        try:
            await self.until(lambda: self.converged)
        except TimeoutError:
            said = self.of_device[-1] if self.of_device else None
            raise AssertionError(f"{self.running} runs, {self.wanted} is wanted: {said} {self.of_handlers}") from None
        self.check()

    # what must hold

    def check(self) -> None:
        """Nothing ran or is stored that the operator has not signed for this box, and what is held is bounded."""
        assert self.serving.ran <= self.signed
        self._check_store()
        self._check_metadata()
        self._check_memory()

    def _check_store(self) -> None:
        """What is removed meanwhile is not looked at."""
        signed = self._named_by_the_operator()
        directory = self.path / "deploy"
        for file in (directory / "objects").iterdir():
            with gone(file):
                assert digest_of(file.read_bytes()) == file.name
            assert file.name in signed
        for slot in [slot for handler in listed(directory / "slots") for slot in listed(handler)]:
            with gone(slot):
                index = (slot / INDEX_FILE).read_bytes()
                assert slot.name == digest_of(index)
                bundle = decode_bundle(index)
                assert bundle.name == slot.parent.name
                for file_name, entry in bundle.files.items():
                    assert digest_of((slot / file_name).read_bytes()) == entry.sha256
            assert slot.name in signed
        for file in (directory / "incoming").iterdir():
            assert file.name.partition(".")[0] in signed

    def _named_by_the_operator(self) -> set[str]:
        """Digests of all that a box may have: desired states of its own, bundles that were for it, and their files."""
        paths = targets_of("box", CONFIG.groups)
        mine = set(self.fleet.files)
        for each in [self.fleet.targets, *(role.signed for role in self.fleet.delegates.values())]:
            foreign = {p for p in each.targets if not p.startswith("handlers/") and p not in paths}
            mine -= {each.targets[path].hashes["sha256"] for path in foreign}
        return mine

    def _check_metadata(self) -> None:
        """What the client has stored was signed by the operator; around that a flipped bit may mean the same."""
        ever = {self.fleet.first_root, *(data for state in self.states for data in state.values())}
        signed = [json.loads(data)["signed"] for data in ever]
        for file in (self.path / "trust" / "metadata").rglob("*.json"):
            try:
                data = file.read_bytes()
            except FileNotFoundError:  # a link to the newest root is removed and made again, in a thread
                continue
            assert data in ever or json.loads(data)["signed"] in signed, file.name

    def _check_memory(self) -> None:
        assert self.deployer is not None
        held = self.deployer._cache.snapshot()
        assert len(held) <= MAX_METADATA_FILES
        assert sum(map(len, held.values())) <= MAX_CACHED_BYTES
        assert max(map(len, held.values()), default=0) <= MAX_METADATA_BYTES
        assert self.broker.most <= 1 + AT_A_TIME * MAX_WINDOW
        assert set(self.deployer._rollouts) <= {name for name, _, _ in self.signed}


def listed(directory: Path) -> list[Path]:
    """Nothing where it has just been removed."""
    try:
        return list(directory.iterdir())
    except FileNotFoundError:
        return []


@contextmanager
def gone(path: Path) -> Iterator[None]:
    """What is not found was removed, as a whole."""
    try:
        yield
    except FileNotFoundError:
        assert not path.exists()


async def _admitted(_spec: HandlerSpec) -> None:
    pass


def manifest(name: str, version: str) -> bytes:
    return f'name="{name}"\nversion="{version}"\nobserves=[1]\n'.encode()


def wasm(name: str, version: str, says: bytes = b"") -> bytes:
    return b"\0asm\1\0\0\0" + f"{name} {version}".encode() + says


def flips(data: bytes, step: int = 1) -> Iterator[bytes]:
    """Every ``step``-th byte with one bit of it flipped; which one goes round."""
    for at in range(0, len(data), step):
        yield data[:at] + bytes([data[at] ^ 1 << (at // step) % 8]) + data[at + 1 :]
