"""The service within the test's own process, step by step or on its threads."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import tiny_models
from conftest import samples, write

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


def test_what_was_prepared_is_not_decoded_again(service: Service, ring: RingWriter) -> None:
    frame = write(ring, samples(8, 8))
    service._prepare(Prepare(frame, WHOLE))
    (prepared,) = service._prepared._tensors.values()
    service._begin(Infer(5, frame, WHOLE))
    id, (tensor,), decode_us = service._runs.get_nowait()
    assert (id, decode_us) == (5, 0)
    assert tensor is prepared


def test_what_was_not_prepared_is_decoded_when_it_is_asked_for(service: Service, ring: RingWriter) -> None:
    picture = samples(8, 8)
    frame = write(ring, picture)
    service._prepare(Prepare(frame, View(Crop(0, 0, 4, 4))))
    service._begin(Infer(5, frame, WHOLE))
    _, (tensor,), decode_us = service._runs.get_nowait()
    assert decode_us > 0
    assert np.array_equal(tensor[0], picture)


def test_preparing_twice_decodes_once(service: Service, ring: RingWriter) -> None:
    frame = write(ring, samples(8, 8))
    service._prepare(Prepare(frame, WHOLE))
    (before,) = service._prepared._tensors.values()
    service._prepare(Prepare(frame, WHOLE))
    (after,) = service._prepared._tensors.values()
    assert after is before


def test_the_memory_of_dropped_inputs_is_used_again(service: Service, ring: RingWriter) -> None:
    frames = [write(ring, samples(8, 8, seed)) for seed in range(5)]
    tensors = set()
    for frame in frames:
        service._prepare(Prepare(frame, WHOLE))
        tensors |= {id(tensor) for tensor in service._prepared._tensors.values()}
    assert len(tensors) == 4  # three kept, and one that was being filled


def test_a_slot_that_was_written_again_is_harmless(service: Service, ring: RingWriter) -> None:
    gone = write(ring, samples(8, 8), "jpeg")
    ring.free(gone)
    now = write(ring, np.zeros((8, 8, 3), np.uint8))  # the same slot, and no JPEG
    assert now.offset == gone.offset
    service._prepare(Prepare(gone, WHOLE))
    assert (gone.key, WHOLE) not in service._prepared
    service._begin(Infer(1, now, WHOLE))
    _, (tensor,), _ = service._runs.get_nowait()
    assert not tensor.any()


def test_answers_come_with_their_requests_numbers(zipper: Channel, ring: RingWriter) -> None:
    pictures = [samples(8, 8, seed) for seed in range(6)]
    frames = [write(ring, picture) for picture in pictures]
    for frame in frames:
        zipper.send(Prepare(frame, WHOLE))
    for id, frame in enumerate(frames):
        zipper.send(Infer(100 + id, frame, WHOLE))
    answers = [zipper.receive() for _ in frames]
    for id, (answer, picture) in enumerate(zip(answers, pictures, strict=True)):
        assert isinstance(answer, Outputs)
        assert answer.id == 100 + id
        assert answer.tensors == [picture.tobytes()]


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
