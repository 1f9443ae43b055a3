"""The committed handlers as they ship: manifest, module, worker; once with the real inference."""

import io
import os
import signal
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cbor2
import pytest
from PIL import Image
from sandbox_bench import RUN, Answer, Bench, FakeInference, bench, until

from appliance.config import HandlerConfig, InferenceConfig
from appliance.inference.broker import Broker
from appliance.inference.messages import Ready, TensorInfo
from appliance.inference.model import ModelSpec
from appliance.ipc.ring import RingWriter
from appliance.sandbox.session import Finished
from appliance.sandbox.spawning import Zygote
from appliance.sandbox.spec import HandlerSpec, load_handler

HANDLERS = Path(__file__).parents[2] / "handlers"
PICTURE = ("jpeg", 640, 480)


def load(name: str, **settings: str) -> HandlerSpec:
    return load_handler(HandlerConfig(path=str(HANDLERS / name), settings=settings), InferenceConfig())


@dataclass
class FloatModel(FakeInference):
    """A model with these float outputs, always."""

    outputs: Sequence[tuple[tuple[int, ...], bytes]] = field(default_factory=list)

    async def ready(self, model: ModelSpec) -> Ready:
        infos = [TensorInfo(f"out{n}", "float32", s, len(d), 0.0, 0) for n, (s, d) in enumerate(self.outputs)]
        return Ready(RUN, [TensorInfo("in", "uint8", (1, 2, 2, 3), 12, 0.0, 0)], infos)

    async def _answer(self, question: object) -> Answer:
        return Answer([data for _, data in self.outputs])


def floats(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def value(finished: Finished) -> Any:
    assert finished.outcome == "ok", finished.message
    (emit,) = finished.emits
    assert emit.format == "cbor"
    return cbor2.loads(emit.payload)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """A model (nobody runs it here) and its labels, as an operator would name them."""
    (tmp_path / "model.tflite").write_bytes(b"a model")
    (tmp_path / "labels.txt").write_text("cat\ndog\nbird\n")
    return {"model": str(tmp_path / "model.tflite"), "labels": str(tmp_path / "labels.txt")}


async def test_classify(files: dict[str, str]) -> None:
    model = FloatModel(outputs=[((1, 3), floats(0.25, 0.5, 0.125))])
    async with bench(load("classify", top="2", **files), model) as handler:
        result = value(await handler.handle(b"", *PICTURE))
    assert (result["label"], result["score"]) == ("dog", 0.5)
    assert [one["label"] for one in result["top"]] == ["dog", "cat"]


async def test_detect(files: dict[str, str]) -> None:
    boxes = floats(0.0, 0.0, 0.5, 0.5, 0.25, 0.25, 1.0, 1.0)
    outputs = [((1, 2, 4), boxes), ((1, 2), floats(1.0, 2.0)), ((1, 2), floats(0.75, 0.25)), ((1,), floats(2.0))]
    async with bench(load("detect", **files), FloatModel(outputs=outputs)) as handler:
        result = value(await handler.handle(b"", *PICTURE))
    (thing,) = result["objects"]
    assert (thing["label"], thing["score"], [round(side) for side in thing["box"]]) == ("dog", 0.75, [0, 0, 320, 240])


async def test_motion() -> None:
    async with bench(load("motion")) as handler:
        for _ in range(3):
            result = value(await handler.handle(b"", *PICTURE))
    assert result["moving"] is False
    assert len(handler.inference.asked) == 3


async def test_count_keeps_its_counts_over_the_death_of_its_worker() -> None:
    frame = cbor2.dumps({"objects": [{"label": "cat", "score": 0.5, "box": [0, 0, 1, 1]}] * 2})
    async with bench(load("count")) as handler:
        await handler.handle(frame, "cbor")
        await kill_worker(handler)
        result = value(await handler.handle(frame, "cbor"))
    assert (result["counts"], result["frames"]) == ({"cat": 2}, 2)


async def kill_worker(handler: Bench) -> None:
    os.kill(await handler.running(), signal.SIGKILL)
    await until(lambda: handler.host.status.restarts == 1)


@pytest.mark.parametrize("name", ["classify", "detect", "motion", "count", "parts"])
async def test_no_frame_makes_a_handler_trap(name: str, files: dict[str, str]) -> None:
    """Data instead of pictures, pictures instead of data, nothing at all: a code, never a trap."""
    outputs = [((1, 2, 4), floats(*[0.5] * 8)), ((1, 2), floats(1, 2)), ((1, 2), floats(1, 0)), ((1,), floats(2))]
    if name in {"classify", "parts"}:
        outputs = [((1, 4), floats(0, 1, 2, 3))]
    settings = files if name in {"classify", "detect"} else {}
    async with bench(load(name, **settings), FloatModel(outputs=outputs)) as handler:
        for payload, format in ((b"", "cbor"), (b"\xa1\x61", "cbor"), (b"\xff" * 3000, "bytes"), (b"", "jpeg")):
            finished = await handler.handle(payload, format)
            assert finished.outcome in {"ok", "error"}, finished
        assert set(handler.host.status.faults) <= {"error"}


async def test_parts_with_the_real_model() -> None:
    pytest.importorskip("ai_edge_litert", reason="needs the runtime litert")
    picture = io.BytesIO()
    Image.new("RGB", (640, 480), (30, 30, 30)).save(picture, "JPEG")
    with RingWriter(1 << 20) as ring:
        async with Zygote(ring.fd) as zygote, Broker(ring.fd) as broker:
            handler = Bench(load("parts"), zygote, ring, broker)  # type: ignore[arg-type]
            async with handler.host:
                finished = await handler.handle(picture.getvalue(), *PICTURE)
    result = value(finished)
    assert set(result) == {"label", "score", "scores"}
    assert result["score"] == max(result["scores"].values())
    (run,) = finished.models
    assert run.runtime.startswith("litert")
    assert finished.invoke_us > 0
