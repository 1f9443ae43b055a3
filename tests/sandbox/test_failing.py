"""A handler that fails or overdoes it, with real workers and with ones that are played."""

import asyncio
import logging
import os
import signal
from typing import NoReturn

import pytest
from crash_bench import FAILING, LIMITS, few_strikes
from sandbox_bench import NOTHING, TAG, TRAP, Bench, FakeInference, JudgedHere, bench, data, guest, spec, until
from test_hostile_worker import FakeZygote, hostile

from appliance.errors import DeviceError
from appliance.ipc.ring import RingWriter
from appliance.manifest import Limits
from appliance.sandbox.failure import Failure
from appliance.sandbox.host import HandlerHost
from appliance.sandbox.messages import MAX_BACKTRACE, MAX_LOGS_PER_FRAME, Done, Emit, Trapped
from appliance.sandbox.quarantine import QUARANTINE_STRIKES
from appliance.sandbox.restarts import Restarts
from appliance.sandbox.spawning import Zygote

# --- budgets ------------------------------------------------------------------------------------------------

COUNTING = guest(
    f"""(drop (call $state_get (i32.const 0) (i32.const 1) (i32.const 16) (i32.const 4)))
    (i32.store (i32.const 16) (i32.add (i32.load (i32.const 16)) (i32.const 1)))
    (drop (call $state_set (i32.const 0) (i32.const 1) (i32.const 16) (i32.const 4)))
    (call $emit (i32.const {TAG}) (i32.const 6) (i32.const 16) (i32.const 4))""",
    data=data(0, "n"),
)


async def test_a_flood_of_frames_is_withheld_and_the_guest_goes_on() -> None:
    limits = Limits(deadline_ms=2000, memory_mb=1, emits_per_second=50)
    with few_strikes(1_000_000):
        async with bench(spec(COUNTING, limits=limits)) as handler:
            pid = await handler.running()
            assert [(await handler.handle()).outcome for _ in range(50)] == ["ok"] * 50
            withheld = await handler.handle()
            while withheld.outcome == "ok":  # it fills up meanwhile, though less quickly than frames are handled
                withheld = await handler.handle()
            assert (withheld.outcome, withheld.emits) == ("budget", ())
            assert withheld.message == "it emits more than 50 frames per second (limits.emits_per_second)"
            later = await handler.handle()
            while later.outcome != "ok":
                later = await handler.handle()
            assert int.from_bytes(later.emits[0].payload, "little") == later.job.seq  # it has counted all of them
            assert (handler.host.status.pid, handler.host.status.restarts) == (pid, 0)


async def test_a_flood_of_bytes_is_withheld() -> None:
    module = guest(f"(call $emit (i32.const {TAG}) (i32.const 6) (i32.const 0) (i32.const 1025))")
    limits = Limits(deadline_ms=2000, memory_mb=1, emit_kb_per_second=1)
    async with bench(spec(module, limits=limits)) as handler:
        for _ in range(3):
            finished = await handler.handle()
            assert (finished.outcome, finished.emits) == ("budget", ())
            assert finished.message == "it emits more than 1 KiB per second (limits.emit_kb_per_second)"
        assert handler.host.status.faults == {"budget": 3}


async def test_a_new_worker_has_no_new_budget() -> None:
    limits = Limits(deadline_ms=2000, memory_mb=1, emits_per_second=1)
    async with hostile(limits=limits) as (handler, zygote):
        for number, outcome in enumerate(("ok", "budget")):
            job = handler.submit()
            worker = await zygote.worker(number)
            worker.say(Done([Emit(TAG, "bytes", b"")], {}, 0))
            assert (await handler.finish(job)).outcome == outcome
            worker.exit()


def flood(lines: int) -> bytes:
    return guest(
        f"""(local.set $i (i32.const {lines}))
        (loop $l (drop (call $log (i32.const 20) (i32.const 0) (i32.const 5)))
          (br_if $l (local.tee $i (i32.sub (local.get $i) (i32.const 1))))) i32.const 0""",
        data=data(0, "flood"),
    )


@pytest.mark.parametrize(("lines", "frames"), [(8000, 1), (MAX_LOGS_PER_FRAME, 8000 // MAX_LOGS_PER_FRAME)])
async def test_a_flood_of_8000_lines_is_counted_and_no_fault(
    lines: int, frames: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        async with bench(flood(lines)) as handler:
            for _ in range(frames):
                assert (await handler.handle()).outcome == "ok"
            status = handler.host.status
    assert status.faults == {}
    messages = [record.getMessage() for record in caplog.records]
    said = messages.count("event=guest_says text=flood")
    told = [message for message in messages if message.startswith("event=guest_log_dropped lines=")]
    dropped = sum(int(message.split("lines=")[1].split()[0]) for message in told)
    assert said >= 20  # at once, and then 20 a second
    assert said + dropped == frames * MAX_LOGS_PER_FRAME  # further ones the worker does not even send
    assert dropped == status.log_dropped > 0
    assert len(told) <= 1 + said // 20  # at most once a second


# --- kinds of death -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (-signal.SIGSYS, "forbidden", "it made a system call that workers may not make"),
        (-signal.SIGXCPU, "deadline", "it used up the CPU time of its worker"),
        (-signal.SIGSEGV, "crash", "the worker was killed by SIGSEGV"),
        (-signal.SIGABRT, "crash", "the worker was killed by SIGABRT"),
        (-99, "crash", "the worker was killed by signal 99"),
        (3, "crash", "the worker ended with status 3"),
    ],
)
async def test_deaths_are_told_apart(status: int, kind: str, message: str) -> None:
    async with hostile() as (handler, zygote):
        job = handler.submit()
        (await zygote.worker(0)).exit(status)
        finished = await handler.finish(job)
        assert (finished.outcome, finished.message) == (kind, message)
        assert handler.host.status.faults == {kind: 1}


async def test_a_worker_that_uses_up_its_cpu_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backstop, where the deadline is later."""
    monkeypatch.setattr("appliance.sandbox.host.CPU_SECONDS", 1)
    forever = guest("(loop $l br $l) i32.const 0")
    async with bench(spec(forever, limits=Limits(deadline_ms=60_000, memory_mb=1))) as handler:
        finished = await handler.handle()
    assert (finished.outcome, finished.message) == ("deadline", "it used up the CPU time of its worker")


# --- backtraces ---------------------------------------------------------------------------------------------


async def test_a_trap_says_where(caplog: pytest.LogCaptureFixture) -> None:
    async with bench(spec(FAILING, limits=LIMITS)) as handler:
        for _ in range(3):
            finished = await handler.handle(b"t")
            assert finished.outcome == "trap"
            innermost, outermost = finished.backtrace
            assert innermost.startswith("0: 0x")
            assert innermost.endswith(" deep")
            assert outermost.endswith(" handle")
        failure = handler.host.status.last_failure
        assert failure is not None
        assert failure.backtrace == list(finished.backtrace)
        assert (await handler.handle(b"e")).backtrace == ()
    assert f"error=unreachable executed backtrace={innermost} | {outermost}" in caplog.text


async def test_a_trap_in_init_says_where() -> None:
    async with bench(guest("i32.const 0", init="unreachable")) as handler:
        await until(lambda: handler.host.status.last_failure is not None)
        failure = handler.host.status.last_failure
    assert failure is not None
    assert [line.split()[-1] for line in failure.backtrace] == ["init"]


async def test_thousands_of_lines_of_backtrace_stay_few() -> None:
    deep = '(func $deep (export "deep") (param i32) (result i32) (i32.add (i32.const 1) (call $deep (local.get 0))))'
    async with bench(guest("(call $deep (i32.const 0))", extra=deep)) as handler:
        for _ in range(3):
            finished = await handler.handle()
            if finished.outcome == "trap":  # else the worker is gone, and a new one comes
                assert len(finished.backtrace) == MAX_BACKTRACE
                assert all(line.endswith(" deep") for line in finished.backtrace)


async def test_a_backtrace_of_a_worker_that_was_taken_over() -> None:
    async with hostile() as (handler, zygote):
        job, other = handler.submit(), handler.submit()
        worker = await zygote.worker(0)
        worker.say(Trapped("trap", "ouch", fatal=False, backtrace=["0: \x1b[2J"]))
        assert (await handler.finish(job)).backtrace == ("0:  [2J",)
        worker.say(Trapped("trap", "ouch", fatal=False, backtrace=["x"] * (MAX_BACKTRACE + 1)))
        assert (await handler.finish(other)).outcome == "protocol"


# --- quarantine ---------------------------------------------------------------------------------------------


async def test_a_handler_that_traps_on_every_frame_is_quarantined_and_can_be_released() -> None:
    async with bench(TRAP) as handler:
        outcomes = [(await handler.handle()).outcome for _ in range(QUARANTINE_STRIKES)]
        assert outcomes == ["trap"] * QUARANTINE_STRIKES
        refused = await handler.handle()
        assert refused.outcome == "unavailable"
        assert refused.message == "the handler is not running; last failure: unreachable executed"
        await until(lambda: handler.host.status.pid is None)
        status = handler.host.status
        assert (status.state, status.faults) == ("quarantined", {"trap": QUARANTINE_STRIKES})
        assert status.last_failure is not None
        assert status.last_failure.seq == QUARANTINE_STRIKES
        assert not handler.host.accepting
        handler.host.release()
        await handler.running()
        assert [(await handler.handle()).outcome for _ in range(2)] == ["trap", "trap"]  # it starts anew
        assert handler.host.status.state == "running"


async def test_frames_in_flight_end_when_it_is_quarantined() -> None:
    with few_strikes(3):
        async with bench(TRAP) as handler:
            handler.on_finish = lambda _: handler.submit() if len(handler.submitted) < 10 else None
            handler.submit(), handler.submit()
            await until(lambda: len(handler.finished) == 10)
            outcomes = [one.outcome for one in handler.finished]
    assert outcomes == ["trap"] * 3 + ["unavailable"] * 7


@pytest.mark.parametrize("status", [-signal.SIGSEGV, -signal.SIGSYS])
async def test_a_handler_whose_workers_die_is_quarantined(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Restarts, "died", lambda self, now: now)
    with few_strikes(3):
        async with hostile() as (handler, zygote):
            for number in range(3):
                job = handler.submit()
                (await zygote.worker(number)).exit(status)
                assert (await handler.finish(job)).outcome in {"crash", "forbidden"}
            await until(lambda: handler.host.status.state == "quarantined")
            assert (await handler.handle()).outcome == "unavailable"
            assert len(zygote.workers) == 3


async def test_a_device_that_cannot_start_workers_is_not_the_handlers_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(_: FakeZygote) -> NoReturn:
        await asyncio.sleep(0)
        raise DeviceError("cannot fork")

    monkeypatch.setattr(Restarts, "died", lambda self, now: now)
    monkeypatch.setattr(FakeZygote, "spawn", refuse)
    with few_strikes(2):
        async with hostile() as (handler, _):
            await until(lambda: handler.host.status.faults.get("device", 0) > 9)
            assert handler.host.status.state != "quarantined"


async def test_a_guest_that_says_that_it_failed_is_never_quarantined() -> None:
    with few_strikes(2):
        async with bench(guest("i32.const 7")) as handler:
            assert [(await handler.handle()).outcome for _ in range(9)] == ["error"] * 9
            assert handler.host.status.state == "running"


async def test_one_that_is_quarantined_from_the_start_gets_no_worker_until_it_is_released() -> None:
    failure = Failure("trap", "unreachable executed", 7, 1)
    with RingWriter(1 << 12) as ring:
        async with Zygote(ring.fd) as zygote:
            handler = Bench(spec(NOTHING), zygote, ring, FakeInference())
            handler.host = HandlerHost(
                spec(NOTHING), zygote, FakeInference(), handler._take, admission=JudgedHere(), quarantined=failure
            )
            async with handler.host:
                refused = await handler.handle()
                assert (refused.outcome, refused.message) == (
                    "unavailable", "the handler is not running; last failure: unreachable executed",
                )  # fmt: skip
                status = handler.host.status
                assert (status.state, status.pid, status.last_failure) == ("quarantined", None, failure)
                handler.host.release()
                await handler.running()
                assert (await handler.handle()).outcome == "ok"


async def test_one_in_quarantine_can_be_stopped() -> None:
    with few_strikes(1):
        async with bench(TRAP) as handler:
            await handler.handle()
            await until(lambda: handler.host.status.state == "quarantined")
    assert handler.host.status.state == "stopped"


# --- in a row -----------------------------------------------------------------------------------------------


async def test_faults_in_a_row_end_with_a_frame_that_goes_well() -> None:
    async with bench(spec(FAILING, models=0, limits=LIMITS)) as handler:
        await handler.handle(b"t")
        await handler.handle(b"e")  # what the guest itself calls an error is none, and mends nothing
        await handler.handle(b"l")
        assert handler.host.status.in_a_row == 2
        await handler.handle(b"")
        assert handler.host.status.in_a_row == 0


async def test_a_worker_that_dies_between_frames_counts_in_a_row() -> None:
    async with bench(NOTHING) as handler:
        await handler.handle()
        os.kill(await handler.running(), signal.SIGKILL)
        await until(lambda: handler.host.status.restarts == 1)
        assert handler.host.status.in_a_row == 1
