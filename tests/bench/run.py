"""The benchmarks of docs/performance.md: ``make bench``, or ``python tests/bench/run.py [--rounds N] [--frames N]``.

The appliance and a bare loop (``bare_loop.py``) take turns on the same machine, broker, model and picture, and what
counts is the ratio within each round. Prints a table, and JSON with ``--json``.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import paho.mqtt.client as paho
import simplejpeg
from mosquitto import Mosquitto
from PIL import Image

from appliance.device.memory import proportional_kb

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
DATA = ROOT.parent / "shared" / "data"
MOBILENET = DATA / "models" / "mobilenet_v2_1.0_224_quant.tflite"
PARTS = ROOT / "handlers" / "parts" / "parts.tflite"
JPEG_BYTES = 50_000
PATIENCE = 120.0


def picture() -> bytes:
    """A 640x480 JPEG of about 50 KB: smooth shapes with texture, as a photograph has."""
    random = np.random.default_rng(7)
    coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8)).resize(
        (640, 480), Image.Resampling.BICUBIC
    )
    best = b""
    for grain in range(2, 60):
        noise = random.normal(0, grain, (480, 640, 3))
        pixels = np.clip(np.asarray(coarse, np.float32) + noise, 0, 255).astype(np.uint8)
        best = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=85, colorsubsampling="420")
        if len(best) >= JPEG_BYTES:
            break
    return best


class Listener:
    """A subscriber in this process; notes when each result came."""

    def __init__(self, port: int, topic: str) -> None:
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        self._client.on_message = self._on_message
        self._changed = threading.Condition()
        self.results: list[tuple[int, bytes]] = []
        self._client.connect("127.0.0.1", port)
        subscribed = threading.Event()
        self._client.on_subscribe = lambda *_: subscribed.set()
        self._client.subscribe(topic, qos=0)
        self._client.loop_start()
        subscribed.wait(PATIENCE)

    def _on_message(self, _client: object, _data: object, message: paho.MQTTMessage) -> None:
        with self._changed:
            self.results.append((time.time_ns(), message.payload))
            self._changed.notify()

    def wait(self, count: int) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.results) >= count, PATIENCE):
                raise SystemExit(f"only {len(self.results)} of {count} results came")

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


class Bench:
    def __init__(self, directory: Path, broker: Mosquitto, model: Path) -> None:
        self.directory = directory
        self.broker = broker
        self.model = model
        self.jpeg = directory / "picture.jpg"
        self.jpeg.write_bytes(picture())
        self.labels = directory / "labels.txt"
        self.labels.write_text("\n".join(f"class {n}" for n in range(1001)))

    @contextmanager
    def appliance(self, handlers: int = 1) -> Iterator[subprocess.Popen[bytes]]:
        """`appliance zipper` with classify, under as many names."""
        settings = f'settings = {{ model = "{self.model}", labels = "{self.labels}" }}'
        blocks = [
            f'[[handlers]]\npath = "{ROOT}/handlers/classify"\nname = "classify{n}"\n{settings}\n'
            for n in range(handlers)
        ]
        config = self.directory / "appliance.toml"
        config.write_text(f'[mqtt]\nurl = "{self.broker.url}"\n{"".join(blocks)}')
        state = self.directory / "state"
        command = [sys.executable, "-m", "appliance", "zipper", "--config", str(config), "--state", str(state)]
        process = subprocess.Popen([*command, "--log", "warning"])
        try:
            self._until_ready(handlers)
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)

    def _until_ready(self, handlers: int) -> None:
        waiting = [
            "mosquitto_sub",
            "-h",
            "127.0.0.1",
            "-p",
            str(self.broker.port),
            "-t",
            "appliance/+/status",
            "-W",
            "60",
        ]
        with subprocess.Popen(waiting, stdout=subprocess.PIPE) as listener:
            assert listener.stdout is not None
            for line in listener.stdout:
                states = json.loads(line).get("handlers", {})
                if len(states) == handlers and set(states.values()) == {"running"}:
                    break
            listener.kill()

    def camera(self, frames: int, rate: float) -> None:
        """The source, in a process of its own as always, to its end."""
        arguments = [str(self.directory / "state"), str(self.jpeg), str(frames), str(rate)]
        subprocess.run([sys.executable, str(HERE / "camera_in_memory.py"), *arguments], check=True)

    def bare(self, frames: int, rate: float) -> None:
        arguments = [str(self.broker.port), str(self.model), str(self.jpeg), str(frames), str(rate)]
        subprocess.run([sys.executable, str(HERE / "bare_loop.py"), *arguments], check=True)

    def measure(self, who: str, frames: int, rate: float) -> dict[str, float]:
        """Frames per second between the first and the last result, and latencies in ms, seen by a subscriber."""
        topic = "bare/result" if who == "bare" else "appliance/+/result/#"
        listener = Listener(self.broker.port, topic)
        try:
            (self.bare if who == "bare" else self.camera)(frames, rate)
            listener.wait(frames)
        finally:
            listener.close()
        skip = frames // 10  # until caches and clocks are warm
        kept = listener.results[skip:]
        documents = [json.loads(payload) for _, payload in kept]
        latencies = sorted((at - doc["captured_ns"]) / 1e6 for (at, _), doc in zip(kept, documents, strict=True))
        figures = {
            "fps": (len(kept) - 1) / ((kept[-1][0] - kept[0][0]) / 1e9),
            "p50": statistics.median(latencies),
            "p95": latencies[int(len(latencies) * 0.95)],
        }
        if who != "bare":
            figures["hop"] = statistics.median(doc["timing_us"]["transfer"] for doc in documents) / 1000
        return figures

    def memory_mb(self, pid: int) -> float:
        """Proportional set size of a process and all below it."""
        total = proportional_kb(pid) / 1024
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            total += self.memory_mb(int(child))
        return total


def saturated(bench: Bench, rounds: int, frames: int) -> list[tuple[dict[str, float], dict[str, float]]]:
    return [(bench.measure("bare", frames, 0), bench.measure("appliance", frames, 0)) for _ in range(rounds)]


def first_result_seconds(bench: Bench, directory: Path) -> float:
    """From the start of the command to the first result at a subscriber, with a state directory made before."""
    listener = Listener(bench.broker.port, "appliance/+/result/#")
    environment = {**os.environ, "APPLIANCE_STATE": str(directory)}
    command = [sys.executable, "-m", "appliance", "run", "--broker", bench.broker.url, "--json"]
    started = time.time_ns()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment) as process:
        listener.wait(1)
        process.send_signal(signal.SIGINT)
    listener.close()
    return (listener.results[0][0] - started) / 1e9


def whole_memory(bench: Bench, directory: Path) -> dict[str, float]:
    """`appliance run` as a user starts it (camera and private broker too), with one handler on the model."""
    chosen = ["--set", f"classify.model={bench.model}", "--set", f"classify.labels={bench.labels}"]
    command = [
        sys.executable,
        "-m",
        "appliance",
        "run",
        "--json",
        "--frames",
        "150",
        "--handler",
        f"{ROOT}/handlers/classify",
    ]
    environment = {**os.environ, "APPLIANCE_STATE": str(directory)}
    ran = subprocess.run([*command, *chosen], capture_output=True, check=True, env=environment)
    sizes: dict[str, float] = json.loads(ran.stdout)["memory_mb"]
    return sizes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frames", type=int, default=600)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    model = MOBILENET if MOBILENET.exists() else PARTS
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        with Mosquitto(directory / "broker") as broker:
            figures = everything(Bench(directory, broker, model), directory, arguments.rounds, arguments.frames)
    if arguments.json:
        print(json.dumps(figures))
    else:
        show(figures)


def everything(bench: Bench, directory: Path, rounds: int, frames: int) -> dict[str, Any]:
    figures: dict[str, Any] = {"model": bench.model.name, "jpeg_bytes": len(bench.jpeg.read_bytes()), "rounds": []}
    with bench.appliance():
        bench.measure("bare", frames // 4, 0)
        bench.measure("appliance", frames // 4, 0)
        for _ in range(rounds):
            full = {who: bench.measure(who, frames, 0) for who in ("bare", "appliance")}
            rate = full["bare"]["fps"] / 2
            half = {who: bench.measure(who, frames // 2, rate) for who in ("bare", "appliance")}
            figures["rounds"].append({"saturated": full, "half_load": half})
    sizes = {}
    for handlers in (1, 5):  # each fresh, after the same frames
        with bench.appliance(handlers) as process:
            bench.camera(100, 0)
            sizes[handlers] = bench.memory_mb(process.pid)
    figures["memory_further_handler_mb"] = (sizes[5] - sizes[1]) / 4
    state = directory / "run"
    first_result_seconds(bench, state)
    figures["first_result_s"] = statistics.median(first_result_seconds(bench, state) for _ in range(3))
    figures["memory_mb"] = whole_memory(bench, state)
    each = figures["rounds"]
    figures["throughput_ratio"] = statistics.median(
        r["saturated"]["appliance"]["fps"] / r["saturated"]["bare"]["fps"] for r in each
    )
    figures["latency_ratio"] = statistics.median(
        r["half_load"]["appliance"]["p50"] / r["half_load"]["bare"]["p50"] for r in each
    )
    figures["hop_ms"] = statistics.median(r["half_load"]["appliance"]["hop"] for r in each)
    return figures


def show(figures: dict[str, Any]) -> None:
    print(f"model {figures['model']}, JPEG of {figures['jpeg_bytes']} bytes, {os.cpu_count()} cores\n")
    print("round   bare fps  appl. fps   ratio    bare p50  appl. p50   ratio   (p50 at half load, ms)")
    for number, r in enumerate(figures["rounds"], 1):
        full, half = r["saturated"], r["half_load"]
        bare, ours = full["bare"]["fps"], full["appliance"]["fps"]
        slow, own = half["bare"]["p50"], half["appliance"]["p50"]
        print(f"{number:<6}{bare:>10.1f}{ours:>11.1f}{ours / bare:>8.2f}   {slow:>9.2f}{own:>11.2f}{own / slow:>8.2f}")
    memory = figures["memory_mb"]
    rows = [
        ("saturated throughput, ratio to the bare loop", figures["throughput_ratio"], ">= 1.2"),
        ("p50 latency at half load, ratio to the bare loop", figures["latency_ratio"], "<= 1.2"),
        ("QUIC hop of the frame, p50 ms", figures["hop_ms"], "<= 1"),
        ("memory of everything with one handler, PSS MB", memory["total"], "<= 200"),
        ("memory of each further handler, PSS MB", figures["memory_further_handler_mb"], "<= 8"),
        ("`appliance run` to first result, s", figures["first_result_s"], "<= 3"),
    ]
    print()
    for name, value, bar in rows:
        print(f"{name:<52}{value:>8.2f}   bar {bar}")
    print("\nmemory by process (PSS MB): " + ", ".join(f"{name} {size:.1f}" for name, size in memory.items()))


if __name__ == "__main__":
    main()
