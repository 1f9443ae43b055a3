import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from appliance.backoff import Backoff
from appliance.camera.watch import TRANSITIONS, Action, CameraWatch, FeedState

STALL, OPEN, FIRST, LAST = 10.0, 30.0, 1.0, 30.0


def a_watch() -> CameraWatch:
    return CameraWatch(STALL, OPEN, Backoff(FIRST, limit=LAST, settle=30))


def streaming(since: float = 0.0) -> CameraWatch:
    watch = a_watch()
    assert watch.poll(since, None) is Action.OPEN
    watch.got_picture(since)
    return watch


def test_the_first_attempt_is_at_once() -> None:
    watch = a_watch()
    assert watch.poll(0, None) is Action.OPEN
    assert watch.poll(0, 0) is None
    assert watch.state == FeedState("opening")


def test_a_read_that_takes_too_long_is_given_up() -> None:
    watch = streaming()
    assert watch.poll(14.9, busy_since=5) is None
    assert watch.wake_at(14.9, busy_since=5) == 15
    assert watch.poll(15, busy_since=5) is Action.GIVE_UP
    assert watch.state == FeedState("stalled", "gave no picture for 10 s")
    assert watch.poll(15.9, None) is None
    assert watch.wake_at(15.9, None) == 16
    assert watch.poll(16, None) is Action.OPEN


def test_opening_may_take_longer() -> None:
    watch = a_watch()
    watch.poll(0, None)
    assert watch.poll(29.9, busy_since=0) is None
    assert watch.poll(30, busy_since=0) is Action.GIVE_UP
    assert watch.state.reason == "did not open for 30 s"


def test_a_reader_that_waits_is_not_a_camera_that_hangs() -> None:
    watch = streaming()
    assert watch.poll(1e6, busy_since=None) is None
    assert watch.wake_at(1e6, busy_since=None) == 1e6 + STALL  # the next call may hang


def test_failures_are_spaced_out_until_it_holds() -> None:
    watch = streaming()
    pauses, now = [], 0.0
    for _ in range(7):
        watch.failed("unplugged", now)
        due = watch.wake_at(now, None)
        assert due is not None
        pauses.append(due - now)
        now = due
        assert watch.poll(now, None) is Action.OPEN
        watch.got_picture(now)
    assert pauses == [1, 2, 4, 8, 16, 30, 30]
    watch.got_picture(now + 40)
    watch.failed("unplugged", now + 40)
    assert watch.wake_at(now + 40, None) == now + 41


def test_the_end_is_final() -> None:
    watch = streaming()
    watch.ended()
    assert watch.state == FeedState("ended")
    assert watch.poll(1e9, None) is None
    assert watch.wake_at(1e9, None) is None
    with pytest.raises(RuntimeError, match="cannot become failed while ended"):
        watch.failed("again", 1e9)


class Cameras(RuleBasedStateMachine):
    """Any camera, any order of events: one attempt at a time, and never an end to trying."""

    def __init__(self) -> None:
        super().__init__()
        self.watch = a_watch()
        self.now = 0.0
        self.attempt = False
        self.busy_since: float | None = None
        self.state = self.watch.state.name

    @rule(seconds=st.floats(0, 100))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self._poll()

    @rule()
    def wakes_when_due(self) -> None:
        due = self.watch.wake_at(self.now, self.busy_since)
        if due is None:
            assert self.watch.state.name == "ended"
            return
        assert due <= self.now + max(OPEN, LAST)
        waiting = not self.attempt or self.busy_since is not None
        self.now = max(self.now, due)
        acted = self._poll()
        assert acted or not waiting  # what it woke up for is done

    @precondition(lambda self: self.attempt)
    @rule(busy=st.booleans())
    def a_call_begins_or_ends(self, busy: bool) -> None:
        self.busy_since = self.now if busy else None

    @precondition(lambda self: self.attempt)
    @rule()
    def picture(self) -> None:
        self.watch.got_picture(self.now)

    @precondition(lambda self: self.attempt)
    @rule(final=st.booleans())
    def attempt_is_over(self, final: bool) -> None:
        self.attempt, self.busy_since = False, None
        if final:
            self.watch.ended()
        else:
            self.watch.failed("unplugged", self.now)

    def _poll(self) -> bool:
        action = self.watch.poll(self.now, self.busy_since)
        if action is Action.OPEN:
            assert not self.attempt
            self.attempt, self.busy_since = True, self.now
        elif action is Action.GIVE_UP:
            assert self.attempt
            assert self.busy_since is not None
            assert self.now >= self.busy_since + STALL
            self.attempt, self.busy_since = False, None
        return action is not None

    @invariant()
    def transitions_are_those_of_the_table(self) -> None:
        name = self.watch.state.name
        reachable = {self.state} | TRANSITIONS[self.state]
        # a rule may take two steps: into a pause and out of it
        assert name in reachable | {after for step in reachable for after in TRANSITIONS[step]}
        assert bool(self.watch.state.reason) == (name in {"stalled", "failed"})
        self.state = name


TestCameras = Cameras.TestCase
TestCameras.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
