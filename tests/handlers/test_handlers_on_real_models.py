"""The handlers with real models and pictures, without the appliance around them."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from guest_host import HANDLERS, Array, FakeModel, Guest, Picture
from PIL import Image

from appliance.camera.synthetic import Conveyor

DATA = HANDLERS.parents[1] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"test data is not at {DATA}")

SSD = DATA / "models" / "coco_ssd_mobilenet_v1_1.0_quant_2018_06_29.tflite"
PARTS = ("parts.tflite", "labels.txt")
CLASSIFIER = DATA / "models" / "mobilenet_v2_1.0_224_quant.tflite"


def real_model(path: Path, labels: Path) -> FakeModel:
    """The model behind the file, fed as the appliance would feed it."""
    interpreter = Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    given, results = interpreter.get_input_details()[0], interpreter.get_output_details()
    height, width = (int(side) for side in given["shape"][1:3])

    def run(frame: Picture) -> list[Array]:
        with Image.open(io.BytesIO(frame.payload)) as image:
            samples = np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR))
        interpreter.set_tensor(given["index"], samples[np.newaxis])
        interpreter.invoke()
        return [real(interpreter.get_tensor(result["index"]), *result["quantization"]) for result in results]

    shapes = tuple(tuple(int(side) for side in result["shape"]) for result in results)
    return FakeModel(shapes, run, tuple(labels.read_text("utf-8").splitlines()))


def real(stored: Array, scale: float, zero_point: int) -> Array:
    return (stored.astype(np.float32) - zero_point) * scale if scale else stored


def result(handler: str, model: FakeModel, picture: Path, **settings: str) -> Any:
    guest = Guest((HANDLERS / handler / "handler.wasm").read_bytes(), {"model": model}, settings)
    assert guest.init() == 0, guest.lines
    with Image.open(picture) as image:
        width, height = image.size
    return guest.result(Picture(width, height, payload=picture.read_bytes()))


def test_parts_sorts_what_the_conveyor_brings() -> None:
    directory = HANDLERS / "parts"
    guest = Guest((directory / "handler.wasm").read_bytes(), {"parts": real_model(*map(directory.joinpath, PARTS))})
    assert guest.init() == 0, guest.lines
    conveyor = Conveyor(320, 240, seed=9000, defects=0.6)
    shown = range(0, 420, 7)
    wrong = []
    for number in shown:
        picture = io.BytesIO()
        Image.fromarray(conveyor.draw(number)).save(picture, "jpeg", quality=85)
        found = guest.result(Picture(320, 240, seq=number, payload=picture.getvalue()))
        assert found["score"] == max(found["scores"].values())
        wrong += [number] if found["label"] != conveyor.truth(number) else []
    assert len({conveyor.truth(number) for number in shown}) == 4
    assert len(wrong) <= 1


@needs_data
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("grace_hopper.bmp", {"person": (0, 33, 512, 591), "tie": (225, 424, 290, 541)}),
        ("parrot.jpg", {"bird": (85, 102, 476, 869)}),
        ("dogs.jpg", {"dog": (105, 19, 243, 388)}),
        ("hot_dog.jpg", {"hot dog": (123, 87, 482, 230)}),  # class 57: beyond gaps in the labels
    ],
)
def test_detect_names_what_is_there_and_where(name: str, expected: dict[str, tuple[int, int, int, int]]) -> None:
    model = real_model(SSD, DATA / "labels" / "coco_labelmap.txt")
    objects = result("detect", model, DATA / "images" / name)["objects"]
    assert objects == sorted(objects, key=lambda thing: -thing["score"])
    assert min(thing["score"] for thing in objects) >= 0.4
    for label, box in expected.items():
        best = next(thing for thing in objects if thing["label"] == label)
        assert overlap(best["box"], box) > 0.8


@needs_data
@pytest.mark.parametrize(("name", "word"), [("cat.bmp", "cat"), ("parrot.jpg", "macaw"), ("hot_dog.jpg", "hotdog")])
def test_classify_names_what_is_there(name: str, word: str) -> None:
    model = real_model(CLASSIFIER, DATA / "labels" / "imagenet_labels.txt")
    found = result("classify", model, DATA / "images" / name, top="5", threshold="")
    assert any(word in entry["label"] for entry in found["top"]), found
    assert found["label"] == found["top"][0]["label"]
    assert 0 < found["score"] <= 1


def test_count_understands_what_detect_emits() -> None:
    boxes, classes, scores = np.full((1, 3, 4), 0.5), np.array([[1, 0, 1]]), np.array([[0.9, 0.8, 0.7]])
    values = [boxes, classes, scores, np.array([3.0])]
    model = FakeModel(((1, 3, 4), (1, 3), (1, 3), (1,)), lambda _: values, ("cat", "dog"))
    detect = Guest((HANDLERS / "detect" / "handler.wasm").read_bytes(), {"model": model})
    assert detect.init() == 0
    assert detect.handle(Picture()) == 0
    found = detect.emits[0]
    count = Guest((HANDLERS / "count" / "handler.wasm").read_bytes())
    assert count.result(Picture(0, 0, tag=found.tag, format=found.format, payload=bytes(found.payload)))["counts"] == {
        "dog": 2,
        "cat": 1,
    }


def overlap(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    """Intersection over union."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0, width) * max(0, height)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)
