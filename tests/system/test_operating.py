"""A box that runs, and is asked things: by mosquitto_rr, and by SIGHUP."""

import asyncio
import io
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from mosquitto import Mosquitto, Subscriber
from PIL import Image
from whole import HANDLERS, PATIENCE, configuration

from appliance.config import CameraConfig, Config, HandlerConfig, MqttConfig

ALL = ("reload", "snapshot", "log", "restart")


def commanded(broker: Mosquitto, *handlers: str, camera: CameraConfig | None = None) -> Config:
    mqtt = MqttConfig(url=broker.url, commands=ALL)
    return configuration(broker, *handlers, camera=camera, mqtt=mqtt)


async def ask(broker: Mosquitto, command: str, payload: Any) -> bytes:
    topics = ["-t", f"appliance/box/command/{command}", "-e", f"appliance/box/response/{command}"]
    process = await asyncio.create_subprocess_exec(
        *["mosquitto_rr", "-h", "127.0.0.1", "-p", str(broker.port), "-V", "5", "-N", "-W", "30"],
        *[*topics, "-m", json.dumps(payload)],
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    return output


@pytest.mark.slow
async def test_the_next_frame_is_shown(start: Any, broker: Mosquitto) -> None:
    async with start(commanded(broker)) as box:
        await box.more_results(5)
        picture = await ask(broker, "snapshot", {"camera": "camera"})
        with Image.open(io.BytesIO(picture)) as image:
            image.load()
            assert (image.format, image.size) == ("JPEG", (320, 240))
        answer = json.loads(await ask(broker, "snapshot", {"camera": "door"}))
        assert answer == {"ok": False, "error": "there is no camera 'door'; there are: camera"}
        await box.more_results(5)


@pytest.mark.slow
async def test_a_handler_is_begun_anew_and_no_frame_is_lost(start: Any, broker: Mosquitto) -> None:
    camera = CameraConfig(lossless=True, fps=60, frames=240)
    async with start(commanded(broker, camera=camera)) as box:
        await box.more_results(20)
        (before,) = (handler.status.pid for handler in box.appliance.serving.live.values())
        assert json.loads(await ask(broker, "restart", {"handler": "parts"})) == {"ok": True}
        (after,) = (handler.status.pid for handler in box.appliance.serving.live.values())
        assert after != before
        await box.until(lambda: len(box.results()) >= 240)
        assert sorted(result["seq"] for result in box.results()) == list(range(240))


@pytest.mark.slow
async def test_handlers_change_while_frames_come(start: Any, broker: Mosquitto) -> None:
    config = commanded(broker, camera=CameraConfig(lossless=True, fps=60, frames=240))
    parts = HandlerConfig(path=str(HANDLERS / "parts"))
    now = [config]
    async with start(config, reread=lambda: now[0]) as box:
        await box.more_results(20)
        again = msgspec.structs.replace(parts, name="again")
        now[0] = msgspec.structs.replace(
            config, handlers=(parts, again), mqtt=MqttConfig(url=broker.url, commands=ALL[:2], log_level="error")
        )
        changed = json.loads(await ask(broker, "reload", {}))
        assert changed == {"ok": True, "changed": ["mqtt.log_level", "mqtt.commands", "handlers.again"]}
        assert set(box.appliance.serving.live) == {"parts", "again"}
        await box.until(lambda: any(result["handler"] == "again" for result in box.results()))
        refused = json.loads(await ask(broker, "restart", {"handler": "parts"}))
        assert "mqtt.commands" in refused["error"]
        now[0] = config
        assert json.loads(await ask(broker, "reload", {}))["ok"]
        assert set(box.appliance.serving.live) == {"parts"}
        now[0] = msgspec.structs.replace(config, handlers=(HandlerConfig(path="nowhere"),))
        assert json.loads(await ask(broker, "reload", {}))["ok"] is False
        await box.until(lambda: sum(result["handler"] == "parts" for result in box.results()) >= 240)
        of_parts = sorted(result["seq"] for result in box.results() if result["handler"] == "parts")
        assert of_parts == list(range(240))


async def test_sighup_has_the_file_read_again(tmp_path: Path, broker: Mosquitto) -> None:
    file = tmp_path / "appliance.toml"
    text = f"""
        handlers = [{{ path = "{HANDLERS / "parts"}" }}%s]
        [device]
        name = "box"
        [mqtt]
        url = "{broker.url}"
    """
    file.write_text(text % "")
    environment = {**os.environ, "APPLIANCE_STATE": str(tmp_path / "state")}
    command = [sys.executable, "-m", "appliance", "run", "--config", str(file), "--json", "--fps", "20"]
    async with Subscriber(broker.port) as subscriber, asyncio.timeout(PATIENCE):
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe, env=environment)
        try:
            await subscriber.until(lambda: len(subscriber.results()) > 5)
            file.write_text(text % f', {{ path = "{HANDLERS / "parts"}", name = "again" }}')
            process.send_signal(signal.SIGHUP)
            await subscriber.until(lambda: any("/again" in message.topic for message in subscriber.results()))
            file.write_text("handlers = [")
            process.send_signal(signal.SIGHUP)
            before = len(subscriber.results())
            await subscriber.until(lambda: len(subscriber.results()) > before + 20)
        finally:
            process.terminate()
            said, logged = await process.communicate()
    assert process.returncode == 0, logged
    assert json.loads(said)["results"] > 0
    assert b"event=reload_refused" in logged
    assert b"not valid TOML" in logged
