"""The router as a state machine: whatever happens, every frame offered is accounted for."""

from collections import deque
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from appliance.zipper.router import Router


@dataclass(frozen=True)
class Item:
    number: int
    lane: tuple[str, int]
    lossless: bool = False


def item(number: int, source: str = "camera", tag: int = 1, *, lossless: bool = False) -> Item:
    return Item(number, (source, tag), lossless)


def test_the_newest_of_a_lane_wins() -> None:
    observer = Router[Item]().attach("slow", {1}, capacity=1)
    assert observer.offer(item(0)) is None
    assert observer.take() == item(0)
    assert observer.offer(item(1)) is None
    assert observer.offer(item(2)) == item(1)
    assert observer.take() is None
    observer.finish(item(0))
    assert observer.take() == item(2)


def test_lanes_do_not_push_each_other_out_and_take_turns() -> None:
    observer = Router[Item]().attach("slow", {1}, capacity=1)
    observer.offer(item(0, "quiet"))
    for number in range(1, 100):
        observer.offer(item(number, "busy"))
    taken = []
    for _ in range(2):
        taken.append(observer.take())
        observer.finish(taken[-1])
    assert taken == [item(0, "quiet"), item(99, "busy")]


def test_lossless_frames_queue() -> None:
    observer = Router[Item]().attach("slow", {1}, capacity=1)
    for number in range(5):
        assert observer.offer(item(number, lossless=True)) is None
    taken = []
    while (next_item := observer.take()) is not None:
        taken.append(next_item.number)
        observer.finish(next_item)
    assert taken == list(range(5))


def test_only_observers_of_the_tag_are_named() -> None:
    router = Router[Item]()
    one, both = router.attach("one", {1}, 1), router.attach("both", {1, 2}, 1)
    assert router.observing(1) == (one, both)
    assert router.observing(2) == (both,)
    assert router.observing(3) == ()
    router.detach("both")
    assert router.observing(1) == (one,)
    assert router.observing(2) == ()


def test_names_are_unique_and_a_finish_needs_a_frame() -> None:
    router = Router[Item]()
    observer = router.attach("one", {1}, 1)
    with pytest.raises(ValueError, match="already"):
        router.attach("one", {2}, 1)
    with pytest.raises(ValueError, match="never given"):
        observer.finish(item(0))


@given(st.lists(st.tuples(st.sampled_from("ab"), st.booleans()), max_size=60))
def test_detaching_returns_what_waited(offers: list[tuple[str, bool]]) -> None:
    router = Router[Item]()
    observer = router.attach("one", {1}, 1)
    pushed_out = [observer.offer(item(n, source, lossless=lossless)) for n, (source, lossless) in enumerate(offers)]
    left = router.detach("one")
    assert len(left) + sum(out is not None for out in pushed_out) == len(offers)
    assert observer.counters.dropped == len(offers)


class Observing(RuleBasedStateMachine):
    """Against a model: offered = dropped + finished + in flight + waiting, and lossless frames keep their order."""

    def __init__(self) -> None:
        super().__init__()
        self.observer = Router[Item]().attach("any", {1}, capacity=2)
        self.number = 0
        self.held: deque[Item] = deque()
        self.pushed_out = 0
        self.lossless: deque[int] = deque()

    @rule(source=st.sampled_from("abc"), lossless=st.booleans())
    def offer(self, source: str, lossless: bool) -> None:
        offered = item(self.number, source, lossless=lossless)
        self.number += 1
        if lossless:
            self.lossless.append(offered.number)
        out = self.observer.offer(offered)
        if out is not None:
            assert out.lane == offered.lane
            assert not out.lossless
            self.pushed_out += 1

    @rule()
    def take(self) -> None:
        taken = self.observer.take()
        if taken is not None:
            if taken.lossless:
                assert taken.number == self.lossless.popleft()
            self.held.append(taken)

    @precondition(lambda self: self.held)
    @rule()
    def finish(self) -> None:
        self.observer.finish(self.held.popleft())

    @invariant()
    def all_accounted_for(self) -> None:
        counters = self.observer.counters
        waiting = len(self.observer._waiting)
        assert len(self.held) == self.observer.in_flight <= 2
        assert counters.offered == self.number
        assert counters.dropped == self.pushed_out
        assert counters.offered == counters.dropped + counters.finished + self.observer.in_flight + waiting


TestObserving = Observing.TestCase
