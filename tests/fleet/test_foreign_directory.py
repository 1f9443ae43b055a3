"""A fleet's directory comes from git: whoever can write to that must not reach beyond it, nor the private keys."""

from pathlib import Path

import pytest
from signing_desk import Desk

from appliance.errors import DeviceError, PeerError
from appliance.fleet.journal import LOCK_FILE, change, locked


def planted(directory: Path, path: str, data: bytes = b"planted") -> Path:
    """A change as a tool that was killed leaves it."""
    place = directory / ".change" / path
    place.parent.mkdir(parents=True)
    place.write_bytes(data)
    return place


@pytest.mark.parametrize("path", ["keys/root.pem.remove", "keys/root.pem", "keys/deep/root.pem", "published.json"])
def test_a_change_from_elsewhere_leaves_private_keys_alone(desk: Desk, path: str) -> None:
    key = desk.directory / "keys" / "root.pem"
    before = key.read_bytes()
    planted(desk.directory, path)
    assert "ask who brought it" in desk.run("key", "list", code=1)
    assert key.read_bytes() == before


@pytest.mark.parametrize("path", ["bin/tool", "metadata/deep/er/1.root.json", ".git/hooks/pre-commit", "targets/x"])
def test_a_change_from_elsewhere_makes_no_other_files(desk: Desk, path: str) -> None:
    planted(desk.directory, path)
    with pytest.raises(PeerError, match="somebody wants yours to"):
        desk.fleet()
    assert not (desk.directory / path).exists()


def test_a_change_from_elsewhere_reads_no_other_files(desk: Desk, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    place = planted(desk.directory, "metadata/1.note.json")
    place.unlink()
    place.symlink_to(secret)
    with pytest.raises(PeerError, match="somebody wants yours to"):
        desk.fleet()
    assert not (desk.directory / "metadata" / "1.note.json").exists()


def test_a_change_that_adds_keys_is_finished(tmp_path: Path) -> None:
    planted(tmp_path, "keys/root-2.pem", b"key")
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "root-2.pem").write_bytes(b"key")  # killed after this one
    with locked(tmp_path):
        change(tmp_path, {"fleet.toml": b"", "keys/root-3.pem": b"key"}, private=["keys/root-3.pem"])
    assert (tmp_path / "keys" / "root-3.pem").stat().st_mode & 0o777 == 0o600


def test_the_lock_is_no_way_to_empty_another_file(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / LOCK_FILE).symlink_to(victim)
    with pytest.raises(DeviceError, match="cannot be opened"), locked(tmp_path):
        pass
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("name", ["targets", "metadata", "metadata/pending"])
def test_links_do_not_lead_out_of_the_directory(desk: Desk, tmp_path: Path, name: str) -> None:
    """Else what no metadata names would be removed there, be it the operator's home."""
    elsewhere, place = tmp_path / "elsewhere", desk.directory / name
    if place.exists():
        place.rename(elsewhere)
    else:
        elsewhere.mkdir()
    (elsewhere / ".profile").write_text("precious")
    place.symlink_to(elsewhere)
    assert "is a link" in desk.run("prune", code=1)
    assert (elsewhere / ".profile").read_text() == "precious"
