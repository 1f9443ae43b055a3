"""A fleet under test: an operator with a directory and the real commands, boxes, and a broker between them."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from mosquitto import Mosquitto, Subscriber
from sandbox_bench import TAG, guest
from signing_desk import Desk
from whole import PATIENCE, Box

from appliance.app import Appliance
from appliance.config import CameraConfig, Config, DeviceConfig, FleetConfig, HandlerConfig, MqttConfig
from appliance.device.state import open_state
from appliance.fleet.settings import SETTINGS_FILE

HANDLERS = Path(__file__).parents[2] / "handlers"
JSON = 5
CANARY_FRAMES = 15
BAD_FROM = 40
"""So many good frames, more than a canary's, before a guest goes bad."""

GOOD = ""
TRAPS = "(unreachable)"
SLOW = "(loop $l br $l)"
LATE = f"""(global.set $n (i32.add (global.get $n) (i32.const 1)))
(if (i32.gt_u (global.get $n) (i32.const {BAD_FROM})) (then (unreachable)))"""


def module(says: str, evil: str = GOOD) -> bytes:
    """A guest that emits ``{"says": …}`` for every frame, after something evil."""
    text = json.dumps({"says": says}).encode()
    escaped = "".join(f"\\{byte:02x}" for byte in text)
    return guest(
        f"{evil} (call $emit (i32.const {TAG}) (i32.const {JSON}) (i32.const 64) (i32.const {len(text)}))",
        data=f'(data (i32.const 64) "{escaped}")',
        extra="(global $n (mut i32) (i32.const 0))",
    )


@dataclass(frozen=True)
class Operator:
    """The commands of ``appliance fleet``, as somebody at a desk runs them. They have loops of their own."""

    desk: Desk
    work: Path

    async def __call__(self, *arguments: object, code: int = 0) -> str:
        return await asyncio.to_thread(self.desk.run, *arguments, code=code)

    def bundle(self, name: str, version: str, says: str = "", evil: str = GOOD, **more: bytes) -> Path:
        """A handler's directory; ``more`` are files that it has."""
        directory = self.work / f"{name}-{version}"
        directory.mkdir(parents=True)
        (directory / "handler.wasm").write_bytes(module(says or version, evil))
        for file, data in more.items():
            (directory / file).write_bytes(data)
        deadline_ms = 60 if evil == SLOW else 5000  # a busy machine makes no good guest slow
        (directory / "handler.toml").write_text(
            f'name = "{name}"\nversion = "{version}"\nobserves = [1]\nemits = [{{ tag = {TAG} }}]\n'
            f"limits = {{ deadline_ms = {deadline_ms}, memory_mb = 1 }}\n"
        )
        return directory

    @property
    def root(self) -> Path:
        """The root that boxes are given: the first."""
        return self.desk.directory / "metadata" / "1.root.json"


def new_operator(directory: Path, url: str) -> Operator:
    desk = Desk(directory / "fleet")
    desk.run("init", desk.directory, "--name", "shops", "--broker", url)
    settings = desk.directory / SETTINGS_FILE
    assert url in settings.read_text()
    return Operator(desk, directory / "bundles")


def box_config(
    name: str, url: str, operator: Operator, *own: str, camera: CameraConfig | None = None, **fleet: Any
) -> Config:
    """A box of the fleet; ``own`` are handlers of its configuration."""
    return Config(
        device=DeviceConfig(name=name),
        cameras=(camera or CameraConfig(fps=30),),
        handlers=tuple(HandlerConfig(path=str(HANDLERS / each)) for each in own),
        mqtt=MqttConfig(url=url, stats_seconds=0.5),
        fleet=msgspec.structs.replace(
            FleetConfig(
                name="shops",
                root=str(operator.root),
                canary_frames=CANARY_FRAMES,
                canary_seconds=20.0,
                trial_seconds=5.0,
            ),
            **fleet,
        ),
    )


class FleetBox(Box):
    """One box of a fleet, and what it says."""

    @property
    def name(self) -> str:
        return self.appliance.device

    def results(self) -> list[dict[str, Any]]:
        return [result for result in super().results() if result["device"] == self.name]

    def of(self, handler: str) -> list[dict[str, Any]]:
        """Its results of one handler."""
        return [result for result in self.results() if result["handler"] == handler]

    def says(self, handler: str) -> str:
        """What the newest result of a handler is."""
        results = self.of(handler)
        return results[-1]["value"]["says"] if results else ""

    def report(self, handler: str = "") -> dict[str, Any]:
        """The newest report of a deployment, or of the device; empty where it was cleared."""
        topic = f"{self.name}/deployment/{handler}" if handler else f"{self.name}/deployment"
        states = self.subscriber.states(topic)
        return json.loads(states[-1]) if states and states[-1] else {}

    def states(self, handler: str) -> list[str]:
        """Every state that was reported, in order, each once at a time."""
        found = [
            json.loads(each)["state"] for each in self.subscriber.states(f"{self.name}/deployment/{handler}") if each
        ]
        return [state for state, before in zip(found, ["", *found], strict=False) if state != before]

    async def until_runs(self, handler: str, version: str) -> None:
        await self.until(lambda: (self.report(handler).get("current") or {}).get("version") == version)

    async def until_state(self, handler: str, state: str, version: str | None = None) -> None:
        def there() -> bool:
            report = self.report(handler)
            return report.get("state") == state and version in (None, (report.get("desired") or {}).get("version"))

        await self.until(there)


Start = Callable[[Config], Any]


def starting(tmp_path: Path, broker: Mosquitto) -> Start:
    """``async with start(config) as box``: leaving the block ends the box in good order."""

    @asynccontextmanager
    async def start(config: Config) -> AsyncIterator[FleetBox]:
        # QoS 0: an acknowledgement to a dead broker fails before all is read that it wrote
        async with Subscriber(broker.port, qos=0) as subscriber:
            appliance = Appliance(config, open_state(str(tmp_path / config.device.name)))
            box = FleetBox(appliance, subscriber, asyncio.Event())
            running = asyncio.create_task(appliance.run(box.stop))
            try:
                while not appliance.up.is_set() and not running.done():
                    await asyncio.sleep(0.02)
                yield box
            finally:
                box.stop.set()
                async with asyncio.timeout(PATIENCE):
                    box.summary = await running

    return start
