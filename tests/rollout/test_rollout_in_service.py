"""Rollouts with what really serves: workers, modules and frames. The store is in memory."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
from rollout_doubles import FLEET, Box, bundle_of, slot, until
from sandbox_bench import TAG, TRAP, guest, spec
from serving_bench import Stage, stage

from appliance.deploy.events import Unwanted, Wanted
from appliance.deploy.record import Slot
from appliance.manifest import Limits
from appliance.rollout.parts import Parts
from appliance.rollout.rollout import Rollout
from appliance.sandbox.spec import HandlerSpec

NAME = "guest"
ECHO = guest(f"(call $emit (i32.const {TAG}) (i32.const 6) (i32.const 0) (i32.const 0))")
BAD_VERSION = "6.6.6"
QUICK = msgspec.structs.replace(FLEET, canary_frames=10)


def load(_directory: Path, name: str, slot: Slot) -> HandlerSpec:
    module = TRAP if slot.version == BAD_VERSION else ECHO
    return replace(spec(module, models=0, version=slot.version, limits=Limits(emits_per_second=100_000)), name=name)


@asynccontextmanager
async def on_stage(place: Stage, box: Box) -> AsyncIterator[Rollout]:
    parts: Parts = replace(box.parts, serving=place.serving, load=load)
    rollout = Rollout(NAME, parts, QUICK)
    await rollout.boot()
    camera, task = asyncio.create_task(place.film()), asyncio.create_task(rollout.run())
    try:
        yield rollout
    finally:
        for each in (task, camera):
            each.cancel()
        await asyncio.wait([task, camera])
        await place.all_done()


def want(rollout: Rollout, version: str) -> None:
    rollout.order(Wanted(slot(version, NAME)), bundle_of(version, NAME))


def serves(place: Stage, version: str) -> bool:
    return NAME in place.serving.live and place.serving.live[NAME].spec.version == version


async def test_versions_follow_each_other_and_no_frame_is_lost(tmp_path: Path) -> None:
    box = Box()
    async with stage(tmp_path) as place:
        async with on_stage(place, box) as rollout:
            for version in ("1.0.0", "1.1.0", "1.2.0"):
                want(rollout, version)
                await until(lambda version=version: serves(place, version) and not place.serving.shadows)
                await place.more(30)
            first = place.results[0].seq
        assert sorted(place.answers().elements()) == list(range(first, place.sent))
        versions = place.versions()
        assert versions == sorted(versions)
        assert set(versions) == {"1.0.0", "1.1.0", "1.2.0"}
        assert rollout.record.state == "active"


async def test_one_that_traps_is_never_heard_of(tmp_path: Path) -> None:
    box = Box()
    async with stage(tmp_path) as place:
        async with on_stage(place, box) as rollout:
            want(rollout, "1.0.0")
            await until(lambda: serves(place, "1.0.0"))
            want(rollout, BAD_VERSION)
            await until(lambda: rollout.record.state == "refused" and not place.serving.shadows)
            await place.more(30)
        assert "trap" in rollout.record.reason
        assert set(place.versions()) == {"1.0.0"}


async def test_one_whose_worker_keeps_dying_makes_way_for_the_one_before(tmp_path: Path) -> None:
    box = Box()
    async with stage(tmp_path) as place:
        async with on_stage(place, box) as rollout:
            want(rollout, "1.0.0")
            await until(lambda: serves(place, "1.0.0"))
            want(rollout, "1.1.0")
            await until(lambda: serves(place, "1.1.0") and not place.serving.shadows)
            while serves(place, "1.1.0"):
                pid = place.serving.live[NAME].status.pid
                if pid is not None:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                await asyncio.sleep(0.001)
            assert serves(place, "1.0.0")
            await until(lambda: rollout.record.state == "rolled-back")
            await place.running(NAME)
            before = len(place.results)
            await until(lambda: len(place.results) > before + 20)
        assert place.versions()[-1] == "1.0.0"


async def test_a_removed_one_is_gone(tmp_path: Path) -> None:
    box = Box()
    async with stage(tmp_path) as place, on_stage(place, box) as rollout:
        want(rollout, "1.0.0")
        await until(lambda: serves(place, "1.0.0"))
        rollout.order(Unwanted())
        await until(lambda: not place.serving.live)
        await place.more()


async def test_a_restart_goes_on_with_what_was_active(tmp_path: Path) -> None:
    box = Box()
    async with stage(tmp_path) as place, on_stage(place, box) as rollout:
        want(rollout, "1.0.0")
        await until(lambda: serves(place, "1.0.0"))
    async with stage(tmp_path) as place, on_stage(place, box) as rollout:
        assert serves(place, "1.0.0")
        await place.running(NAME)
