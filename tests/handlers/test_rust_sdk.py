"""The Rust crate: every wrapper once, and what a panic leaves in the log."""

from collections.abc import Callable

import numpy as np
import pytest
from guest_host import FakeModel, Guest, Picture

from appliance.inference.messages import LETTERBOX, Crop, View
from appliance.sandbox.engine import GuestFailedError
from appliance.sandbox.messages import Errno


@pytest.fixture
def survey(guest_module: Callable[[str], bytes]) -> bytes:
    return guest_module("survey_rust")


def guest(module: bytes, mode: str) -> Guest:
    scores = np.array([[0.25, 0.5, 0.75]])
    model = FakeModel(((1, 3),), lambda _: [scores], ("zero", "a longer one"), ("scores",))
    return Guest(module, {"digits": model}, {"mode": mode})


def frame() -> Picture:
    return Picture(
        source="door", payload=b"abcdefg", pixels=lambda kind, width, height: kind[:1].encode() * width * height
    )


def test_every_wrapper(survey: bytes) -> None:
    host = guest(survey, "all")
    assert host.init() == 0
    assert host.result(frame()) == [
        *("door", True, b"cde", Errno.ETOOBIG, b"g" * 8, Errno.ETOOBIG),
        *(Errno.ENOENT, 1, 3, Errno.EINVAL, 0, Errno.ENOENT, "zero", Errno.ETOOBIG, Errno.ENOENT, Errno.ENOENT),
        *(2, 0.5, Errno.EINVAL, np.array([0.5, 0.75], np.float32).tobytes()),
        *(True, b"kept", Errno.ETOOBIG, True, "all", Errno.ETOOBIG, Errno.EINVAL, True),
    ]
    assert host.views[0] == View(Crop(1, 2, 30, 40), LETTERBOX)
    assert host.state == {"last": b"kept"}
    assert host.lines == [(30, "surveying")]


def test_init_answers_with_the_code_of_its_error(survey: bytes) -> None:
    assert guest(survey, "refuse").init() == Errno.ENOENT


def test_a_panic_is_a_trap_that_says_where(survey: bytes) -> None:
    host = guest(survey, "panic")
    with pytest.raises(GuestFailedError, match="unreachable"):
        host.handle(frame())
    places = [line for _, line in host.lines]
    assert places[1] == "handler.rs"
    assert int(places[2]) > 1
    assert host.emits == []
