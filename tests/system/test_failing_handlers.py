"""What a handler that fails looks like from outside: on MQTT, on the disk, and by the commands."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from crash_bench import directory_of
from mosquitto import Mosquitto
from sandbox_bench import assemble, spec
from whole import HANDLERS, configuration

from appliance.config import DeviceConfig, HandlerConfig

TRAPS = assemble(
    """(module (func $deep (export "deep") (param i32) (result i32) unreachable)
    (func (export "handle") (result i32) (call $deep (i32.const 0))))"""
)


def command(*arguments: str, state: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "APPLIANCE_STATE": str(state)}
    return subprocess.run(
        [sys.executable, "-m", "appliance", *arguments],
        capture_output=True, text=True, timeout=90, env=environment, check=False,
    )  # fmt: skip


@pytest.mark.slow
async def test_the_last_failure_is_on_mqtt_and_the_operator_can_release(
    start, broker: Mosquitto, tmp_path: Path
) -> None:
    broken = directory_of(spec(TRAPS), tmp_path / "guest")
    handlers = (HandlerConfig(path=str(broken)), HandlerConfig(path=str(HANDLERS / "parts")))
    async with start(configuration(broker, handlers=handlers)) as box:
        await box.until(lambda: box.state("handler/guest").get("state") == "quarantined")
        await box.until(lambda: box.state("box/status").get("state") == "degraded")
        document = box.state("handler/guest")
        assert document["faults"]["trap"] == 32
        failure = document["last_failure"]
        assert (failure["kind"], failure["message"]) == ("trap", "unreachable executed")
        assert [line.split()[-1] for line in failure["backtrace"]] == ["deep", "handle"]
        assert failure["at"].endswith("Z")
        await box.until(lambda: "capsule" in box.state("handler/guest")["last_failure"])  # it is the 32nd
        capsule = tmp_path / "state" / "capsules" / box.state("handler/guest")["last_failure"]["capsule"]
        assert capsule.exists()
        await box.more_results()  # the neighbour goes on
        before = len(box.subscriber.states("handler/guest"))
        released = await asyncio.to_thread(command, "handler", "release", "guest", state=tmp_path / "state")
        assert released.returncode == 0, released.stderr
        await box.until(lambda: box.state("handler/guest")["faults"]["trap"] > 32)
        await box.until(lambda: box.state("handler/guest")["faults"]["trap"] == 64)
        states = [json.loads(state)["state"] for state in box.subscriber.states("handler/guest")[before:]]
        assert "running" in states
        assert box.state("handler/parts")["faults"] == {}
        replayed = await asyncio.to_thread(
            command, "handler", "replay", str(capsule), "--handler", str(broken), state=tmp_path / "state"
        )
        assert (replayed.returncode, replayed.stdout.splitlines()[-1]) == (0, "reproduced: trap")
    assert box.summary.handlers == {"guest": "quarantined", "parts": "running"}
    assert box.summary.lost == 0


@pytest.mark.slow
async def test_an_operator_may_want_no_pictures_kept(start, broker: Mosquitto, tmp_path: Path) -> None:
    handlers = (HandlerConfig(path=str(directory_of(spec(TRAPS), tmp_path / "guest"))),)
    device = DeviceConfig(name="box", capsules=False)
    async with start(configuration(broker, handlers=handlers, device=device)) as box:
        await box.until(lambda: box.state("handler/guest").get("state") == "quarantined")
    assert not (tmp_path / "state" / "capsules").exists()


@pytest.mark.slow
def test_a_run_that_ends_with_a_handler_in_quarantine_is_a_failure(broker: Mosquitto, tmp_path: Path) -> None:
    broken = directory_of(spec(TRAPS), tmp_path / "guest")
    arguments = ["--frames", "60", "--lossless", "--handler", str(broken), "--broker", broker.url, "--json"]
    for _ in range(2):  # it is there from the start, the second time
        ran = command("run", *arguments, state=tmp_path / "state")
        assert ran.returncode == 1
        assert json.loads(ran.stdout)["handlers"] == {"guest": "quarantined"}
        assert "guest failed too often and is in quarantine" in ran.stderr.splitlines()[-1]
    assert json.loads(ran.stdout)["dropped"]["failed_guest"] == 60
    listed = command("handler", "release", state=tmp_path / "state").stdout
    assert listed.startswith("guest 1.0.0  since 20")
    assert listed.endswith("trap: unreachable executed\n")
    (broken / "handler.wasm").write_bytes(assemble('(module (func (export "handle") (result i32) i32.const 0))'))
    ran = command("run", *arguments, state=tmp_path / "state")
    assert ran.returncode == 0, ran.stderr
