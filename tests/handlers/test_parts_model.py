"""The committed parts model, on frames it was not trained on, the way the appliance shows them to it."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from ai_edge_litert.interpreter import Interpreter
from PIL import Image

from appliance.camera.synthetic import CYCLE, LABELS, Conveyor

PARTS = Path(__file__).parents[2] / "handlers" / "parts"
MODEL = PARTS / "parts.tflite"
UNSEEN = range(70_000, 70_004)
FRAMES = 120
"""Of each seed, all of different parts."""


def classified(frames: list[np.ndarray], settings: dict[str, object]) -> list[int]:
    interpreter = Interpreter(model_path=str(MODEL), num_threads=1)
    interpreter.allocate_tensors()
    (given,), (got,) = interpreter.get_input_details(), interpreter.get_output_details()
    height, width = given["shape"][1:3]
    classes = []
    for frame in frames:
        picture = Image.fromarray(simplejpeg.decode_jpeg(simplejpeg.encode_jpeg(frame, **settings)))
        pixels = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))
        interpreter.set_tensor(given["index"], pixels[None])
        interpreter.invoke()
        classes.append(int(interpreter.get_tensor(got["index"])[0].argmax()))
    return classes


@pytest.mark.parametrize("size", [(320, 240), (640, 480)])
def test_the_model_knows_parts_it_never_saw(size: tuple[int, int]) -> None:
    frames, truths = [], []
    for seed in UNSEEN:
        conveyor = Conveyor(*size, seed=seed, defects=0.6, empty=0.15)
        for place in range(FRAMES // (1 if size == (320, 240) else 4)):
            n = place * CYCLE + (7 * place + seed) % CYCLE
            frames.append(conveyor.draw(n))
            truths.append(LABELS.index(conveyor.truth(n)))
    quality = {"quality": 85, "colorsubsampling": "420", "fastdct": True}
    right = [found == truth for found, truth in zip(classified(frames, quality), truths, strict=True)]
    assert len(right) >= (400 if size == (320, 240) else 100)
    assert min(Counter(truths)[label] for label in range(len(LABELS))) >= 10
    assert np.mean(right) >= 0.97


def test_the_model_is_small_and_integers_throughout() -> None:
    assert MODEL.stat().st_size <= 120 << 10
    interpreter = Interpreter(model_path=str(MODEL))
    (given,), (got,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert given["dtype"] == got["dtype"] == np.uint8
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
