"""Files and directories that are written durably; tests/deploy/test_store_interrupted.py cuts the power."""

import os
from pathlib import Path

import pytest

from appliance.device.durable import (
    make_directory,
    move_durably,
    remove_durably,
    sync_tree,
    write_durably,
    writing,
)
from appliance.errors import DeviceError


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What was synced, in order."""
    paths: list[Path] = []
    real = os.fsync

    def record(handle: int) -> None:
        paths.append(Path(f"/proc/self/fd/{handle}").readlink())
        real(handle)

    monkeypatch.setattr(os, "fsync", record)
    return paths


def test_a_file_is_synced_before_it_takes_its_name_and_its_directory_after(tmp_path: Path, synced: list[Path]) -> None:
    write_durably(tmp_path / "file", b"1", 0o600)
    assert (tmp_path / "file").read_bytes() == b"1"
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600
    assert synced[0].name.startswith(".file.")
    assert synced[1:] == [tmp_path]


def test_a_file_that_cannot_be_written_leaves_the_old_one_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_durably(tmp_path / "file", b"old")

    def fail(_: int) -> None:
        raise OSError("the disk fails")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="the disk fails"):
        write_durably(tmp_path / "file", b"new")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_a_move_syncs_both_directories(tmp_path: Path, synced: list[Path]) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "one" / "file").write_bytes(b"")
    move_durably(tmp_path / "one" / "file", tmp_path / "two" / "file")
    assert synced == [tmp_path / "two", tmp_path / "one"]
    synced.clear()
    move_durably(tmp_path / "two" / "file", tmp_path / "two" / "other")
    assert synced == [tmp_path / "two"]
    synced.clear()
    remove_durably(tmp_path / "two" / "other")
    assert synced == [tmp_path / "two"]
    assert list((tmp_path / "two").iterdir()) == []
    remove_durably(tmp_path / "two" / "other")


def test_a_directory_is_made_with_its_parents(tmp_path: Path, synced: list[Path]) -> None:
    make_directory(tmp_path / "one" / "two")
    assert synced == [tmp_path, tmp_path / "one"]
    make_directory(tmp_path / "one" / "two")
    assert len(synced) == 2


def test_a_tree_is_synced_with_all_that_is_in_it(tmp_path: Path, synced: list[Path]) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "file").write_bytes(b"")
    (tmp_path / "link").symlink_to("nowhere")
    sync_tree(tmp_path)
    assert synced == [tmp_path, tmp_path / "one" / "file", tmp_path / "one"]


def test_what_the_system_says_is_the_devices_fault(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=f"{tmp_path}: .*--state"), writing(tmp_path):
        (tmp_path / "absent").read_bytes()
