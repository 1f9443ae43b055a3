"""The broker with real processes and tiny models; what a process may do wrong is in test_process.py."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import simplejpeg
import tiny_models
from pictures import samples, write
from tiny_models import Save

from appliance.errors import ModelError, PeerError
from appliance.inference import host as hosts
from appliance.inference.broker import Broker, identity
from appliance.inference.host import ModelStatus
from appliance.inference.messages import MAX_BEGUN, MAX_REQUESTS, MAX_TENSOR_BYTES, Crop, View
from appliance.inference.model import ModelSpec, UnavailableError
from appliance.ipc.ring import FrameRef, RingWriter

WHOLE = View()
DOUBLE = (sys.executable, str(Path(__file__).with_name("service_double.py")))


@pytest.fixture
async def broker(ring: RingWriter) -> AsyncIterator[Broker]:
    async with asyncio.timeout(60), Broker(ring.fd) as broker:
        yield broker


@pytest.fixture
def echo(save: Save) -> ModelSpec:
    return save(tiny_models.echo(), "echo.tflite")


def status(broker: Broker, name: str) -> ModelStatus:
    (found,) = [status for status in broker.status() if status.name == name]
    return found


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until something has happened; the test's timeout ends the wait."""
    while not condition():
        await asyncio.sleep(0.002)


def pid_of(broker: Broker, name: str = "echo.tflite") -> int:
    pid = status(broker, name).pid
    assert pid is not None
    return pid


def asking(broker: Broker, model: ModelSpec) -> int:
    return broker._hosts[identity(model)][0]._asking


def oom_score(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


async def test_a_model_answers_about_a_picture(broker: Broker, ring: RingWriter, echo: ModelSpec) -> None:
    picture = samples(8, 8)
    inference = await broker.infer(echo, write(ring, picture), WHOLE)
    assert inference.tensors == [picture.tobytes()]
    assert (inference.run.model, inference.run.digest, inference.run.device) == ("echo.tflite", echo.digest, "cpu")
    assert inference.run.runtime.startswith("litert ")
    assert inference.decode_us > 0
    assert inference.wait_us > 0


async def test_ready_describes_the_model(broker: Broker, echo: ModelSpec) -> None:
    ready = await broker.ready(echo)
    assert [(info.name, info.dtype, info.shape) for info in ready.inputs] == [("picture", "uint8", (1, 8, 8, 3))]
    assert [(info.name, info.nbytes) for info in ready.outputs] == [("echo", 192)]
    assert ready.note == ""
    assert status(broker, "echo.tflite").state == "running"


async def test_tensors_of_the_guests_own(broker: Broker, save: Save) -> None:
    pick = save(tiny_models.pick())
    assert (await broker.infer_tensors(pick, [b"\x02\0\0\0"])).tensors == [b"\x1e\0\0\0"]
    with pytest.raises(ModelError, match=r"inputs of \[3\] bytes for a model that takes \[4\]"):
        await broker.infer_tensors(pick, [b"\x02\0\0"])
    with pytest.raises(ModelError, match="gather index out of bounds"):
        await broker.infer_tensors(pick, [b"\x09\0\0\0"])
    assert (await broker.infer_tensors(pick, [b"\x01\0\0\0"])).tensors == [b"\x14\0\0\0"]
    assert status(broker, "model.tflite").restarts == 0


async def test_pixels_come_from_a_process_without_a_model(broker: Broker, ring: RingWriter) -> None:
    picture = samples(16, 12)
    frame = write(ring, picture)
    assert await broker.pixels(frame, Crop(2, 2, 4, 3), "rgb", 4, 3) == picture[2:5, 2:6].tobytes()
    assert len(await broker.pixels(write(ring, picture, "jpeg"), Crop(), "gray", 160, 120)) == 160 * 120
    with pytest.raises(ModelError, match="pixels come as rgb, gray, bgr, rgb32f, bgr32f"):
        await broker.pixels(frame, Crop(), "jpeg", 4, 3)
    with pytest.raises(ModelError, match=str(MAX_TENSOR_BYTES)):
        await broker.pixels(frame, Crop(), "rgb", 1 << 20, 1 << 20)
    assert status(broker, "pixels").run is None


async def test_pictures_that_guests_bring_take_turns(broker: Broker, ring: RingWriter) -> None:
    frame = ring.write(b"{}", "json", 0, 0)
    assert frame is not None
    picture = samples(8, 8)
    files = [simplejpeg.encode_jpeg(picture, 95), b"neither"] * 4
    asked = (broker.pixels(frame, Crop(), "bgr32f", 8, 8, file) for file in files)
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(answer) for answer in answers] == [bytes, PeerError] * 4
    assert {len(answer) for answer in answers if isinstance(answer, bytes)} == {8 * 8 * 12}
    assert [(one.name, one.restarts) for one in broker.status()] == [("brought-pixels", 0)]


async def test_pictures_that_guests_bring_do_not_hold_up_frames(broker: Broker, ring: RingWriter) -> None:
    """A picture may be made to crash its decoder, or to keep it busy."""
    picture = samples(8, 8)
    frame = write(ring, picture)
    file = simplejpeg.encode_jpeg(picture, 95)
    await broker.pixels(frame, Crop(), "rgb", 8, 8, file)
    stopped = status(broker, "brought-pixels").pid
    assert stopped is not None
    os.kill(stopped, signal.SIGSTOP)
    brought = asyncio.create_task(broker.pixels(frame, Crop(), "rgb", 8, 8, file))
    assert await broker.pixels(frame, Crop(), "rgb", 8, 8) == picture.tobytes()
    assert not brought.done()
    os.kill(stopped, signal.SIGCONT)
    assert len(await brought) == 8 * 8 * 3


async def test_a_model_that_takes_no_picture_says_what_it_takes(broker: Broker, ring: RingWriter, save: Save) -> None:
    with pytest.raises(ModelError, match="the model takes no picture but int32 1: give it tensors"):
        await broker.infer(save(tiny_models.pick()), write(ring, samples(8, 8)), WHOLE)


async def test_faults_are_raised_as_whose_they_are(broker: Broker, ring: RingWriter, echo: ModelSpec) -> None:
    with pytest.raises(PeerError, match="outside the ring"):
        await broker.infer(echo, FrameRef(1, 1 << 40, 10, "jpeg", 8, 8), WHOLE)
    with pytest.raises(PeerError, match="not a JPEG"):
        await broker.infer(echo, FrameRef(2, 0, 10, "jpeg", 8, 8), WHOLE)
    with pytest.raises(ModelError, match="not inside the picture"):
        await broker.infer(echo, write(ring, samples(8, 8)), View(Crop(4, 4, 8, 8)))
    assert status(broker, "echo.tflite").restarts == 0


# --- one inference for one question


async def test_the_same_question_costs_one_inference(broker: Broker, ring: RingWriter, echo: ModelSpec) -> None:
    frame = write(ring, samples(8, 8))
    first = await broker.infer(echo, frame, WHOLE)
    again = await broker.infer(echo, frame, WHOLE)
    assert again.tensors == first.tensors
    assert (again.decode_us, again.invoke_us) == (0, 0)
    await broker.infer(echo, frame, View(Crop(0, 0, 4, 4)))
    assert status(broker, "echo.tflite").inferences == 2


async def test_a_question_under_way_is_shared(broker: Broker, ring: RingWriter, echo: ModelSpec) -> None:
    frame = write(ring, samples(8, 8))
    await broker.ready(echo)
    os.kill(pid_of(broker), signal.SIGSTOP)
    asks = [asyncio.create_task(broker.infer(echo, frame, WHOLE)) for _ in range(3)]
    await until(lambda: len(broker._underway) == 1)
    os.kill(pid_of(broker), signal.SIGCONT)
    first, *others = await asyncio.gather(*asks)
    assert status(broker, "echo.tflite").inferences == 1
    assert all(other.tensors == first.tensors and other.invoke_us == 0 for other in others)


async def test_who_shares_a_question_survives_the_one_who_asked_first(
    broker: Broker, ring: RingWriter, echo: ModelSpec
) -> None:
    frame = write(ring, samples(8, 8))
    await broker.ready(echo)
    os.kill(pid_of(broker), signal.SIGSTOP)
    first, second = (asyncio.create_task(broker.infer(echo, frame, WHOLE)) for _ in range(2))
    await until(lambda: len(broker._underway) == 1)
    first.cancel()
    os.kill(pid_of(broker), signal.SIGCONT)
    assert (await second).tensors == [samples(8, 8).tobytes()]
    assert first.cancelled()


async def test_a_forgotten_frame_is_asked_about_anew(broker: Broker, ring: RingWriter, echo: ModelSpec) -> None:
    frame = write(ring, samples(8, 8))
    await broker.infer(echo, frame, WHOLE)
    broker.forget(frame.key)
    await broker.infer(echo, frame, WHOLE)
    assert status(broker, "echo.tflite").inferences == 2


async def test_what_is_answered_after_its_frame_is_gone_is_not_remembered(
    broker: Broker, ring: RingWriter, echo: ModelSpec
) -> None:
    frame = write(ring, samples(8, 8))
    await broker.ready(echo)
    os.kill(pid_of(broker), signal.SIGSTOP)
    ask = asyncio.create_task(broker.infer(echo, frame, WHOLE))
    await until(lambda: len(broker._underway) == 1)
    broker.forget(frame.key)
    os.kill(pid_of(broker), signal.SIGCONT)
    await ask
    assert len(broker._memo) == 0
    assert not broker._underway


async def test_without_a_memo_only_what_is_under_way_is_shared(ring: RingWriter, echo: ModelSpec) -> None:
    frame = write(ring, samples(8, 8))
    async with Broker(ring.fd, memo=0) as broker:
        await broker.infer(echo, frame, WHOLE)
        await broker.infer(echo, frame, WHOLE)
        assert status(broker, "echo.tflite").inferences == 2


# --- begun before it is asked


def stop(broker: Broker) -> None:
    """Keep the process from answering; it will find what is sent to it meanwhile."""
    os.kill(pid_of(broker), signal.SIGSTOP)


def go_on(broker: Broker) -> None:
    os.kill(pid_of(broker), signal.SIGCONT)


async def test_what_is_begun_and_then_asked_is_run_once(broker: Broker, ring: RingWriter, echo: ModelSpec) -> None:
    pictures = [samples(8, 8, seed) for seed in range(2)]
    early, late = (write(ring, picture) for picture in pictures)
    await broker.ready(echo)
    for _ in range(2):
        broker.begin(echo, early, WHOLE)
    await until(lambda: len(broker._memo) == 1)  # it is answered before it is asked
    stop(broker)
    broker.begin(echo, late, WHOLE)
    ask = asyncio.create_task(broker.infer(echo, late, WHOLE))  # joins what is under way
    await asyncio.sleep(0)
    go_on(broker)
    assert (await broker.infer(echo, early, WHOLE)).tensors == [pictures[0].tobytes()]
    assert (await ask).tensors == [pictures[1].tobytes()]
    broker.begin(echo, late, WHOLE)  # it was asked already
    assert not broker._underway
    assert status(broker, "echo.tflite").inferences == 2


async def test_the_first_who_asks_is_told_what_it_took(ring: RingWriter, echo: ModelSpec) -> None:
    async with asyncio.timeout(60), Broker(ring.fd, command=(*DOUBLE, "good")) as broker:
        await broker.ready(echo)
        frames = [write(ring, samples(8, 8)) for _ in range(2)]
        for frame in frames:
            broker.begin(echo, frame, WHOLE)
        joined = await asyncio.gather(*(broker.infer(echo, frames[0], WHOLE) for _ in range(3)))
        await until(lambda: len(broker._memo) == 2)
        remembered = [await broker.infer(echo, frames[1], WHOLE) for _ in range(3)]
    for answers in (joined, remembered):
        assert [(answer.decode_us, answer.invoke_us) for answer in answers] == [(10, 20), (0, 0), (0, 0)]


async def test_nothing_is_begun_on_a_model_that_does_not_run(
    broker: Broker, ring: RingWriter, echo: ModelSpec, save: Save
) -> None:
    frame = write(ring, samples(8, 8))
    broker.begin(echo, frame, WHOLE)  # nobody has asked for the model yet
    assert broker.status() == ()
    starting = asyncio.create_task(broker.ready(echo))
    await until(lambda: len(broker.status()) == 1)
    broker.begin(echo, frame, WHOLE)
    assert not broker._underway
    await starting
    damaged = save(tiny_models.echo()[:100], "damaged.tflite")
    with pytest.raises(ModelError):
        await broker.ready(damaged)
    broker.begin(damaged, frame, WHOLE)
    assert not broker._underway


async def test_what_is_begun_about_a_frame_that_is_gone_leaves_nothing_behind(
    broker: Broker, ring: RingWriter, echo: ModelSpec
) -> None:
    await broker.ready(echo)
    stop(broker)
    gone = write(ring, samples(8, 8), "jpeg")
    broker.begin(echo, gone, WHOLE)
    begun = broker._underway[identity(echo), gone.key, WHOLE].task
    ring.free(gone)
    broker.forget(gone.key)
    picture = np.zeros((8, 8, 3), np.uint8)
    now = write(ring, picture)  # in the same place, and no JPEG
    assert now.offset == gone.offset
    go_on(broker)
    assert isinstance(await begun, PeerError)  # it was decoded, and was not the picture any more
    assert (await broker.infer(echo, now, WHOLE)).tensors == [picture.tobytes()]
    broker.forget(now.key)
    assert (len(broker._memo), broker._underway, broker._begun.total()) == (0, {}, 0)
    assert (status(broker, "echo.tflite").state, status(broker, "echo.tflite").restarts) == ("running", 0)


async def test_an_error_of_what_was_begun_is_for_whoever_asks(
    broker: Broker, ring: RingWriter, echo: ModelSpec
) -> None:
    await broker.ready(echo)
    asked, never_asked = (FrameRef(key, 0, 10, "jpeg", 8, 8) for key in (1001, 1002))
    for frame in (asked, never_asked):
        broker.begin(echo, frame, WHOLE)
    await until(lambda: len(broker._memo) == 2)
    for _ in range(2):
        with pytest.raises(PeerError, match="not a JPEG"):
            await broker.infer(echo, asked, WHOLE)
    assert status(broker, "echo.tflite").inferences == 0


async def test_what_was_begun_survives_its_process(broker: Broker, ring: RingWriter, echo: ModelSpec) -> None:
    picture = samples(8, 8)
    frame = write(ring, picture)
    await broker.ready(echo)
    stop(broker)
    broker.begin(echo, frame, WHOLE)
    await until(lambda: asking(broker, echo) == 1)
    os.kill(pid_of(broker), signal.SIGKILL)
    await until(lambda: len(broker._memo) == 1)
    assert (await broker.infer(echo, frame, WHOLE)).tensors == [picture.tobytes()]
    assert status(broker, "echo.tflite").restarts == 1


@pytest.mark.slow
async def test_a_process_that_hangs_on_what_was_begun_is_replaced(ring: RingWriter, echo: ModelSpec) -> None:
    picture = samples(8, 8)
    frame = write(ring, picture)
    async with asyncio.timeout(60), Broker(ring.fd, timeout=1) as broker:
        await broker.ready(echo)
        stop(broker)
        broker.begin(echo, frame, WHOLE)
        await until(lambda: len(broker._memo) == 1)
        assert "did not answer for 1 s" in status(broker, "echo.tflite").last_error
        assert (await broker.infer(echo, frame, WHOLE)).tensors == [picture.tobytes()]


async def test_what_was_begun_ends_with_the_broker(ring: RingWriter, echo: ModelSpec) -> None:
    async with asyncio.timeout(60), Broker(ring.fd) as broker:
        await broker.ready(echo)
        broker.begin(echo, write(ring, samples(8, 8)), WHOLE)
    broker.begin(echo, write(ring, samples(8, 8)), WHOLE)
    assert not broker._tasks


async def test_few_are_begun_so_that_no_question_waits_long(broker: Broker, ring: RingWriter, echo: ModelSpec) -> None:
    await broker.ready(echo)
    stop(broker)
    frames = [write(ring, samples(8, 8, seed)) for seed in range(MAX_BEGUN + 1)]
    for frame in frames:
        broker.begin(echo, frame, WHOLE)
        broker.forget(frame.key)  # the process has it all the same
    assert broker._begun.total() == MAX_BEGUN
    go_on(broker)
    await until(lambda: broker._begun.total() == 0)
    assert status(broker, "echo.tflite").inferences == MAX_BEGUN
    broker.begin(echo, frames[-1], WHOLE)
    assert broker._begun.total() == 1


async def test_a_refusal_for_lack_of_room_is_not_remembered(
    broker: Broker, ring: RingWriter, echo: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts, "MAX_REQUESTS", 1)
    picture = samples(8, 8)
    frame = write(ring, picture)
    await broker.ready(echo)
    stop(broker)
    other = asyncio.create_task(broker.infer(echo, frame, View(fit="letterbox")))
    await until(lambda: asking(broker, echo) == 1)
    broker.begin(echo, frame, WHOLE)
    with pytest.raises(ModelError, match="1 requests are waiting"):
        await broker.infer(echo, frame, WHOLE)  # joins it, and would have found no room either
    go_on(broker)
    await other
    assert (await broker.infer(echo, frame, WHOLE)).tensors == [picture.tobytes()]


# --- processes


async def test_handlers_with_the_same_model_share_a_process(broker: Broker, echo: ModelSpec, tmp_path: Path) -> None:
    copy = tmp_path / "copy.tflite"
    copy.write_bytes(echo.path.read_bytes())
    await broker.ready(echo)
    await broker.ready(replace(echo, path=copy))
    assert len(broker.status()) == 1


async def test_handlers_that_feed_a_model_differently_do_not_share_it(
    broker: Broker, ring: RingWriter, save: Save
) -> None:
    model = save(tiny_models.echo((1, 1, 1, 3), "float32"))
    frame = write(ring, np.full((1, 1, 3), 255, np.uint8))
    for fed, expected in ((model, [1, 1, 1]), (replace(model, unit_range=True), [1, 1, 1])):
        assert np.frombuffer((await broker.infer(fed, frame, WHOLE)).tensors[0], np.float32).tolist() == expected
    frame = write(ring, np.zeros((1, 1, 3), np.uint8))
    for fed, expected in ((model, [-1, -1, -1]), (replace(model, unit_range=True), [0, 0, 0])):
        assert np.frombuffer((await broker.infer(fed, frame, WHOLE)).tensors[0], np.float32).tolist() == expected
    assert len(broker.status()) == 2


async def test_the_system_is_told_to_spare_the_zipper(broker: Broker, echo: ModelSpec) -> None:
    await broker.ready(echo)
    assert oom_score(pid_of(broker)) > oom_score(os.getpid())


async def test_a_signal_to_the_whole_group_is_the_zippers_business(
    broker: Broker, ring: RingWriter, echo: ModelSpec
) -> None:
    await broker.ready(echo)
    for sent in (signal.SIGINT, signal.SIGTERM):
        os.kill(pid_of(broker), sent)
    assert (await broker.infer(echo, write(ring, samples(8, 8)), WHOLE)).tensors
    assert status(broker, "echo.tflite").restarts == 0


async def test_killing_a_process_under_way_costs_no_answer(broker: Broker, ring: RingWriter, echo: ModelSpec) -> None:
    picture = samples(8, 8)
    await broker.ready(echo)
    killed = pid_of(broker)
    os.kill(killed, signal.SIGSTOP)
    ask = asyncio.create_task(broker.infer(echo, write(ring, picture), WHOLE))
    await until(lambda: len(broker._underway) == 1)
    os.kill(killed, signal.SIGKILL)
    assert (await ask).tensors == [picture.tobytes()]
    now = status(broker, "echo.tflite")
    assert (now.state, now.restarts) == ("running", 1)
    assert now.pid != killed
    assert "SIGKILL" in now.last_error


async def test_a_process_that_dies_idle_is_replaced(broker: Broker, ring: RingWriter, echo: ModelSpec) -> None:
    await broker.ready(echo)
    os.kill(pid_of(broker), signal.SIGKILL)
    await until(lambda: status(broker, "echo.tflite").restarts == 1)
    await broker.ready(echo)
    assert status(broker, "echo.tflite").state == "running"


@pytest.mark.slow
async def test_a_hung_process_is_killed_and_its_request_asked_again(ring: RingWriter, echo: ModelSpec) -> None:
    async with asyncio.timeout(60), Broker(ring.fd, timeout=1) as broker:
        await broker.ready(echo)
        os.kill(pid_of(broker), signal.SIGSTOP)
        inference = await broker.infer(echo, write(ring, samples(8, 8)), WHOLE)
        assert inference.tensors == [samples(8, 8).tobytes()]
        assert "did not answer for 1 s" in status(broker, "echo.tflite").last_error


async def test_a_request_that_kills_every_process_fails_and_is_not_asked_again(
    ring: RingWriter, echo: ModelSpec
) -> None:
    frame = write(ring, samples(8, 8))
    async with asyncio.timeout(60), Broker(ring.fd, command=(*DOUBLE, "dies when asked")) as broker:
        for _ in range(2):  # the second is answered from memory
            with pytest.raises(ModelError, match="its process died 2 times on this: it was ended by SIGSEGV, then it"):
                await broker.infer(echo, frame, WHOLE)
        await until(lambda: status(broker, "echo.tflite").restarts == 2)


async def test_an_answer_of_another_kind_is_refused(ring: RingWriter, echo: ModelSpec) -> None:
    async with Broker(ring.fd, command=(*DOUBLE, "answers with pixels")) as broker:
        with pytest.raises(ModelError, match="another answer than outputs"):
            await broker.infer(echo, write(ring, samples(8, 8)), WHOLE)
        with pytest.raises(ModelError, match="another answer than pixels"):
            await broker.pixels(write(ring, samples(8, 8)), Crop(), "rgb", 8, 8)  # 4 bytes are too few


async def test_a_damaged_model_fails_alone(
    broker: Broker, ring: RingWriter, echo: ModelSpec, save: Save, runtime: str
) -> None:
    await broker.infer(echo, write(ring, samples(8, 8)), WHOLE)
    before = pid_of(broker)
    for length in (9, 100, 300):
        damaged = save(tiny_models.echo()[:length], f"damaged-{length}.tflite", runtime=runtime)
        with pytest.raises(ModelError, match=damaged.path.name):
            await broker.ready(damaged)
    assert (await broker.infer(echo, write(ring, samples(8, 8, 1)), WHOLE)).tensors
    assert pid_of(broker) == before


async def test_a_model_that_has_changed_is_not_run(broker: Broker, echo: ModelSpec) -> None:
    echo.path.write_bytes(tiny_models.pick())
    with pytest.raises(ModelError, match="has changed since it was configured"):
        await broker.ready(echo)
    assert status(broker, "echo.tflite").state == "failed"


async def test_a_model_that_heals_is_started_again(
    broker: Broker, echo: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts, "RELOAD_SECONDS", 0.2)
    content = echo.path.read_bytes()
    echo.path.unlink()
    with pytest.raises(ModelError, match="No such file"):
        await broker.ready(echo)
    echo.path.write_bytes(content)
    await until(lambda: status(broker, "echo.tflite").state == "running")
    assert (await broker.ready(echo)).outputs


async def test_a_restart_that_is_far_away_is_not_waited_for(broker: Broker, ring: RingWriter, echo: ModelSpec) -> None:
    echo.path.unlink()
    with pytest.raises(ModelError, match="No such file"):
        await broker.ready(echo)
    await until(lambda: status(broker, "echo.tflite").last_error != "")
    with pytest.raises(ModelError, match="No such file"):
        await broker.infer(echo, write(ring, samples(8, 8)), WHOLE)
    assert status(broker, "echo.tflite").restarts == 0


async def test_a_runtime_that_is_not_installed_is_said_to_be(broker: Broker, echo: ModelSpec) -> None:
    with pytest.raises(ModelError, match="no runtime is called 'onnx'"):
        await broker.ready(replace(echo, runtime="onnx"))


@pytest.mark.parametrize(
    ("behaviour", "reason"), [("says that the device cannot", "no such runtime"), ("is killed", "ended by SIGKILL")]
)
async def test_a_device_that_cannot_load_a_model_says_that_it_is_not_the_models_fault(
    ring: RingWriter, echo: ModelSpec, behaviour: str, reason: str
) -> None:
    async with asyncio.timeout(60), Broker(ring.fd, command=(*DOUBLE, behaviour)) as broker:
        with pytest.raises(UnavailableError, match=reason):
            await broker.ready(echo)


async def test_a_device_that_can_start_no_process_says_so(ring: RingWriter, echo: ModelSpec) -> None:
    async with asyncio.timeout(60), Broker(ring.fd, command=("/nowhere/to/be/found",)) as broker:
        with pytest.raises(UnavailableError, match="no process can be started"):
            await broker.ready(echo)


@pytest.mark.parametrize("behaviour", ["exits", "aborts", "garbage"])
async def test_what_ends_while_it_loads_a_model_may_be_the_models_fault(
    ring: RingWriter, echo: ModelSpec, behaviour: str
) -> None:
    async with asyncio.timeout(60), Broker(ring.fd, command=(*DOUBLE, behaviour)) as broker:
        with pytest.raises(ModelError, match="died while loading") as failure:
            await broker.ready(echo)
    assert not isinstance(failure.value, UnavailableError)


async def test_requests_are_bounded(broker: Broker, ring: RingWriter, echo: ModelSpec) -> None:
    await broker.ready(echo)
    os.kill(pid_of(broker), signal.SIGSTOP)
    views = [View(Crop(0, 0, 1 + number // 8, 1 + number % 8)) for number in range(64)]
    views += [View(Crop(1, 0, 1, 1 + number)) for number in range(MAX_REQUESTS + 1 - 64)]
    frame = write(ring, samples(8, 8))
    asks = [asyncio.create_task(broker.infer(echo, frame, view)) for view in views]
    with pytest.raises(ModelError, match=f"{MAX_REQUESTS} requests are waiting"):
        await asks[-1]
    os.kill(pid_of(broker), signal.SIGCONT)
    assert len(await asyncio.gather(*asks[:-1])) == MAX_REQUESTS


async def test_models_are_bounded(broker: Broker, echo: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.inference.broker.MAX_MODELS", 1)
    await broker.ready(echo)
    with pytest.raises(UnavailableError, match="1 models run already"):
        await broker.ready(replace(echo, digest="another"))


async def test_models_that_nobody_holds_any_more_are_stopped(
    broker: Broker, ring: RingWriter, echo: ModelSpec, save: Save
) -> None:
    other = save(tiny_models.pick(), "pick.tflite")
    for model in (echo, echo, other):
        broker.hold(model)
        await broker.ready(model)
    stopped = psutil.Process(pid_of(broker))
    broker.release(echo)
    assert [status.name for status in broker.status()] == ["echo.tflite", "pick.tflite"]
    broker.release(echo)
    await until(lambda: not stopped.is_running())
    assert [status.name for status in broker.status()] == ["pick.tflite"]
    assert (await broker.infer(echo, write(ring, samples(8, 8)), WHOLE)).tensors  # and started again when asked


async def test_stopping_ends_processes_and_fails_what_is_under_way(
    ring: RingWriter, echo: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.inference.process.CLOSE_SECONDS", 0.1)
    async with asyncio.timeout(60), Broker(ring.fd) as broker:
        await broker.ready(echo)
        process = psutil.Process(pid_of(broker))
        process.suspend()
        ask = asyncio.create_task(broker.infer(echo, write(ring, samples(8, 8)), WHOLE))
        await until(lambda: len(broker._underway) == 1)
    with pytest.raises(ModelError, match="stopped"):
        await ask
    assert not process.is_running()
    with pytest.raises(ModelError, match="being stopped"):
        await broker.ready(echo)


async def test_an_error_of_the_user_passes_as_it_is_and_leaves_no_process(ring: RingWriter, echo: ModelSpec) -> None:
    broker = Broker(ring.fd)

    async def fail() -> None:
        async with asyncio.timeout(60), broker:
            await broker.ready(echo)
            pids.append(pid_of(broker))
            raise KeyError("a defect")

    pids: list[int] = []
    with pytest.raises(KeyError, match="a defect"):
        await fail()
    assert not psutil.pid_exists(pids[0])


async def test_cancelling_the_user_leaves_no_process(ring: RingWriter, echo: ModelSpec) -> None:
    broker = Broker(ring.fd)
    up = asyncio.Event()

    async def use() -> None:
        async with broker:
            await broker.ready(echo)
            up.set()
            await asyncio.Event().wait()

    async with asyncio.timeout(60):
        user = asyncio.create_task(use())
        await up.wait()
        pid = pid_of(broker)
        user.cancel()
        await asyncio.wait([user])
    assert user.cancelled()
    assert not psutil.pid_exists(pid)


async def test_a_defect_of_the_broker_ends_its_user(
    ring: RingWriter, echo: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("appliance.inference.host.ModelHost._up", fail)
    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.timeout(60), Broker(ring.fd) as broker:
            await broker.ready(echo)
    assert caught.group_contains(ZeroDivisionError)


@pytest.mark.slow
def test_a_process_dies_with_its_zipper(echo: ModelSpec) -> None:
    zipper = """
import asyncio, hashlib, pathlib, sys
from appliance.inference.broker import Broker
from appliance.inference.model import ModelSpec, UnavailableError
from appliance.ipc.ring import RingWriter

async def main(path, digest):
    async with Broker(RingWriter(1 << 16).fd) as broker:
        await broker.ready(ModelSpec(pathlib.Path(path), digest))
        print(broker.status()[0].pid, flush=True)
        await asyncio.Event().wait()

assert "numpy" not in sys.modules, "the zipper has no use for numpy"
asyncio.run(main(*sys.argv[1:]))
"""
    with subprocess.Popen(
        [sys.executable, "-c", zipper, str(echo.path), echo.digest], stdout=subprocess.PIPE, text=True
    ) as popen:
        assert popen.stdout is not None
        process = psutil.Process(int(popen.stdout.readline()))
        process.suspend()  # so that it cannot notice that its socket is closed
        popen.kill()
    process.wait(20)
