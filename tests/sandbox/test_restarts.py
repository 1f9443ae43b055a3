from hypothesis import given
from hypothesis import strategies as st

from appliance.sandbox.restarts import FIRST_DELAY, GOOD_FRAMES, LAST_DELAY, Restarts


def test_at_once_then_longer_and_longer() -> None:
    restarts = Restarts()
    assert [restarts.died(100.0) - 100.0 for _ in range(5)] == [
        0.0,
        *(FIRST_DELAY * 2**n + 100.0 - 100.0 for n in range(4)),
    ]
    for _ in range(100):
        latest = restarts.died(100.0)
    assert latest == 100.0 + LAST_DELAY


def test_enough_good_frames_and_all_is_forgotten() -> None:
    restarts = Restarts()
    for _ in range(4):
        restarts.died(0.0)
    for _ in range(GOOD_FRAMES):
        restarts.handled()
    assert restarts.died(50.0) == 50.0


def test_good_frames_must_come_without_a_death_between_them() -> None:
    restarts = Restarts()
    restarts.died(0.0)
    for expected in (FIRST_DELAY, 2 * FIRST_DELAY):
        for _ in range(GOOD_FRAMES - 1):
            restarts.handled()
        assert restarts.died(0.0) == expected


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1e6)), max_size=200))
def test_never_in_the_past_nor_after_the_last_delay(events: list[tuple[bool, float]]) -> None:
    restarts = Restarts()
    for good, now in events:
        if good:
            restarts.handled()
        else:
            assert now <= restarts.died(now) <= now + LAST_DELAY
