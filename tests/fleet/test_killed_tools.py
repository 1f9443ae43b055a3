"""A tool of the operator's is killed at every change it makes to a file: the fleet is the old or the new one, whole."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from signing_desk import PASSPHRASE, Desk, Device, handler

from appliance.fleet.journal import change, locked

SCRIPT = Path(__file__).with_name("killed_tool.py")


def killed(desk: Desk, work: Path, *command: object) -> list[Desk]:
    """What was left, kill by kill; the last was not killed."""
    work.mkdir()
    environment = {**os.environ, "APPLIANCE_FLEET_PASSPHRASE": PASSPHRASE}
    words = [sys.executable, str(SCRIPT), str(desk.directory), str(work), *map(str, command)]
    done = subprocess.run(words, check=False, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [Desk(path) for path in sorted(work.iterdir(), key=lambda path: int(path.name))]


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ["deploy", "{handler}", "--to", "all", "--no-send"],
        ["prune"],
        ["key", "rotate", "timestamp", "--no-send"],
        ["rollback", "motion", "--to", "all", "--no-send"],
        ["key", "rotate", "root", "--no-send"],
        ["key", "rotate", "targets", "--no-send"],
        ["refresh", "--no-send"],
    ],
    ids=lambda words: " ".join(words[:3]),
)
def test_a_killed_tool_leaves_the_old_fleet_or_the_new_one(
    desk: Desk, device: Device, tmp_path: Path, command: list[str]
) -> None:
    desk.run("publish", handler(tmp_path, version="0.9.0"))
    for version in ("1.0.0", "2.0.0"):
        desk.run("deploy", handler(tmp_path, version=version), "--to", "all", "--no-send")
    device.accept_all(desk.fleet())
    before = desk.fleet().metadata_files()
    new = handler(tmp_path, version="3.0.0")
    left = killed(desk, tmp_path / "work", *(word.format(handler=new) for word in command))
    after = left[-1].fleet().metadata_files()
    assert after != before, "the tool that was not killed has changed the fleet"
    assert len(left) > 10
    for number, each in enumerate(left):
        fleet = each.fleet()
        assert fleet.metadata_files() == before or fleet.metadata_files().keys() == after.keys()
        follower = device.copy(tmp_path / f"device-{number}")
        follower.accept_all(fleet)
        each.run("refresh", "--no-send")  # the tool goes on
        follower.accept_all(each.fleet())
        assert not [path for path in each.directory.rglob(".*") if path.name not in (".lock", ".gitignore")]
    Device.of(left[-1], tmp_path / "new").accept_all(left[-1].fleet())


@pytest.mark.slow
def test_a_killed_init_is_begun_again_or_whole(tmp_path: Path, quick_keys: None) -> None:
    empty = Desk(tmp_path / "empty")
    empty.directory.mkdir()
    whole = []
    for each in killed(empty, tmp_path / "work", "init", "PLACE", "--name", "shops"):
        result = each.result("init", each.directory, "--name", "shops")
        assert result.exit_code == 0 or "is there already" in result.output
        whole.append(result.exit_code != 0)
        each.run("refresh", "--no-send")
    assert not whole[0]
    assert whole[-1]
    assert whole == sorted(whole), "from one moment on it is a fleet"


def test_what_was_not_decided_is_forgotten_and_what_was_is_finished(tmp_path: Path) -> None:
    settings, gone, deep = tmp_path / "fleet.toml", tmp_path / "metadata" / "1.b.json", "metadata/pending/1.c.json"
    gone.parent.mkdir()
    settings.write_text("old")
    gone.write_text("old")
    begun = tmp_path / ".change-begun"
    begun.mkdir()
    (begun / "fleet.toml").write_text("new")
    with locked(tmp_path):
        assert settings.read_text() == "old"
    decided = tmp_path / ".change"
    (decided / deep).parent.mkdir(parents=True)
    (decided / "fleet.toml").write_text("new")
    (decided / "metadata" / "1.b.json.remove").touch()
    (decided / deep).write_text("new")
    with locked(tmp_path):
        assert settings.read_text() == "new"
    assert not gone.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "fleet.toml", "metadata"]
    change(tmp_path, {deep: b"newer", "metadata/1.d.json": None, "keys/a.pem": b"x"}, private=["keys/a.pem"])
    assert (tmp_path / deep).read_text() == "newer"
    assert (tmp_path / "keys" / "a.pem").stat().st_mode & 0o777 == 0o600
