import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.camera import synthetic
from appliance.camera.synthetic import CYCLE, GLIDE, LABELS, Conveyor, open_synthetic, part_at, truth
from appliance.config import CameraConfig
from appliance.errors import ConfigError

seeds = st.integers(0, 2**32 - 1)
numbers = st.integers(0, 10**9)


@settings(deadline=None, max_examples=20)
@given(seeds, numbers)
def test_a_frame_can_be_drawn_alone(seed: int, n: int) -> None:
    there = Conveyor(64, 48, seed).draw(n)
    passing = Conveyor(64, 48, seed)
    for before in range(max(0, n - 3), n):
        passing.draw(before)
    assert np.array_equal(passing.draw(n), there)


def test_seeds_and_frames_differ() -> None:
    one, other = Conveyor(64, 48, 1), Conveyor(64, 48, 2)
    assert not np.array_equal(one.draw(5), other.draw(5))
    assert not np.array_equal(one.draw(5), one.draw(6))


@given(seeds, numbers)
def test_truth_is_the_part_in_view(seed: int, n: int) -> None:
    place, phase = divmod(n, CYCLE)
    expected = part_at(seed, place).label if phase < GLIDE else "empty"
    assert truth(seed, n) == expected
    assert expected in LABELS


def test_shares_are_what_was_asked_for() -> None:
    found = Counter(part_at(1, place, defects=0.5, empty=0.2).label for place in range(4000))
    assert found["empty"] / 4000 == pytest.approx(0.2, abs=0.03)
    assert found["ok"] / 4000 == pytest.approx(0.4, abs=0.03)
    assert found["scratched"] == pytest.approx(found["missing_hole"], rel=0.2)
    assert {part_at(1, place, defects=0, empty=0).label for place in range(200)} == {"ok"}
    assert {part_at(1, place, empty=1).label for place in range(200)} == {"empty"}


@pytest.mark.parametrize("size", [(320, 240), (640, 480), (200, 300), (800, 200)])
def test_a_part_under_the_lens_is_wholly_in_view(size: tuple[int, int]) -> None:
    conveyor = Conveyor(*size)
    edge = (1 + 0.06) * conveyor._radius  # a part may lie a little off its place
    for phase in range(GLIDE):
        assert abs(conveyor._offset(phase)) + edge < size[0] / 2
    assert edge < size[1] / 2 - synthetic.RAIL * size[1]
    for phase in range(GLIDE, CYCLE):  # never wholly in view, neither this part nor the next
        assert conveyor._offset(phase) + conveyor._radius > size[0] / 2
        assert conveyor._offset(phase) - conveyor._pitch - conveyor._radius < -size[0] / 2


def dark_holes(conveyor: Conveyor, n: int) -> int:
    """How many of the places where a hole belongs are as dark as the belt."""
    place, phase = divmod(n, CYCLE)
    part, radius = part_at(conveyor.seed, place, conveyor.defects, conveyor.empty), conveyor._radius
    grey = conveyor.draw(n).mean(axis=2)
    x0 = conveyor.width / 2 + conveyor._offset(phase) + part.dx * radius
    y0 = conveyor.height / 2 + part.dy * radius
    dark = 0
    for hole in range(synthetic.HOLES):
        angle = part.angle + math.tau * hole / synthetic.HOLES
        x = x0 + synthetic.HOLE_CIRCLE * radius * math.cos(angle)
        y = y0 + synthetic.HOLE_CIRCLE * radius * math.sin(angle)
        dark += grey[round(y) - 1 : round(y) + 2, round(x) - 1 : round(x) + 2].mean() < 50
    return dark


def test_a_missing_hole_is_missing() -> None:
    conveyor = Conveyor(seed=5, defects=0.6)
    seen: Counter[str] = Counter()
    for place in range(40):
        n = place * CYCLE + place % GLIDE
        label = conveyor.truth(n)
        if label in {"ok", "missing_hole"}:
            assert dark_holes(conveyor, n) == (6 if label == "ok" else 5), (n, label)
            seen[label] += 1
    assert min(seen["ok"], seen["missing_hole"]) > 3


def test_a_scratch_can_be_seen() -> None:
    stencil = Conveyor()._stencil
    for place in range(200):
        part = part_at(9, place, defects=1, empty=0)
        if part.label == "scratched":
            scratched, clean = (stencil.draw(replace(part, label=label))[1] >> 8 for label in ("scratched", "ok"))
            changed = np.abs(scratched.astype(int) - clean).max(axis=0) > 25
            assert changed.sum() > 30, place


def test_an_empty_place_shows_the_belt() -> None:
    conveyor = Conveyor(seed=4, empty=1)
    assert conveyor.draw(13)[60:180, 100:220].mean() < 90
    assert Conveyor(seed=4, empty=0).draw(13)[60:180, 100:220].mean() > 90


def test_light_changes_slowly_and_noise_does_not() -> None:
    conveyor = Conveyor(seed=4, empty=1)
    rail = [conveyor.draw(n)[:15].astype(int) for n in (0, 1, 300)]
    assert abs(rail[0].mean() - rail[1].mean()) < 2
    assert abs(rail[0].mean() - rail[2].mean()) > 2
    assert np.abs(rail[0] - rail[1]).max() > 5


def test_camera_tells_the_truth() -> None:
    camera = open_synthetic(CameraConfig(url="synthetic:?seed=7&defects=0.9&empty=0", fps=15))
    for n in range(CYCLE + 1):
        picture = camera.read()
        assert picture.meta == {"truth": truth(7, n, 0.9, 0)}
        assert picture.pts == pytest.approx(n / 15)


@pytest.mark.parametrize(
    ("width", "height", "size"), [(None, None, (320, 240)), (640, None, (640, 480)), (None, 480, (640, 480))]
)
def test_size_keeps_the_proportions(width: int | None, height: int | None, size: tuple[int, int]) -> None:
    picture = open_synthetic(CameraConfig(width=width, height=height)).read()
    assert (picture.width, picture.height) == size


def test_a_picture_too_large_to_draw_is_refused() -> None:
    with pytest.raises(ConfigError, match="over the limit"):
        open_synthetic(CameraConfig(width=8192, height=8192))
