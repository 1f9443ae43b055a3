import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.inference.messages import MAX_REQUESTS, GetPixels, Infer, InferTensors, View
from appliance.inference.pipeline import Pipeline, Run
from appliance.ipc.ring import FrameRef


def infer(id: int) -> Infer:
    return Infer(id, FrameRef(id, 0, 0, "jpeg", 1, 1), View())


def test_requests_are_decoded_in_the_order_they_came() -> None:
    pipeline: Pipeline[str] = Pipeline()
    requests = [infer(7), InferTensors(8, []), GetPixels(9, infer(9).frame, View().crop, "rgb", 1, 1), infer(5)]
    for request in requests:
        assert pipeline.put(request)
    assert [pipeline.next_to_decode() for _ in requests] == requests


def test_the_next_is_decoded_once_the_model_has_taken_the_input_before() -> None:
    pipeline: Pipeline[str] = Pipeline()
    for id in (1, 2):
        pipeline.put(infer(id))
    assert pipeline.next_to_decode() == infer(1)
    pipeline.decoded(Run(1, ["one"], 5))
    taken: list[object] = []
    thread = threading.Thread(target=lambda: taken.append(pipeline.next_to_decode()))
    thread.start()  # waits: an input waits for the model already
    assert pipeline.next_to_run() == Run(1, ["one"], 5)
    thread.join(20)
    assert taken == [infer(2)]


def test_no_input_takes_the_place_of_another() -> None:
    pipeline: Pipeline[str] = Pipeline()
    pipeline.decoded(Run(1, ["one"]))
    with pytest.raises(RuntimeError, match="waits for the model already"):
        pipeline.decoded(Run(2, ["two"]))
    assert pipeline.next_to_run() == Run(1, ["one"])


def test_requests_are_bounded() -> None:
    pipeline: Pipeline[str] = Pipeline()
    assert all(pipeline.put(infer(id)) for id in range(MAX_REQUESTS))
    assert not pipeline.put(infer(999))
    assert pipeline.next_to_decode() == infer(0)
    assert pipeline.put(infer(999))


def test_closing_ends_the_waits_of_the_threads() -> None:
    pipeline: Pipeline[str] = Pipeline()
    got: list[object] = []
    threads = [
        threading.Thread(target=lambda wait=wait: got.append(wait()))  # type: ignore[misc]
        for wait in (pipeline.next_to_decode, pipeline.next_to_run)
    ]
    for thread in threads:
        thread.start()
    pipeline.close()
    for thread in threads:
        thread.join(20)
    assert got == [None, None]


def test_a_closed_pipeline_gives_nothing_out() -> None:
    pipeline: Pipeline[str] = Pipeline()
    pipeline.put(infer(1))
    pipeline.decoded(Run(2, ["two"]))
    pipeline.close()
    assert pipeline.next_to_decode() is None
    assert pipeline.next_to_run() is None


class Threads:
    """What the threads of a process do to its pipeline, one step at a time and never waiting."""

    def __init__(self) -> None:
        self.pipeline: Pipeline[int] = Pipeline()
        self.asked: list[int] = []
        self.ran: list[int] = []

    def put(self) -> bool:
        self.asked.append(len(self.asked))
        return self.pipeline.put(infer(self.asked[-1]))

    def decode(self) -> bool:
        if not self.pipeline._requests or self.pipeline._decoded is not None:
            return False
        request = self.pipeline.next_to_decode()
        assert request is not None
        self.pipeline.decoded(Run(request.id, [request.id], 1))
        return True

    def run(self) -> bool:
        if self.pipeline._decoded is None:
            return False
        run = self.pipeline.next_to_run()
        assert run is not None
        assert run.tensors == [run.id]
        self.ran.append(run.id)
        return True


@settings(deadline=None)
@given(st.lists(st.sampled_from(["put", "decode", "run"]), max_size=60))
def test_every_request_is_run_once_and_in_order(steps: list[str]) -> None:
    threads = Threads()
    for step in steps:
        getattr(threads, step)()
    while threads.run() or threads.decode():
        pass
    assert threads.ran == threads.asked
