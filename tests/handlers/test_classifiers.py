"""parts and classify: the label and the scores of what a model answers."""

import math
import re
from collections.abc import Callable

import numpy as np
import pytest
from guest_host import HANDLERS, Array, FakeModel, Guest, Picture, RefusedError
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.inference.messages import View
from appliance.sandbox.messages import Errno

PARTS = (HANDLERS / "parts" / "handler.wasm").read_bytes()
CLASSIFY = (HANDLERS / "classify" / "handler.wasm").read_bytes()
LABELS = ("ok", "scratched", "missing_hole", "empty")
Scores = list[float]


def model(scores: Scores, labels: tuple[str, ...] = ()) -> FakeModel:
    return FakeModel(((1, len(scores)),), lambda _: [np.array([scores])], labels)


def started(module: bytes, model: FakeModel, **settings: str) -> Guest:
    name = "parts" if module is PARTS else "model"
    guest = Guest(module, {name: model}, settings)
    assert guest.init() == 0, guest.lines
    return guest


def test_parts_tells_the_label_and_every_score() -> None:
    guest = started(PARTS, model([0.1, 0.7, 0.15, 0.05], LABELS))
    assert guest.result(Picture()) == {
        "label": "scratched",
        "score": 0.7,
        "scores": {"ok": 0.1, "scratched": 0.7, "missing_hole": 0.15, "empty": 0.05},
    }
    assert guest.emits[0].tag == 0x10
    assert guest.views == [View()]  # as the manifest says, so that the model begins before it is asked


def test_parts_with_labels_twice_or_missing_still_has_a_key_for_each_class() -> None:
    guest = started(PARTS, model([0.4, 0.3, 0.2, 0.1], ("part", "part")))
    assert guest.result(Picture())["scores"] == {"part": 0.4, "class 1": 0.3, "class 2": 0.2, "class 3": 0.1}


def test_parts_with_as_many_classes_as_it_takes() -> None:
    labels = tuple(f"{index:02d}" + "é" * 127 for index in range(32))
    result = started(PARTS, model([0.5 / (index + 1) for index in range(32)], labels)).result(Picture())
    assert tuple(result["scores"]) == labels


@pytest.mark.parametrize("module", [PARTS, CLASSIFY])
def test_a_model_that_is_not_declared_is_refused_at_the_start(module: bytes) -> None:
    guest = Guest(module)
    assert guest.init() == Errno.ENOENT
    assert "the manifest must declare it" in guest.lines[-1][1]


@pytest.mark.parametrize(("module", "classes"), [(PARTS, 33), (CLASSIFY, 4097)])
def test_a_model_with_too_many_classes_is_refused_at_the_start(module: bytes, classes: int) -> None:
    name = "parts" if module is PARTS else "model"
    guest = Guest(module, {name: model([0.0] * classes)})
    assert guest.init() == Errno.EINVAL
    assert "classifier of 1 to" in guest.lines[-1][1]


@pytest.mark.parametrize("module", [PARTS, CLASSIFY])
@pytest.mark.parametrize("code", [Errno.EMODEL, Errno.EFRAME])
def test_a_failed_inference_fails_the_frame_and_the_next_may_succeed(module: bytes, code: Errno) -> None:
    broken = True

    def run(_: Picture) -> list[Array]:
        if broken:
            raise RefusedError(code)
        return [np.array([[0.0, 0.0, 1.0, 0.0]])]

    guest = started(module, FakeModel(((1, 4),), run, LABELS))
    assert guest.handle(Picture()) == code
    assert guest.emits == []
    broken = False
    assert guest.result(Picture())["label"] == "missing_hole"


@pytest.mark.parametrize("module", [PARTS, CLASSIFY])
def test_nan_never_wins(module: bytes) -> None:
    assert started(module, model([math.nan, 0.2, 0.6, math.nan], LABELS)).result(Picture())["score"] == 0.6
    assert started(module, model([math.nan] * 4, LABELS)).handle(Picture()) == Errno.EMODEL


def test_classify_lists_the_best_first() -> None:
    guest = started(CLASSIFY, model([0.1, 0.5, 0.15, 0.25], LABELS), top="3", threshold="")
    assert guest.result(Picture()) == {
        "label": "scratched",
        "score": 0.5,
        "top": [
            {"label": "scratched", "score": 0.5},
            {"label": "empty", "score": 0.25},
            {"label": "missing_hole", "score": 0.15},
        ],
    }
    assert guest.emits[0].tag == 0x11
    assert guest.views == [View()]


def test_classify_below_its_threshold_says_that_nothing_was_recognised() -> None:
    guest = started(CLASSIFY, model([0.1, 0.5, 0.15, 0.25], LABELS), threshold="0.6")
    assert guest.result(Picture()) == {"label": None, "score": 0.5, "top": []}


def test_classify_leaves_logits_as_they_are() -> None:
    guest = started(CLASSIFY, model([-12.5, -3.25, 7.75, -8.0], LABELS), top="4", threshold="")
    assert [entry["score"] for entry in guest.result(Picture())["top"]] == [7.75, -3.25, -8.0, -12.5]


def test_classify_takes_4096_classes_and_long_labels() -> None:
    scores = [index / 4096 for index in range(4096)]
    labels = tuple(f"{index}" + "x" * 253 for index in range(4095))
    top = started(CLASSIFY, model(scores, labels), top="32").result(Picture())["top"]
    assert [entry["label"] for entry in top[:2]] == ["class 4095", "class 4094"]  # without a label; with one too long
    assert len(top) == 32
    short = tuple(f"{index:04d}" + "x" * 252 for index in range(4096))
    assert started(CLASSIFY, model(scores, short), top="1").result(Picture())["label"] == short[-1]


@pytest.fixture(scope="module")
def ranked() -> Callable[[Scores], list[dict[str, object]]]:
    """classify of one instance over changing scores of 40 classes."""
    current: list[Scores] = [[]]
    guest = started(CLASSIFY, FakeModel(((1, 40),), lambda _: [np.array([current[0]])]), top="5", threshold="-2")

    def rank(scores: Scores) -> list[dict[str, object]]:
        current[0] = scores
        return list(guest.result(Picture())["top"])

    return rank


@given(scores=st.lists(st.floats(-8, 8, width=16), min_size=40, max_size=40))
@settings(deadline=None)
def test_classify_ranks_as_a_stable_sort_does(
    ranked: Callable[[Scores], list[dict[str, object]]], scores: Scores
) -> None:
    order = sorted(range(40), key=lambda index: -scores[index])
    expected = [index for index in order if scores[index] >= -2][:5]
    top = ranked(scores)
    assert [entry["label"] for entry in top] == [f"class {index}" for index in expected]
    for entry, index in zip(top, expected, strict=True):
        assert entry["score"] == pytest.approx(scores[index], abs=0.00005001)


NUMBER = re.compile(r"-?(?=[0-9.]*[0-9])[0-9]*\.?[0-9]*")


@given(text=st.text(alphabet="0123456789.-+e x", max_size=20) | st.text(max_size=40))
@settings(deadline=None, max_examples=60)
def test_settings_are_numbers_in_their_range_or_refused(text: str) -> None:
    valid = NUMBER.fullmatch(text) is not None and sum(c.isdigit() for c in text) <= 17 and 1 <= float(text) <= 32
    guest = Guest(CLASSIFY, {"model": model([0.5, 0.5])}, {"top": text})
    status = guest.init()
    assert status == (0 if valid or text == "" else Errno.EINVAL)
    if status:
        assert guest.lines == [(40, "the setting `top` must be a number from 1 to 32")]
