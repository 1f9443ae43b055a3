"""What this machine has and lacks, for ``appliance doctor``: one finding a line, with the remedy."""

import asyncio
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

import msgspec

from appliance.backoff import Backoff
from appliance.camera.camera import kind_of, open_camera, printable
from appliance.config import CameraConfig, Config, HandlerConfig, MqttConfig, device_name
from appliance.device.state import open_state
from appliance.errors import ApplianceError
from appliance.ipc.child import kept_environment
from appliance.ipc.report import Lockdown
from appliance.mqtt.private_broker import SEARCH_PATH
from appliance.publisher import Publisher
from appliance.sandbox.spec import load_handler

CAMERA_SECONDS = 15.0
BROKER_SECONDS = 5.0
LOCKDOWN_SECONDS = 10.0
CLOCK_FLOOR = 1_750_000_000
"""June 2025: a clock before that was never set."""
MIN_FREE_BYTES = 256 << 20
USB_IDS = {("1a6e", "089a"): "Edge TPU on USB (its firmware is not loaded yet)", ("18d1", "9302"): "Edge TPU on USB"}


@dataclass(frozen=True, slots=True)
class Finding:
    subject: str
    good: bool | None
    """None: absent, and not needed."""
    text: str


async def examine(config: Config, state: str) -> list[Finding]:
    """Look at everything that the configuration needs; nothing is changed but the state directory being made."""
    findings = [
        _python(),
        _runtime(config, "litert", "ai_edge_litert", "ai-edge-litert"),
        _runtime(config, "tflite", "tflite_runtime", "tflite-runtime"),
        _edge_tpu(config),
        *(_handler(handler, config) for handler in config.handlers),
        await asyncio.to_thread(_locked_down, "workers", "appliance.sandbox.lockdown"),
        await asyncio.to_thread(_locked_down, "models", "appliance.inference.lockdown"),
    ]
    if library := config.inference.delegate:
        locked = await asyncio.to_thread(_locked_down, "models, edge tpu", "appliance.inference.lockdown", library)
        findings.append(locked)
    findings += [await asyncio.to_thread(_camera, camera) for camera in config.cameras]
    findings += [await _broker(config, state), _state(state), _clock(), _leds()]
    return findings


def _python() -> Finding:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    good = (3, 11) <= sys.version_info[:2] <= (3, 13)
    return Finding("python", good, version if good else f"{version}: 3.11 to 3.13 are supported")


def _runtime(config: Config, name: str, module: str, package: str) -> Finding:
    """One inference runtime; only the configured one must be there."""
    chosen = config.inference.runtime == name
    if util.find_spec(module):
        return Finding(name, True, f"{package} {metadata.version(package)}{' (in use)' if chosen else ''}")
    if chosen:
        return Finding(name, False, f"not installed: pip install {package}")
    return Finding(name, None, "not installed, not needed")


def _edge_tpu(
    config: Config, devices: Path = Path("/sys/bus/usb/devices"), apex: Path = Path("/dev/apex_0")
) -> Finding:
    found = "Edge TPU on PCIe" if apex.exists() else _usb(devices)
    if not config.inference.delegate:
        hint = "; set inference.delegate to use it" if found else ""
        return Finding("edge tpu", None, f"{found or 'none found'}, not configured{hint}")
    if found:
        return Finding("edge tpu", True, found)
    return Finding(
        "edge tpu",
        False,
        "inference.delegate is set but no Edge TPU is found: check cable and power; models run on the CPU",
    )


def _usb(devices: Path) -> str:
    for device in devices.glob("*"):
        try:
            ids = (device / "idVendor").read_text().strip(), (device / "idProduct").read_text().strip()
        except OSError:
            continue
        if ids in USB_IDS:
            return USB_IDS[ids]
    return ""


def _handler(handler: HandlerConfig, config: Config) -> Finding:
    name = handler.name or Path(handler.path).name
    return _tried(f"handler {name}", lambda: f"version {load_handler(handler, config.inference).version}")


def _locked_down(subject: str, module: str, *arguments: str) -> Finding:
    """Lock a process down as ``module`` does, and have it tell what is in force; only the filter of calls is a must."""
    command = [sys.executable, "-m", module, *arguments]
    try:
        ran = subprocess.run(command, env=kept_environment(), capture_output=True, timeout=LOCKDOWN_SECONDS, check=True)
        lockdown = msgspec.json.decode(ran.stdout, type=Lockdown)
    except (OSError, subprocess.SubprocessError, msgspec.DecodeError) as error:
        return Finding(subject, False, f"a process cannot be locked down: {error}")
    return Finding(subject, "seccomp" not in lockdown.missing, str(lockdown))


def _camera(camera: CameraConfig) -> Finding:
    def one_picture() -> str:
        kind_of(camera)
        with open_camera(camera) as opened:
            picture = opened.read()
            if picture is None:
                raise ApplianceError(f"{printable(camera.url)}: has no picture")
            return f"{opened.description}: {picture.width}x{picture.height}"

    return _tried(f"camera {camera.name}", one_picture)


async def _broker(config: Config, state: str) -> Finding:
    if not config.mqtt.url:
        found = shutil.which("mosquitto") or shutil.which("mosquitto", path=SEARCH_PATH)
        text = (
            f"private: {found}" if found else "mosquitto is not installed: apt-get install mosquitto, or set mqtt.url"
        )
        return Finding("broker", bool(found), text)
    try:
        return await _connects(config.mqtt, device_name(config), open_state(state).path / "doctor.sqlite")
    except ApplianceError as error:
        return Finding("broker", False, str(error))


async def _connects(config: MqttConfig, device: str, spool: Path) -> Finding:
    """Connect as the appliance would, under another name, so that a running one is not disturbed."""
    publisher = Publisher(config, f"{device[:50]}-doctor", spool, drain_seconds=1.0, retry=Backoff(0.5))
    try:
        async with publisher:
            await publisher.drained(BROKER_SECONDS)
            connection = publisher.stats.connection
            if connection.connected:
                return Finding("broker", True, config.url)
            return Finding("broker", False, connection.error or f"{config.url}: no answer within {BROKER_SECONDS:g} s")
    finally:
        for leftover in spool.parent.glob(f"{spool.name}*"):
            leftover.unlink(missing_ok=True)


def _state(state: str) -> Finding:
    def room() -> str:
        directory = open_state(state).path
        free = shutil.disk_usage(directory).free
        if free < MIN_FREE_BYTES:
            raise ApplianceError(f"{directory}: only {free >> 20} MB free")
        return f"{directory}, {free >> 30} GB free"

    return _tried("state", room)


def _clock(now: Callable[[], float] = time.time) -> Finding:
    if now() < CLOCK_FLOOR:
        return Finding("clock", False, "was never set: start systemd-timesyncd, or set the time")
    return Finding("clock", True, time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(now())))


def _leds(leds: Path = Path("/sys/class/leds")) -> Finding:
    names = sorted(path.name for path in leds.glob("*")) if leds.exists() else []
    return Finding("leds", True if names else None, ", ".join(names) or "none on this machine")


def _tried(subject: str, attempt: Callable[[], str]) -> Finding:
    try:
        return Finding(subject, True, attempt())
    except ApplianceError as error:
        return Finding(subject, False, str(error))
