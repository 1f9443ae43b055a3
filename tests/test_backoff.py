from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.backoff import Backoff


def test_delays_double_up_to_the_limit() -> None:
    backoff = Backoff(first=0.5, factor=2, limit=3)
    assert [backoff.failed(now) for now in range(5)] == [0.5, 1, 2, 3, 3]


def test_a_first_sign_of_life_forgets_nothing() -> None:
    backoff = Backoff(first=1, settle=10)
    backoff.failed(0)
    backoff.ok(1)
    assert backoff.failed(10.9) == 2


def test_what_has_worked_for_a_while_starts_over() -> None:
    backoff = Backoff(first=1, settle=10)
    backoff.failed(0)
    backoff.ok(1)
    backoff.ok(9)  # said again: it has been well since 1
    assert backoff.failed(11) == 1


def test_time_spent_down_is_not_time_spent_well() -> None:
    backoff = Backoff(first=1, settle=10)
    backoff.failed(0)
    assert backoff.failed(1000) == 2


def test_jitter_only_shortens() -> None:
    assert Backoff(first=8, jitter=0.5, random=lambda: 1.0).failed(0) == 4
    assert Backoff(first=8, jitter=0.5, random=lambda: 0.0).failed(0) == 8


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.floats(0, 1e6))),
    st.floats(0.01, 10),
    st.floats(1, 4),
    st.floats(10, 100),
    st.floats(0, 1),
)
def test_delays_stay_in_bounds_whatever_happens(
    events: list[tuple[bool, float]], first: float, factor: float, limit: float, jitter: float
) -> None:
    backoff = Backoff(first, factor, limit, jitter)
    now = 0.0
    for failed, elapsed in events:
        now += elapsed
        if failed:
            assert 0 <= backoff.failed(now) <= limit
        else:
            backoff.ok(now)
