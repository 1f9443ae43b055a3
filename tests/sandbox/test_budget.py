from hypothesis import given
from hypothesis import strategies as st

from appliance.manifest import Limits
from appliance.sandbox.budget import Bucket, Budgets
from appliance.sandbox.messages import Emit


def emits(count: int, size: int = 0) -> list[Emit]:
    return [Emit(1, "bytes", bytes(size))] * count


def test_a_seconds_worth_at_once_and_then_as_fast_as_it_fills() -> None:
    bucket = Bucket(10, now=5.0)
    assert bucket.take(10, 5.0)
    assert not bucket.take(1, 5.0)
    assert not bucket.take(1, 5.09)
    assert bucket.take(1, 5.11)
    assert not bucket.take(11, 1000.0)  # it holds no more than a second's worth, however long it waits
    assert bucket.take(10, 1000.0)


def test_what_is_refused_costs_nothing() -> None:
    bucket = Bucket(4, now=0.0)
    assert not bucket.take(5, 0.0)
    assert bucket.take(4, 0.0)


@given(
    st.integers(1, 50),
    st.lists(st.tuples(st.floats(0, 3), st.integers(0, 60)), max_size=60),
)
def test_never_more_than_the_rate_over_any_time(rate: int, steps: list[tuple[float, int]]) -> None:
    bucket, now, taken = Bucket(rate, 0.0), 0.0, []
    for pause, amount in steps:
        now += pause
        if bucket.take(amount, now):
            taken.append((now, amount))
    for start, _ in taken:
        for end, _ in taken:
            within = sum(amount for at, amount in taken if start <= at <= end)
            assert within <= rate * (1 + max(0.0, end - start)) + 1e-6


@given(st.lists(st.floats(-10, 10), max_size=20))
def test_a_clock_that_goes_back_fills_nothing(moves: list[float]) -> None:
    bucket, now, latest = Bucket(1, 0.0), 0.0, 0.0
    taken = 0
    for move in moves:
        now += move
        latest = max(latest, now)
        taken += bucket.take(1, now)
    assert taken <= 1 + latest + 1e-6


def test_frames_and_bytes_are_charged_together_or_not_at_all() -> None:
    budgets = Budgets(Limits(emits_per_second=3, emit_kb_per_second=1), 0.0)
    assert "limits.emit_kb_per_second" in budgets.emit(emits(1, 1025), 0.0)
    assert "limits.emits_per_second" in budgets.emit(emits(4), 0.0)
    assert budgets.emit(emits(2, 512), 0.0) == ""
    assert "1 KiB per second" in budgets.emit(emits(1, 1), 0.0)
    assert budgets.emit(emits(1), 0.0) == ""  # neither refusal has cost it a frame
    assert "more than 3 frames" in budgets.emit(emits(1), 0.0)
    assert budgets.emit([], 0.0) == ""


def test_lines_of_log() -> None:
    budgets = Budgets(Limits(log_lines_per_second=2), 0.0)
    assert [budgets.log(now) for now in (0.0, 0.0, 0.1, 0.6, 0.7)] == [True, True, False, True, False]
