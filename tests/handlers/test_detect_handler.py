"""detect: from the four outputs of an SSD to objects in pixels."""

import math

import numpy as np
import pytest
from guest_host import HANDLERS, Array, FakeModel, Guest, Picture, RefusedError
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.inference.messages import View
from appliance.sandbox.messages import Errno

DETECT = (HANDLERS / "detect" / "handler.wasm").read_bytes()
LABELS = ("person", "bicycle", "car")
TF1 = ((1, 10, 4), (1, 10), (1, 10), (1,))
Found = tuple[int, float, tuple[float, float, float, float]]
"""Class, score, and the box as a model gives it: top, left, bottom, right."""


def outputs(found: list[Found], places: int = 10) -> list[Array]:
    """Boxes, classes, scores, count."""
    boxes, classes, scores = np.zeros((1, places, 4)), np.zeros((1, places)), np.zeros((1, places))
    for index, (kind, score, box) in enumerate(found):
        boxes[0, index], classes[0, index], scores[0, index] = box, kind, score
    return [boxes, classes, scores, np.array([len(found)])]


def started(found: list[Found], labels: tuple[str, ...] = LABELS, **settings: str) -> Guest:
    guest = Guest(DETECT, {"model": FakeModel(TF1, lambda _: outputs(found), labels)}, settings)
    assert guest.init() == 0, guest.lines
    return guest


def test_boxes_are_pixels_of_the_frame() -> None:
    guest = started([(2, 0.9, (0.25, 0.5, 0.75, 1.0)), (0, 0.5, (0.1, 0.1, 0.2, 0.2))])
    assert guest.result(Picture(640, 480)) == {
        "objects": [
            {"label": "car", "score": 0.9, "box": [320, 120, 640, 360]},
            {"label": "person", "score": 0.5, "box": [64, 48, 128, 96]},
        ]
    }
    assert guest.emits[0].tag == 0x12
    assert guest.views == [View()]  # as the manifest says, so that the model begins before it is asked


def test_nothing_found_is_a_result_too() -> None:
    assert started([]).result(Picture()) == {"objects": []}


def test_boxes_end_at_the_frame_and_a_class_without_a_label_has_its_number() -> None:
    guest = started([(7, 0.9, (-0.2, -3.0, 1.7, math.inf)), (0, 0.8, (math.nan,) * 4)])
    assert guest.result(Picture(640, 480))["objects"] == [
        {"label": "class 7", "score": 0.9, "box": [0, 0, 640, 480]},
        {"label": "person", "score": 0.8, "box": [0, 0, 0, 0]},
    ]


def test_threshold_and_max() -> None:
    found: list[Found] = [(0, 0.9 - index / 10, (0, 0, 1, 1)) for index in range(9)]
    assert len(started(found).result(Picture())["objects"]) == 6  # to 0.4, as a float of 32 bits
    assert len(started(found, threshold="0.75").result(Picture())["objects"]) == 2
    assert len(started(found, threshold="0", max="4").result(Picture())["objects"]) == 4


@pytest.mark.parametrize("count", [-1.0, math.nan, 3.0, 1e9])
def test_a_count_that_lies_is_kept_within_the_outputs(count: float) -> None:
    values = outputs([(0, 0.9, (0, 0, 1, 1))] * 10)
    values[3] = np.array([count])
    guest = Guest(DETECT, {"model": FakeModel(TF1, lambda _: values, LABELS)})
    assert guest.init() == 0
    assert len(guest.result(Picture())["objects"]) == {3.0: 3, 1e9: 10}.get(count, 0)


def test_models_whose_first_output_is_the_scores() -> None:
    boxes, classes, scores, count = outputs([(1, 0.9, (0, 0, 0.5, 0.5))], places=25)
    shapes = ((1, 25), (1, 25, 4), (1,), (1, 25))
    guest = Guest(DETECT, {"model": FakeModel(shapes, lambda _: [scores, boxes, count, classes], LABELS)})
    assert guest.init() == 0
    assert guest.result(Picture(100, 100)) == {"objects": [{"label": "bicycle", "score": 0.9, "box": [0, 0, 50, 50]}]}


def test_more_places_than_it_keeps() -> None:
    values = outputs([(0, 0.9, (0, 0, 1, 1))] * 150, places=150)
    shapes = ((1, 150, 4), (1, 150), (1, 150), (1,))
    long = ("é" * 128,)
    guest = Guest(DETECT, {"model": FakeModel(shapes, lambda _: values, long)}, {"max": "100"})
    assert guest.init() == 0
    assert [thing["label"] for thing in guest.result(Picture())["objects"]] == [*long * 100]


@pytest.mark.parametrize(
    "shapes",
    [
        ((1, 1001),),
        ((1, 10, 4), (1, 10), (1, 10)),
        ((1, 10, 4), (1, 10, 4), (1, 10), (1,)),
        ((1, 10, 4), (1,), (1,), (1, 10)),
        ((1, 0, 4), (1, 10), (1, 10), (1,)),
    ],
)
def test_a_model_that_is_no_such_detector_is_refused_at_the_start(shapes: tuple[tuple[int, ...], ...]) -> None:
    guest = Guest(DETECT, {"model": FakeModel(shapes, lambda _: [])})
    assert guest.init() == Errno.EINVAL
    assert "TFLite_Detection_PostProcess" in guest.lines[-1][1]


def test_a_missing_model_is_refused_at_the_start() -> None:
    assert Guest(DETECT).init() == Errno.ENOENT


def test_a_failed_inference_fails_the_frame() -> None:
    def run(_: Picture) -> list[Array]:
        raise RefusedError(Errno.EMODEL)

    guest = Guest(DETECT, {"model": FakeModel(TF1, run)})
    assert guest.init() == 0
    assert guest.handle(Picture()) == Errno.EMODEL
    assert guest.emits == []


def test_a_picture_of_unknown_size_is_refused() -> None:
    assert started([(0, 0.9, (0, 0, 1, 1))]).handle(Picture(0, 0)) == Errno.EFRAME


@pytest.mark.parametrize("settings", [{"threshold": "2"}, {"threshold": "high"}, {"max": "0"}, {"max": "101"}])
def test_settings_out_of_range_are_refused_at_the_start(settings: dict[str, str]) -> None:
    guest = Guest(DETECT, {"model": FakeModel(TF1, lambda _: outputs([]))}, settings)
    assert guest.init() == Errno.EINVAL
    assert f"`{next(iter(settings))}` must be a number from" in guest.lines[-1][1]


@pytest.fixture(scope="module")
def free() -> tuple[Guest, list[list[Array]]]:
    """One instance, and the place of what its model answers next."""
    answer = [outputs([])]
    guest = Guest(DETECT, {"model": FakeModel(TF1, lambda _: answer[0], LABELS)}, {"threshold": "0"})
    assert guest.init() == 0
    return guest, answer


any_float = st.floats(width=32)


@given(numbers=st.lists(any_float, min_size=60, max_size=60), count=any_float, width=st.integers(1, 16384))
@settings(deadline=None)
def test_whatever_the_model_answers_boxes_lie_in_the_frame(
    free: tuple[Guest, list[list[Array]]], numbers: list[float], count: float, width: int
) -> None:
    guest, answer = free
    values = np.array(numbers)
    boxes, classes, scores = values[:40].reshape(1, 10, 4), values[40:50], values[50:]
    answer[0] = [boxes, classes, scores, np.array([count])]
    for thing in guest.result(Picture(width, 480))["objects"]:
        left, top, right, bottom = thing["box"]
        assert 0 <= min(left, right) <= max(left, right) <= width
        assert 0 <= min(top, bottom) <= max(top, bottom) <= 480
