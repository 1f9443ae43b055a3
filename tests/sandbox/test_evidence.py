"""Capsules and records on a real disk: durable, bounded, for their owner's eyes, and damaged ones are survived."""

import errno
import logging
from pathlib import Path

import msgspec
import pytest
from test_capsule import CAPSULE
from test_quarantine import RECORD

from appliance.errors import ConfigError, DeviceError
from appliance.sandbox.evidence import MAX_CAPSULES, Capsules, Quarantines, read_capsule

replace = msgspec.structs.replace


def capsule_at(second: int, payload: bytes = b"x"):
    failure = replace(CAPSULE.failure, at_ns=second * 10**9 + 5000)
    return replace(CAPSULE, failure=failure, frames=(replace(CAPSULE.frames[0], payload=payload),))


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_capsule_is_a_file_that_only_its_owner_reads(tmp_path: Path) -> None:
    directory = tmp_path / "capsules"
    name = Capsules(directory).write(capsule_at(1_700_000_000))
    assert name == "20231114T221320.000005Z-guest-trap.capsule"
    assert read_capsule(directory / name) == capsule_at(1_700_000_000)
    assert (directory / name).stat().st_mode & 0o777 == 0o600
    assert directory.stat().st_mode & 0o777 == 0o700


def test_the_newest_are_kept(tmp_path: Path) -> None:
    capsules = Capsules(tmp_path)
    written = [capsules.write(capsule_at(second)) for second in range(MAX_CAPSULES + 3)]
    assert names(tmp_path) == written[3:]


def test_their_bytes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.sandbox.evidence.MAX_CAPSULES_BYTES", 10_000)
    capsules = Capsules(tmp_path)
    written = [capsules.write(capsule_at(second, bytes(3000))) for second in range(5)]
    assert names(tmp_path) == written[-2:]


def test_a_clock_that_was_set_back_does_not_cost_the_newest(tmp_path: Path) -> None:
    capsules = Capsules(tmp_path)
    for second in range(100, 100 + MAX_CAPSULES):
        capsules.write(capsule_at(second))
    assert capsules.write(capsule_at(1)) in names(tmp_path)
    assert len(names(tmp_path)) == MAX_CAPSULES


def test_what_a_power_cut_left_half_written_is_removed(tmp_path: Path) -> None:
    half = tmp_path / ".20231114T221320.000005Z-guest-trap.capsule.abcdef"
    half.write_bytes(b"half")
    name = Capsules(tmp_path).write(capsule_at(1))
    assert names(tmp_path) == [name]


def test_a_disk_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        Capsules(tmp_path).write(capsule_at(1))
    assert names(tmp_path) == []


def test_reading_what_is_no_capsule(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.capsule: the capsule cannot be read"):
        read_capsule(tmp_path / "gone.capsule")
    (tmp_path / "odd.capsule").write_bytes(b"odd")
    with pytest.raises(ConfigError, match=r"odd\.capsule: not a crash capsule"):
        read_capsule(tmp_path / "odd.capsule")


def test_a_record_is_kept_until_it_is_released(tmp_path: Path) -> None:
    quarantines = Quarantines(tmp_path / "quarantine")
    assert quarantines.all() == []
    assert quarantines.read("parts") is None
    quarantines.write(RECORD)
    assert quarantines.read("parts") == RECORD
    assert quarantines.all() == [RECORD]
    assert quarantines.there_is("parts")
    quarantines.release("parts")
    assert not quarantines.there_is("parts")
    with pytest.raises(ConfigError, match="'parts' is not in quarantine; none is"):
        quarantines.release("parts")


def test_who_is_there_instead_is_said(tmp_path: Path) -> None:
    quarantines = Quarantines(tmp_path)
    quarantines.write(RECORD)
    with pytest.raises(ConfigError, match="'motion' is not in quarantine; parts"):
        quarantines.release("motion")
    with pytest.raises(ConfigError, match="not the name of a handler"):
        quarantines.release("../lock")


@pytest.mark.parametrize("content", [b"", b'{"handler":"par', b"\xff", b"{}", bytes(64 << 10)])
def test_a_damaged_record_is_as_none_and_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    (tmp_path / "parts.json").write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert Quarantines(tmp_path).read("parts") is None
    assert "event=quarantine_record_damaged" in caplog.text
    assert Quarantines(tmp_path).all() == []


def test_a_record_that_cannot_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quarantines = Quarantines(tmp_path)
    quarantines.write(RECORD)

    def fail(_: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "unlink", fail)
    with pytest.raises(DeviceError, match="cannot be removed: Permission denied"):
        quarantines.release("parts")
