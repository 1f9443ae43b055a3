"""What handlers leave behind: capsules and quarantines, with real workers and a real disk."""

import errno
import hashlib
import logging
from dataclasses import replace
from pathlib import Path

import pytest
from crash_bench import box, failing, few_strikes
from sandbox_bench import NOTHING, TRAP, spec, until

from appliance.frame import Frame
from appliance.inference.broker import Broker
from appliance.sandbox.evidence import Quarantines, read_capsule
from appliance.sandbox.failure import Failure
from appliance.sandbox.quarantine import Quarantined


async def test_the_first_second_fourth_failure_of_a_kind_leaves_a_capsule(tmp_path: Path) -> None:
    async with box(tmp_path) as running:
        for number in range(5):
            await running.see(b"t%d" % number)
        await until(lambda: len(running.capsules()) == 3)
        await running.see(b"l")
    assert [path.name.split("-")[-1] for path in running.capsules()] == ["trap.capsule"] * 3 + ["deadline.capsule"]
    capsules = [read_capsule(path) for path in running.capsules()]
    assert [capsule.failure.seq for capsule in capsules] == [1, 2, 4, 6]
    last = capsules[2]
    assert [frame.payload for frame in last.frames] == [b"t0", b"t1", b"t2", b"t3"]
    assert last.failure.message == "unreachable executed"
    assert last.failure.backtrace[0].endswith(" deep")
    assert (last.handler, last.settings) == ("guest", {"threshold": "0.5"})


async def test_the_capsule_has_the_state_before_its_first_frame(tmp_path: Path) -> None:
    async with box(tmp_path) as running:
        for payload in (b"", b"", b"", b"", b"", b"t"):
            await running.see(payload)
    (path,) = running.capsules()
    capsule = read_capsule(path)
    assert [frame.seq for frame in capsule.frames] == [3, 4, 5, 6]
    assert capsule.state == {"n": (2).to_bytes(4, "little")}


async def test_the_status_names_the_capsule_once_it_is_written(tmp_path: Path) -> None:
    async with box(tmp_path) as running:
        await running.see(b"t")
        await until(lambda: bool(running.status.last_failure.capsule))
        assert running.status.last_failure.capsule == running.capsules()[0].name


async def test_a_disk_that_does_not_keep_up_is_given_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("appliance.faults.MAX_WRITES", 0)
    async with box(tmp_path) as running:
        await running.see(b"t")
    assert running.capsules() == []
    assert "event=capsule_skipped handler=guest" in caplog.text


async def test_what_the_guest_itself_calls_an_error_leaves_none(tmp_path: Path) -> None:
    async with box(tmp_path) as running:
        await running.see(b"e")
    assert running.capsules() == []


async def test_a_quarantine_is_recorded_and_ends_when_the_record_is_removed(tmp_path: Path) -> None:
    with few_strikes():
        async with box(tmp_path) as running:
            for _ in range(5):
                await running.see(b"t")
            assert running.handler.failed == {"trap": 4, "unavailable": 1}
            await until(lambda: running.status.state == "quarantined")
            await running.keeper.keep()
            record = Quarantines(tmp_path / "quarantine").read("guest")
            assert record is not None
            assert record.is_about("1.0.0", read_capsule(running.capsules()[0]).module, record.changes)
            assert (record.failure.kind, record.failure.seq) == ("trap", 4)
            assert record.failure.capsule == running.capsules()[-1].name
            await running.keeper.keep()
            assert running.status.state == "quarantined"
            Quarantines(tmp_path / "quarantine").release("guest")
            await running.keeper.keep()
            await until(lambda: running.status.state == "running")
            await running.see(b"")
            assert running.status.handled == 1


async def quarantined(directory: Path) -> None:
    with few_strikes():
        async with box(directory) as running:
            for _ in range(4):
                await running.see(b"t")
            await until(lambda: running.status.state == "quarantined")
            await running.keeper.keep()


async def test_a_quarantine_outlives_the_process(tmp_path: Path) -> None:
    await quarantined(tmp_path)
    async with box(tmp_path) as running:
        await running.see(b"")
        await running.keeper.keep()
        status = running.status
        assert (status.state, status.pid, status.handled) == ("quarantined", None, 0)
        assert running.handler.failed == {"unavailable": 1}
        assert status.last_failure is not None
        assert (status.last_failure.kind, status.last_failure.seq) == ("trap", 4)
        running.record().unlink()
        await running.keeper.keep()
        await until(lambda: running.status.state == "running")


@pytest.mark.parametrize("change", [{"version": "1.0.1"}, {"module": NOTHING}, {"settings": {"threshold": "0.9"}}])
async def test_another_version_runs_and_so_do_other_settings(tmp_path: Path, change: dict) -> None:
    await quarantined(tmp_path)
    async with box(tmp_path, replace(failing(), **change)) as running:
        await running.see(b"")
        assert running.status.handled == 1


async def test_a_torn_record_is_as_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    await quarantined(tmp_path)
    async with box(tmp_path) as running:
        record = running.record()
    record.write_bytes(record.read_bytes()[:40])
    with caplog.at_level(logging.WARNING):
        async with box(tmp_path) as running:
            await running.see(b"")
            assert running.status.handled == 1
    assert "event=quarantine_record_damaged" in caplog.text


async def test_a_handler_in_quarantine_costs_no_inference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []
    monkeypatch.setattr(Broker, "begin", lambda _, *question: begun.append(question))
    handler = spec(TRAP, models=1)
    record = Quarantined("guest", "1.0.0", hashlib.sha256(TRAP).hexdigest(), Failure("trap", "unreachable"))
    Quarantines(tmp_path / "quarantine").write(record)
    picture = Frame(1, "camera", 1, 1, "jpeg", b"x", 1, 1)
    async with box(tmp_path, handler) as running:
        await until(lambda: running.status.state == "quarantined")
        running.zipper.receive(picture)
        assert begun == []
        running.handler.release()
        await until(lambda: running.status.state != "quarantined")
        running.zipper.receive(picture)
        assert len(begun) == 1


async def test_a_disk_that_is_full_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("appliance.sandbox.evidence.write_durably", full)
    with few_strikes(2):
        async with box(tmp_path) as running:
            for _ in range(3):
                await running.see(b"t")
            await until(lambda: running.status.state == "quarantined")
            for _ in range(3):
                await running.keeper.keep()
            assert running.status.state == "quarantined"  # though there is no record
            monkeypatch.undo()
            await running.keeper.keep()
            assert running.record().exists()  # there is room again
    assert caplog.text.count("event=capsule_not_written handler=guest") == 2
    assert caplog.text.count("event=quarantine_not_recorded handler=guest") == 1
