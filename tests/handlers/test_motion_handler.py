"""motion: a background per source, and the cells that differ from it."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from guest_host import HANDLERS, Guest, Picture

from appliance.sandbox.messages import Errno

MOTION = (HANDLERS / "motion" / "handler.wasm").read_bytes()
WIDTH, HEIGHT = 160, 120
Gray = npt.NDArray[np.uint8]


def picture(samples: Gray, source: str = "camera") -> Picture:
    def pixels(kind: str, width: int, height: int) -> bytes:
        assert (kind, width, height) == ("gray", WIDTH, HEIGHT)
        return samples.tobytes()

    return Picture(640, 480, source=source, pixels=pixels)


def scene(seed: int = 0) -> Gray:
    return np.random.default_rng(seed).integers(40, 200, (HEIGHT, WIDTH)).astype(np.uint8)


def with_block(samples: Gray, left: int, top: int, right: int, bottom: int) -> Gray:
    changed = samples.copy()
    changed[top:bottom, left:right] ^= 0x80
    return changed


def started(**settings: str) -> Guest:
    guest = Guest(MOTION, settings=settings)
    assert guest.init() == 0
    return guest


STILL: dict[str, Any] = {"moving": False, "fraction": 0.0, "box": None}


def test_a_still_picture_does_not_move() -> None:
    guest = started()
    assert [guest.result(picture(scene())) for _ in range(3)] == [STILL] * 3
    assert guest.emits[0].tag == 0x13


def test_what_appears_is_told_with_its_box_in_pixels_of_the_frame() -> None:
    guest = started()
    guest.result(picture(scene()))
    result = guest.result(picture(with_block(scene(), 80, 40, 112, 64)))
    assert result == {"moving": True, "fraction": 0.04, "box": [320, 160, 448, 256]}  # 4 x 3 cells of 20 x 15


def test_the_box_holds_everything_that_changed() -> None:
    guest = started()
    guest.result(picture(scene()))
    corners = with_block(with_block(scene(), 0, 0, 8, 8), 152, 112, 160, 120)
    assert guest.result(picture(corners))["box"] == [0, 0, 640, 480]


def test_noise_does_not_move() -> None:
    guest = started()
    guest.result(picture(scene()))
    noise = np.random.default_rng(1)
    for _ in range(5):
        noisy = scene().astype(int) + noise.integers(-12, 13, (HEIGHT, WIDTH))
        noisy[::16, ::16] = 255  # a few dead samples
        assert guest.result(picture(noisy.astype(np.uint8))) == STILL


def test_what_stays_becomes_background() -> None:
    guest = started()
    guest.result(picture(scene()))
    parked = picture(with_block(scene(), 80, 40, 112, 64))
    moving = [guest.result(parked)["moving"] for _ in range(60)]
    assert moving[0]
    assert not moving[-1]
    assert moving == sorted(moving, reverse=True)


def test_threshold() -> None:
    small = picture(with_block(scene(), 80, 40, 96, 56))  # 4 of 300 cells
    for threshold, moving in (("0.01", True), ("0.02", False), ("", True)):
        guest = started(threshold=threshold)
        guest.result(picture(scene()))
        assert guest.result(small) == {"moving": moving, "fraction": 0.0133, "box": [320, 160, 384, 224]}


@pytest.mark.parametrize("threshold", ["-0.1", "1.5", "much"])
def test_a_threshold_out_of_range_is_refused_at_the_start(threshold: str) -> None:
    assert Guest(MOTION, settings={"threshold": threshold}).init() == Errno.EINVAL


def test_each_source_has_its_own_background() -> None:
    guest = started()
    names = [f"camera-{index}" for index in range(4)]
    for _ in range(3):
        assert [guest.result(picture(scene(index), name)) for index, name in enumerate(names)] == [STILL] * 4


def test_a_fifth_source_takes_the_place_of_the_one_unseen_for_longest() -> None:
    guest = started()
    for index in (0, 1, 2, 3, 1, 0, 4):
        assert guest.result(picture(scene(index), f"camera-{index}")) == STILL
    moved = with_block(scene(1), 0, 0, 160, 120)
    assert guest.result(picture(moved, "camera-1"))["fraction"] == 1.0  # 1 is still known
    assert guest.result(picture(with_block(scene(2), 0, 0, 160, 120), "camera-2")) == STILL  # 2 had to go


def test_what_is_no_picture_is_refused_and_forgotten() -> None:
    guest = started()
    guest.result(picture(scene()))
    assert guest.handle(Picture(640, 480, pixels=None)) == Errno.EFRAME
    assert guest.handle(Picture(0, 0, format="cbor", payload=b"\x01")) == Errno.EFRAME
    assert guest.result(picture(scene())) == STILL
