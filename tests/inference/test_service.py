"""The service within the test's own process, step by step or on its threads."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import tiny_models
from conftest import samples, write

from appliance.inference.ahead import MAX_AHEAD, Run
from appliance.inference.messages import (
    Crop,
    Failed,
    FromModel,
    GetPixels,
    Infer,
    InferTensors,
    Outputs,
    Pixels,
    Prepare,
    ToModel,
    View,
)
from appliance.inference.runtime import Runtime
from appliance.inference.service import Service
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


def step(service: Service, *messages: ToModel) -> None:
    """What the reading and the decoding thread do with the messages."""
    for message in messages:
        assert service._desk.put(message)
    while service._desk._requests or service._desk._ahead:
        message = service._desk.next_to_decode()
        assert message is not None
        service._prepare(message) if isinstance(message, Prepare) else service._begin(message)
        if service._desk._runs:
            return


def next_run(service: Service) -> Run[np.ndarray]:
    run = service._desk.next_to_run()
    assert run is not None
    return run


def prepared(service: Service) -> list[np.ndarray]:
    return list(service._desk._prepared._tensors.values())


def test_what_was_prepared_is_not_decoded_again(service: Service, ring: RingWriter) -> None:
    frame = write(ring, samples(8, 8))
    step(service, Prepare(frame, WHOLE))
    (tensor,) = prepared(service)
    service._desk.put(Infer(5, frame, WHOLE))  # nothing is left to decode
    run = next_run(service)
    assert (run.id, run.decode_us, run.prepared) == (5, 0, True)
    assert run.tensors[0] is tensor


def test_what_was_not_prepared_is_decoded_when_it_is_asked_for(service: Service, ring: RingWriter) -> None:
    picture = samples(8, 8)
    frame = write(ring, picture)
    step(service, Prepare(frame, View(Crop(0, 0, 4, 4))))
    step(service, Infer(5, frame, WHOLE))
    run = next_run(service)
    assert run.decode_us > 0
    assert np.array_equal(run.tensors[0][0], picture)


def test_preparing_twice_decodes_once(service: Service, ring: RingWriter) -> None:
    frame = write(ring, samples(8, 8))
    step(service, Prepare(frame, WHOLE))
    service._desk.put(Prepare(frame, WHOLE))
    service._desk.put(Infer(1, frame, View(Crop(0, 0, 4, 4))))
    assert isinstance(service._desk.next_to_decode(), Infer)
    service._desk.put(Prepare(frame, View(fit="letterbox")))
    assert service._desk.next_to_decode() == Prepare(frame, View(fit="letterbox"))


def test_the_memory_of_dropped_inputs_is_used_again(service: Service, ring: RingWriter) -> None:
    tensors = set()
    for seed in range(6):
        step(service, Prepare(write(ring, samples(8, 8, seed)), WHOLE))
        tensors |= {id(tensor) for tensor in prepared(service)}
    assert len(tensors) == MAX_AHEAD + 1  # those that are kept, and the one that is filled


def test_a_slot_that_was_written_again_is_harmless(service: Service, ring: RingWriter) -> None:
    gone = write(ring, samples(8, 8), "jpeg")
    ring.free(gone)
    now = write(ring, np.zeros((8, 8, 3), np.uint8))  # the same slot, and no JPEG
    assert now.offset == gone.offset
    step(service, Prepare(gone, WHOLE))
    assert prepared(service) == []
    step(service, Infer(1, now, WHOLE))
    assert not next_run(service).tensors[0].any()


def test_answers_come_with_their_requests_numbers(zipper: Channel, ring: RingWriter) -> None:
    pictures = [samples(8, 8, seed) for seed in range(6)]
    frames = [write(ring, picture) for picture in pictures]
    for frame in frames:
        zipper.send(Prepare(frame, WHOLE))
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
    zipper.send(Prepare(beyond, WHOLE))
    zipper.send(Infer(7, frame, WHOLE))
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
        Prepare(frame, WHOLE),
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
