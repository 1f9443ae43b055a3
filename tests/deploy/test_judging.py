from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.deploy.watch import (
    ENOUGH_OFFERED,
    MAX_FAULT_SHARE,
    MAX_FAULTS,
    PACE_SECONDS,
    START_SECONDS,
    Failed,
    Pace,
    Passed,
    Prevented,
    Sample,
    judge_canary,
    judge_service,
    since,
)

FRAMES, SECONDS = 30, 60.0
NOTHING = Sample(state="running", handled=0, faults=0, deadlines=0, in_a_row=0, offered=0, dropped=0, reason="")


def canary(elapsed: float = 1.0, live: Sample | None = None, **seen: object) -> Passed | Failed | Prevented | None:
    sample = replace(NOTHING, **seen)
    return judge_canary(sample, elapsed, FRAMES, SECONDS, pace=Pace(sample, live, PACE_SECONDS) if live else None)


def test_a_canary_passes_with_enough_good_frames() -> None:
    assert canary(handled=FRAMES - 1, offered=FRAMES) is None
    assert canary(handled=FRAMES, offered=FRAMES) == Passed()


def test_a_canary_that_nobody_sends_frames_passes_in_time() -> None:
    assert canary(SECONDS - 0.1) is None
    assert canary(SECONDS) == Passed()


def test_two_faults_are_forgiven_and_three_are_not() -> None:
    assert canary(handled=FRAMES, faults=MAX_FAULTS - 1) == Passed()
    verdict = canary(handled=FRAMES, faults=MAX_FAULTS, deadlines=2, reason="deadline of 100 ms")
    assert verdict == Failed("3 faults (2 missed deadlines) as canary; the last: deadline of 100 ms")


@pytest.mark.parametrize("state", ["failed", "quarantined"])
def test_one_that_no_worker_runs_for_fails_at_once(state: str) -> None:
    assert canary(state=state, reason="the module is refused") == Failed(
        f"it is {state}; the last: the module is refused"
    )
    assert judge_service(replace(NOTHING, state=state)) == Failed(f"it is {state}")


@pytest.mark.parametrize("state", ["starting", "backoff"])
def test_one_that_does_not_come_up_is_waited_for_and_then_fails(state: str) -> None:
    assert canary(START_SECONDS - 1, state=state) is None
    assert isinstance(canary(START_SECONDS, state=state), Failed)


def test_one_that_the_device_does_not_let_come_up_has_not_failed() -> None:
    seen = {"state": "backoff", "hindered": True, "reason": "device: cannot fork"}
    assert canary(START_SECONDS - 1, **seen) is None
    assert canary(START_SECONDS, **seen) == Prevented(
        "its worker is not running after 120 s: backoff; the last: device: cannot fork"
    )
    assert isinstance(canary(START_SECONDS, **seen, faults=MAX_FAULTS), Failed)


def test_one_that_returns_an_error_for_every_frame_fails_in_the_end() -> None:
    seen = {"offered": 2 * ENOUGH_OFFERED, "dropped": ENOUGH_OFFERED, "reason": "no such picture"}
    assert canary(SECONDS - 1, **seen) is None
    verdict = canary(SECONDS, **seen)
    assert isinstance(verdict, Failed)
    assert "none of 30 frames went well" in verdict.reason
    assert canary(SECONDS, **{**seen, "dropped": ENOUGH_OFFERED + 1}) == Passed()


def test_one_that_drops_far_more_than_the_live_one_fails() -> None:
    live = replace(NOTHING, offered=100, dropped=20, handled=80)
    seen = {"offered": 100, "handled": FRAMES}
    assert canary(live=live, dropped=80, **seen) == Passed()
    assert canary(live=live, dropped=81, **seen) == Failed(
        "it keeps up with 19% of its frames, the version in service with 80%"
    )


def test_what_it_dropped_before_it_was_up_says_nothing() -> None:
    sample = replace(NOTHING, offered=10_000, dropped=9_900, handled=FRAMES)
    live = replace(NOTHING, offered=100, handled=100)
    pace = Pace(replace(NOTHING, offered=100, handled=FRAMES, dropped=60), live, PACE_SECONDS)
    assert judge_canary(sample, 1.0, FRAMES, SECONDS, pace=pace) == Passed()


def test_a_moment_is_not_compared() -> None:
    sample, live = replace(NOTHING, offered=100, dropped=99), replace(NOTHING, offered=100, handled=100)
    assert judge_canary(sample, 1.0, FRAMES, SECONDS, pace=Pace(sample, live, PACE_SECONDS - 0.1)) is None
    assert isinstance(judge_canary(sample, 1.0, FRAMES, SECONDS, pace=Pace(sample, live, PACE_SECONDS)), Failed)


def test_a_live_one_that_drops_as_much_is_no_reason() -> None:
    live = replace(NOTHING, offered=100, dropped=85, handled=15)
    assert canary(live=live, offered=100, dropped=95, handled=FRAMES) == Passed()


def test_a_few_frames_are_not_compared() -> None:
    live = replace(NOTHING, offered=ENOUGH_OFFERED - 1, handled=29)
    assert canary(live=live, offered=1000, dropped=999) is None


def test_three_faults_in_a_row_in_service_are_too_many() -> None:
    good = replace(NOTHING, handled=100_000)
    assert judge_service(replace(good, faults=2, in_a_row=2)) is None
    assert judge_service(replace(good, faults=3, in_a_row=3, reason="unreachable")) == Failed(
        "3 faults in a row in service; the last: unreachable"
    )


def test_many_faults_in_service_are_too_many_by_their_share() -> None:
    enough = round(MAX_FAULTS / MAX_FAULT_SHARE)
    assert judge_service(replace(NOTHING, handled=enough - 3, faults=3)) is None
    assert judge_service(replace(NOTHING, handled=enough - 4, faults=3)) == Failed("3 faults in 599 frames in service")
    assert judge_service(replace(NOTHING, handled=1, faults=2)) is None


def test_counts_are_taken_from_a_look_before() -> None:
    before = replace(NOTHING, handled=10, faults=2, offered=20, dropped=8)
    now = replace(NOTHING, handled=15, faults=2, offered=30, dropped=10, in_a_row=1, reason="x")
    assert since(now, before) == replace(now, handled=5, faults=0, offered=10, dropped=2)


def test_what_counts_from_a_later_start_is_taken_as_it_is() -> None:
    now = replace(NOTHING, handled=5)
    assert since(now, replace(NOTHING, handled=10)) == now


counts = st.integers(0, 10**6)


@given(
    st.builds(
        Sample,
        state=st.sampled_from(["starting", "running", "backoff", "quarantined", "failed", "stopped"]),
        handled=counts,
        faults=counts,
        deadlines=counts,
        in_a_row=counts,
        offered=counts,
        dropped=counts,
        reason=st.text(max_size=5),
    ),
    st.floats(0, 1e6),
)
def test_a_canary_never_passes_with_too_many_faults_or_before_its_time(sample: Sample, elapsed: float) -> None:
    if judge_canary(sample, elapsed, FRAMES, SECONDS) == Passed():
        assert sample.faults < MAX_FAULTS
        assert sample.state == "running"
        assert sample.handled >= FRAMES or elapsed >= SECONDS
