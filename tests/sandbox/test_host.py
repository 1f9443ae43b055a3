"""One handler with real workers: what goes well, what goes wrong, and what comes after it."""

import asyncio
import contextlib
import logging
import os
import random
import signal
from collections.abc import Callable

import pytest
from sandbox_bench import (
    NOTHING,
    RUN,
    TAG,
    TIMEOUT,
    TRAP,
    Answer,
    Bench,
    FakeInference,
    JudgedHere,
    assemble,
    bench,
    data,
    guest,
    spec,
    until,
)

from appliance.errors import ModelError
from appliance.inference.messages import Ready, TensorInfo
from appliance.inference.model import ModelSpec
from appliance.ipc.packets import MAX_MESSAGE_BYTES
from appliance.ipc.ring import RingWriter
from appliance.manifest import Limits
from appliance.sandbox.admission.admit import RefusedError
from appliance.sandbox.admission.verdict import Admitted, Order
from appliance.sandbox.host import MAX_JUDGINGS, HandlerHost
from appliance.sandbox.messages import Emit
from appliance.sandbox.restarts import Restarts
from appliance.sandbox.session import Finished
from appliance.sandbox.spawning import Zygote
from appliance.sandbox.worker import MAX_HOST_CALLS, MAX_TRAPS

PICTURE = ("jpeg", 640, 480)
SHORT = Limits(deadline_ms=300, memory_mb=1, gas=1_000_000)
"""Stopped by the clock alone: nothing runs so much in so little time."""

ECHO = guest(
    f"""(local.set $i (call $frame_read (i32.const 0) (i32.const 0) (i32.const 4096)))
    (call $emit (i32.const {TAG}) (i32.const 6) (i32.const 0) (local.get $i))"""
)
"""Emits what it is given."""

OBEY = guest(
    """(i32.store8 (i32.const 0) (i32.const 0))
    (drop (call $frame_read (i32.const 0) (i32.const 0) (i32.const 1)))
    (local.set $i (i32.load8_u (i32.const 0)))
    (if (i32.eq (local.get $i) (i32.const 116)) (then unreachable))
    (if (i32.eq (local.get $i) (i32.const 108)) (then (loop $l br $l)))
    (if (i32.eq (local.get $i) (i32.const 101)) (then (return (i32.const 7))))
    (if (i32.eq (local.get $i) (i32.const 105)) (then
      (drop (call $infer_frame (i32.const 0) (i32.const 0) (i32.const 0)))))
    i32.const 0"""
)
"""Traps at ``t``, loops at ``l``, fails at ``e``, infers at ``i``."""

COUNTER = guest(
    f"""(drop (call $state_get (i32.const 0) (i32.const 1) (i32.const 16) (i32.const 4)))
    (i32.store (i32.const 16) (i32.add (i32.load (i32.const 16)) (i32.const 1)))
    (drop (call $state_set (i32.const 0) (i32.const 1) (i32.const 16) (i32.const 4)))
    (i32.store (i32.const 20) (i32.add (i32.load (i32.const 20)) (i32.const 1)))
    (drop (call $emit (i32.const {TAG}) (i32.const 6) (i32.const 16) (i32.const 8)))
    (i32.store8 (i32.const 32) (i32.const 0))
    (drop (call $frame_read (i32.const 0) (i32.const 32) (i32.const 1)))
    (if (i32.eq (i32.load8_u (i32.const 32)) (i32.const 116)) (then unreachable))
    (i32.eq (i32.load8_u (i32.const 32)) (i32.const 101))""",
    data=data(0, "n"),
)
"""Counts frames in state and in memory, emits both, then traps at ``t`` or fails at ``e``."""


def counts(finished: Finished) -> tuple[int, int]:
    payload = finished.emits[0].payload
    return int.from_bytes(payload[:4], "little"), int.from_bytes(payload[4:], "little")


async def test_frames_are_handled_in_order() -> None:
    async with bench(ECHO) as handler:
        for payload in (b"first", b"second", b""):
            finished = await handler.handle(payload)
            assert (finished.outcome, finished.emits) == ("ok", (Emit(TAG, "bytes", payload),))
        status = handler.host.status
    assert (status.state, status.handled, status.restarts, dict(status.faults)) == ("running", 3, 0, {})
    assert handler.host.status.state == "stopped"


async def test_jobs_submitted_before_the_worker_is_there_wait_for_it() -> None:
    async with bench(ECHO) as handler:
        assert handler.host.status.state == "starting"
        jobs = [handler.submit(payload) for payload in (b"1", b"2")]
        finished = [await handler.finish(job) for job in jobs]
    assert [one.emits[0].payload for one in finished] == [b"1", b"2"]


async def test_the_next_frame_may_be_submitted_from_on_finish() -> None:
    async with bench(NOTHING) as handler:
        keep_busy(handler, 50)
        await until(lambda: len(handler.finished) == 50)
        assert [one.job.seq for one in handler.finished] == list(range(1, 51))


def keep_busy(handler: Bench, frames: int, payloads: Callable[[], bytes] = bytes) -> None:
    """Submit the next of so many frames whenever one is finished."""

    def submit(_: object = None) -> None:
        if len(handler.submitted) < frames:
            handler.submit(payloads(), *PICTURE)

    handler.on_finish = submit
    for _ in range(HandlerHost.CAPACITY):
        submit()


async def test_what_does_not_fit_one_message_to_a_worker_is_refused_for_good() -> None:
    """Module, files and labels have limits of their own; together they may be too much."""
    async with bench(spec(NOTHING, files={"weights": bytes(MAX_MESSAGE_BYTES)})) as handler:
        assert (await handler.handle()).outcome == "unavailable"
        status = handler.host.status
    assert (status.state, status.faults) == ("failed", {"refused": 1})
    assert status.last_failure is not None
    assert "files and labels are too much for a worker together" in status.last_failure.message


async def test_more_jobs_than_its_capacity_are_a_defect_of_the_router() -> None:
    async with bench(NOTHING) as handler:
        for _ in range(HandlerHost.CAPACITY):
            handler.submit()
        with pytest.raises(RuntimeError, match="2 jobs in flight"):
            handler.submit()


async def test_what_the_guest_cannot_do_ends_its_frame_and_nothing_else() -> None:
    async with bench(OBEY) as handler:
        pid = await handler.running()
        trapped = await handler.handle(b"t")
        assert (trapped.outcome, trapped.message) == ("trap", "unreachable executed")
        failed = await handler.handle(b"e")
        assert (failed.outcome, failed.message) == ("error", "handle returned 7")
        assert (await handler.handle()).outcome == "ok"
        status = handler.host.status
    assert (status.pid, status.faults) == (pid, {"trap": 1, "error": 1})
    assert status.last_failure is not None
    assert (status.last_failure.kind, status.last_failure.seq) == ("error", 2)


async def test_an_endless_loop_is_killed_and_the_next_frame_is_served() -> None:
    async with bench(spec(OBEY, limits=SHORT)) as handler:
        pid = await handler.running()
        bad, good = handler.submit(b"l"), handler.submit(b"")
        killed = await handler.finish(bad)
        assert (killed.outcome, killed.message) == (
            "deadline", "handle took more than 300 ms of the guest's own time",
        )  # fmt: skip
        assert killed.guest_us >= 300_000
        assert (await handler.finish(good)).outcome == "ok"  # it sat unread in the dead worker's socket
        status = handler.host.status
    assert status.pid != pid
    assert (status.restarts, status.faults) == (1, {"deadline": 1})


async def test_an_endless_loop_runs_out_of_gas_and_its_worker_goes_on() -> None:
    async with bench(spec(OBEY, limits=Limits(memory_mb=1, gas=10))) as handler:
        pid = await handler.running()
        stopped = await handler.handle(b"l")
        assert (stopped.outcome, stopped.gas) == ("gas", 0)
        assert stopped.message == "it ran more than 10,000,000 instructions about one frame: limits.gas in its manifest"
        served = await handler.handle()
        assert served.outcome == "ok"
        assert 10 < served.gas < 1000
        assert handler.host.status.pid == pid


async def test_waiting_for_an_inference_is_not_the_guests_time() -> None:
    inference = FakeInference(gate=asyncio.Event())
    async with bench(spec(OBEY, limits=SHORT), inference) as handler:
        job = handler.submit(b"i", *PICTURE)
        await inference.asking.wait()
        await asyncio.sleep(2 * SHORT.deadline_ms / 1000)  # longer than the deadline, on purpose
        assert not handler.finished
        assert inference.gate is not None
        inference.gate.set()
        finished = await handler.finish(job)
    assert (finished.outcome, finished.models) == ("ok", (RUN,))
    assert finished.wait_us > 2000 * SHORT.deadline_ms - 8
    assert finished.guest_us < 1000 * SHORT.deadline_ms


async def test_the_next_job_does_not_come_between_a_question_and_its_answer() -> None:
    """It lies in the worker's socket before the answer to the frame in hand."""
    module = guest(
        f"""(local.set $j (call $infer_frame (i32.const 0) (i32.const 0) (i32.const 0)))
        (local.set $i (call $output_read (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 16)))
        (local.set $i (i32.add (local.get $i)
          (call $frame_read (i32.const 0) (local.get $i) (i32.const 16))))
        (drop (call $emit (i32.const {TAG}) (i32.const 6) (i32.const 0) (local.get $i))) (local.get $j)"""
    )
    async with bench(module) as handler:
        keep_busy(handler, 20, lambda: bytes([len(handler.submitted)]))
        await until(lambda: len(handler.finished) == 20)
        outputs = bytes([2, 4, 6, 0])
        assert [one.emits[0].payload for one in handler.finished] == [outputs + bytes([n]) for n in range(20)]
        assert [question[0] for question in handler.inference.asked] == [one.job.frame for one in handler.finished]


async def test_a_failed_inference_is_told_with_the_failure() -> None:
    module = guest("(call $infer_frame (i32.const 0) (i32.const 0) (i32.const 0))")
    async with bench(module, FakeInference(error=ModelError("the model ran away"))) as handler:
        finished = await handler.handle(b"", *PICTURE)
    assert (finished.outcome, finished.message) == ("error", "handle returned -5 (EMODEL); the model ran away")


async def test_a_worker_killed_with_a_frame_in_hand() -> None:
    inference = FakeInference(gate=asyncio.Event())
    async with bench(OBEY, inference) as handler:
        pid = await handler.running()
        bad, good = handler.submit(b"i", *PICTURE), handler.submit(b"")
        await inference.asking.wait()
        os.kill(pid, signal.SIGKILL)
        crashed = await handler.finish(bad)
        assert (crashed.outcome, crashed.message) == ("crash", "the worker was killed by SIGKILL")
        assert (await handler.finish(good)).outcome == "ok"
        assert handler.host.status.last_failure is not None
        assert handler.host.status.last_failure.seq == bad.seq


async def test_a_worker_killed_while_idle() -> None:
    async with bench(NOTHING) as handler:
        await handler.handle()
        pid = await handler.running()
        os.kill(pid, signal.SIGKILL)
        await until(lambda: handler.host.status.restarts == 1)
        assert (await handler.handle()).outcome == "ok"
        status = handler.host.status
    assert status.pid != pid
    assert status.faults == {"crash": 1}
    assert status.last_failure is not None
    assert status.last_failure.seq is None


async def test_the_zygote_killed_with_a_frame_in_hand() -> None:
    inference = FakeInference(gate=asyncio.Event())
    async with bench(OBEY, inference) as handler:
        bad, good = handler.submit(b"i", *PICTURE), handler.submit(b"")
        await inference.asking.wait()
        assert handler.zygote.pid is not None
        os.kill(handler.zygote.pid, signal.SIGKILL)
        assert (await handler.finish(bad)).outcome == "crash"
        assert (await handler.finish(good)).outcome == "ok"


async def test_an_interrupt_at_the_terminal_does_not_reach_the_zygote() -> None:
    """Not while it still imports, either."""
    async with bench(OBEY) as handler:
        assert handler.zygote.pid is not None
        assert os.getsid(handler.zygote.pid) != os.getsid(0)


async def test_what_cannot_work_is_not_tried_again() -> None:
    for module, kind, message in (
        (b"MZ", "refused", "does not start like a WebAssembly module"),
        (guest("i32.const 0", memory="17"), "refused", "over its limit of 1048576"),
        (assemble('(module (import "env" "f" (func)))'), "refused", "env.f"),
        (assemble("(module)"), "link", "does not export handle"),
    ):
        async with bench(module) as handler:
            waiting = handler.submit()
            finished = await handler.finish(waiting)
            assert finished.outcome == "unavailable"
            assert message in finished.message
            assert (await handler.handle()).outcome == "unavailable"  # and so is what comes later
            status = handler.host.status
        assert (status.state, status.pid, status.restarts, status.faults) == ("failed", None, 0, {kind: 1})
        assert status.last_failure is not None
        assert message in status.last_failure.message


async def test_a_module_that_could_not_be_judged_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that judges may have died of something else than the module."""
    refusals = [RefusedError("crashed", "its process was ended", judged=False)] * 2
    judge = JudgedHere.admit

    async def admit(judged_here: JudgedHere, order: Order) -> Admitted:
        if refusals:
            raise refusals.pop()
        return await judge(judged_here, order)

    monkeypatch.setattr(JudgedHere, "admit", admit)
    async with bench(NOTHING) as handler:
        assert (await handler.handle()).outcome == "ok"
        assert handler.host.status.faults == {"refused": 2}


async def test_a_module_that_its_judges_always_die_of_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def admit(_judged_here: JudgedHere, _order: Order) -> Admitted:
        raise RefusedError("deadline", "judging it takes over 60 s", judged=False)

    monkeypatch.setattr(JudgedHere, "admit", admit)
    async with bench(NOTHING) as handler:
        await until(lambda: handler.host.status.state == "failed")
        assert handler.host.status.faults == {"refused": MAX_JUDGINGS}


@pytest.mark.slow
async def test_an_init_that_refuses_is_tried_again() -> None:
    """It may have wanted something that comes later; jobs wait while the next try is near."""
    module = guest("i32.const 0", init="i32.const -2")
    async with bench(module) as handler:
        job = handler.submit()
        finished = await handler.finish(job)  # given up when the tries have become rare
        assert finished.outcome == "unavailable"
        assert "init returned -2 (ENOENT)" in finished.message
        status = handler.host.status
    assert status.state == "backoff"
    assert status.faults["init"] == status.restarts + 1 == 6


async def test_an_init_that_never_returns() -> None:
    module = guest("i32.const 0", init="(loop $l br $l) i32.const 0")
    async with bench(spec(module, limits=SHORT)) as handler:
        await until(lambda: handler.host.status.faults.get("deadline", 0) > 0)
        failure = handler.host.status.last_failure
    assert failure is not None
    assert failure.message == "init took more than 300 ms of the guest's own time"


async def test_a_model_that_is_not_there_yet() -> None:
    inference = FakeInference(not_ready=[ModelError("busy"), ModelError("still busy")])
    async with bench(NOTHING, inference) as handler:
        assert (await handler.handle()).outcome == "ok"
        status = handler.host.status
    assert (status.faults, status.restarts) == ({"model": 2}, 2)


async def test_state_outlives_the_worker_and_memory_does_not() -> None:
    async with bench(COUNTER) as handler:
        assert counts(await handler.handle()) == (1, 1)
        assert counts(await handler.handle()) == (2, 2)
        os.kill(await handler.running(), signal.SIGKILL)
        await until(lambda: handler.host.status.restarts == 1)
        assert counts(await handler.handle()) == (3, 1)


@pytest.mark.parametrize(("order", "kind"), [(b"t", "trap"), (b"e", "error")])
async def test_what_a_failed_frame_did_takes_no_effect(order: bytes, kind: str) -> None:
    async with bench(COUNTER) as handler:
        assert counts(await handler.handle()) == (1, 1)
        failed = await handler.handle(order)
        assert (failed.outcome, failed.emits) == (kind, ())
        assert counts(await handler.handle()) == (2, 3)  # the state was not touched; the memory was


async def test_a_worn_worker_is_replaced_without_losing_a_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each trap costs a C guest some stack, so a worker ends after so many of them; nobody counts that a fault."""
    monkeypatch.setattr("appliance.sandbox.quarantine.QUARANTINE_STRIKES", 1000)
    async with bench(TRAP) as handler:
        keep_busy(handler, 100)
        await until(lambda: len(handler.finished) == 100)
        assert [(one.outcome, one.job.seq) for one in handler.finished] == [("trap", n + 1) for n in range(100)]
        status = handler.host.status
    assert status.recycled == 100 // MAX_TRAPS
    assert (status.restarts, status.faults) == (0, {"trap": 100})


async def test_a_worker_is_worn_by_host_calls_too() -> None:
    calls = MAX_HOST_CALLS // 3
    module = guest(
        f"""(local.set $i (i32.const {calls}))
        (loop $l (drop (call $frame_read (i32.const 0) (i32.const 0) (i32.const 1)))
          (br_if $l (local.tee $i (i32.sub (local.get $i) (i32.const 1))))) i32.const 0"""
    )
    limits = Limits(deadline_ms=2000, memory_mb=1, host_calls=calls)
    async with bench(spec(module, limits=limits)) as handler:
        for _ in range(4):
            assert (await handler.handle(b"x")).outcome == "ok"
        assert handler.host.status.state == "running"
        await until(lambda: handler.host.status.recycled == 1)
        assert not handler.host.status.faults


async def test_deep_recursion_ends_the_frame_at_most_the_worker() -> None:
    module = guest(
        "(call $deep (i32.const 0))", extra="(func $deep (param i32) (result i32) (call $deep (local.get 0)))"
    )
    async with bench(module) as handler:
        finished = await handler.handle()
    assert finished.outcome in {"trap", "crash"}


async def test_a_guest_cannot_grow_over_its_limit_nor_fill_the_machine() -> None:
    module = guest("(memory.grow (i32.const 15)) drop (memory.grow (i32.const 1))", memory="1")
    async with bench(module) as handler:
        finished = await handler.handle()
        assert finished.message == "handle returned -1 (EINVAL)"


@pytest.mark.slow
async def test_the_largest_messages_fit_the_workers_address_space() -> None:
    """12 MiB of pixels, 12 MiB of tensors and 16 MiB of emitted frames, with the memory to hold them."""

    class Large(FakeInference):
        async def ready(self, model: ModelSpec) -> Ready:
            large = TensorInfo("large", "uint8", (12 << 20,), 12 << 20, 0.0, 0)
            return Ready(RUN, [large], [large])

        async def _answer(self, question: object) -> Answer:
            return Answer([bytes(12 << 20)])

    module = guest(
        f"""(local.set $j (call $frame_pixels (i32.const 0) (i32.const 2)
          (i32.const 2048) (i32.const 2048) (i32.const 0) (i32.const {12 << 20})))
        (local.set $j (i32.sub (local.get $j) (i32.const {12 << 20})))
        (local.set $j (i32.or (local.get $j)
          (call $infer_tensor (i32.const 0) (i32.const 0) (i32.const {12 << 20}))))
        (loop $next
          (local.set $j (i32.or (local.get $j)
            (call $emit (i32.const {TAG}) (i32.const 6) (i32.const 0) (i32.const {1 << 20}))))
          (br_if $next (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 16))))
        (local.get $j)""",
        memory="256",
    )
    async with bench(spec(module, limits=Limits(deadline_ms=10_000, memory_mb=16)), Large()) as handler:
        for _ in range(2):
            finished = await handler.handle(b"", *PICTURE)
            assert (finished.outcome, len(finished.emits)) == ("ok", 16), finished.message


async def test_nothing_of_a_trap_reaches_our_own_output(capfd: pytest.CaptureFixture[str]) -> None:
    async with bench(TRAP) as handler:
        await handler.handle()
    assert capfd.readouterr() == ("", "")


async def test_a_handler_that_always_fails_fills_no_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        async with bench(TRAP) as handler:
            for _ in range(9):
                await handler.handle()
    assert len(caplog.records) == 4  # at the 1st, 2nd, 4th and 8th
    assert "event=handler_fault kind=trap count=8 frame=8 error=unreachable executed" in caplog.text


async def test_stopping_finishes_what_is_in_flight() -> None:
    inference = FakeInference(gate=asyncio.Event())
    async with bench(OBEY, inference) as handler:
        handler.submit(b"i", *PICTURE)
        handler.submit(b"i", *PICTURE)
        await inference.asking.wait()
    assert [one.outcome for one in handler.finished] == ["stopped", "stopped"]


async def test_stopping_before_it_has_started() -> None:
    async with bench(NOTHING) as handler:
        handler.submit()
    assert [one.outcome for one in handler.finished] == ["stopped"]


async def test_jobs_for_a_stopped_handler_end_at_once() -> None:
    with RingWriter(1 << 12) as ring:
        async with Zygote(ring.fd) as zygote:
            handler = Bench(spec(NOTHING), zygote, ring, FakeInference())
            async with handler.host:
                pass
            assert (await handler.handle()).outcome == "stopped"


async def test_a_defect_in_on_finish_ends_the_body() -> None:
    def fail(_: Finished) -> None:
        raise ZeroDivisionError

    async def run() -> None:
        async with bench(NOTHING) as handler:
            handler.on_finish = fail
            handler.submit()
            await asyncio.sleep(TIMEOUT)

    with pytest.raises(ExceptionGroup) as failure:
        await run()
    assert failure.group_contains(ZeroDivisionError)


async def test_an_error_of_the_body_passes_unchanged() -> None:
    async def run() -> None:
        async with bench(NOTHING) as handler:
            await handler.running()
            raise KeyError

    with pytest.raises(KeyError):
        await run()


@pytest.mark.parametrize("seed", range(3))
async def test_workers_killed_at_random_lose_no_frame(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever dies whenever: each job is finished once, in order, and only what was in hand is lost."""
    monkeypatch.setattr(Restarts, "died", lambda self, now: now)
    monkeypatch.setattr("appliance.sandbox.quarantine.QUARANTINE_STRIKES", 1000)
    chance = random.Random(seed)
    frames, kills = 150, 0
    async with bench(OBEY) as handler:

        def payload() -> bytes:
            nonlocal kills
            victims = [handler.host.status.pid] * 4 + [handler.zygote.pid]
            if (victim := chance.choice(victims)) and chance.random() < 0.1:
                kills += 1
                with contextlib.suppress(ProcessLookupError):  # killed already
                    os.kill(victim, signal.SIGKILL)
            return chance.choice([b"", b"", b"i", b"t", b"e"])

        keep_busy(handler, frames, payload)
        await until(lambda: len(handler.finished) == frames)
        assert [one.job.seq for one in handler.finished] == list(range(1, frames + 1))
        assert {one.outcome for one in handler.finished} <= {"ok", "trap", "error", "crash"}
        assert 0 < handler.host.status.faults["crash"] <= kills
