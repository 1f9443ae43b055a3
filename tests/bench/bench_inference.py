"""Figures of inference: ``python tests/bench/bench_inference.py [MODEL] [RUNTIME]``.

Without MODEL it takes mobilenet_v2 of ../shared/data. Frames are 640x480 JPEGs; every figure is a median.
"""

import asyncio
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import simplejpeg
from PIL import Image

from appliance.inference.broker import Broker, Inference
from appliance.inference.messages import GetPixels, View
from appliance.inference.model import ModelSpec, digest_of
from appliance.inference.preprocessing import PictureInput
from appliance.ipc.ring import FrameRef, RingReader, RingWriter

SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"
MODEL = SHARED_DATA / "models" / "mobilenet_v2_1.0_224_quant.tflite"
FRAMES = 200
RING_SLOTS = 8
WHOLE = View()


def picture() -> np.ndarray:
    """640x480 samples with the detail of a photograph."""
    path = SHARED_DATA / "images" / "grace_hopper.bmp"
    if path.is_file():
        return np.array(Image.open(path).convert("RGB").resize((640, 480)))
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    return np.array(Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC))


def milliseconds(work: Callable[[], object], times: int = 100) -> float:
    spans = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        spans.append(time.perf_counter() - start)
    return statistics.median(spans) * 1e3


def report(what: str, value: float, unit: str = "ms") -> None:
    print(f"{what:<58} {value:8.2f} {unit}")


async def main(path: Path, runtime: str) -> None:
    spec = ModelSpec(path, digest_of(path), runtime)
    jpeg = simplejpeg.encode_jpeg(picture(), 85, colorsubsampling="420")
    with RingWriter() as ring:
        frame = ring.write(jpeg, "jpeg", 640, 480)
        assert frame is not None
        await starting(ring, spec)
        async with Broker(ring.fd) as broker:
            ready = await broker.ready(spec)
            assert ready.run is not None
            print(f"{ready.run.model}, {ready.run.runtime} on {ready.run.device}; JPEG of {len(jpeg)} bytes")
            stages(ring, frame, PictureInput(ready.inputs))
            pixels = GetPixels(0, frame, View().crop, "gray", 160, 120)
            await broker.pixels(frame, pixels.crop, pixels.format, pixels.width, pixels.height)
            spans = []
            for _ in range(100):
                start = time.perf_counter()
                await broker.pixels(frame, pixels.crop, pixels.format, pixels.width, pixels.height)
                spans.append(time.perf_counter() - start)
            report("160x120 grey pixels for a guest, there and back", statistics.median(spans) * 1e3)
            for status in broker.status():
                memory = psutil.Process(status.pid).memory_full_info()
                report(f"PSS of the process of {status.name}", memory.pss / (1 << 20), "MiB")
            await throughput(broker, spec, ring, jpeg)


async def starting(ring: RingWriter, spec: ModelSpec) -> None:
    spans = []
    for _ in range(5):
        async with Broker(ring.fd) as broker:
            start = time.perf_counter()
            await broker.ready(spec)
            spans.append(time.perf_counter() - start)
    report("from exec to Ready", statistics.median(spans) * 1e3)


def stages(ring: RingWriter, frame: FrameRef, picture_input: PictureInput) -> None:
    reader, out = RingReader(ring.fd), picture_input.buffer()
    payload = reader.view(frame)
    width, height = picture_input.target
    small = {"min_width": width, "min_height": height, "min_factor": 2}
    whole = milliseconds(lambda: picture_input.fill(out, payload, frame, WHOLE))
    decode = milliseconds(lambda: simplejpeg.decode_jpeg(payload, **small))
    report("decode a JPEG, scaled by the decoder", decode)
    report("resize and convert", whole - decode)


async def throughput(broker: Broker, spec: ModelSpec, ring: RingWriter, jpeg: bytes) -> None:
    async def run(*, begun: bool) -> tuple[float, list[Inference]]:
        """Frames one after the other, as one handler asks; the next one is there while this one is asked about."""
        frames = [ring.write(jpeg, "jpeg", 640, 480) for _ in range(2)]
        answers = []
        start = time.perf_counter()
        for _ in range(FRAMES):
            now, following = frames
            assert now is not None
            assert following is not None
            if begun:
                broker.begin(spec, following, WHOLE)
            answers.append(await broker.infer(spec, now, WHOLE))
            broker.forget(now.key)
            ring.free(now)
            frames = [following, ring.write(jpeg, "jpeg", 640, 480)]
        elapsed = time.perf_counter() - start
        for frame in frames:
            assert frame is not None
            ring.free(frame)
        return elapsed, answers

    for begun in (False, True):
        elapsed, answers = await run(begun=begun)
        how = "with the next frame begun" if begun else "one after the other"
        report(f"frames a second, {how}", FRAMES / elapsed, "fps")
        for field in ("decode_us", "invoke_us", "wait_us"):
            report(f"    {field}", statistics.median(getattr(answer, field) for answer in answers) / 1e3)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    asyncio.run(main(Path(arguments[0]) if arguments else MODEL, arguments[1] if len(arguments) > 1 else "litert"))
