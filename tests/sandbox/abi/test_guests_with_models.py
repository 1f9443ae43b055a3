"""Guests of each ABI in real workers, with real models: they answer what the host's own way answers."""

import asyncio
import contextlib
import hashlib
import io
import json
import logging
import os
import signal
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from nn_bench import MakeGuest
from PIL import Image
from sandbox_bench import TIMEOUT, Bench, assemble, data, until
from sandbox_bench import spec as spec_of

from appliance.config import InferenceConfig
from appliance.inference.broker import Broker
from appliance.inference.messages import MAX_TENSOR_BYTES, View
from appliance.inference.model import ModelSpec, digest_of
from appliance.ipc.ring import RingWriter
from appliance.manifest import Limits
from appliance.sandbox.guest_models import GuestModelStore
from appliance.sandbox.messages import MAX_GUEST_MODEL_BYTES
from appliance.sandbox.session import Finished
from appliance.sandbox.spawning import Zygote
from appliance.sandbox.spec import HandlerModel, HandlerSpec

ROOT = Path(__file__).resolve().parents[3]
PARTS = ROOT / "handlers" / "parts" / "parts.tflite"
DATA = ROOT.parent / "shared" / "data"
MOBILENET = DATA / "models" / "mobilenet_v1_0.25_128_quant.tflite"
BRINGING = ["wasi_nn_c", "wamr_c", "wasmedge_c", "wasmedge3_c", "wasi_nn_rust"]
LIMITS = Limits(deadline_ms=5000, memory_mb=16)
TOLERANCE = 1 / 255


@dataclass
class Whole:
    """A handler with all there really is around it."""

    bench: Bench
    broker: Broker

    async def classify(self, jpeg: bytes) -> Finished:
        return await self.bench.handle(jpeg, "jpeg", *Image.open(io.BytesIO(jpeg)).size)

    async def expected(self, model: Path, jpeg: bytes) -> np.ndarray:
        """What the host's own way says: decoded, resized and run without the guest."""
        frame = self.bench.ring.write(jpeg, "jpeg", *Image.open(io.BytesIO(jpeg)).size)
        assert frame is not None
        answer = await self.broker.infer(ModelSpec(model, digest_of(model)), frame, View())
        return np.frombuffer(answer.tensors[0], np.uint8)

    def processes(self) -> list[str]:
        return [status.digest for status in self.broker.status() if status.digest]


@contextlib.asynccontextmanager
async def whole(spec: HandlerSpec, store: GuestModelStore | None = None) -> AsyncIterator[Whole]:
    with RingWriter(8 << 20) as ring:
        async with Zygote(ring.fd) as zygote, Broker(ring.fd) as broker:
            bench = Bench(spec, zygote, ring, broker, store)
            async with bench.host:
                await until(lambda: bench.host.status.state != "starting")
                yield Whole(bench, broker)


@pytest.fixture
def store(tmp_path: Path) -> GuestModelStore:
    return GuestModelStore(tmp_path / "models", InferenceConfig())


def handler(module: bytes, *models: Path, guest_models: int = 1) -> HandlerSpec:
    used = [HandlerModel("classifier", ModelSpec(path, digest_of(path)), (), "stretch", False) for path in models]
    return replace(spec_of(module), limits=LIMITS, models=tuple(used), guest_models=guest_models)


def picture(seed: int = 0, size: tuple[int, int] = (160, 120)) -> bytes:
    samples = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(samples).resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=95)
    return file.getvalue()


def scores(finished: Finished) -> np.ndarray:
    assert finished.outcome == "ok", finished
    return np.frombuffer(finished.emits[0].payload, np.uint8) / 255


def floats(finished: Finished) -> np.ndarray:
    assert finished.outcome == "ok", finished
    return np.frombuffer(finished.emits[0].payload, "<f4")


def close(guest: str, finished: Finished, expected: np.ndarray) -> None:
    """WAMR's guests are given float32, dequantised by 1/256; the others what the model stores."""
    if guest == "wamr_c":
        np.testing.assert_allclose(floats(finished), expected / 256, atol=TOLERANCE)
    else:
        np.testing.assert_allclose(scores(finished), expected / 255, atol=TOLERANCE)


@pytest.mark.parametrize("guest", BRINGING)
async def test_a_guest_that_brings_its_model(make_guest: MakeGuest, store: GuestModelStore, guest: str) -> None:
    async with whole(handler(make_guest(guest, PARTS)), store) as running:
        for seed in range(3):
            jpeg = picture(seed)
            finished = await running.classify(jpeg)
            close(guest, finished, await running.expected(PARTS, jpeg))
            (run,) = finished.models
            assert (run.digest, run.device) == (digest_of(PARTS), "cpu")
        assert running.processes() == [digest_of(PARTS)], "one process, that of the same model of others"


async def test_a_guest_in_the_shape_of_the_examples_of_yomo_and_wasmedge(
    make_guest: MakeGuest, store: GuestModelStore, caplog: pytest.LogCaptureFixture
) -> None:
    """bindgen, pictures and TensorFlow Lite of WasmEdge, and WASI, together in a module that knows nothing of us."""
    spec = replace(handler(make_guest("food_c", PARTS)), abi="bindgen")
    with caplog.at_level(logging.INFO, "handler.guest"):
        async with whole(spec, store) as running:
            for seed in range(3):
                jpeg = picture(seed)
                finished = await running.classify(jpeg)
                assert finished.outcome == "ok", finished
                (emit,) = finished.emits
                said = json.loads(emit.payload)
                expected = await running.expected(PARTS, jpeg)
                assert (emit.format, said["class"]) == ("json", int(np.argmax(expected)))
                assert said["score"] == pytest.approx(np.max(expected), abs=TOLERANCE * 255)
            assert running.processes() == [digest_of(PARTS)]
            failed = await running.bench.handle(b"\xff\xd8 and nothing more", "jpeg", 4, 4)
            assert (failed.outcome, failed.message.split(";")[0]) == ("error", "infer failed: this is no picture")
            assert (await running.classify(picture())).outcome == "ok"
    assert [record.getMessage() for record in caplog.records].count("event=guest_says text=done") == 4


async def test_a_guest_that_names_a_model_of_its_manifest(make_guest: MakeGuest) -> None:
    async with whole(handler(make_guest("named_c", PARTS), PARTS, guest_models=0)) as running:
        jpeg = picture()
        close("named_c", await running.classify(jpeg), await running.expected(PARTS, jpeg))


@pytest.mark.slow
@pytest.mark.skipif(not MOBILENET.is_file(), reason="needs the models and pictures of ../shared/data")
@pytest.mark.parametrize("guest", BRINGING)
async def test_a_real_classifier_on_real_pictures(make_guest: MakeGuest, store: GuestModelStore, guest: str) -> None:
    async with whole(handler(make_guest(guest, MOBILENET)), store) as running:
        for name in ("burger.jpg", "food.jpg", "dogs.jpg"):
            jpeg = (DATA / "images" / name).read_bytes()
            finished, expected = await running.classify(jpeg), await running.expected(MOBILENET, jpeg)
            close(guest, finished, expected)


async def test_a_guest_that_may_bring_no_model_says_so(
    make_guest: MakeGuest, store: GuestModelStore, caplog: pytest.LogCaptureFixture
) -> None:
    async with whole(handler(make_guest("wasi_nn_c", PARTS), guest_models=0), store) as running:
        finished = await running.classify(picture())
        assert (finished.outcome, finished.message[:17]) == ("error", "handle returned 6")
        assert running.processes() == []
    assert "guest_models in handler.toml" in caplog.text


async def test_a_guest_that_loads_in_init_waits_for_the_model_as_long_as_that_takes(
    make_guest: MakeGuest, store: GuestModelStore
) -> None:
    """A model's process takes longer to start than this guest's deadline."""
    spec = replace(handler(make_guest("wamr_c", PARTS)), limits=Limits(deadline_ms=150, memory_mb=16))
    async with whole(spec, store) as running:
        assert running.bench.host.status.state == "running", running.bench.host.status
        assert len(floats(await running.classify(picture()))) == 4


async def test_frames_that_wait_while_the_guest_loads_in_init_are_handled(
    make_guest: MakeGuest, store: GuestModelStore
) -> None:
    spec = handler(make_guest("wamr_c", PARTS))
    with RingWriter(8 << 20) as ring:
        async with Zygote(ring.fd) as zygote, Broker(ring.fd) as broker:
            bench = Bench(spec, zygote, ring, broker, store)
            async with bench.host:
                jobs = [bench.submit(picture(seed), "jpeg", 160, 120) for seed in range(2)]
                assert [(await bench.finish(job)).outcome for job in jobs] == ["ok", "ok"]


async def test_the_twin_is_found_by_the_hash(make_guest: MakeGuest, tmp_path: Path, library: str) -> None:
    twin = tmp_path / "parts_counting.tflite"
    twin.write_bytes(PARTS.read_bytes() + bytes(16))  # the same, and yet another file
    inference = InferenceConfig(
        delegate=library,
        delegate_options={"log": str(tmp_path / "log"), "claim": "all"},
        twins={digest_of(PARTS): str(twin)},
    )
    store = GuestModelStore(tmp_path / "models", inference)
    async with whole(handler(make_guest("wasmedge_c", PARTS)), store) as running:
        (run,) = (await running.classify(picture())).models
    assert (run.model, run.device, run.digest) == (twin.name, "counting", digest_of(twin))


async def test_a_new_worker_asks_again_and_joins_the_running_process(
    make_guest: MakeGuest, store: GuestModelStore
) -> None:
    async with whole(handler(make_guest("wasmedge_c", PARTS)), store) as running:
        await running.classify(picture())
        (before,) = [status.pid for status in running.broker.status() if status.digest]
        pid = await running.bench.running()
        os.kill(pid, signal.SIGKILL)
        await until(lambda: running.bench.host.status.restarts == 1)
        assert len(scores(await running.classify(picture()))) == 4
        (after,) = [status.pid for status in running.broker.status() if status.digest]
        assert after == before


# --- models of death ----------------------------------------------------------------------------------------

OK, ARGUMENT, ENCODING, RUNTIME, UNSUPPORTED = 0, 1, 2, 5, 6
U8, I32 = 2, 3


def frame(model: bytes, type: int = U8, data: bytes = b"\0" * 192) -> bytes:
    """A frame for the guest that loads what a frame brings."""
    width = 4 if type == I32 else 1
    return struct.pack("<III", type, len(data), len(data) // width) + data + model


def errnos(finished: Finished) -> list[int]:
    assert finished.outcome == "ok", finished
    return list(struct.unpack_from("<5I", finished.emits[0].payload))


@contextlib.asynccontextmanager
async def neighbours(loader: HandlerSpec, neighbour: HandlerSpec, store: GuestModelStore) -> AsyncIterator[list[Bench]]:
    with RingWriter(8 << 20) as ring:
        async with Zygote(ring.fd) as zygote, Broker(ring.fd) as broker:
            first, second = (Bench(spec, zygote, ring, broker, store) for spec in (loader, neighbour))
            async with first.host, second.host:
                yield [first, second]


def damaged() -> dict[str, bytes]:
    """Models that are none any more, from one that is."""
    whole = PARTS.read_bytes()
    rng = np.random.default_rng(7)
    flipped = {}
    for number in range(6):
        data = bytearray(whole)
        for at in rng.integers(8, 4096, 40):
            data[at] ^= 1 << int(rng.integers(8))
        flipped[f"flipped {number}"] = bytes(data)
    cuts = {f"cut at {length}": whole[:length] for length in (8, 100, 4096, len(whole) // 2)}
    return cuts | flipped | {"noise": b"\x1c\0\0\0TFL3" + rng.bytes(4000)}


@pytest.mark.slow
async def test_damaged_models_hurt_nobody_else(make_guest: MakeGuest, store: GuestModelStore) -> None:
    models = damaged()
    loader = handler(make_guest("loader_c", PARTS), guest_models=len(models))
    neighbour = handler(make_guest("named_c", PARTS), PARTS, guest_models=0)
    async with neighbours(loader, neighbour, store) as (first, second):
        for name, model in models.items():
            job = second.submit(picture(), "jpeg", 160, 120)
            steps = errnos(await first.handle(frame(model)))
            assert steps == [RUNTIME, ARGUMENT, ARGUMENT, ARGUMENT, ARGUMENT] or steps[0] == OK, name
            assert (await second.finish(job)).outcome == "ok"
        assert first.host.status.restarts == second.host.status.restarts == 0
        assert errnos(await first.handle(frame(PARTS.read_bytes())))[0] == UNSUPPORTED, "those that failed count, too"
        assert {one.state for one in first.inference.status()} == {"running"}, "they hold no places in the broker"


async def test_a_model_that_fails_when_it_is_run(make_guest: MakeGuest, store: GuestModelStore) -> None:
    async with whole(handler(make_guest("loader_c", PARTS)), store) as running:
        model = tiny_models.pick()
        good = await running.bench.handle(frame(model, I32, struct.pack("<i", 2)))
        assert errnos(good) == [OK] * 5
        assert good.emits[0].payload[20:] == struct.pack("<i", 30)
        bad = await running.bench.handle(frame(model, I32, struct.pack("<i", 99)))
        assert errnos(bad) == [OK, OK, OK, RUNTIME, RUNTIME]
        assert errnos(await running.bench.handle(frame(model, I32, struct.pack("<i", 1)))) == [OK] * 5


@pytest.mark.skipif(not (DATA / "models" / "model_invoking_error.tflite").is_file(), reason="needs ../shared/data")
async def test_a_model_made_to_fail(make_guest: MakeGuest, store: GuestModelStore) -> None:
    model = (DATA / "models" / "model_invoking_error.tflite").read_bytes()
    async with whole(handler(make_guest("loader_c", PARTS)), store) as running:
        steps = errnos(await running.bench.handle(frame(model)))
        assert RUNTIME in steps
        assert running.bench.host.status.restarts == 0


async def test_one_model_too_many(make_guest: MakeGuest, store: GuestModelStore) -> None:
    """The count is the handler's, not the worker's: a worker that is killed gains nothing by it."""
    async with whole(handler(make_guest("loader_c", PARTS)), store) as running:
        first, second = tiny_models.echo(), tiny_models.echo((1, 4, 4, 12))
        assert errnos(await running.bench.handle(frame(first))) == [OK] * 5
        assert errnos(await running.bench.handle(frame(second)))[0] == UNSUPPORTED
        os.kill(await running.bench.running(), signal.SIGKILL)
        await until(lambda: running.bench.host.status.restarts == 1)
        assert errnos(await running.bench.handle(frame(second)))[0] == UNSUPPORTED
        assert errnos(await running.bench.handle(frame(first))) == [OK] * 5
        assert running.processes() == [hashlib.sha256(first).hexdigest()]


async def test_a_handler_that_is_stopped_while_its_model_loads(make_guest: MakeGuest, store: GuestModelStore) -> None:
    async with asyncio.timeout(TIMEOUT):
        spec = handler(make_guest("wamr_c", PARTS))
        with RingWriter(8 << 20) as ring:
            async with Zygote(ring.fd) as zygote, Broker(ring.fd) as broker:
                bench = Bench(spec, zygote, ring, broker, store)
                async with bench.host:
                    await until(lambda: len(broker.status()) == 1)
                assert bench.host.status.state == "stopped"


def largest(model: bytes) -> bytes:
    """Loads ``model``, padded to the limit, and runs it on and into 12 MiB; then tries one byte more."""
    data_at, builder, out, sides, tensor = 0x10000, 0x100, 0x200, 0x300, 0x340
    picture = data_at + MAX_GUEST_MODEL_BYTES
    pages = (picture + MAX_TENSOR_BYTES + 0x10000) >> 16
    record = struct.pack("<IIIII", sides, 1, U8, picture, MAX_TENSOR_BYTES)
    output = f"(i32.const {picture}) (i32.const {MAX_TENSOR_BYTES})"
    steps = [
        f"(call $load (i32.const {builder}) (i32.const 1) (i32.const 4) (i32.const 0) (i32.const {out}))",
        f"(call $open (i32.load (i32.const {out})) (i32.const {out}))",
        f"(call $set (i32.load (i32.const {out})) (i32.const 0) (i32.const {tensor}))",
        f"(call $compute (i32.load (i32.const {out})))",
        f"(call $get (i32.load (i32.const {out})) (i32.const 0) {output} (i32.const {out + 4}))",
    ]
    checked = "".join(f"(if {step} (then (return (i32.const {50 + at}))))" for at, step in enumerate(steps))
    return assemble(
        f"""(module
        (import "wasi_ephemeral_nn" "load" (func $load (param i32 i32 i32 i32 i32) (result i32)))
        (import "wasi_ephemeral_nn" "init_execution_context" (func $open (param i32 i32) (result i32)))
        (import "wasi_ephemeral_nn" "set_input" (func $set (param i32 i32 i32) (result i32)))
        (import "wasi_ephemeral_nn" "compute" (func $compute (param i32) (result i32)))
        (import "wasi_ephemeral_nn" "get_output" (func $get (param i32 i32 i32 i32 i32) (result i32)))
        (memory (export "memory") {pages}) {data(data_at, model)} {data(builder, struct.pack("<I", data_at))}
        {data(sides, struct.pack("<I", MAX_TENSOR_BYTES))} {data(tensor, record)}
        (func (export "handle") (result i32)
          (i32.store (i32.const {builder + 4}) (i32.const {MAX_GUEST_MODEL_BYTES})) {checked}
          (i32.store (i32.const {builder + 4}) (i32.const {MAX_GUEST_MODEL_BYTES + 1})) {steps[0]}))"""
    )


async def test_the_largest_model_and_the_largest_tensors_there_may_be(store: GuestModelStore) -> None:
    """They are in the worker and in messages at the same time, within its limit of memory."""
    module = largest(tiny_models.echo((1, 2048, 2048, 3)))
    spec = replace(handler(module, guest_models=8), limits=Limits(deadline_ms=20_000, memory_mb=48))
    async with whole(spec, store) as running:
        for _ in range(3):
            finished = await running.bench.handle()
            assert finished.message.startswith("handle returned 7"), "one byte more is too large"
            assert len(running.processes()) == 1
        assert running.bench.host.status.restarts == 0


async def test_a_model_that_cannot_be_kept_is_a_failure_of_its_own(make_guest: MakeGuest, tmp_path: Path) -> None:
    (tmp_path / "models").write_text("in the way")
    store = GuestModelStore(tmp_path / "models", InferenceConfig())
    async with whole(handler(make_guest("wasi_nn_c", PARTS)), store) as running:
        finished = await running.classify(picture())
    assert finished.message.startswith("handle returned 5")
    assert "a guest's model cannot be kept" in finished.message
