"""One run of a process, which the double plays badly."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from appliance.errors import ModelError
from appliance.inference.messages import MAX_TENSOR_BYTES, Infer, InferTensors, Outputs, View
from appliance.inference.model import BusyError
from appliance.inference.process import ENVIRONMENT, MAX_LAST_WORDS, MAX_TOLD, Died, ModelProcess, describe_exit
from appliance.ipc.child import KEPT_ENVIRONMENT
from appliance.ipc.ring import FrameRef, RingWriter

DOUBLE = (sys.executable, str(Path(__file__).with_name("service_double.py")))
REQUEST = Infer(0, FrameRef(1, 0, 4, "rgb", 1, 1), View())


def double(behaviour: str, ring: RingWriter, timeout: float = 20, start_timeout: float = 20) -> ModelProcess:
    return ModelProcess(
        None, ring_fd=ring.fd, timeout=timeout, start_timeout=start_timeout, command=(*DOUBLE, behaviour)
    )


def open_files() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


async def test_requests_are_answered(ring: RingWriter) -> None:
    async with double("good", ring) as process:
        answers = await asyncio.gather(*(process.ask(REQUEST) for _ in range(5)))
    assert answers == [Outputs(id, [b"good"], 10, 20) for id in range(1, 6)]


async def test_what_a_busy_process_has_not_taken_is_bounded_and_does_not_end_it(ring: RingWriter) -> None:
    """Several handlers may send it large tensors at once."""
    large = InferTensors(0, [bytes(MAX_TENSOR_BYTES)])
    async with double("good", ring) as process:
        os.kill(process.pid, signal.SIGSTOP)
        waiting = [asyncio.create_task(process.ask(large)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(BusyError):
            await process.ask(large)
        small = asyncio.create_task(process.ask(REQUEST))  # somebody else's: it waits its turn
        await asyncio.sleep(0)
        os.kill(process.pid, signal.SIGCONT)
        assert (await small).id == 3
        for one in waiting:  # the double answers pictures alone
            one.cancel()


async def test_an_interrupt_at_the_terminal_does_not_reach_it(ring: RingWriter) -> None:
    """Not while it still imports, either."""
    async with double("good", ring) as process:
        assert os.getsid(process.pid) != os.getsid(0)


async def test_leaving_leaves_nothing_behind(ring: RingWriter) -> None:
    before = open_files()
    async with double("good", ring) as process:
        pid = process.pid
        await process.ask(REQUEST)
    assert not psutil.pid_exists(pid)
    assert open_files() == before


async def test_a_process_that_does_not_leave_is_killed(ring: RingWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.inference.process.CLOSE_SECONDS", 0.05)
    async with double("good", ring) as process:
        os.kill(process.pid, 19)  # SIGSTOP: it will not notice that its socket is closed
    assert not psutil.pid_exists(process.pid)


async def test_cancelling_the_start_ends_the_process(ring: RingWriter) -> None:
    process = double("silent", ring)
    start = asyncio.create_task(process.__aenter__())
    while not hasattr(process, "_popen"):
        await asyncio.sleep(0)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert not psutil.pid_exists(process.pid)


async def test_a_process_that_cannot_load_its_model_says_why(ring: RingWriter) -> None:
    with pytest.raises(ModelError, match="no such thing"):
        async with double("says why not", ring):
            pass


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("silent", "it did not answer for 0.5 s"),
        ("has 17 inputs", "it broke the protocol: a malformed message"),
        ("has 9 dimensions", "it broke the protocol: a malformed message"),
        ("garbage", "it broke the protocol: a malformed message"),
        ("exits", r"it exited with status 1 \(out of memory at 0x0\)"),
        ("aborts", "it was ended by SIGABRT"),
        ("chatters", r"it exited with status 3 \(and then it broke\)"),
    ],
)
async def test_a_process_that_fails_to_start(ring: RingWriter, behaviour: str, reason: str) -> None:
    with pytest.raises(Died, match=reason):
        async with double(behaviour, ring, start_timeout=0.5 if behaviour == "silent" else 20):
            pass


async def test_a_process_that_closes_its_socket_is_killed(ring: RingWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.inference.process.CLOSE_SECONDS", 0.05)
    with pytest.raises(Died, match="it closed its socket"):
        async with double("closes", ring):
            pass


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("dies when asked", "it was ended by SIGSEGV"),
        ("takes for ever", "it broke the protocol: a malformed message"),
        ("sends many", "it broke the protocol: a malformed message"),
        ("answers with too little", "outputs of another size"),
        ("never answers", "it did not answer for 0.2 s"),
        ("says ready twice", "it said Ready twice"),
        ("answers nobody", "it answered request 77, which nobody made"),
    ],
)
async def test_a_process_that_fails_later(ring: RingWriter, behaviour: str, reason: str) -> None:
    async with double(behaviour, ring, timeout=0.2 if behaviour == "never answers" else 20) as process:
        with pytest.raises(Died, match=reason):
            await process.ask(REQUEST)
        async with asyncio.timeout(20):
            assert reason in await process.ended()
        with pytest.raises(Died, match=reason):
            await process.ask(REQUEST)


async def test_what_it_says_is_fit_for_a_log(ring: RingWriter) -> None:
    async with double("steers a terminal", ring) as process:
        run = process.ready.run
        assert run is not None
        assert (run.device, run.runtime[:10]) == ("cpu ", "a b [2Jca ")
        with pytest.raises(ModelError) as failure:
            await process.ask(REQUEST)
    for text in (process.ready.note, run.runtime, str(failure.value)):
        assert text.isprintable()
        assert len(text) == MAX_TOLD


async def test_it_inherits_nothing_that_could_be_a_secret(ring: RingWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MQTT_PASSWORD", "hush")
    with pytest.raises(Died) as death:
        async with double("shows its environment", ring):
            pass
    names = str(death.value).partition("(")[2].rstrip(")").split()
    assert set(names) - {"LC_CTYPE"} <= {*KEPT_ENVIRONMENT, *ENVIRONMENT}


async def test_answering_others_is_no_excuse_for_ever(ring: RingWriter) -> None:
    async with double("answers every other", ring, timeout=1) as process:
        first, second = process.ask(REQUEST), process.ask(REQUEST)
        results = await asyncio.gather(first, second, return_exceptions=True)
    assert isinstance(results[0], Outputs)
    assert isinstance(results[1], Died)


async def test_a_cancelled_request_is_no_defect(ring: RingWriter) -> None:
    async with double("good", ring) as process:
        first = asyncio.create_task(process.ask(REQUEST))
        await asyncio.sleep(0)
        first.cancel()
        second = await process.ask(REQUEST)
    assert isinstance(second, Outputs)
    assert first.cancelled()


async def test_a_fault_that_is_not_known_is_the_models(ring: RingWriter) -> None:
    async with double("blames nobody known", ring) as process:
        with pytest.raises(ModelError, match="it rained"):
            await process.ask(REQUEST)


async def test_last_words_are_bounded(ring: RingWriter) -> None:
    process = double("chatters", ring)
    with pytest.raises(Died):
        async with process:
            pass
    assert 0 < len(process._last_words) <= MAX_LAST_WORDS


def test_how_a_process_ended_is_put_in_words() -> None:
    assert describe_exit(-11, b"") == "it was ended by SIGSEGV"
    assert describe_exit(-64, b"") == "it was ended by SIGRTMAX"
    assert describe_exit(-99, b"") == "it was ended by signal 99"
    assert describe_exit(1, b"INFO: all well\n\n") == "it exited with status 1"
    assert describe_exit(1, b"first\nlast \xff\n") == "it exited with status 1 (last \ufffd)"
