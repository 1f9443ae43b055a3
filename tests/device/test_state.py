"""The state directory where the disk or somebody's hand has been at it."""

import stat
from pathlib import Path

import pytest

from appliance.device.state import MIN_SECRET, StateDirectory, open_state, read_secret
from appliance.errors import ConfigError, DeviceError


def test_the_credential_is_made_once_and_is_private(tmp_path: Path) -> None:
    state = open_state(str(tmp_path / "state"))
    credential = state.local_credential()
    assert len(credential) >= MIN_SECRET
    assert state.local_credential() == credential
    assert stat.S_IMODE(state.credential_file.stat().st_mode) == 0o600


@pytest.mark.parametrize("content", [b"", b" \n", b"x" * (MIN_SECRET - 1), b"\xff" * 32])
def test_a_secret_that_anybody_could_guess_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "secret"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=str(file)):
        read_secret(file)


def test_a_secret_is_read_without_its_newline(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_bytes(b"0123456789abcdef\n")
    assert read_secret(file) == "0123456789abcdef"


def test_the_address_is_there_while_the_zipper_runs(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path)
    with state.announced("127.0.0.1", 7801):
        assert state.address_file.read_text() == "127.0.0.1 7801\n"
    assert not state.address_file.exists()


def test_one_appliance_at_a_time(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path)
    with state.locked(), pytest.raises(ConfigError, match="in use"), state.locked():
        pass
    with state.locked():
        pass


def test_what_cannot_be_written_is_told_with_the_directory_and_the_remedy(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path)
    (tmp_path / "lock").mkdir()
    state.address_file.mkdir()
    absent = StateDirectory(tmp_path / "absent")
    for attempt in (state.locked, lambda: state.announced("127.0.0.1", 1)):
        with pytest.raises(DeviceError, match=f"{tmp_path}: .*--state"), attempt():
            pass
    with pytest.raises(DeviceError, match=f"{absent.path}: .*--state"):
        absent.local_credential()
