"""A fleet with a real broker and the operator's commands, whose devices run handlers on paper."""

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mosquitto import Mosquitto, Subscriber
from paper_device import PaperDevice, paper_device
from signed_fleet import Watcher
from signing_desk import Desk, handler

from appliance.config import FleetConfig
from appliance.fleet.operate import synchronise

CHUNK_BYTES = 32 << 10
CHUNKS = 48
"""Of a model, where the test gives none."""


@dataclass
class Fleet:
    """An operator with a fleet's directory, in which ``motion`` has a model of many chunks."""

    path: Path
    broker: Mosquitto
    desk: Desk
    url: str = ""
    """Where devices connect; empty: to the broker itself."""

    async def sign(self, version: str, model: bytes | None = None, module: bytes | None = None) -> str:
        """Deploy a version to all, unsent; with a model of its own, where none is given. The model's digest."""
        model = os.urandom(CHUNKS * CHUNK_BYTES - 100) if model is None else model
        return await asyncio.to_thread(self._sign, version, model, module)

    def _sign(self, version: str, model: bytes, module: bytes | None) -> str:
        place = handler(self.path, "motion", version, '[[models]]\nname = "random"\nfile = "random.tflite"\n')
        (place / "random.tflite").write_bytes(model)
        if module is not None:
            (place / "handler.wasm").write_bytes(module)
        self.desk.run("deploy", place, "--to", "all", "--no-send")
        return hashlib.sha256(model).hexdigest()

    async def send(self) -> None:
        await synchronise(self.desk.fleet(), Watcher())

    async def refresh(self) -> None:
        """What a timer does, and an operator after an outage."""
        await asyncio.to_thread(self.desk.run, "refresh")

    @asynccontextmanager
    async def device(
        self, name: str = "box", overhear: Callable[[str], None] = lambda topic: None
    ) -> AsyncIterator[PaperDevice]:
        config = FleetConfig(
            name="shops", root=str(self.desk.directory / "metadata" / "1.root.json"), canary_seconds=3600.0
        )
        async with paper_device(self.path / name, name, self.url or self.broker.url, config, overhear) as device:
            yield device

    async def reported(self, device: str = "box") -> dict[str, Any]:
        """What somebody reads who comes to the broker now."""
        async with Subscriber(self.broker.port) as reader:
            topic = f"{device}/deployment/motion"
            await reader.until(lambda: reader.states(topic))
            return json.loads(reader.states(topic)[-1])


def new_fleet(tmp_path: Path, broker: Mosquitto, monkeypatch: pytest.MonkeyPatch, url: str = "") -> Fleet:
    """``url``: where the operator's tools connect; empty: to the broker itself."""

    async def good(directory: Path) -> None:
        del directory

    monkeypatch.setattr("appliance.fleet.checks.check_module", good)
    monkeypatch.setattr("appliance.fleet.keys.SCRYPT_LOG_N", 4)
    desk = Desk(tmp_path / "fleet")
    desk.run("init", desk.directory, "--name", "shops", "--broker", url or broker.url)
    return Fleet(tmp_path, broker, desk)
