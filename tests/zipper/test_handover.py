"""A name changes hands while frames come: each is answered by one observer, and sources wait for no shadow."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from appliance.frame import Frame
from appliance.ipc.ring import RingWriter
from appliance.zipper.core import Ticket, Zipper
from appliance.zipper.router import Observer, Router, shadow_of

NAME = "detect"
CAPACITY = 2


def frame(seq: int, *, tag: int = 1, source: str = "camera", size: int = 10) -> Frame:
    return Frame(tag, source, seq, 0, "bytes", bytes(size))


def numbers(tickets: list[Ticket]) -> list[int]:
    return [ticket.frame.seq for ticket in tickets]


@pytest.fixture
def ring() -> Iterator[RingWriter]:
    with RingWriter(64 << 10) as ring:
        yield ring


@pytest.fixture
def zipper(ring: RingWriter) -> Zipper:
    return Zipper(ring)


def test_a_shadow_sees_the_newest_of_lossless_frames_too(zipper: Zipper) -> None:
    seen: list[Ticket] = []
    zipper.attach("x#shadow", {1}, 1, seen.append, shadow=True)
    for seq in range(4):
        zipper.receive(frame(seq), lossless=True)
    zipper.finished("x#shadow", seen[0])
    assert numbers(seen) == [0, 3]


def test_no_source_waits_for_a_shadow_and_what_it_reads_stays(zipper: Zipper, ring: RingWriter) -> None:
    done: list[int] = []
    seen: list[Ticket] = []
    zipper.attach("x#shadow", {1}, 1, seen.append, in_memory=True, shadow=True)
    zipper.receive(frame(0), lossless=True, on_done=lambda: done.append(0))
    assert (done, zipper.outstanding) == ([0], 0)
    assert ring.used > 0
    zipper.finished("x#shadow", seen[0])
    assert (done, ring.used) == ([0], 0)


def test_what_waits_for_a_shadow_makes_room(zipper: Zipper) -> None:
    live: list[Ticket] = []
    tried: list[Ticket] = []
    zipper.attach("x#shadow", {1}, 1, tried.append, in_memory=True, shadow=True)
    zipper.attach("x", {1}, 2, live.append, in_memory=True)
    for seq in range(4):
        zipper.receive(frame(seq, size=20 << 10))
        zipper.finished("x", live[-1])
    assert numbers(tried) == [0]  # and one waits
    zipper.receive(frame(4, size=40 << 10))
    assert numbers(live) == [0, 1, 2, 3, 4]
    assert zipper.totals.dropped_memory == 0
    assert "x#shadow" not in zipper.observers


def test_a_shadow_without_room_is_nobodys_loss(zipper: Zipper) -> None:
    zipper.attach("x#shadow", {1}, 1, lambda _: None, in_memory=True, shadow=True)
    zipper.receive(frame(0, size=100 << 10))
    assert zipper.totals.dropped_memory == 0


def test_the_old_one_keeps_what_it_has_and_the_new_one_gets_what_comes(zipper: Zipper) -> None:
    old: list[Ticket] = []
    new: list[Ticket] = []
    done: list[int] = []
    first = zipper.attach(NAME, {1}, 1, old.append)
    second = zipper.attach(shadow_of(NAME), {1}, 1, new.append, shadow=True)
    for seq in range(3):
        zipper.receive(frame(seq), lossless=True, on_done=lambda seq=seq: done.append(seq))
    zipper.hand_over(NAME, shadow_of(NAME), CAPACITY)
    assert (first.name, second.name, second.shadow) == (f"{NAME}#1", NAME, False)
    for seq in (3, 4):
        zipper.receive(frame(seq), lossless=True, on_done=lambda seq=seq: done.append(seq))
    assert (numbers(old), numbers(new)) == ([0], [0, 3])  # 1 and 2 wait for the old one; 0 is withheld
    assert second.counters is first.counters
    zipper.finished(NAME, new[0])
    assert (numbers(new), done) == ([0, 3, 4], [])
    zipper.finished(NAME, new[1])
    while first.busy:
        zipper.finished(first.name, old[-1])
    assert (numbers(old), done) == ([0, 1, 2], [3, 0, 1, 2])
    zipper.detach(first.name)
    assert (second.counters.offered, second.counters.finished, second.counters.dropped) == (5, 4, 0)


def test_tags_may_change_and_what_came_before_is_kept(zipper: Zipper) -> None:
    seen: list[Ticket] = []
    zipper.attach("sink", {1}, 1, seen.append)
    zipper.receive(frame(0))
    zipper.receive(frame(1))
    zipper.observe("sink", {2})
    zipper.receive(frame(2))
    zipper.receive(frame(3, tag=2))
    for _ in range(3):
        zipper.finished("sink", seen[-1])
    assert numbers(seen) == [0, 1, 3]
    assert zipper.totals.unobserved == 1


def test_only_a_shadow_takes_over_and_a_left_name_is_free() -> None:
    router = Router[Ticket]()
    router.attach("x", {1}, 1)
    router.attach("y", {1}, 1)
    with pytest.raises(ValueError, match="in service already"):
        router.take_over("y", "x", 1)
    assert router.leave("x").name == "x#1"
    router.attach("x", {1}, 1)
    assert [observer.name for observer in router.observing(1)] == ["y", "x"]


@dataclass(eq=False)
class Version:
    """An observer of the name, as a handler is one."""

    observer: Observer[Ticket] | None = None
    held: deque[tuple[Ticket, bool]] = field(default_factory=deque)
    """With whether it was a shadow when it took it."""

    def deliver(self, ticket: Ticket) -> None:
        self.held.append((ticket, self.observer is None or self.observer.shadow))


class Succession(RuleBasedStateMachine):
    """Any number of versions of one name, one after another, each perhaps a shadow first."""

    def __init__(self) -> None:
        super().__init__()
        self.ring = RingWriter(1 << 20)
        self.zipper = Zipper(self.ring)
        self.zipper.attach("sink", {2}, 2, lambda ticket: self.zipper.finished("sink", ticket))
        self.live: Version | None = None
        self.shadow: Version | None = None
        self.leaving: list[Version] = []
        self.due: dict[int, Version] = {}
        """Who has to answer a frame."""
        self.lossless: set[int] = set()
        self.answered: dict[int, list[Version]] = {}
        self.lost: set[int] = set()
        """Frames of those that were detached before they had finished."""
        self.done: list[int] = []

    def teardown(self) -> None:
        for version in [*self.leaving, self.live, self.shadow]:
            while version is not None and version.held:
                self._finish(version)
        assert {seq for seq in self.lossless if seq in self.due} - self.lost == self.lossless & self.answered.keys()
        assert sorted(self.done) == sorted(range(len(self.done)))
        for observer in list(self.zipper._router.observers):
            self.zipper.detach(observer)
        assert (self.ring.used, self.zipper.outstanding, self.zipper._attached) == (0, 0, {})
        self.ring.close()

    def _attach(self, name: str, *, shadow: bool) -> Version:
        version = Version()
        version.observer = self.zipper.attach(
            name, {1}, 1 if shadow else CAPACITY, version.deliver, in_memory=True, shadow=shadow
        )
        return version

    def _finish(self, version: Version) -> None:
        ticket, shadowed = version.held.popleft()
        if not shadowed:
            self.answered.setdefault(ticket.frame.seq, []).append(version)
            self.zipper.emit(frame(ticket.frame.seq, tag=2), ticket)
        self.zipper.finished(version.observer.name, ticket)

    @initialize()
    def begin(self) -> None:
        self.live = self._attach(NAME, shadow=False)

    @rule(source=st.sampled_from("ab"), lossless=st.booleans())
    def receive(self, source: str, lossless: bool) -> None:
        seq = self.number = getattr(self, "number", -1) + 1
        if self.live is not None:
            self.due[seq] = self.live
        if lossless:
            self.lossless.add(seq)
        self.zipper.receive(frame(seq, source=source), lossless=lossless, on_done=lambda: self.done.append(seq))

    @precondition(lambda self: self.live is None)
    @rule()
    def start(self) -> None:
        self.live = self._attach(NAME, shadow=False)

    @precondition(lambda self: self.shadow is None)
    @rule()
    def begin_shadow(self) -> None:
        self.shadow = self._attach(shadow_of(NAME), shadow=True)

    @precondition(lambda self: self.shadow is not None)
    @rule()
    def hand_over(self) -> None:
        self.zipper.hand_over(NAME, shadow_of(NAME), CAPACITY)
        if self.live is not None:
            self.leaving.append(self.live)
        self.live, self.shadow = self.shadow, None

    @precondition(lambda self: self.live is not None)
    @rule()
    def leave(self) -> None:
        self.zipper.leave(NAME)
        self.leaving.append(self.live)
        self.live = None

    @precondition(lambda self: self.shadow is not None)
    @rule()
    def detach_shadow(self) -> None:
        self.zipper.detach(shadow_of(NAME))
        self.shadow = None

    @precondition(lambda self: self.leaving)
    @rule(number=st.integers(0, 9))
    def detach_a_left_one(self, number: int) -> None:
        version = self.leaving.pop(number % len(self.leaving))
        self.lost |= {seq for seq, due in self.due.items() if due is version and seq not in self.answered}
        self.zipper.detach(version.observer.name)
        while version.held:  # a late answer is nothing
            self.zipper.finished(version.observer.name, version.held.popleft()[0])

    @rule(number=st.integers(0, 9))
    def finish(self, number: int) -> None:
        busy = [one for one in [*self.leaving, self.live, self.shadow] if one is not None and one.held]
        if busy:
            self._finish(busy[number % len(busy)])

    @invariant()
    def the_one_whose_turn_it_was_answers_once(self) -> None:
        for seq, versions in self.answered.items():
            assert versions == [self.due[seq]]

    @invariant()
    def a_lossless_frame_is_done_when_it_is_answered(self) -> None:
        over = {seq for seq in self.lossless if seq not in self.due or seq in self.answered or seq in self.lost}
        assert self.lossless & set(self.done) == over
        assert len(set(self.done)) == len(self.done)

    @invariant()
    def nobody_has_more_in_hand_than_it_takes(self) -> None:
        for version in [*self.leaving, self.live, self.shadow]:
            if version is not None:
                assert len(version.held) == version.observer.in_flight <= version.observer.capacity

    @invariant()
    def counters_add_up(self) -> None:
        of_live = [self.live] if self.live is not None else []
        for counters in {id(one.observer.counters): one.observer.counters for one in of_live}.values():
            sharing = [one.observer for one in [*self.leaving, *of_live] if one.observer.counters is counters]
            under_way = sum(len(observer.taken) + len(observer._waiting) for observer in sharing)
            if not self.lost:
                assert counters.offered == counters.dropped + counters.finished + under_way


TestSuccession = Succession.TestCase
