"""Handlers come and go while frames do: real workers, real modules, and no frame lost or answered twice."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NoReturn

import pytest
from crash_bench import failing, few_strikes
from sandbox_bench import NOTHING, TAG, TIMEOUT, TRAP, guest, is_alive, spec, until
from serving_bench import Stage, stage

from appliance.errors import ConfigError, DeviceError
from appliance.sandbox.evidence import Quarantines
from appliance.sandbox.spawning import Zygote
from appliance.sandbox.spec import HandlerSpec
from appliance.zipper.handlers import LocalHandler

ECHO = guest(f"(call $emit (i32.const {TAG}) (i32.const 6) (i32.const 0) (i32.const 0))")
"""Emits something about every frame."""
UNABLE = guest("i32.const 0", init="i32.const 1")
"""Cannot begin."""


def echo(version: str = "1.0.0", **changes: object) -> HandlerSpec:
    return spec(ECHO, models=0, version=version, **changes)


@contextlib.asynccontextmanager
async def filming(place: Stage) -> AsyncIterator[None]:
    """A lossless camera; on leaving, all that it sent is done."""
    camera = asyncio.create_task(place.film())
    try:
        yield
    finally:
        camera.cancel()
        await asyncio.wait([camera])
    await place.all_done()


async def test_a_handler_is_started_and_stopped_under_way(tmp_path: Path) -> None:
    async with stage(tmp_path) as place:
        await place.serving.start(echo())
        async with filming(place):
            await place.more()
            pid = await place.running()
            await place.serving.stop("guest")
            await until(lambda: not is_alive(pid))
            answered, sent = len(place.results), place.sent
            assert dict(place.serving.live) == {}
            await place.more()
        assert len(place.results) == answered
        assert set(range(sent)) >= place.answers().keys() == set(range(answered))
        await place.serving.stop("guest")  # once more is nothing


async def test_versions_take_turns_and_no_frame_is_lost_or_answered_twice(tmp_path: Path) -> None:
    async with stage(tmp_path) as place:
        await place.serving.start(echo("1.0.0"))
        async with filming(place):
            for number in range(1, 5):
                await place.more()
                await place.serving.shadow(echo(f"1.0.{number}"))
                if number % 2:  # else it is promoted before its worker is up
                    await place.running(shadow=True)
                    await place.more()
                await place.serving.promote("guest")
                assert place.serving.live["guest"].spec.version == f"1.0.{number}"
            await place.more()
        assert place.answers() == dict.fromkeys(range(place.sent), 1)
        versions = place.versions()
        assert versions == sorted(versions)
        assert set(versions) == {f"1.0.{number}" for number in range(5)}
        counters = place.zipper.observers["guest"].counters
        assert (counters.offered, counters.finished, counters.dropped) == (place.sent, place.sent, 0)
        assert set(place.zipper.observers) == {"guest", "sink"}


async def test_what_a_shadow_emits_is_withheld(tmp_path: Path) -> None:
    async with stage(tmp_path) as place:
        await place.serving.shadow(echo())
        await place.running(shadow=True)
        for _ in range(3):
            await place.see()
        await until(lambda: place.serving.sample("guest", shadow=True).handled > 0)
        assert place.results == []
        await place.serving.promote("guest")  # into a place that nobody had
        await place.see()
    assert place.versions() == ["1.0.0"]


async def test_a_shadow_that_crashes_disturbs_nobody(tmp_path: Path) -> None:
    async with stage(tmp_path) as place:
        await place.serving.start(echo())
        async with filming(place):
            await place.serving.shadow(spec(TRAP, models=0, version="2.0.0"))
            pid = await place.running(shadow=True)
            await until(lambda: place.serving.sample("guest", shadow=True).in_a_row >= 3)
            os.kill(pid, signal.SIGKILL)
            await until(lambda: "crash" in place.serving.shadows["guest"].status.faults)
            sample = place.serving.sample("guest", shadow=True)
            assert sample.faults >= 4
            assert sample.reason.startswith("crash: ")
            await place.serving.unshadow("guest")
            assert place.serving.sample("guest", shadow=True) is None
            await place.more()
        assert place.answers() == dict.fromkeys(range(place.sent), 1)
        handler = place.serving.live["guest"]
        assert (handler.failed, handler.status.faults, handler.status.in_a_row) == ({}, {}, 0)


async def test_a_shadow_that_the_device_cannot_start_has_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(_: Zygote) -> NoReturn:
        raise DeviceError("cannot fork")

    monkeypatch.setattr(Zygote, "spawn", refuse)
    async with stage(tmp_path) as place:
        await place.serving.shadow(echo())
        await until(lambda: place.serving.shadows["guest"].status.faults.get("device", 0) >= 2)
        sample = place.serving.sample("guest", shadow=True)
        assert (sample.faults, sample.in_a_row, sample.hindered) == (0, 0, True)
        assert sample.reason == "device: cannot fork"


async def test_a_shadow_that_hangs_slows_nobody(tmp_path: Path) -> None:
    async with stage(tmp_path) as place:
        await place.serving.start(echo())
        await place.serving.shadow(failing(version="2.0.0"))
        await place.running(shadow=True)
        place.send(b"l")
        await place.all_done()  # while the shadow is still at it
        assert place.serving.sample("guest", shadow=True).deadlines == 0
        await until(lambda: place.serving.sample("guest", shadow=True).deadlines == 1)
    assert place.versions() == ["1.0.0"]


async def test_state_goes_from_version_to_version_and_back(tmp_path: Path) -> None:
    async with stage(tmp_path) as place:
        await place.serving.start(failing())
        for _ in range(3):
            await place.see()
        await place.serving.shadow(failing(version="2.0.0"))
        await place.running(shadow=True)
        await place.see()
        await until(lambda: place.serving.sample("guest", shadow=True).handled == 1)
        await place.serving.promote("guest")
        await place.see()
        await place.serving.shadow(failing())  # the way back
        await place.running(shadow=True)
        await place.serving.promote("guest")
        await place.see()
    assert [int.from_bytes(frame.payload, "little") for frame in place.results] == [1, 2, 3, 4, 5, 6]
    assert place.versions() == ["1.0.0"] * 4 + ["2.0.0", "1.0.0"]


async def test_the_old_one_may_still_be_at_a_frame_that_it_never_ends(tmp_path: Path) -> None:
    async with stage(tmp_path) as place:
        await place.serving.start(failing())
        await place.running()
        await place.serving.shadow(failing(version="2.0.0"))
        await place.running(shadow=True)
        old = place.serving.live["guest"]
        for payload in (b"", b"l", b"", b""):
            place.send(payload)
        promoting = asyncio.create_task(place.serving.promote("guest"))
        await until(lambda: place.serving.live["guest"] is not old)
        for _ in range(3):
            place.send()
        async with asyncio.timeout(TIMEOUT):
            await promoting
        await place.all_done()
        assert place.answers() == dict.fromkeys([0, 2, 3, 4, 5, 6], 1)
        assert place.versions() == ["1.0.0"] * 3 + ["2.0.0"] * 3
        assert place.serving.live["guest"].failed == {"deadline": 1}  # of the name


async def test_one_that_comes_to_a_standstill_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("appliance.zipper.handlers.DRAIN_SECONDS", -0.2)
    async with stage(tmp_path) as place:
        await place.serving.start(failing())
        await place.running()
        place.send(b"l")
        async with asyncio.timeout(TIMEOUT):
            await place.serving.stop("guest")
        assert place.done == 1  # its source gets its credit back
    assert "event=handler_not_drained handler=guest" in caplog.text


async def test_a_sample_is_about_the_time_in_service(tmp_path: Path) -> None:
    async with stage(tmp_path) as place:
        assert place.serving.sample("guest") is None
        await place.serving.start(echo())
        await place.see()
        await place.serving.shadow(failing(version="2.0.0"))
        await place.running(shadow=True)
        for payload in (b"", b"t", b"e"):
            await place.see(payload)
            await until(lambda: place.serving.shadows["guest"]._attached.in_flight == 0)
        shadow = place.serving.sample("guest", shadow=True)
        assert (shadow.state, shadow.handled, shadow.faults, shadow.in_a_row) == ("running", 1, 1, 1)
        assert (shadow.offered, shadow.dropped) == (3, 0)
        await place.serving.promote("guest")
        sample = place.serving.sample("guest")
        assert (sample.handled, sample.faults, sample.offered, sample.dropped) == (0, 0, 0, 0)
        await place.see()
        sample = place.serving.sample("guest")
        assert (sample.handled, sample.faults, sample.in_a_row, sample.offered) == (1, 0, 0, 1)


async def test_a_worker_that_cannot_begin_counts_in_a_row(tmp_path: Path) -> None:
    async with stage(tmp_path) as place:
        await place.serving.shadow(spec(UNABLE, models=0))
        await until(lambda: place.serving.sample("guest", shadow=True).in_a_row >= 2)
        sample = place.serving.sample("guest", shadow=True)
        assert sample.faults == sample.in_a_row
        assert sample.reason.startswith("init: ")


async def test_names_are_taken_once_and_that_is_no_handlers_fault(tmp_path: Path) -> None:
    async with stage(tmp_path) as place:
        await place.serving.start(echo())
        with pytest.raises(DeviceError, match="'guest' is taken"):
            await place.serving.start(echo("2.0.0"))
        for call in (place.serving.start, place.serving.shadow):
            with pytest.raises(DeviceError, match="'sink' is taken"):
                await call(echo(name="sink"))
        await place.serving.shadow(echo("2.0.0"))
        with pytest.raises(DeviceError, match="has a shadow already"):
            await place.serving.shadow(echo("3.0.0"))
        await place.serving.unshadow("guest")
        await place.serving.unshadow("guest")
        with pytest.raises(ValueError, match="no shadow"):
            await place.serving.promote("guest")


async def test_what_may_still_be_emitted_is_known_until_it_has_been(tmp_path: Path) -> None:
    changes: list[list[str]] = []
    async with stage(tmp_path, lambda: changes.append([s.version for s in place.serving.specs])) as place:
        await place.serving.start(echo())
        await place.serving.shadow(echo("2.0.0"))
        await place.serving.promote("guest")
        await place.serving.stop("guest")
    both = ["1.0.0", "2.0.0"]
    assert changes == [["1.0.0"], ["1.0.0"], both, both, ["2.0.0"], ["2.0.0"], []]


async def test_a_new_version_is_not_in_the_quarantine_of_the_old_one(tmp_path: Path) -> None:
    with few_strikes():
        async with stage(tmp_path) as place:
            await place.serving.start(failing())
            for _ in range(4):
                await place.see(b"t")
            await until(lambda: place.serving.sample("guest").state == "quarantined")
            await place.keeper.keep()
            await place.serving.shadow(echo("2.0.0"))
            await place.running(shadow=True)
            await place.serving.promote("guest")
            await place.keeper.keep()
            assert place.serving.sample("guest").state == "running"
            await place.serving.stop("guest")
            await place.serving.start(failing())
            await until(lambda: place.serving.sample("guest").state == "quarantined")
    assert Quarantines(tmp_path / "quarantine").there_is("guest")


async def test_a_shadow_in_quarantine_is_not_the_one_in_service(tmp_path: Path) -> None:
    with few_strikes():
        async with stage(tmp_path) as place:
            await place.serving.start(echo())
            await place.serving.shadow(failing(version="2.0.0"))
            await place.running(shadow=True)
            while place.serving.sample("guest", shadow=True).state != "quarantined":
                await place.see(b"t")
            await place.keeper.keep()
            assert place.serving.sample("guest").state == "running"
    assert not Quarantines(tmp_path / "quarantine").there_is("guest")


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144])
async def test_whoever_changes_the_set_may_be_cancelled_anywhere(tmp_path: Path, steps: int) -> None:
    async def changes(place: Stage) -> None:
        while True:
            await place.serving.shadow(echo("2.0.0"))
            await place.serving.unshadow("guest")
            await place.serving.shadow(echo("3.0.0"))
            await place.serving.promote("guest")
            await place.serving.stop("guest")
            await place.serving.start(echo("4.0.0"))

    async with stage(tmp_path) as place:
        await place.serving.start(echo())
        async with filming(place):
            changing = asyncio.create_task(changes(place))
            for _ in range(steps):
                await asyncio.sleep(0)
            changing.cancel()
            await asyncio.wait([changing])
            assert changing.cancelled()
            await place.serving.unshadow("guest")
            await place.serving.stop("guest")
            await place.serving.start(echo("5.0.0"))
            await place.more()
        assert max(place.answers().values()) == 1
        assert place.versions()[-1] == "5.0.0"
        await until(lambda: len(place.serving._tasks) == 1)
        assert sorted(place.zipper._router.observers) == ["guest", "sink"]


async def test_all_end_the_newest_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    leave = LocalHandler.__aexit__

    async def noted(handler: LocalHandler, *error: object) -> None:
        try:
            await leave(handler, *error)
        finally:
            ended.append(handler.spec.version)

    monkeypatch.setattr(LocalHandler, "__aexit__", noted)
    async with stage(tmp_path) as place:
        for number in range(3):
            await place.serving.start(echo(f"{number}.0.0", name=f"guest{number}"))
        await place.serving.shadow(echo("3.0.0", name="guest0"))
        pids = [await place.running(f"guest{number}") for number in range(3)]
        place.send()
    assert ended == ["3.0.0", "2.0.0", "1.0.0", "0.0.0"]
    await until(lambda: not any(map(is_alive, pids)))


async def test_one_that_ends_before_it_has_begun_gives_back_what_it_was_given(tmp_path: Path) -> None:
    async with stage(tmp_path) as place:
        await place.serving.start(echo())
        place.send()
        assert place.done == 0
    assert place.done == 1


async def test_a_defect_of_ours_in_one_ends_the_body(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def defect(*_: object) -> None:
        raise AssertionError("a defect")

    with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012 - what is entered is left as the defect passes
        async with stage(tmp_path) as place:
            await place.serving.start(echo())
            await place.serving.start(spec(NOTHING, models=0, name="other"))
            await place.running()
            monkeypatch.setattr(LocalHandler, "_answer", defect)
            place.send()
            await asyncio.Event().wait()
    assert caught.group_contains(AssertionError, match="a defect")


async def test_an_error_of_the_bodys_own_passes_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mine"):  # noqa: PT012 - the body is what is tested
        async with stage(tmp_path) as place:
            await place.serving.start(echo())
            raise ConfigError("mine")
