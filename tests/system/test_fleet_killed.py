"""The process of a box is killed while it upgrades: it comes back with the old or the new, and finishes it."""

import asyncio
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fleet_scenes import CANARY_FRAMES, HANDLERS, FleetBox, Operator, new_operator
from mosquitto import Mosquitto, Subscriber
from whole import PATIENCE

ALL = ("--to", "all")
KILLS = 5
UPGRADE_SECONDS = 1.4
"""About what an upgrade takes, from the timestamp's message to the report."""


@pytest.fixture
def operator(tmp_path: Path, broker: Mosquitto, monkeypatch: pytest.MonkeyPatch) -> Operator:
    monkeypatch.setattr("appliance.fleet.keys.SCRYPT_LOG_N", 4)
    return new_operator(tmp_path, broker.url)


@contextmanager
def appliance_run(directory: Path, broker: Mosquitto, operator: Operator) -> Iterator[subprocess.Popen[bytes]]:
    """The command itself; killed at the end, whatever it is doing."""
    config = directory / "appliance.toml"
    config.write_text(
        f'[device]\nname = "gate"\n[[cameras]]\nfps = 30\n[[handlers]]\npath = "{HANDLERS / "motion"}"\n'
        f'[mqtt]\nurl = "{broker.url}"\n[fleet]\nname = "shops"\nroot = "{operator.root}"\n'
        f"canary_frames = {CANARY_FRAMES}\ncanary_seconds = 20.0\n"
    )
    command = (sys.executable, "-m", "appliance", "run", "--config", str(config), "--state", str(directory / "state"))
    with (directory / "log").open("ab") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGKILL)


def timestamps(box: FleetBox) -> int:
    return len(box.subscriber.states("meta/timestamp.json"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(KILLS))
async def test_a_box_that_is_killed_while_it_upgrades_runs_old_or_new_and_converges(
    tmp_path: Path, broker: Mosquitto, operator: Operator, seed: int
) -> None:
    moment = UPGRADE_SECONDS * (seed + random.Random(seed).random()) / KILLS
    async with Subscriber(broker.port) as subscriber:
        box = FleetBox(cast("Any", SimpleNamespace(device="gate")), subscriber, asyncio.Event())
        with appliance_run(tmp_path, broker, operator):
            await operator("deploy", operator.bundle("acme", "1.0.0"), *ALL)
            await box.until(lambda: box.says("acme") == "1.0.0")
            before = timestamps(box)
            upgrade = asyncio.create_task(operator("deploy", operator.bundle("acme", "1.1.0"), *ALL))
            await box.until(lambda: timestamps(box) > before)
            await asyncio.sleep(moment)  # the fault itself: when it comes
        killed = len(box.of("acme"))
        with appliance_run(tmp_path, broker, operator):
            await box.until(lambda: len(box.of("acme")) > killed + CANARY_FRAMES)
            await box.until_state("acme", "active", "1.1.0")
            await box.until(lambda: box.says("acme") == "1.1.0")
            async with asyncio.timeout(PATIENCE):
                assert "gate" in await upgrade
            await box.until(lambda: box.of("motion"))
    results = box.of("acme")
    assert {(result["version"], result["value"]["says"]) for result in results} == {
        ("1.0.0", "1.0.0"),
        ("1.1.0", "1.1.0"),
    }
    versions = [result["version"] for result in results[killed:]]
    assert versions == sorted(versions), "the old version came back after the new one"
