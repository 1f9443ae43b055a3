"""One handler's deployment, with a device in memory."""

import asyncio
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from rollout_doubles import BAD, FLEET, FULL, GOOD, QUIET, Box, bundle_of, deploy, slot, spec_of, until, want

from appliance.config import FleetConfig
from appliance.deploy import watch
from appliance.deploy.events import Blocked, Unwanted
from appliance.deploy.machine import TRIAL_BOOTS
from appliance.errors import ConfigError, DeviceError, HandlerError, ModelError, PeerError
from appliance.inference.model import UnavailableError
from appliance.rollout.rollout import Rollout


@pytest.fixture
def box() -> Box:
    return Box()


async def test_a_first_version_is_fetched_admitted_kept_tried_and_served(box: Box) -> None:
    async with box.rollout() as rollout:
        box.serving.samples["1.0.0"] = GOOD
        want(rollout, "1.0.0")
        await until(lambda: rollout.record.state == "active" and "parts" in box.serving.live)
        assert box.states == ["fetching", "admitting", "storing", "canary", "active"]
        assert box.serving.done == [("shadow", "1.0.0"), ("promote", "1.0.0")]
        assert [spec.version for spec in box.admitted] == ["1.0.0"]
        assert box.last.current == box.last.desired == slot("1.0.0").report
        assert box.last.trial
        assert box.store.record() == rollout.record


async def test_the_next_version_goes_beside_it_first(box: Box) -> None:
    async with box.rollout() as rollout:
        await deploy(rollout, box, "1.0.0")
        box.serving.samples["1.1.0"] = QUIET
        want(rollout, "1.1.0")
        await until(lambda: rollout.record.state == "canary" and box.serving.shadows)
        assert box.serving.live["parts"].version == "1.0.0"
        box.serving.samples["1.1.0"] = GOOD
        await until(lambda: box.serving.live["parts"].version == "1.1.0")
        await until(lambda: box.last.state == "active")
        assert box.last.previous == slot("1.0.0").report
        assert box.downloads.asked.count("f" * 64) == 1, "the model is there already"


async def test_nothing_is_done_before_it_is_written_down(box: Box) -> None:
    box.store.broken["write_record"] = FULL
    async with box.rollout() as rollout:
        want(rollout, "1.0.0")
        await until(lambda: box.store.calls["write_record"] >= 3)
        assert box.downloads.asked == []
        assert rollout.record.state == "gone"
        box.serving.samples["1.0.0"] = GOOD
        del box.store.broken["write_record"]
        await until(lambda: rollout.record.state == "active")


async def test_a_damaged_record_is_begun_anew(box: Box, caplog: pytest.LogCaptureFixture) -> None:
    for data in (b"garbage", b'{"handler":"parts","state":"canary"}', b'{"handler":"door"}'):
        box.store.records_kept["parts"] = data
        async with box.rollout() as rollout:
            assert rollout.record.state == "gone"
            assert box.store.record().state == "gone"
            await deploy(rollout, box, "1.0.0")
    assert caplog.text.count("event=record_damaged") == 3


async def test_a_record_that_cannot_be_written_is_said(box: Box) -> None:
    async with box.rollout() as rollout:
        await deploy(rollout, box, "1.0.0")
        box.store.broken["write_record"] = FULL
        want(rollout, "1.1.0")
        await until(lambda: "cannot be written" in box.last.reason)
        assert box.last.state == "active"
        del box.store.broken["write_record"]
        await until(lambda: box.last.state == "canary")
        assert box.last.reason == ""


async def test_other_settings_are_tried_without_fetching(box: Box) -> None:
    async with box.rollout() as rollout:
        await deploy(rollout, box, "1.0.0")
        asked = len(box.downloads.asked)
        want(rollout, "1.0.0", volume="11")
        await until(lambda: box.serving.live["parts"].settings == {"volume": "11"})
        assert len(box.downloads.asked) == asked
        assert rollout.record.previous == slot("1.0.0")


@pytest.mark.parametrize("error", [PeerError("nothing came"), DeviceError("the disk fails")])
async def test_a_download_that_fails_is_tried_again(box: Box, error: Exception) -> None:
    async with box.rollout() as rollout:
        box.downloads.broken = error
        want(rollout, "1.0.0")
        await until(lambda: len(box.downloads.asked) >= 3)
        await until(lambda: box.last.state == "waiting")
        assert box.last.reason == str(error)
        box.downloads.broken = None
        await until(lambda: rollout.record.state == "canary")


async def test_no_room_is_waited_for_and_no_fault_of_the_bundle(box: Box) -> None:
    box.store.broken["check_room"] = FULL
    async with box.rollout() as rollout:
        want(rollout, "1.0.0")
        await until(lambda: box.store.calls["check_room"] >= 2)
        assert box.downloads.asked == []
        del box.store.broken["check_room"]
        await until(lambda: rollout.record.state == "canary")
        assert rollout.record.bad == ()


async def test_progress_is_told(box: Box) -> None:
    async with box.rollout() as rollout:
        box.downloads.gate.clear()
        want(rollout, "1.0.0")
        await until(lambda: box.reports and box.last.progress)
        progress = box.last.progress
        assert progress is not None
        assert 0 < progress.received < progress.total == bundle_of("1.0.0").bundle.length
        box.downloads.gate.set()
        await until(lambda: box.last.state == "canary")
        assert box.last.progress is None


@pytest.mark.parametrize("error", [HandlerError("no such import"), ModelError("no model")])
async def test_what_admission_refuses_is_in_quarantine(box: Box, error: Exception) -> None:
    async with box.rollout() as rollout:
        await deploy(rollout, box, "1.0.0")
        box.admit_error = error
        want(rollout, "1.1.0")
        await until(lambda: box.last.state == "refused")
        assert box.last.reason == str(error)
        assert box.last.current == slot("1.0.0").report
        assert rollout.record.badness(slot("1.1.0"))
        assert ("parts", slot("1.1.0").digest) not in box.store.slots
        assert [each for each in box.serving.done if each[1] == "1.1.0"] == []


async def test_settings_that_are_wrong_are_refused_alone(box: Box) -> None:
    async with box.rollout() as rollout:
        box.admit_error = ConfigError("no setting 'volum'")
        want(rollout, "1.0.0", volum="11")
        await until(lambda: box.reports and box.last.state == "refused")
        box.admit_error = None
        want(rollout, "1.0.0", volume="11")
        await until(lambda: rollout.record.state == "canary")


async def test_a_model_for_which_there_is_no_place_is_no_fault_of_the_bundle(box: Box) -> None:
    box.admit_error = UnavailableError("32 models run already")
    async with box.rollout() as rollout:
        box.serving.samples["1.0.0"] = GOOD
        want(rollout, "1.0.0")
        await until(lambda: box.reports and box.last.state == "waiting")
        assert rollout.record.bad == ()
        box.admit_error = None
        await until(lambda: rollout.record.state == "active")


async def test_where_nothing_can_be_judged_it_is_tried_again(box: Box) -> None:
    async with box.rollout() as rollout:
        box.admit_error = DeviceError("no process can be started")
        want(rollout, "1.0.0")
        await until(lambda: len(box.admitted) >= 2)
        box.admit_error = None
        await until(lambda: rollout.record.state == "canary")


async def test_what_cannot_be_kept_is_tried_again(box: Box) -> None:
    box.store.broken["keep"] = FULL
    async with box.rollout() as rollout:
        want(rollout, "1.0.0")
        await until(lambda: box.store.calls["keep"] >= 2)
        del box.store.broken["keep"]
        await until(lambda: rollout.record.state == "canary")


async def test_a_canary_that_fails_is_refused_and_what_runs_goes_on(box: Box) -> None:
    async with box.rollout() as rollout:
        await deploy(rollout, box, "1.0.0")
        box.serving.samples["1.1.0"] = BAD
        want(rollout, "1.1.0")
        await until(lambda: box.last.state == "refused" and not box.serving.shadows)
        assert box.last.reason == "3 faults as canary; the last: trap: unreachable"
        assert box.serving.live["parts"].version == "1.0.0"
        want(rollout, "1.1.0")
        await until(lambda: not rollout._ordered)
        assert box.last.state == "refused"
        assert box.serving.done[-1] == ("unshadow", "1.1.0")


async def test_a_canary_that_the_device_does_not_let_begin_is_tried_again(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "START_SECONDS", 0.0)
    async with box.rollout() as rollout:
        await deploy(rollout, box, "1.0.0")
        box.serving.samples["1.1.0"] = replace(QUIET, state="backoff", hindered=True, reason="device: cannot fork")
        want(rollout, "1.1.0")
        await until(lambda: box.serving.done.count(("shadow", "1.1.0")) >= 2)
        assert rollout.record.bad == ()
        assert "device: cannot fork" in next(report.reason for report in box.reports if report and report.reason)
        box.serving.samples["1.1.0"] = GOOD
        await until(lambda: rollout.record.active == slot("1.1.0"))


async def test_nothing_is_tried_beside_a_handler_that_is_not_of_the_fleet(box: Box) -> None:
    async with box.rollout() as rollout:
        await box.serving.start(spec_of(Path(), "parts", slot("9.0.0")))
        box.serving.samples["1.0.0"] = GOOD
        want(rollout, "1.0.0")
        await until(lambda: rollout.record.state == "waiting")
        assert "this device runs a parts that is not" in rollout.record.reason
        rollout.order(Unwanted())
        await until(lambda: rollout.record.state == "gone" and box.reports[-1] is None)
        assert box.serving.done == [("start", "9.0.0")]


async def test_a_canary_that_is_much_slower_is_refused(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "PACE_SECONDS", 0.0)
    async with box.rollout() as rollout:
        await deploy(rollout, box, "1.0.0")
        box.serving.samples["1.0.0"] = replace(QUIET, handled=1000, offered=1000)
        box.serving.samples["1.1.0"] = QUIET
        want(rollout, "1.1.0")
        await until(lambda: rollout._running._up)
        box.serving.samples["1.0.0"] = replace(QUIET, handled=1100, offered=1100)
        box.serving.samples["1.1.0"] = replace(QUIET, handled=5, offered=100, dropped=95)
        await until(lambda: box.last.state == "refused")
        assert "keeps up with 5%" in box.last.reason


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (HandlerError("no manifest"), "refused"),
        (ConfigError("no such setting"), "refused"),
        (DeviceError("no process"), "waiting"),
    ],
)
async def test_a_canary_that_cannot_be_started(box: Box, error: Exception, state: str) -> None:
    async with box.rollout() as rollout:
        await deploy(rollout, box, "1.0.0")
        box.serving.broken["shadow", "1.1.0"] = error
        want(rollout, "1.1.0")
        await until(lambda: state in box.states)
        assert box.serving.live["parts"].version == "1.0.0"
        assert (rollout.record.badness(slot("1.1.0")) is not None) == (state == "refused")


async def test_a_version_that_fails_in_service_makes_way_for_the_one_before(box: Box) -> None:
    async with box.rollout() as rollout:
        await deploy(rollout, box, "1.0.0")
        await deploy(rollout, box, "1.1.0")
        box.serving.samples["1.1.0"] = BAD
        await until(lambda: box.serving.live["parts"].version == "1.0.0")
        await until(lambda: box.last.state == "rolled-back")
        assert box.last.reason == "3 faults in a row in service; the last: trap: unreachable"
        assert box.last.current == slot("1.0.0").report
        assert box.last.desired == slot("1.1.0").report
        assert not box.serving.shadows


async def test_a_canary_goes_on_beside_the_one_that_is_brought_back(box: Box) -> None:
    async with box.rollout() as rollout:
        await deploy(rollout, box, "1.0.0")
        await deploy(rollout, box, "1.1.0")
        want(rollout, "1.2.0")
        await until(lambda: box.serving.shadows)
        box.serving.samples["1.1.0"] = BAD
        await until(lambda: box.serving.live["parts"].version == "1.0.0")
        await until(lambda: box.serving.shadows)
        box.serving.samples["1.2.0"] = GOOD
        await until(lambda: box.serving.live["parts"].version == "1.2.0")
        assert rollout.record.previous == slot("1.0.0")


async def test_where_there_is_none_before_it_goes_on_and_the_report_says_why(box: Box) -> None:
    async with box.rollout() as rollout:
        await deploy(rollout, box, "1.0.0")
        box.serving.samples["1.0.0"] = BAD
        await until(lambda: "no version to go back to" in box.last.reason)
        assert box.last.state == "active"
        writes = box.store.calls["write_record"]
        want(rollout, "1.0.0")
        await until(lambda: not rollout._ordered)
        assert box.store.calls["write_record"] == writes
        await deploy(rollout, box, "1.1.0")


async def test_a_trial_ends_in_time(box: Box) -> None:
    box.fleet = msgspec.structs.replace(FLEET, trial_seconds=0.05)
    async with box.rollout() as rollout:
        await deploy(rollout, box, "1.0.0")
        assert box.reports[-1]
        await until(lambda: not box.last.trial)
        assert box.last.state == "active"
        assert box.store.record().trial is None


async def test_a_canary_without_frames_passes_in_time() -> None:
    box = Box(fleet=FleetConfig(name="f", canary_seconds=0.05))
    async with box.rollout() as rollout:
        want(rollout, "1.0.0")
        await until(lambda: rollout.record.state == "active")


@pytest.mark.parametrize("stage", ["fetching", "admitting", "storing", "canary"])
async def test_a_newer_order_ends_the_one_under_way(box: Box, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    block = asyncio.Event()

    async def admit(_spec: object) -> None:
        await block.wait()

    async with box.rollout() as rollout:
        if stage == "fetching":
            box.downloads.gate.clear()
        if stage == "admitting":
            object.__setattr__(box.parts, "admit", admit)
        if stage == "storing":
            box.store.broken["keep"] = FULL
        want(rollout, "1.0.0")
        await until(lambda: stage in box.states)
        want(rollout, "1.1.0")
        await until(lambda: rollout.record.candidate == slot("1.1.0"))
        box.downloads.gate.set()
        box.store.broken.clear()
        block.set()
        box.serving.samples["1.1.0"] = GOOD
        await until(lambda: rollout.record.state == "active")
        assert rollout.record.active == slot("1.1.0")
        assert ("promote", "1.0.0") not in box.serving.done
        assert not box.serving.shadows


async def test_a_lower_version_is_tried_as_a_higher_one_is(box: Box) -> None:
    async with box.rollout() as rollout:
        await deploy(rollout, box, "1.1.0")
        box.serving.samples["1.0.0"] = GOOD
        want(rollout, "1.0.0")
        await until(lambda: box.serving.live["parts"].version == "1.0.0")


async def test_a_removed_handler_is_stopped_and_its_report_cleared(box: Box) -> None:
    async with box.rollout() as rollout:
        await deploy(rollout, box, "1.0.0")
        rollout.order(Unwanted())
        await until(lambda: box.reports[-1] is None)
        assert box.serving.live == {}
        assert box.store.record().state == "gone"
        assert rollout.used == rollout.wanted == frozenset()
        await deploy(rollout, box, "1.0.0")


async def test_a_quarantine_outlives_the_handler(box: Box) -> None:
    async with box.rollout() as rollout:
        box.serving.samples["1.0.0"] = BAD
        want(rollout, "1.0.0")
        await until(lambda: box.reports and box.last.state == "refused")
        rollout.order(Unwanted())
        await until(lambda: box.reports[-1] is None)
    async with box.rollout() as rollout:
        want(rollout, "1.0.0")
        await until(lambda: box.reports[-1] and box.last.state == "refused")
        assert box.downloads.asked == []
        rollout.order(Unwanted())
        await until(lambda: rollout.over)


@pytest.mark.parametrize("turns", [*range(1, 20), *range(20, 60, 8)])
async def test_wherever_a_removal_ends_the_report_is_taken_back(box: Box, turns: int) -> None:
    """Also where the power failed after the record was written, and before the broker heard of it."""
    async with box.rollout() as rollout:
        await deploy(rollout, box, "1.0.0")
        rollout.order(Unwanted())
        for _ in range(turns):
            await asyncio.sleep(0)
    box.reports.clear()
    async with box.rollout() as rollout:
        rollout.order(Unwanted())
        await until(lambda: rollout.over)
        assert box.reports[-1] is None
        assert box.serving.live == {}


async def test_what_cannot_be_verified_leaves_what_runs(box: Box) -> None:
    async with box.rollout() as rollout:
        await deploy(rollout, box, "1.0.0")
        rollout.order(Blocked(slot("1.1.0"), "the role of dora has expired"))
        await until(lambda: box.last.state == "waiting")
        assert box.last.reason == "the role of dora has expired"
        assert box.last.desired == slot("1.1.0").report
        assert box.serving.live["parts"].version == "1.0.0"


async def test_stale_metadata_ends_a_download_but_no_canary(box: Box) -> None:
    async with box.rollout() as rollout:
        box.downloads.gate.clear()
        want(rollout, "1.0.0")
        await until(lambda: box.downloads.asked)
        rollout.stale("expired yesterday")
        await until(lambda: box.last.state == "waiting")
        assert box.last.reason == "expired yesterday"
        assert box.last.desired == slot("1.0.0").report
        await until(lambda: box.downloads.ended)
        box.downloads.gate.set()
        want(rollout, "1.0.0")
        await until(lambda: box.serving.shadows)
        rollout.stale("expired again")
        box.serving.samples["1.0.0"] = GOOD
        await until(lambda: box.serving.live)


# --- starting again ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["fetching", "admitting", "storing", "canary", "active"])
async def test_a_restart_at_any_stage_ends_in_service(box: Box, state: str) -> None:
    async with box.rollout() as rollout:
        await deploy(rollout, box, "1.0.0")
        await rollout_to(rollout, box, "1.1.0", state)
    box.store.broken.clear()
    box.admit_error = None
    async with box.rollout() as rollout:
        assert box.serving.done[0] == ("start", "1.1.0" if state == "active" else "1.0.0")
        box.serving.samples["1.1.0"] = GOOD
        if state == "canary":
            await until(lambda: box.serving.live["parts"].version == "1.1.0")
        want(rollout, "1.1.0")
        await until(lambda: rollout.record.active == slot("1.1.0"))
        await until(lambda: box.serving.live["parts"].version == "1.1.0")
        assert rollout.record.previous == slot("1.0.0")


async def rollout_to(rollout: Rollout, box: Box, version: str, state: str) -> None:
    """A deployment that comes to this state and no further."""
    if state == "fetching":
        box.downloads.gate.clear()
    if state == "admitting":
        box.admit_error = DeviceError("not now")
    if state == "storing":
        box.store.broken["keep"] = FULL
    box.serving.samples[version] = GOOD if state == "active" else QUIET
    before = len(box.reports)
    want(rollout, version)
    await until(lambda: state in [report.state for report in box.reports[before:] if report])


async def test_the_third_start_on_trial_brings_the_version_before_back(box: Box) -> None:
    async with box.rollout() as rollout:
        await deploy(rollout, box, "1.0.0")
        await deploy(rollout, box, "1.1.0")
    for _ in range(TRIAL_BOOTS - 1):
        async with box.rollout():
            assert box.serving.done == [("start", "1.1.0")]
    async with box.rollout() as rollout:
        assert box.serving.done == [("start", "1.0.0")]
        assert rollout.record.state == "rolled-back"
        assert "started 3 times while 1.1.0 was on trial" in rollout.record.reason


async def test_a_start_does_not_wait_for_a_full_disk(box: Box) -> None:
    async with box.rollout() as rollout:
        await deploy(rollout, box, "1.0.0")
    box.store.broken["write_record"] = FULL
    async with box.rollout():
        assert box.serving.done == [("start", "1.0.0")]


async def test_a_damaged_record_is_as_none(box: Box, caplog: pytest.LogCaptureFixture) -> None:
    box.store.records_kept["parts"] = b'{"v": 1, "handl'
    async with box.rollout() as rollout:
        assert "event=record_damaged" in caplog.text
        await deploy(rollout, box, "1.0.0")


async def test_the_version_before_stands_in_for_a_damaged_one_until_that_is_fetched_again(box: Box) -> None:
    async with box.rollout() as rollout:
        await deploy(rollout, box, "1.0.0")
        await deploy(rollout, box, "1.1.0")
    box.store.slots.discard(("parts", slot("1.1.0").digest))
    async with box.rollout() as rollout:
        assert box.serving.live["parts"].version == "1.0.0"
        assert box.last.state == "waiting"
        assert "damaged" in box.last.reason
        await deploy(rollout, box, "1.1.0")
        assert rollout.record.bad == ()


async def test_a_damaged_canary_is_fetched_again(box: Box) -> None:
    async with box.rollout() as rollout:
        want(rollout, "1.0.0")
        await until(lambda: box.serving.shadows)
    box.store.slots.clear()
    async with box.rollout() as rollout:
        assert box.last.state == "waiting"
        await deploy(rollout, box, "1.0.0")


async def test_a_start_that_this_device_cannot_do_is_tried_again(box: Box) -> None:
    async with box.rollout() as rollout:
        await deploy(rollout, box, "1.0.0")
        await deploy(rollout, box, "1.1.0")
        box.serving.broken["shadow", "1.0.0"] = DeviceError("no process")
        box.serving.samples["1.1.0"] = BAD
        await until(lambda: box.serving.done.count(("shadow", "1.0.0")) >= 2)
        assert rollout.record.active == slot("1.0.0")
        want(rollout, "1.2.0")
        await until(lambda: ("shadow", "1.2.0") in box.serving.done)
        box.serving.broken.clear()
        await until(lambda: box.serving.live["parts"].version == "1.0.0")
        assert rollout.record.badness(slot("1.0.0")) is None
        await deploy(rollout, box, "1.2.0")


async def test_one_that_cannot_be_started_for_a_fault_of_its_own_makes_way(box: Box) -> None:
    async with box.rollout() as rollout:
        await deploy(rollout, box, "1.0.0")
        box.serving.broken["promote", "1.1.0"] = HandlerError("it has gone mad")
        box.serving.samples["1.1.0"] = GOOD
        want(rollout, "1.1.0")
        await until(lambda: box.last.state == "rolled-back")
        await until(lambda: not box.serving.shadows)
        assert box.serving.live["parts"].version == "1.0.0"


async def test_few_fetch_at_a_time(box: Box) -> None:
    async with box.rollout() as rollout, box.parts.fetching, box.parts.fetching:
        want(rollout, "1.0.0")
        await until(lambda: rollout.record.state == "fetching")
        assert box.downloads.asked == []
    assert box.store.record().state == "fetching"


async def test_a_download_that_does_not_come_holds_up_no_other_work(box: Box) -> None:
    async with box.rollout() as rollout:
        box.downloads.gate.clear()
        want(rollout, "1.0.0")
        await until(lambda: box.downloads.asked)
        assert not box.parts.turn.locked()
        assert not box.parts.fetching.locked()


async def test_a_full_disk_holds_up_no_start_whatever_else_is_wrong(box: Box) -> None:
    async with box.rollout() as rollout:
        await deploy(rollout, box, "1.0.0")
    box.store.broken["write_record"] = FULL
    box.store.slots.clear()
    async with asyncio.timeout(5), box.rollout() as rollout:
        assert rollout.record.active is None
        assert "cannot be written" in box.last.reason


async def test_an_order_after_metadata_has_expired_is_not_held_up_by_that(box: Box) -> None:
    async with box.rollout() as rollout:
        box.serving.samples["1.0.0"] = box.serving.samples["1.1.0"] = GOOD
        await deploy(rollout, box, "1.0.0")
        rollout.stale("expired")
        want(rollout, "1.1.0")  # before it has looked at that
        await until(lambda: rollout.record.state == "active" and rollout.record.active == slot("1.1.0"))


@pytest.mark.parametrize("turns", [*range(1, 40), *range(40, 120, 8)])
async def test_wherever_it_ends_it_goes_on_from_there(box: Box, turns: int) -> None:
    """After so many turns of the loop everything is gone that is not on the disk."""
    async with box.rollout() as rollout:
        await deploy(rollout, box, "1.0.0")
        box.serving.samples["1.1.0"] = GOOD
        want(rollout, "1.1.0")
        for _ in range(turns):
            await asyncio.sleep(0)
    async with box.rollout() as rollout:
        assert box.serving.live["parts"].version in ("1.0.0", "1.1.0")
        await deploy(rollout, box, "1.1.0")
        assert rollout.record.previous == slot("1.0.0")
        assert rollout.record.bad == ()


async def test_a_canary_that_takes_its_time_to_start_is_tried_from_then_on(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    box.fleet = msgspec.structs.replace(FLEET, canary_seconds=0.05)
    async with box.rollout() as rollout:
        await deploy(rollout, box, "1.0.0")
        box.serving.samples["1.1.0"] = replace(QUIET, state="starting")
        want(rollout, "1.1.0")
        await until(lambda: box.serving.shadows)
        began = asyncio.get_running_loop().time()
        await until(lambda: asyncio.get_running_loop().time() > began + 0.06)
        assert rollout.record.state == "canary"
        box.serving.samples["1.1.0"] = QUIET
        await until(lambda: rollout.record.active == slot("1.1.0"))
        want(rollout, "1.2.0")
        box.serving.samples["1.2.0"] = replace(QUIET, state="backoff")
        monkeypatch.setattr(watch, "START_SECONDS", 0.01)
        await until(lambda: rollout.record.state == "refused")


async def test_a_canary_takes_the_place_of_a_restart_that_is_under_way(box: Box) -> None:
    async with box.rollout() as rollout:
        await deploy(rollout, box, "1.0.0")
        box.downloads.gate.clear()
        asked = len(box.downloads.asked)
        want(rollout, "1.1.0")
        await until(lambda: len(box.downloads.asked) > asked)  # what was under way before has been given up by then
        await box.serving.shadow(box.serving.live["parts"])
        box.downloads.gate.set()
        await until(lambda: rollout.record.state == "canary")
        await until(lambda: box.serving.shadows["parts"].version == "1.1.0")
        assert rollout.record.bad == ()
