"""Publisher against bare paho: latency to a subscriber, CPU and memory for each result. Run by hand.

    python tests/bench/bench_publisher.py

A private Mosquitto; 1 KB results at 200 a second; each publisher in a process of its own, taking turns.
"""

import asyncio
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import cbor2
import msgspec
import paho.mqtt.client as paho

from appliance.config import MqttConfig
from appliance.frame import Frame, ModelRun, Producer
from appliance.mqtt.private_broker import PrivateBroker
from appliance.publisher import Publisher

RATE = 200
SECONDS = 10.0
COUNT = int(RATE * SECONDS)
ROUNDS = 3
VALUE = {"objects": [{"label": f"object {n}", "score": 0.5, "box": [n, n, n + 10, n + 10]} for n in range(11)]}


def frame(seq: int) -> Frame:
    run = ModelRun("detect", "ab" * 32, "litert 2.3.0", "cpu")
    spent = {"capture": 1000, "wire": 500, "handle": 3000}
    producer = Producer("detect", "1.0.0", (run,))
    return Frame(18, "camera", seq, time.time_ns(), "cbor", cbor2.dumps(VALUE), spent=spent, producer=producer)


async def publish_ours(port: int, spool: Path) -> None:
    async with Publisher(MqttConfig(url=f"mqtt://127.0.0.1:{port}"), "bench", spool) as publisher:
        await publisher.drained(10)
        cpu = time.process_time()
        start = time.monotonic()
        for seq in range(COUNT):
            publisher.offer(frame(seq), lambda _ok: None)
            await asyncio.sleep(max(0.0, start + (seq + 1) / RATE - time.monotonic()))
        await publisher.drained(10)
        report(time.process_time() - cpu, spooled=publisher.stats.spooled)


def publish_bare(port: int) -> None:
    client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    client.connect("127.0.0.1", port)
    client.loop_start()
    document = {"v": 1, "pad": "x" * 330, "value": VALUE}
    cpu = time.process_time()
    start = time.monotonic()
    for seq in range(COUNT):
        payload = msgspec.json.encode({**document, "seq": seq, "captured_ns": time.time_ns()})
        info = client.publish("bench/result", payload, qos=1)
        time.sleep(max(0.0, start + (seq + 1) / RATE - time.monotonic()))
    info.wait_for_publish(10)
    report(time.process_time() - cpu)
    client.disconnect()
    client.loop_stop()


def report(cpu_seconds: float, **more: object) -> None:
    rollup = Path("/proc/self/smaps_rollup").read_text()
    pss = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"cpu_us": round(cpu_seconds / COUNT * 1e6), "pss_kb": pss, "peak_rss_kb": peak, **more}))


class Listener:
    """A subscriber in a thread; microseconds from capture to arrival."""

    def __init__(self, port: int) -> None:
        self.latencies: list[float] = []
        self.size = 0
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        self._client.on_message = self._on_message
        self._subscribed = threading.Event()
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        self._client.subscribe([("bench/result", 0), ("appliance/bench/result/#", 0)])
        self._subscribed.wait(10)

    def _on_message(self, _client: object, _data: object, message: paho.MQTTMessage) -> None:
        now = time.time_ns()
        self.latencies.append((now - json.loads(message.payload)["captured_ns"]) / 1000)
        self.size = len(message.payload)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


async def measure(kind: str, port: int, spool: Path) -> None:
    listener = Listener(port)
    process = await asyncio.create_subprocess_exec(
        sys.executable, __file__, kind, str(port), str(spool), stdout=subprocess.PIPE
    )
    said, _ = await process.communicate()
    listener.close()
    figures = sorted(listener.latencies)
    p50, p99 = statistics.median(figures), figures[int(len(figures) * 0.99)]
    print(
        f"{kind} {len(figures)} of {COUNT}, {listener.size} B, p50 {p50:.0f} us, p99 {p99:.0f} us",
        said.decode().strip(),
    )


async def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        async with PrivateBroker(Path(directory, "broker")) as broker:
            for _ in range(ROUNDS):
                for kind in ("bare", "ours"):
                    await measure(kind, broker.port, Path(directory, "spool.db"))


if __name__ == "__main__":
    if len(sys.argv) == 1:
        asyncio.run(main())
    elif sys.argv[1] == "bare":
        publish_bare(int(sys.argv[2]))
    else:
        asyncio.run(publish_ours(int(sys.argv[2]), Path(sys.argv[3])))
