import threading

from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.inference.ahead import MAX_AHEAD, MAX_REQUESTS, Desk, Prepared, Run, key_of
from appliance.inference.messages import Crop, Infer, InferTensors, Prepare, View
from appliance.ipc.ring import FrameRef

WHOLE = View()


def frame(key: int) -> FrameRef:
    return FrameRef(key, 0, 0, "jpeg", 1, 1)


def prepare(key: int, view: View = WHOLE) -> Prepare:
    return Prepare(frame(key), view)


def infer(id: int, key: int, view: View = WHOLE) -> Infer:
    return Infer(id, frame(key), view)


def decode(desk: Desk[str], count: int) -> list[object]:
    return [desk.next_to_decode() for _ in range(count)]


def test_requests_come_before_pictures_to_prepare() -> None:
    desk: Desk[str] = Desk()
    for message in (prepare(1), infer(7, 9), prepare(2), InferTensors(8, [])):
        assert desk.put(message)
    assert decode(desk, 4) == [infer(7, 9), InferTensors(8, []), prepare(1), prepare(2)]


def test_only_the_newest_pictures_are_prepared() -> None:
    desk: Desk[str] = Desk()
    for key in range(10):
        desk.put(prepare(key))
    assert decode(desk, MAX_AHEAD) == [prepare(7), prepare(8), prepare(9)]


def test_what_is_asked_for_is_not_prepared_any_more() -> None:
    desk: Desk[str] = Desk()
    other = View(Crop(0, 0, 1, 1))
    for message in (prepare(1), prepare(1, other), prepare(2), infer(5, 1)):
        desk.put(message)
    assert decode(desk, 3) == [infer(5, 1), prepare(1, other), prepare(2)]


def test_what_is_prepared_is_run_while_another_picture_is_decoded() -> None:
    desk: Desk[str] = Desk()
    desk.put(prepare(1))
    desk.put(prepare(2))
    assert decode(desk, 1) == [prepare(1)]
    assert desk.keep(key_of(prepare(1)), "one") is None
    assert decode(desk, 1) == [prepare(2)]  # under way
    desk.put(infer(7, 1))
    assert desk.next_to_run() == Run(7, ["one"], prepared=True)


def test_what_is_being_prepared_is_waited_for() -> None:
    desk: Desk[str] = Desk()
    desk.put(prepare(1))
    assert decode(desk, 1) == [prepare(1)]  # under way
    desk.put(infer(7, 1))
    desk.keep(key_of(prepare(1)), "one")
    desk.put(InferTensors(8, []))
    assert decode(desk, 1) == [InferTensors(8, [])]
    assert desk.next_to_run() == Run(7, ["one"], prepared=True)


def test_one_decoded_input_waits_for_the_model_and_prepared_ones_pass() -> None:
    desk: Desk[str] = Desk()
    desk.keep(key_of(prepare(3)), "three")
    desk.put(infer(1, 1))
    desk.put(infer(2, 2))
    assert decode(desk, 1) == [infer(1, 1)]
    desk.run(Run(1, ["one"], 5))
    desk.put(infer(3, 3))
    taken: list[object] = []
    thread = threading.Thread(target=lambda: taken.append(desk.next_to_decode()))
    thread.start()  # waits: an input waits for the model already
    assert desk.next_to_run() == Run(1, ["one"], 5)
    thread.join(20)
    assert taken == [infer(2, 2)]
    assert desk.next_to_run() == Run(3, ["three"], prepared=True)


def test_requests_are_bounded() -> None:
    desk: Desk[str] = Desk()
    desk.run(Run(0, []))
    assert all(desk.put(infer(id, id)) for id in range(MAX_REQUESTS - 1))
    assert not desk.put(infer(999, 999))
    assert desk.put(prepare(1))


def test_closing_ends_the_wait_of_the_threads() -> None:
    desk: Desk[str] = Desk()
    got: list[object] = []
    threads = [
        threading.Thread(target=lambda wait=wait: got.append(wait()))  # type: ignore[misc]
        for wait in (desk.next_to_decode, desk.next_to_run)
    ]
    for thread in threads:
        thread.start()
    desk.close()
    for thread in threads:
        thread.join(20)
    assert got == [None, None]


def test_a_closed_desk_gives_nothing_out() -> None:
    desk: Desk[str] = Desk()
    desk.put(infer(1, 1))
    desk.run(Run(2, ["two"]))
    desk.close()
    assert desk.next_to_decode() is None
    assert desk.next_to_run() is None


class Threads:
    """What the threads of a process do to its desk, one step at a time and never waiting."""

    def __init__(self) -> None:
        self.desk: Desk[int] = Desk()
        self.asked: dict[int, int] = {}
        self.ran: dict[int, int] = {}

    def prepare(self, key: int) -> None:
        assert self.desk.put(prepare(key))

    def infer(self, key: int) -> None:
        id = len(self.asked)
        self.asked[id] = key
        assert self.desk.put(infer(id, key))

    def decode(self, _: int = 0) -> bool:
        requests = self.desk._requests and all(run.prepared for run in self.desk._runs)
        pictures = [ahead for ahead in self.desk._ahead if key_of(ahead) not in self.desk._prepared]
        if not requests and (self.desk._requests or not pictures):
            return False
        message = self.desk.next_to_decode()
        if isinstance(message, Prepare):
            self.desk.keep(key_of(message), message.frame.key)
        elif isinstance(message, Infer):
            self.desk.run(Run(message.id, [message.frame.key], 1))
        return True

    def run(self, _: int = 0) -> bool:
        if not self.desk._runs:
            return False
        run = self.desk.next_to_run()
        assert run is not None
        assert run.id not in self.ran
        self.ran[run.id] = run.tensors[0]
        return True


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["prepare", "infer", "decode", "run"]), st.integers(0, 5)), max_size=60))
def test_every_request_is_run_once_with_the_input_of_its_frame(steps: list[tuple[str, int]]) -> None:
    threads = Threads()
    for step, key in steps:
        getattr(threads, step)(key)
        assert len(threads.desk._prepared._tensors) <= MAX_AHEAD
        assert sum(not run.prepared for run in threads.desk._runs) <= 1
    while threads.run() or threads.decode():
        pass
    assert threads.ran == threads.asked


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


@settings(deadline=None)
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
