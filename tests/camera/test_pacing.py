import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.camera.pacing import MAX_LAG, Decimator, Pacer, Timeline

moments = st.floats(0, 1e6)


def test_pictures_are_due_when_their_timestamps_say() -> None:
    pacer = Pacer()
    assert pacer.delay(5.0, now=100.0) == 0
    assert pacer.delay(5.5, now=100.1) == pytest.approx(0.4)
    assert pacer.delay(6.0, now=101.0) == 0


def test_a_small_lag_is_caught_up() -> None:
    pacer = Pacer()
    pacer.delay(0.0, now=0.0)
    assert pacer.delay(1.0, now=1.0 + MAX_LAG) == 0
    assert pacer.delay(2.0, now=1.6) == pytest.approx(0.4)


def test_a_long_lag_is_forgotten() -> None:
    pacer = Pacer()
    pacer.delay(0.0, now=0.0)
    assert pacer.delay(1.0, now=60.0) == 0
    assert pacer.delay(2.0, now=60.0) == pytest.approx(1.0)


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10))))
def test_nobody_waits_for_longer_than_the_pictures_last(steps: list[tuple[float, float]]) -> None:
    pacer, pts, now = Pacer(), 0.0, 0.0
    pacer.delay(pts, now)
    total = 0.0
    for gap, work in steps:
        pts, now = pts + gap, now + work
        delay = pacer.delay(pts, now)
        assert 0 <= delay <= pts + 1e-6
        now += delay
        total += delay
    assert total <= pts + 1e-6


def kept(fps: float | None, stamps: list[float]) -> list[float]:
    decimator = Decimator(fps)
    return [stamp for stamp in stamps if decimator.keep(stamp)]


def test_half_the_rate_keeps_every_other_picture() -> None:
    stamps = [n / 30 + (0.001 if n % 3 else -0.001) for n in range(300)]  # a trembling clock
    assert len(kept(15, stamps)) == 150


def test_an_uneven_rate_is_right_on_average() -> None:
    assert len(kept(24, [n / 30 for n in range(300)])) == 240


def test_no_cap_keeps_everything() -> None:
    assert len(kept(None, [0.0] * 10)) == 10


def test_timestamps_that_start_anew_do_not_stop_the_camera() -> None:
    assert kept(1, [100, 100.5, 101, 0, 0.5, 1]) == [100, 101, 0, 1]


@given(st.floats(0.5, 60), st.lists(st.floats(0, 3), max_size=200))
def test_the_cap_holds_over_any_time(fps: float, gaps: list[float]) -> None:
    now, stamps = 0.0, []
    for gap in gaps:
        now += gap
        stamps.append(now)
    found = kept(fps, stamps)
    if stamps:
        assert found[0] == stamps[0]
        assert len(found) <= (found[-1] - found[0]) * fps + 2


def test_a_timeline_starts_at_zero_and_goes_on_after_a_restart() -> None:
    timeline = Timeline(0.1)
    assert [timeline.at(stamp) for stamp in (7.0, 7.5)] == [0, 0.5]
    timeline.restart()
    assert [timeline.at(stamp) for stamp in (7.0, 7.5)] == pytest.approx([0.6, 1.1])


def test_a_stream_without_timestamps_is_counted() -> None:
    timeline = Timeline(0.25)
    assert [timeline.at(None) for _ in range(3)] == [0, 0.25, 0.5]


@given(st.lists(st.one_of(st.none(), moments), min_size=1))
def test_a_timeline_begins_at_zero_whatever_comes(stamps: list[float | None]) -> None:
    assert Timeline(0.1).at(stamps[0]) == 0
