import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.stats import BUCKETS_PER_OCTAVE, OCTAVES, Histogram

durations = st.lists(st.integers(0, 10**10), min_size=1, max_size=200)


def filled(values: list[int]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    return histogram


@given(durations, st.sampled_from([0.5, 0.95, 0.99, 1.0]))
def test_a_percentile_is_within_a_bucket_above_the_exact_one(values: list[int], part: float) -> None:
    exact = sorted(values)[math.ceil(len(values) * part) - 1]
    measured = filled(values).percentile(part)
    assert exact <= measured <= (exact + 1) * 2 ** (1 / BUCKETS_PER_OCTAVE)


@given(durations, durations)
def test_since_is_what_came_after(before: list[int], after: list[int]) -> None:
    histogram = filled(before)
    earlier = histogram.copy()
    for value in after:
        histogram.record(value)
    assert histogram.since(earlier).summary() == filled(after).summary()


def test_a_copy_does_not_change() -> None:
    histogram = filled([5])
    copy = histogram.copy()
    histogram.record(7)
    assert (copy.count, histogram.count) == (1, 2)


def test_nothing_recorded_is_all_zero() -> None:
    assert Histogram().summary() == {"count": 0, "p50": 0, "p95": 0, "p99": 0}


@pytest.mark.parametrize("value", [-1, -(10**18)])
def test_a_clock_set_back_counts_as_zero(value: int) -> None:
    histogram = filled([value])
    assert histogram.count == 1
    assert histogram.percentile(0.5) == 0


def test_the_size_is_fixed() -> None:
    histogram = filled([10**30, 0])
    assert len(histogram.counts) == BUCKETS_PER_OCTAVE * OCTAVES
    assert histogram.percentile(1.0) >= 2 ** (OCTAVES - 1)
