"""The committed parts model, on frames it was not trained on, the way the appliance shows them to it."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import simplejpeg
from ai_edge_litert.interpreter import Interpreter

from appliance.camera.synthetic import CYCLE, LABELS, Conveyor
from appliance.inference.messages import Crop, GetPixels
from appliance.inference.preprocessing import pixels
from appliance.ipc.ring import FrameRef

PARTS = Path(__file__).parents[2] / "handlers" / "parts"
MODEL = PARTS / "parts.tflite"
UNSEEN = range(70_000, 70_004)
SIDE = 96


def seen(frame: npt.NDArray[np.uint8]) -> bytes:
    """What the model gets of a frame: the source's JPEG, decoded and stretched by the inference process."""
    height, width = frame.shape[:2]
    jpeg = simplejpeg.encode_jpeg(frame, quality=85, colorsubsampling="420", fastdct=True)
    lies = FrameRef(key=0, offset=0, length=len(jpeg), format="jpeg", width=width, height=height)
    return pixels(memoryview(jpeg), GetPixels(0, lies, Crop(), "rgb", SIDE, SIDE))


def classified(frames: list[npt.NDArray[np.uint8]]) -> list[int]:
    interpreter = Interpreter(model_path=str(MODEL), num_threads=1)
    interpreter.allocate_tensors()
    (given,), (got,) = interpreter.get_input_details(), interpreter.get_output_details()
    classes = []
    for frame in frames:
        interpreter.set_tensor(given["index"], np.frombuffer(seen(frame), np.uint8).reshape(1, SIDE, SIDE, 3))
        interpreter.invoke()
        classes.append(int(interpreter.get_tensor(got["index"])[0].argmax()))
    return classes


@pytest.mark.parametrize(("size", "parts"), [((320, 240), 120), ((640, 480), 30), ((640, 360), 30)])
@pytest.mark.slow
def test_the_model_knows_parts_it_never_saw(size: tuple[int, int], parts: int) -> None:
    frames, truths = [], []
    for seed in UNSEEN:
        conveyor = Conveyor(*size, seed=seed, defects=0.6, empty=0.15)
        for place in range(parts):
            n = place * CYCLE + (7 * place + seed) % CYCLE
            frames.append(conveyor.draw(n))
            truths.append(LABELS.index(conveyor.truth(n)))
    right = [found == truth for found, truth in zip(classified(frames), truths, strict=True)]
    assert len(right) == len(UNSEEN) * parts
    assert min(Counter(truths)[label] for label in range(len(LABELS))) >= 10
    assert np.mean(right) >= 0.97


def test_the_model_is_small_and_integers_throughout() -> None:
    assert MODEL.stat().st_size <= 120 << 10
    interpreter = Interpreter(model_path=str(MODEL))
    (given,), (got,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert given["dtype"] == got["dtype"] == np.uint8
    assert tuple(given["shape"]) == (1, SIDE, SIDE, 3)
    assert tuple(got["shape"]) == (1, len(LABELS))
    assert not any(tensor["dtype"] == np.float32 for tensor in interpreter.get_tensor_details())


def test_labels_and_figures_belong_to_the_model() -> None:
    assert (PARTS / "labels.txt").read_text().split() == list(LABELS)
    figures = json.loads((PARTS / "parts.json").read_text())
    assert figures["sha256"] == hashlib.sha256(MODEL.read_bytes()).hexdigest()
    assert figures["bytes"] == MODEL.stat().st_size
    assert figures["test"]["accuracy"] >= 0.97
    used = [range(*seeds) for seeds in figures["seeds"].values()]
    assert not any(seed in seeds for seeds in used for seed in UNSEEN)
