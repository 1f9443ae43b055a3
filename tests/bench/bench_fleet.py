"""A bundle's way over MQTT, by the operator's tools and a device, against the same bytes as one retained message.

    PYTHONPATH=.:tests/deploy:tests/fleet:tests/mqtt python tests/bench/bench_fleet.py [--rounds N] [--json]

Mosquitto takes packets of 128 KB at most, and any size for the one message. Each device is a process of its own, whose
handlers run on paper: what is measured ends when all files of the bundle are there, verified and durable. Both ways
go through a gate that counts bytes and, where told, delays them.
"""

import argparse
import asyncio
import hashlib
import json
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiomqtt
from mosquitto import Gate, Mosquitto
from paper_device import paper_device
from signed_fleet import Watcher
from signing_desk import Desk, handler

import appliance.fleet.checks
import appliance.fleet.keys
from appliance.config import FleetConfig
from appliance.device.durable import write_durably
from appliance.fleet.operate import synchronise
from appliance.fleet.settings import SETTINGS_FILE

BUNDLE_BYTES = 5 << 20
LARGE_BYTES = 64 << 20
CHUNKS_KB = (4, 16, 32, 60)
DELAYS_MS = (0, 25)
"""Each way: a round trip takes twice as long."""
SETTINGS = ("allow_anonymous true", "max_packet_size 131072", "max_inflight_messages 20")
"""The last is Mosquitto's default."""
NAME = "motion"


async def _good(directory: Path) -> None:
    """Modules are not judged: what is measured is their way."""


def quick_desk() -> None:
    appliance.fleet.checks.check_module = _good
    appliance.fleet.keys.SCRYPT_LOG_N = 4


@dataclass
class Scene:
    """A fleet with a bundle, and a broker that is empty; everything goes through gates."""

    directory: Path
    broker: Mosquitto
    operators: Gate
    devices: Gate
    desk: Desk

    def sign(self, version: str, model: bytes, module: bytes | None = None) -> int:
        """Deploy to all, unsent; the bytes of the bundle's files."""
        use = '[[models]]\nname = "random"\nfile = "random.tflite"\n'
        place = handler(self.directory, NAME, version, use)
        (place / "random.tflite").write_bytes(model)
        if module is not None:
            (place / "handler.wasm").write_bytes(module)
        self.desk.run("deploy", place, "--to", "all", "--no-send")
        return sum(file.stat().st_size for file in place.iterdir())

    async def send(self) -> float:
        """Seconds until the broker has taken everything."""
        started = time.perf_counter()
        await synchronise(self.desk.fleet(), Watcher())
        return time.perf_counter() - started

    @asynccontextmanager
    async def device(self, name: str) -> AsyncIterator[Callable[[str], Any]]:
        """A device in a process of its own; what it gives waits for an event, and returns what was said with it."""
        root = self.desk.directory / "metadata" / "1.root.json"
        arguments = [self.devices.url, str(root), str(self.directory / name)]
        process = await asyncio.create_subprocess_exec(
            sys.executable, __file__, "device", *arguments, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        stdout = process.stdout

        async def event(name: str) -> dict[str, Any]:
            async for line in stdout:
                said: dict[str, Any] = json.loads(line)
                if said["event"] == name:
                    return said
            raise SystemExit(f"the device ended without {name}")

        try:
            yield event
        finally:
            process.terminate()
            await process.wait()


@asynccontextmanager
async def scene(chunk_kb: int, delay_ms: float = 0) -> AsyncIterator[Scene]:
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        with Mosquitto(directory / "broker", *SETTINGS) as broker:
            async with Gate(broker.port) as operators, Gate(broker.port, delay_ms / 1000) as devices:
                desk = Desk(directory / "fleet")
                desk.run("init", desk.directory, "--name", "shops", "--broker", operators.url)
                settings = desk.directory / SETTINGS_FILE
                settings.write_text(re.sub(r"chunk_kb = \d+", f"chunk_kb = {chunk_kb}", settings.read_text()))
                yield Scene(directory, broker, operators, devices, desk)


# --- what is measured ---------------------------------------------------------------------------------------------


async def bundle(chunk_kb: int, delay_ms: float) -> dict[str, float]:
    """A new bundle: to the broker, and from there to a device."""
    async with scene(chunk_kb, delay_ms) as place:
        length = await asyncio.to_thread(place.sign, "1.0.0", os.urandom(BUNDLE_BYTES))
        sent = await place.send()
        async with place.device("box") as event:
            taken = (await event("fetched"))["seconds"]
        operator, device = place.operators, place.devices
        return {
            "send_s": sent,
            "fetch_s": taken,
            "send_wire": (operator.to_broker + operator.from_broker) / length,
            "fetch_wire": (device.to_broker + device.from_broker) / length,
        }


async def one_message(delay_ms: float) -> dict[str, float]:
    """As many bytes as one retained message; received, checked and durable."""
    data = os.urandom(BUNDLE_BYTES)
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        with Mosquitto(directory / "broker", "allow_anonymous true") as broker:
            async with Gate(broker.port) as operators, Gate(broker.port, delay_ms / 1000) as devices:
                started = time.perf_counter()
                async with _client(operators.port) as client:
                    await client.publish("bundle", data, qos=1, retain=True, timeout=60)
                sent = time.perf_counter() - started
                started = time.perf_counter()
                async with _client(devices.port) as client:
                    await client.subscribe("bundle", qos=1)
                    message = await anext(client.messages)
                    assert isinstance(message.payload, bytes)
                    await asyncio.to_thread(_keep, directory / "file", message.payload, hashlib.sha256(data).digest())
                taken = time.perf_counter() - started
                return {
                    "send_s": sent,
                    "fetch_s": taken,
                    "send_wire": (operators.to_broker + operators.from_broker) / len(data),
                    "fetch_wire": (devices.to_broker + devices.from_broker) / len(data),
                }


def _client(port: int) -> aiomqtt.Client:
    return aiomqtt.Client("127.0.0.1", port, protocol=aiomqtt.ProtocolVersion.V5, timeout=60)


def _keep(path: Path, data: bytes, digest: bytes) -> None:
    assert hashlib.sha256(data).digest() == digest
    write_durably(path, data)


async def upgrade(chunk_kb: int = 32) -> dict[str, float]:
    """Another module and version, the same model: bytes on the wire as shares of the bundle."""
    async with scene(chunk_kb) as place:
        model = os.urandom(BUNDLE_BYTES)
        await asyncio.to_thread(place.sign, "1.0.0", model)
        await place.send()
        async with place.device("box") as event:
            await event("active")
            operator, device = place.operators, place.devices
            before = [gate.to_broker + gate.from_broker for gate in (operator, device)]
            module = (place.directory / f"{NAME}-1.0.0x" / "handler.wasm").read_bytes()
            length = await asyncio.to_thread(place.sign, "1.1.0", model, module + b"\0\x02\x01x")  # a custom section
            await place.send()
            await event("fetched")
            after = [gate.to_broker + gate.from_broker for gate in (operator, device)]
        shares = [(now - then) / length for now, then in zip(after, before, strict=True)]
        return {"operator_share": shares[0], "device_share": shares[1]}


async def resumption(chunk_kb: int = 32) -> dict[str, float]:
    """The device's connection ends at half: bytes from the broker in all, as share of the bundle."""
    async with scene(chunk_kb) as place:
        length = await asyncio.to_thread(place.sign, "1.0.0", os.urandom(BUNDLE_BYTES))
        await place.send()
        async with place.device("box") as event:
            while place.devices.from_broker < length / 2:
                await asyncio.sleep(0)
            await place.devices.shut()
            await place.devices.open()
            await event("fetched")
        return {"from_broker": place.devices.from_broker / length}


async def large(chunk_kb: int = 32) -> dict[str, float]:
    """A model of LARGE_BYTES: what the device's process grows by at most."""
    async with scene(chunk_kb) as place:
        length = await asyncio.to_thread(place.sign, "1.0.0", os.urandom(LARGE_BYTES))
        sent = await place.send()
        async with place.device("box") as event:
            said = await event("fetched")
        return {"send_s": sent, "fetch_s": said["seconds"], "grown_mb": said["grown_kb"] / 1024, "mb": length / 2**20}


# --- the device's process -----------------------------------------------------------------------------------------


def _status_kb(key: str) -> int:
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1])


async def be_device(url: str, root: str, directory: str) -> None:
    fleet = FleetConfig(name="shops", root=root)
    Path(directory).mkdir()
    small = 0
    started = time.perf_counter()
    seen: set[str] = set()

    def overhear(topic: str) -> None:
        """The clock starts at the first chunk: before it the device lets metadata settle, for 1 s at most."""
        nonlocal small, started
        if "/chunk/" in topic and not seen:
            seen.add(topic)
            small = _status_kb("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
            started = time.perf_counter()

    async with paper_device(Path(directory), "box", url, fleet, overhear) as device:
        for number in range(1, 1000):
            await device.until(lambda number=number: len(device.admitted) == number, 600)  # type: ignore[misc]
            seconds = time.perf_counter() - started
            _say("fetched", seconds=seconds, grown_kb=_status_kb("VmHWM") - small)
            version = device.admitted[-1]
            await device.until_serves(NAME, version)
            _say("active")


def _say(event: str, **more: float) -> None:
    print(json.dumps({"event": event, **more}), flush=True)


# --- telling ------------------------------------------------------------------------------------------------------


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}


async def everything(rounds: int) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for delay in DELAYS_MS:
        ways: dict[str, list[dict[str, float]]] = {}
        for _ in range(rounds):
            ways.setdefault("one message", []).append(await one_message(delay))
            for chunk_kb in CHUNKS_KB:
                ways.setdefault(f"{chunk_kb} KiB", []).append(await bundle(chunk_kb, delay))
        figures[f"{delay} ms each way"] = {way: medians(each) for way, each in ways.items()}
    figures["upgrade"] = await upgrade()
    figures["resumption"] = await resumption()
    figures["large"] = await large()
    return figures


def lines(figures: dict[str, Any]) -> Iterator[str]:
    for title in [f"{delay} ms each way" for delay in DELAYS_MS]:
        base = figures[title]["one message"]
        yield f"{BUNDLE_BYTES >> 20} MB, the device's broker {title}"
        yield "way           send s   MB/s  ratio  wire    fetch s   MB/s  ratio  wire"
        for way, each in figures[title].items():
            columns = []
            for what in ("send", "fetch"):
                seconds = each[f"{what}_s"]
                rate, ratio = BUNDLE_BYTES / 2**20 / seconds, seconds / base[f"{what}_s"]
                columns.append(f"{seconds:>7.2f}{rate:>7.1f}{ratio:>7.2f}{each[f'{what}_wire']:>7.3f}")
            yield f"{way:<13}" + "   ".join(columns)
        yield ""
    upgraded, large_one = figures["upgrade"], figures["large"]
    yield f"an upgrade of the module alone: {upgraded['operator_share']:.2%} of the bundle's bytes for the operator,"
    yield f"  {upgraded['device_share']:.2%} for the device   bar < 5 %"
    yield f"the connection ends at half: {figures['resumption']['from_broker']:.3f} of the bundle's bytes come in all"
    yield (
        f"a model of {large_one['mb']:.0f} MB: sent in {large_one['send_s']:.1f} s, fetched in "
        f"{large_one['fetch_s']:.1f} s; the device's process grew by {large_one['grown_mb']:.1f} MB at most"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    quick_desk()
    figures = asyncio.run(everything(arguments.rounds))
    print(json.dumps(figures) if arguments.json else "\n".join(lines(figures)))


if __name__ == "__main__":
    if sys.argv[1:2] == ["device"]:
        asyncio.run(be_device(*sys.argv[2:]))
    else:
        main()
