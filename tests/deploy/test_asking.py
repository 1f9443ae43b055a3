"""When a broker is asked again for what it retains."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.deploy.asking import CONTENT_SECONDS, FIRST_ASK, LAST_ASK, Asking


def test_a_box_that_waits_asks_soon_and_then_less_and_less_often() -> None:
    asking, now, waits = Asking(), 0.0, []
    for _ in range(12):
        waits.append(asking.left(now, content=False))
        now += waits[-1]
        assert asking.left(now, content=False) == 0
        asking.asked(now)
    assert FIRST_ASK / 2 <= waits[0] <= FIRST_ASK
    assert LAST_ASK / 2 <= waits[-1] <= LAST_ASK


def test_a_box_that_is_content_asks_seldom_and_begins_anew_when_it_is_not() -> None:
    asking, now = Asking(), 0.0
    for _ in range(12):
        now += asking.left(now, content=False)
        asking.asked(now)
    assert asking.left(now, content=True) == pytest.approx(CONTENT_SECONDS)
    assert asking.left(now + 100, content=True) == pytest.approx(CONTENT_SECONDS - 100)
    assert asking.left(now + 100, content=False) <= FIRST_ASK


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1e6)), max_size=50))
def test_it_is_always_time_to_ask_within_the_bounds(looks: list[tuple[bool, float]]) -> None:
    asking, now = Asking(), 0.0
    for content, seconds in looks:
        now += seconds
        left = asking.left(now, content=content)
        assert 0 <= left <= (CONTENT_SECONDS if content else LAST_ASK) + 1e-6  # floats
        if left == 0:
            asking.asked(now)
            assert asking.left(now, content=content) > 0
