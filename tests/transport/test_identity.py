import stat
from pathlib import Path

import pytest
from cryptography import x509

from appliance.device.durable import write_durably
from appliance.errors import DeviceError
from appliance.transport.identity import SERVER_NAME, ensure_certificate


def test_a_certificate_is_made_once_and_its_key_is_private(tmp_path: Path) -> None:
    certificate, key = ensure_certificate(tmp_path / "new")
    before = certificate.read_bytes(), key.read_bytes()
    assert ensure_certificate(tmp_path / "new") == (certificate, key)
    assert (certificate.read_bytes(), key.read_bytes()) == before
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


def test_it_is_valid_even_where_the_clock_was_never_set(tmp_path: Path) -> None:
    loaded = x509.load_pem_x509_certificate(ensure_certificate(tmp_path)[0].read_bytes())
    assert loaded.not_valid_before_utc.year == 1970
    assert loaded.not_valid_after_utc.year > 2100
    names = loaded.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [SERVER_NAME]


def test_two_devices_have_different_keys(tmp_path: Path) -> None:
    one, other = (ensure_certificate(tmp_path / name)[1].read_bytes() for name in ("one", "other"))
    assert one != other


def test_a_directory_that_cannot_be_written_is_a_device_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DeviceError, match="certificate"):
        ensure_certificate(tmp_path / "file" / "below")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_durably(path, b"old")

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_durably(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("damaged", ["zipper-cert.pem", "zipper-key.pem"])
def test_a_damaged_one_is_told_and_never_replaced(tmp_path: Path, damaged: str) -> None:
    ensure_certificate(tmp_path)
    for content in (b"", b"\xff" * 300):
        (tmp_path / damaged).write_bytes(content)
        with pytest.raises(DeviceError, match=r"zipper-cert\.pem.*remove both"):
            ensure_certificate(tmp_path)
        assert (tmp_path / damaged).read_bytes() == content
