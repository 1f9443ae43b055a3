"""The zipper without its network."""

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.frame import Frame
from appliance.ipc.ring import RingReader, RingWriter
from appliance.zipper.core import Ticket, Zipper


def frame(seq: int = 0, *, tag: int = 1, payload: bytes = b"x" * 100, source: str = "camera") -> Frame:
    return Frame(tag, source, seq, 0, "bytes", payload)


@pytest.fixture
def ring() -> Iterator[RingWriter]:
    with RingWriter(64 << 10) as ring:
        yield ring


def test_the_payload_is_in_memory_while_somebody_holds_it(ring: RingWriter) -> None:
    freed: list[int] = []
    held: list[Ticket] = []
    zipper = Zipper(ring, freed.append)
    zipper.attach("worker", {1}, 2, held.append, in_memory=True)
    zipper.receive(frame(payload=b"hello"))
    ref = held[0].ref
    assert ref is not None
    reader = RingReader(ring.fd)
    assert bytes(reader.view(ref)) == b"hello"
    reader.close()
    zipper.finished("worker", held[0])
    assert (freed, ring.used, zipper.outstanding) == ([ref.key], 0, 0)


def test_nothing_is_copied_for_observers_out_of_memory(ring: RingWriter) -> None:
    held: list[Ticket] = []
    zipper = Zipper(ring)
    zipper.attach("sink", {1}, 2, held.append)
    zipper.receive(frame())
    assert held[0].ref is None
    assert ring.used == 0


def test_full_memory_drops_for_those_who_need_it_only(ring: RingWriter) -> None:
    held: list[Ticket] = []
    seen: list[Ticket] = []
    zipper = Zipper(ring)
    zipper.attach("worker", {1}, 2, held.append, in_memory=True)
    zipper.attach("sink", {1}, 8, seen.append)
    for seq in range(3):
        zipper.receive(frame(seq, payload=bytes(40 << 10)))
    assert [ticket.frame.seq for ticket in held] == [0]
    assert [ticket.frame.seq for ticket in seen] == [0, 1, 2]
    assert zipper.totals.dropped_memory == 2
    assert zipper.observers["worker"].counters.dropped == 2


def test_a_lossless_frame_is_done_with_its_offspring(ring: RingWriter) -> None:
    done: list[str] = []
    parents: list[Ticket] = []
    children: list[Ticket] = []
    zipper = Zipper(ring)
    zipper.attach("worker", {1}, 2, parents.append, in_memory=True)
    zipper.attach("mqtt", {2}, 8, children.append)
    zipper.receive(frame(), lossless=True, on_done=lambda: done.append("frame"))
    zipper.emit(frame(tag=2), parents[0])
    zipper.finished("worker", parents[0])
    assert done == []
    zipper.finished("mqtt", children[0])
    assert done == ["frame"]
    assert zipper.outstanding == 0


def test_a_frame_nobody_observes_is_done_at_once(ring: RingWriter) -> None:
    done: list[str] = []
    zipper = Zipper(ring)
    zipper.receive(frame(), on_done=lambda: done.append("frame"))
    assert done == ["frame"]
    assert zipper.totals.unobserved == 1


def test_an_observer_may_finish_within_deliver(ring: RingWriter) -> None:
    zipper = Zipper(ring)
    zipper.attach("quick", {1}, 1, lambda ticket: zipper.finished("quick", ticket))
    for seq in range(200):
        zipper.receive(frame(seq), lossless=True)
    assert zipper.observers["quick"].counters.finished == 200
    assert zipper.outstanding == 0


def test_finishing_twice_or_after_detaching_is_nothing(ring: RingWriter) -> None:
    held: list[Ticket] = []
    zipper = Zipper(ring)
    zipper.attach("one", {1}, 4, held.append)
    zipper.receive(frame(0))
    zipper.receive(frame(1))
    zipper.finished("one", held[0])
    zipper.finished("one", held[0])
    zipper.detach("one")
    zipper.finished("one", held[1])
    assert zipper.outstanding == 0


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.sampled_from(["receive", "lossless", "finish", "emit", "detach"]), st.integers(0, 7)), max_size=80
    )
)
def test_memory_is_given_back_whatever_happens(steps: list[tuple[str, int]]) -> None:
    with RingWriter(64 << 10) as ring:
        zipper = Zipper(ring)
        held: dict[str, list[Ticket]] = {"a": [], "b": [], "mqtt": []}
        done: list[int] = []
        received = 0
        for name, tag, in_memory in (("a", 1, True), ("b", 1, True), ("mqtt", 2, False)):
            zipper.attach(name, {tag}, 2, held[name].append, in_memory=in_memory)
        for step, number in steps:
            name = ("a", "b", "mqtt")[number % 3]
            if step in ("receive", "lossless"):
                received += 1
                seq = received
                zipper.receive(
                    frame(seq, payload=bytes(number * 2000)),
                    lossless=step == "lossless",
                    on_done=lambda seq=seq: done.append(seq),
                )
            elif step == "finish" and held[name]:
                zipper.finished(name, held[name].pop(0))
            elif step == "emit" and held["a"]:
                zipper.emit(frame(tag=2), held["a"][0])
            elif step == "detach" and name in zipper.observers:
                zipper.detach(name)
        for name in list(zipper.observers):
            zipper.detach(name)
        assert (ring.used, zipper.outstanding) == (0, 0)
        assert sorted(done) == list(range(1, received + 1))
