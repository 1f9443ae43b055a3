import threading

from hypothesis import given
from hypothesis import strategies as st

from appliance.inference.ahead import MAX_AHEAD, MAX_REQUESTS, Desk, Prepared, key_of
from appliance.inference.messages import Crop, Infer, InferTensors, Prepare, View
from appliance.ipc.ring import FrameRef

WHOLE = View()


def frame(key: int) -> FrameRef:
    return FrameRef(key, 0, 0, "jpeg", 1, 1)


def prepare(key: int, view: View = WHOLE) -> Prepare:
    return Prepare(frame(key), view)


def infer(id: int, key: int, view: View = WHOLE) -> Infer:
    return Infer(id, frame(key), view)


def test_requests_come_before_pictures_to_prepare() -> None:
    desk = Desk()
    for message in (prepare(1), infer(7, 9), prepare(2), InferTensors(8, [])):
        assert desk.put(message)
    assert [desk.next() for _ in range(4)] == [infer(7, 9), InferTensors(8, []), prepare(1), prepare(2)]


def test_only_the_newest_pictures_are_prepared() -> None:
    desk = Desk()
    for key in range(10):
        desk.put(prepare(key))
    assert [desk.next() for _ in range(MAX_AHEAD)] == [prepare(7), prepare(8), prepare(9)]


def test_what_is_asked_for_is_not_prepared_any_more() -> None:
    desk = Desk()
    other = View(Crop(0, 0, 1, 1))
    for message in (prepare(1), prepare(1, other), prepare(2), infer(5, 1)):
        desk.put(message)
    assert [desk.next() for _ in range(3)] == [infer(5, 1), prepare(1, other), prepare(2)]


def test_requests_are_bounded() -> None:
    desk = Desk()
    assert all(desk.put(infer(id, id)) for id in range(MAX_REQUESTS))
    assert not desk.put(infer(999, 999))
    assert desk.put(prepare(1))


def test_closing_ends_the_wait_of_the_thread() -> None:
    desk = Desk()
    got: list[object] = []
    thread = threading.Thread(target=lambda: got.append(desk.next()))
    thread.start()
    desk.close()
    thread.join(10)
    assert got == [None]


def test_a_closed_desk_gives_nothing_out() -> None:
    desk = Desk()
    desk.put(infer(1, 1))
    desk.close()
    assert desk.next() is None


@given(st.lists(st.tuples(st.sampled_from(["prepare", "infer", "next"]), st.integers(0, 5)), max_size=60))
def test_nothing_is_lost_but_old_pictures(steps: list[tuple[str, int]]) -> None:
    desk = Desk()
    requests: list[Infer] = []
    ahead: list[Prepare] = []
    for number, (step, key) in enumerate(steps):
        if step == "prepare":
            desk.put(prepare(key))
            ahead = [*ahead, prepare(key)][-MAX_AHEAD:]
        elif step == "infer":
            desk.put(infer(number, key))
            requests.append(infer(number, key))
        elif requests:
            taken = desk.next()
            assert taken == requests.pop(0)
            assert isinstance(taken, Infer)
            ahead = [waiting for waiting in ahead if key_of(waiting) != key_of(taken)]
        elif ahead:
            assert desk.next() == ahead.pop(0)


def test_prepared_inputs_are_given_out_once() -> None:
    prepared: Prepared[str] = Prepared()
    assert prepared.put((1, WHOLE), "one") is None
    assert (1, WHOLE) in prepared
    assert prepared.take((1, WHOLE)) == "one"
    assert prepared.take((1, WHOLE)) is None


def test_views_of_a_frame_are_different_inputs() -> None:
    prepared: Prepared[str] = Prepared()
    prepared.put((1, WHOLE), "whole")
    assert prepared.take((1, View(Crop(0, 0, 5, 5)))) is None
    assert prepared.take((1, View(fit="letterbox"))) is None


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6)), max_size=60))
def test_prepared_inputs_are_few_and_each_tensor_is_somewhere(steps: list[tuple[bool, int]]) -> None:
    prepared: Prepared[int] = Prepared()
    kept: dict[int, int] = {}
    for number, (putting, key) in enumerate(steps):
        if putting:
            dropped = prepared.put((key, WHOLE), number)
            expected = kept.pop(key, None)
            if expected is None and len(kept) == MAX_AHEAD:
                expected = kept.pop(next(iter(kept)))
            assert dropped == expected
            kept[key] = number
        else:
            assert prepared.take((key, WHOLE)) == kept.pop(key, None)
