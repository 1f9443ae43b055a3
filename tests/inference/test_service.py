"""The service within the test's own process, step by step or on its threads."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import tiny_models
from pictures import samples, write

from appliance.inference.messages import (
    Crop,
    Failed,
    FromModel,
    GetPixels,
    Infer,
    InferTensors,
    Outputs,
    Pixels,
    Ready,
    TensorInfo,
    ToModel,
    View,
)
from appliance.inference.preprocessing import PictureInput
from appliance.inference.runtime import Runtime
from appliance.inference.service import NO_MEMORY, Service
from appliance.ipc.packets import BlockingChannel, socket_pair
from appliance.ipc.ring import FrameRef, RingReader, RingWriter

WHOLE = View()
Channel = BlockingChannel[FromModel]


@pytest.fixture
def channels() -> Iterator[tuple[Channel, BlockingChannel[ToModel]]]:
    """The zipper's end and the service's."""
    ours, theirs = socket_pair()
    ours.settimeout(20)
    yield BlockingChannel(ours, FromModel), BlockingChannel(theirs, ToModel)
    ours.close()
    theirs.close()


@pytest.fixture
def service(channels: tuple[Channel, BlockingChannel[ToModel]], reader: RingReader) -> Service:
    """A service with a model that answers with its input; its threads are not started."""
    return Service(channels[1], reader, Runtime("litert").load(tiny_models.echo()))


@pytest.fixture
def zipper(channels: tuple[Channel, BlockingChannel[ToModel]], service: Service) -> Iterator[Channel]:
    """The zipper's end of a service that runs."""
    ended: list[bool] = []
    thread = threading.Thread(target=lambda: ended.append(service.run()))
    thread.start()
    yield channels[0]
    channels[0]._sock.shutdown(1)
    thread.join(20)
    assert ended == [True]


class Watched(PictureInput):
    """Counts the pictures that are decoded, and keeps the tensors they are decoded into."""

    def __init__(self, inputs: list[TensorInfo]) -> None:
        super().__init__(inputs)
        self.tensors: list[np.ndarray] = []
        self.second = threading.Event()

    def fill(self, out: np.ndarray, payload: memoryview, frame: FrameRef, view: View) -> None:
        super().fill(out, payload, frame, view)
        self.tensors.append(out)
        if len(self.tensors) == 2:
            self.second.set()


@pytest.fixture
def watched(service: Service) -> Watched:
    assert service._model is not None
    service._picture = Watched(service._model.inputs)
    return service._picture


def test_the_next_picture_is_decoded_while_the_model_runs(
    service: Service, watched: Watched, zipper: Channel, ring: RingWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert service._model is not None
    run, overlaps = service._model.run, []

    def run_until_the_next_is_decoded(tensors: list[np.ndarray]) -> list[bytes]:
        overlaps.append(watched.second.wait(20))
        return run(tensors)

    monkeypatch.setattr(service._model, "run", run_until_the_next_is_decoded)
    pictures = [samples(8, 8, seed) for seed in range(2)]
    for id, picture in enumerate(pictures):
        zipper.send(Infer(id, write(ring, picture), WHOLE))
    answers = [zipper.receive() for _ in pictures]
    assert overlaps == [True, True]
    assert [answer.tensors for answer in answers if isinstance(answer, Outputs)] == [
        [picture.tobytes()] for picture in pictures
    ]


def test_the_memory_of_inputs_is_used_again(watched: Watched, zipper: Channel, ring: RingWriter) -> None:
    for number in range(20):
        zipper.send(Infer(number, write(ring, samples(8, 8, number)), WHOLE))
    for _ in range(20):
        assert isinstance(zipper.receive(), Outputs)
    assert len(watched.tensors) == 20
    assert (
        len({id(tensor) for tensor in watched.tensors}) <= 3
    )  # one is filled, one waits, one is run  # one is filled or waits, one is run


def test_what_decoding_and_the_model_took_is_told(zipper: Channel, ring: RingWriter) -> None:
    zipper.send(Infer(1, write(ring, samples(640, 480), "jpeg"), WHOLE))
    answer = zipper.receive()
    assert isinstance(answer, Outputs)
    assert answer.decode_us > 0


def test_a_slot_that_was_written_again_is_harmless(zipper: Channel, ring: RingWriter) -> None:
    gone = write(ring, samples(8, 8), "jpeg")
    ring.free(gone)
    picture = np.zeros((8, 8, 3), np.uint8)
    now = write(ring, picture)  # the same slot, and no JPEG
    assert now.offset == gone.offset
    zipper.send(Infer(1, gone, WHOLE))
    zipper.send(Infer(2, now, WHOLE))
    answers = {answer.id: answer for answer in (zipper.receive(), zipper.receive()) if not isinstance(answer, Ready)}
    assert isinstance(answers[1], Failed)
    assert answers[1].fault == "frame"
    assert isinstance(answers[2], Outputs)
    assert answers[2].tensors == [picture.tobytes()]


def test_answers_come_with_their_requests_numbers(zipper: Channel, ring: RingWriter) -> None:
    pictures = [samples(8, 8, seed) for seed in range(6)]
    frames = [write(ring, picture) for picture in pictures]
    for id, frame in enumerate(frames):
        zipper.send(Infer(100 + id, frame, WHOLE))
    answers: dict[int, list[bytes]] = {}
    for _ in frames:
        answer = zipper.receive()
        assert isinstance(answer, Outputs)
        answers[answer.id] = answer.tensors
    assert answers == {100 + id: [picture.tobytes()] for id, picture in enumerate(pictures)}


def test_tensors_of_the_guests_own_are_run(zipper: Channel) -> None:
    zipper.send(InferTensors(1, [bytes(range(192))]))
    answer = zipper.receive()
    assert isinstance(answer, Outputs)
    assert answer.tensors == [bytes(range(192))]


@pytest.mark.parametrize("inputs", [[], [b""], [bytes(191)], [bytes(193)], [bytes(192), b""]])
def test_tensors_of_another_size_are_the_handlers_fault(zipper: Channel, inputs: list[bytes]) -> None:
    zipper.send(InferTensors(7, inputs))
    assert zipper.receive() == Failed(
        7, "request", f"inputs of {[len(data) for data in inputs]} bytes for a model that takes [192]"
    )


def test_faults_are_told_apart_and_the_next_request_is_served(zipper: Channel, ring: RingWriter) -> None:
    frame = write(ring, samples(8, 8))
    beyond = FrameRef(9, 1 << 30, 100, "jpeg", 8, 8)
    for request, fault in (
        (Infer(1, beyond, WHOLE), "frame"),
        (Infer(2, FrameRef(9, -1, 100, "jpeg", 8, 8), WHOLE), "frame"),
        (Infer(3, FrameRef(9, 0, 10, "jpeg", 8, 8), WHOLE), "frame"),
        (Infer(4, frame, View(Crop(5, 5, 5, 5))), "request"),
        (GetPixels(5, beyond, Crop(), "rgb", 8, 8), "frame"),
        (GetPixels(6, frame, Crop(), "rgb", 0, 8), "request"),
    ):
        zipper.send(request)
        answer = zipper.receive()
        assert isinstance(answer, Failed)
        assert (answer.id, answer.fault) == (request.id, fault)
    zipper.send(Infer(7, frame, WHOLE))
    assert isinstance(zipper.receive(), Outputs)


def test_a_picture_that_takes_too_much_memory_is_its_own_fault(
    watched: Watched, zipper: Channel, ring: RingWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(*_: object) -> None:
        raise MemoryError

    frame = write(ring, samples(8, 8))
    with monkeypatch.context() as patched:
        patched.setattr(watched, "fill", fill)
        zipper.send(Infer(1, frame, WHOLE))
        assert zipper.receive() == Failed(1, "frame", NO_MEMORY)
    zipper.send(Infer(2, frame, WHOLE))
    assert isinstance(zipper.receive(), Outputs)


def test_a_model_that_fails_is_the_models_fault(
    channels: tuple[Channel, BlockingChannel[ToModel]], reader: RingReader, ring: RingWriter
) -> None:
    service = Service(channels[1], reader, Runtime("litert").load(tiny_models.pick()))
    thread = threading.Thread(target=service.run)
    thread.start()
    zipper = channels[0]
    zipper.send(InferTensors(1, [b"\x09\0\0\0"]))
    zipper.send(InferTensors(2, [b"\x01\0\0\0"]))
    zipper.send(Infer(3, write(ring, samples(8, 8)), WHOLE))
    first, second, third = (zipper.receive() for _ in range(3))
    zipper._sock.shutdown(1)
    thread.join(20)
    answers = {answer.id: answer for answer in (first, second, third) if isinstance(answer, Failed | Outputs)}
    assert isinstance(answers[1], Failed)
    assert answers[1].fault == "model"
    assert isinstance(answers[2], Outputs)
    assert answers[2].tensors == [b"\x14\0\0\0"]
    assert answers[3] == Failed(3, "request", "the model takes no picture but int32 1: give it tensors")


def test_without_a_model_only_pixels_are_served(
    channels: tuple[Channel, BlockingChannel[ToModel]], reader: RingReader, ring: RingWriter
) -> None:
    picture = samples(8, 8)
    frame = write(ring, picture)
    service = Service(channels[1], reader, None)
    thread = threading.Thread(target=service.run)
    thread.start()
    zipper = channels[0]
    for request in (
        Infer(1, frame, WHOLE),
        InferTensors(2, []),
        GetPixels(3, frame, Crop(), "rgb", 8, 8),
    ):
        zipper.send(request)
    answers = [zipper.receive() for _ in range(3)]
    zipper._sock.shutdown(1)
    thread.join(20)
    no_model = "this process has no model"
    assert answers == [Failed(1, "request", no_model), Failed(2, "request", no_model), Pixels(3, picture.tobytes())]
