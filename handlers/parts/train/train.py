"""Train the parts classifier on the synthetic conveyor and write it beside the handler that uses it.

Run by hand from anywhere: ``python handlers/parts/train/train.py``. Writes ``parts.tflite`` (uint8 in, uint8
out), ``labels.txt`` and ``parts.json`` with the figures measured on the written file, through the runtime
and the picture path the appliance uses.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import numpy.typing as npt
import simplejpeg
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from appliance.camera.synthetic import CYCLE, GLIDE, LABELS, Conveyor
from appliance.inference.messages import Crop, GetPixels
from appliance.inference.preprocessing import pixels
from appliance.ipc.ring import FrameRef

OUT = Path(__file__).resolve().parent.parent
SIDE = 96
SIZES = ((320, 240), (320, 240), (640, 480), (640, 360))
"""Of the pictures: most are of the default size, some are 16:9."""
JPEG_QUALITY = 85

TRAIN_SEEDS = range(1000, 1080)
VALIDATION_SEEDS = range(5000, 5008)
TEST_SEEDS = range(9000, 9020)
PARTS_PER_SEED = 160
DEFECTS, EMPTY = 0.67, 0.12
"""Shares that show the four labels about equally often."""

EPOCHS = 18
BATCH = 64
SEED = 20

Pictures = npt.NDArray[np.uint8]
Classes = npt.NDArray[np.int64]


def as_the_model_sees_it(frame: Pictures) -> Pictures:
    """A frame's way to the model: the source's JPEG, then the appliance's own decoding and stretching."""
    height, width = frame.shape[:2]
    jpeg = simplejpeg.encode_jpeg(frame, quality=JPEG_QUALITY, colorsubsampling="420", fastdct=True)
    lies = FrameRef(key=0, offset=0, length=len(jpeg), format="jpeg", width=width, height=height)
    seen = pixels(memoryview(jpeg), GetPixels(0, lies, Crop(), "rgb", SIDE, SIDE))
    return np.frombuffer(seen, np.uint8).reshape(SIDE, SIDE, 3)


def frames_of(seed: int) -> Iterator[tuple[Pictures, int]]:
    """One frame of every part, and one in which the belt hurries on after every third."""
    width, height = SIZES[seed % len(SIZES)]
    conveyor = Conveyor(width, height, seed, DEFECTS, EMPTY)
    pick = np.random.default_rng(seed)
    for place in range(PARTS_PER_SEED):
        phases = [pick.integers(0, GLIDE), pick.integers(GLIDE, CYCLE)]
        for phase in phases if place % 3 == 0 else phases[:1]:
            n = place * CYCLE + int(phase)
            yield as_the_model_sees_it(conveyor.draw(n)), LABELS.index(conveyor.truth(n))


def dataset(seeds: range) -> tuple[Pictures, Classes]:
    """All frames of some seeds: uint8 [n, SIDE, SIDE, 3] and classes [n]."""
    pairs = [pair for seed in seeds for pair in frames_of(seed)]
    return np.stack([picture for picture, _ in pairs]), np.array([label for _, label in pairs])


def network() -> keras.Model:
    """Convolutions, the later ones depthwise separable; every operation also runs on an Edge TPU."""
    layers = keras.layers

    def normal(x: Any) -> Any:
        return layers.ReLU(6.0)(layers.BatchNormalization()(x))

    picture = keras.Input((SIDE, SIDE, 3), batch_size=None)
    x = normal(layers.Conv2D(16, 5, strides=2, padding="same", use_bias=False)(picture))
    for channels, strides in ((32, 2), (32, 1), (64, 2), (64, 1), (96, 2), (96, 1)):
        x = normal(layers.DepthwiseConv2D(3, strides=strides, padding="same", use_bias=False)(x))
        x = normal(layers.Conv2D(channels, 1, use_bias=False)(x))
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dropout(0.2)(x)
    return keras.Model(picture, layers.Dense(len(LABELS), activation="softmax")(x))


def augmented(pictures: Any, labels: Any) -> Any:
    """Other light, and belts that run the other way or upside down."""
    x = tf.cast(pictures, tf.float32) / 255.0
    x = tf.image.random_flip_left_right(x)
    x = tf.image.random_flip_up_down(x)
    level = tf.random.uniform([tf.shape(x)[0], 1, 1, 3], 0.85, 1.15)
    return tf.clip_by_value(x * level, 0.0, 1.0), labels


def train(pictures: Pictures, classes: Classes, seen: tuple[Pictures, Classes]) -> keras.Model:
    model = network()
    steps = len(pictures) // BATCH * EPOCHS
    rate = keras.optimizers.schedules.CosineDecay(1e-4, steps, warmup_target=4e-3, warmup_steps=steps // 20)
    loss = keras.losses.CategoricalCrossentropy(label_smoothing=0.03)
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    stream = tf.data.Dataset.from_tensor_slices((pictures, np.eye(len(LABELS), dtype=np.float32)[classes]))
    stream = stream.shuffle(len(pictures), seed=SEED).batch(BATCH, drop_remainder=True).map(augmented).prefetch(2)
    check = (seen[0].astype(np.float32) / 255, np.eye(len(LABELS), dtype=np.float32)[seen[1]])
    model.fit(stream, epochs=EPOCHS, shuffle=False, validation_data=check, validation_freq=5, verbose=2)
    return model


def quantised(model: keras.Model, examples: Pictures) -> bytes:
    """The model in 8-bit integers throughout; ``examples`` calibrate its ranges."""

    def calibration() -> Iterator[list[npt.NDArray[np.float32]]]:
        yield [np.zeros((1, SIDE, SIDE, 3), np.float32)]
        yield [np.ones((1, SIDE, SIDE, 3), np.float32)]  # so that stored 255 means 1.0 exactly
        for example in examples:
            yield [example[None].astype(np.float32) / 255]

    one = keras.Input((SIDE, SIDE, 3), batch_size=1, name="image")
    converter = tf.lite.TFLiteConverter.from_keras_model(keras.Model(one, model(one, training=False)))
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = calibration
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = tf.uint8
    converter.inference_output_type = tf.uint8
    return bytes(converter.convert())


def figures(model: bytes, pictures: Pictures, classes: Classes) -> dict[str, Any]:
    """Accuracy of the written file, overall and by class, with what it took for what."""
    interpreter = Interpreter(model_content=model, num_threads=1)
    interpreter.allocate_tensors()
    given, got = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    confusion = np.zeros((len(LABELS), len(LABELS)), int)
    for picture, label in zip(pictures, classes, strict=True):
        interpreter.set_tensor(given, picture[None])
        interpreter.invoke()
        confusion[label, int(interpreter.get_tensor(got)[0].argmax())] += 1
    return {
        "frames": len(classes),
        "accuracy": round(float(np.trace(confusion) / confusion.sum()), 4),
        "accuracy_by_label": {
            label: round(float(row[index] / row.sum()), 4)
            for index, (label, row) in enumerate(zip(LABELS, confusion, strict=True))
        },
        "confusion": {label: row.tolist() for label, row in zip(LABELS, confusion, strict=True)},
    }


def main() -> None:
    keras.utils.set_random_seed(SEED)
    tf.config.experimental.enable_op_determinism()
    pictures, classes = dataset(TRAIN_SEEDS)
    print(f"{len(classes)} frames to learn from: {dict(zip(LABELS, np.bincount(classes).tolist(), strict=True))}")
    trained = train(pictures, classes, dataset(VALIDATION_SEEDS))
    model = quantised(trained, pictures[:: len(pictures) // 300])
    report = {
        "input": [1, SIDE, SIDE, 3],
        "labels": LABELS,
        "bytes": len(model),
        "sha256": hashlib.sha256(model).hexdigest(),
        "parameters": trained.count_params(),
        "seeds": {
            name: [seeds.start, seeds.stop]
            for name, seeds in (("train", TRAIN_SEEDS), ("validation", VALIDATION_SEEDS), ("test", TEST_SEEDS))
        },
        "jpeg_quality": JPEG_QUALITY,
        "test": figures(model, *dataset(TEST_SEEDS)),
    }
    (OUT / "parts.tflite").write_bytes(model)
    (OUT / "labels.txt").write_text("".join(f"{label}\n" for label in LABELS))
    (OUT / "parts.json").write_text(json.dumps(report, indent=2) + "\n")
    print(report)


if __name__ == "__main__":
    main()
