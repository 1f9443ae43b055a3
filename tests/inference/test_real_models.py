"""Published models on real pictures: they are right about them, in both runtimes, to within a tolerance."""

import importlib.util
import random
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from pictures import SHARED_DATA, samples, write, write_file
from PIL import Image
from tiny_models import Save

from appliance.errors import ModelError
from appliance.inference.broker import Broker
from appliance.inference.messages import Crop, View
from appliance.inference.model import ModelSpec, digest_of
from appliance.ipc.ring import RingWriter

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="needs the models and pictures of ../shared/data"),
]

V2 = "mobilenet_v2_1.0_224_quant"
SSD = "coco_ssd_mobilenet_v1_1.0_quant_2018_06_29"
STRETCH, LETTERBOX = View(), View(fit="letterbox")


@pytest.fixture
async def broker(ring: RingWriter) -> AsyncIterator[Broker]:
    async with Broker(ring.fd) as broker:
        yield broker


def model(name: str, runtime: str = "litert") -> ModelSpec:
    path = SHARED_DATA / "models" / f"{name}.tflite"
    return ModelSpec(path, digest_of(path), runtime)


def labels(name: str) -> list[str]:
    return (SHARED_DATA / "labels" / name).read_text().splitlines()


async def outputs(broker: Broker, spec: ModelSpec, ring: RingWriter, image: str, view: View) -> list[np.ndarray]:
    frame = write_file(ring, SHARED_DATA / "images" / image)
    inference = await broker.infer(spec, frame, view)
    ring.free(frame)
    infos = (await broker.ready(spec)).outputs
    return [
        np.frombuffer(data, info.dtype).reshape(info.shape) for data, info in zip(inference.tensors, infos, strict=True)
    ]


@pytest.mark.parametrize("view", [STRETCH, LETTERBOX])
async def test_a_classifier_is_right(broker: Broker, ring: RingWriter, runtime: str, view: View) -> None:
    classes = {"cat.bmp": "Egyptian cat", "parrot.jpg": "macaw", "grace_hopper.bmp": "military uniform"}
    for image, label in classes.items():
        (scores,) = await outputs(broker, model(V2, runtime), ring, image, view)
        assert labels("imagenet_labels.txt")[scores.argmax()] == label


async def test_a_detector_is_right(broker: Broker, ring: RingWriter, runtime: str) -> None:
    objects = {"dogs.jpg": "dog", "cat.bmp": "cat", "traffic_0001.bmp": "car", "food.jpg": "hot dog"}
    for image, label in objects.items():
        boxes, classes, scores, count = await outputs(broker, model(SSD, runtime), ring, image, STRETCH)
        assert boxes.shape == (1, 10, 4)
        assert count[0] == 10
        assert scores[0, 0] > 0.5
        assert labels("coco_labelmap.txt")[int(classes[0, 0])] == label


async def test_int8_models_are_right(broker: Broker, ring: RingWriter, runtime: str) -> None:
    for image, person in (("grace_hopper.bmp", True), ("cat.bmp", False), ("table.jpg", False)):
        ((no_person, a_person),) = (await outputs(broker, model("vww_96_int8", runtime), ring, image, STRETCH))[0]
        assert (a_person > no_person) == person
    (scores,) = await outputs(broker, model("mlperf_tiny_resnet8_cifar10_int8", runtime), ring, "cat.bmp", STRETCH)
    assert scores[0].argmax() == 3  # airplane, automobile, bird, cat …


async def test_a_crop_is_looked_at_alone(broker: Broker, ring: RingWriter) -> None:
    parrot = np.array(Image.open(SHARED_DATA / "images" / "parrot.jpg").convert("RGB"))
    height, width, _ = parrot.shape
    frame = write(ring, np.concatenate([parrot[:, : width // 2] * 0, parrot], axis=1), "jpeg")
    inference = await broker.infer(model(V2), frame, View(Crop(width // 2, 0, width, height)))
    scores = np.frombuffer(inference.tensors[0], np.uint8)
    assert labels("imagenet_labels.txt")[scores.argmax()] == "macaw"
    assert scores.max() > 240


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [(V2, 12), ("mobilenet_v1_0.25_128_quant", 16), ("mlperf_tiny_resnet8_cifar10_int8", 12), ("vww_96_int8", 6)],
)
async def test_runtimes_agree(broker: Broker, ring: RingWriter, name: str, tolerance: int) -> None:
    if importlib.util.find_spec("tflite_runtime") is None:
        pytest.skip("needs both runtimes, and tflite-runtime is not installed")
    for image in ("cat.bmp", "parrot.jpg" if name != "mlperf_tiny_resnet8_cifar10_int8" else "dogs.jpg"):
        (one,) = await outputs(broker, model(name, "litert"), ring, image, STRETCH)
        (other,) = await outputs(broker, model(name, "tflite"), ring, image, STRETCH)
        assert one.argmax() == other.argmax()
        assert np.abs(one.astype(int) - other).max() <= tolerance


async def test_a_model_that_fails_when_it_is_run_does_not_start(broker: Broker, runtime: str) -> None:
    with pytest.raises(ModelError, match=r"model_invoking_error\.tflite: .*unresolved custom op: fake-op-double"):
        await broker.ready(model("model_invoking_error", runtime))


async def test_models_for_the_edge_tpu_need_it(broker: Broker, runtime: str) -> None:
    with pytest.raises(ModelError, match="is compiled for the Edge TPU and cannot run on the CPU"):
        await broker.ready(model(f"{V2}_edgetpu", runtime))


async def test_the_twin_is_left_where_the_edge_tpu_is_missing(broker: Broker, ring: RingWriter) -> None:
    cpu, twin = model(V2), model(f"{V2}_edgetpu").path
    spec = ModelSpec(cpu.path, cpu.digest, delegate="libedgetpu.so.1", twin=twin)
    (scores,) = await outputs(broker, spec, ring, "parrot.jpg", STRETCH)
    assert labels("imagenet_labels.txt")[scores.argmax()] == "macaw"
    ready = await broker.ready(spec)
    assert ready.run is not None
    assert (ready.run.device, ready.run.digest) == ("cpu", cpu.digest)
    assert "install libedgetpu" in ready.note


@pytest.mark.parametrize("seed", range(3))
async def test_damaged_models_take_nobody_along(
    broker: Broker, ring: RingWriter, save: Save, runtime: str, seed: int
) -> None:
    healthy = model("vww_96_int8")
    await broker.ready(healthy)
    before = broker.status()[0].pid
    rng = random.Random(seed)
    content = bytearray(healthy.path.read_bytes())
    for _ in range(200):
        content[rng.randrange(8, len(content))] ^= 1 << rng.randrange(8)
    length = rng.randrange(1000, len(content))
    for number, damaged in enumerate((bytes(content), bytes(content[:length]))):
        spec = save(damaged, f"damaged-{number}.tflite", runtime=runtime)
        try:
            inference = await broker.infer(spec, write(ring, samples(96, 96)), STRETCH)
        except ModelError:  # it may also load, and take no picture any more
            continue
        assert sum(map(len, inference.tensors)) > 0
    assert (await outputs(broker, healthy, ring, "grace_hopper.bmp", STRETCH))[0].argmax() == 1
    assert broker.status()[0].pid == before


def test_the_data_is_what_these_tests_were_written_for() -> None:
    assert digest_of(Path(SHARED_DATA / "models" / f"{V2}.tflite")).startswith("51e8256b")
