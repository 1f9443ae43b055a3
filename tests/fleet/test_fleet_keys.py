import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.errors import ConfigError
from appliance.fleet import keys
from appliance.fleet.keys import Keyring, WrongPassphraseError, keyring, make_key, new_key, open_key, read_public

PASSPHRASE = "four random words here"

pytestmark = pytest.mark.usefixtures("quick_keys")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    new_key(tmp_path / "acme.pem", PASSPHRASE)
    return tmp_path / "acme.pem"


def ring(path: Path, *passphrases: str) -> Keyring:
    return keyring([path.parent], [], lambda _, attempt: dict(enumerate(passphrases)).get(attempt))


def test_what_a_key_signs_its_public_file_verifies(path: Path) -> None:
    public = read_public(path.with_suffix(".pub"))
    (signer,) = ring(path, PASSPHRASE).signers([public.keyid, "another"])
    public.verify_signature(signer.sign(b"data"), b"data")
    assert read_public(path) == public
    assert keys.public_text(public) == path.with_suffix(".pub").read_text()


def test_a_private_key_is_encrypted_and_its_owners_alone(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "BEGIN PRIVATE KEY" not in path.read_text()
    assert "BEGIN ENCRYPTED PRIVATE KEY" in path.read_text()
    assert PASSPHRASE not in repr(make_key(PASSPHRASE))


def test_a_key_is_opened_only_when_it_has_to_sign(path: Path) -> None:
    assert ring(path).signers([]) == []
    with pytest.raises(ConfigError, match="there is no passphrase"):
        ring(path).signers([read_public(path).keyid])


def test_passphrases_are_tried_until_one_opens(path: Path) -> None:
    keyid = read_public(path).keyid
    assert ring(path, "wrong", "wrong again", PASSPHRASE).signers([keyid])
    with pytest.raises(WrongPassphraseError, match=r"acme\.pem: the passphrase does not open"):
        ring(path, "wrong").signers([keyid])


@pytest.mark.parametrize("passphrase", ["", "short", "eleven char"])
def test_a_passphrase_that_is_no_protection_is_refused(tmp_path: Path, passphrase: str) -> None:
    with pytest.raises(ConfigError, match="shorter than 12 characters"):
        new_key(tmp_path / "acme.pem", passphrase)
    assert list(tmp_path.iterdir()) == []


def test_a_key_is_never_overwritten(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="there is a key already"):
        new_key(path, PASSPHRASE)
    assert path.read_bytes() == before


def test_the_same_passphrase_makes_other_bytes_each_time(tmp_path: Path) -> None:
    first, second = make_key(PASSPHRASE).private, make_key(PASSPHRASE).private
    assert first.splitlines()[0] != second.splitlines()[0], "each has its own salt"


def test_a_file_that_asks_for_endless_memory_is_refused(path: Path) -> None:
    path.write_text(path.read_text().replace("scrypt 4 ", "scrypt 40 "))
    with pytest.raises(ConfigError, match="is not a private key"):
        open_key(keyring([], [path], lambda *_: "").files[read_public(path).keyid], PASSPHRASE)


def test_the_two_halves_have_to_be_a_pair(path: Path) -> None:
    other = new_key(path.with_name("other.pem"), PASSPHRASE)
    own = keys.public_text(read_public(path))
    path.write_text(path.read_text().replace(own, keys.public_text(other)))
    with pytest.raises(ConfigError, match="are not a pair"):
        open_key(keys.KeyFile(path, read_public(path)), PASSPHRASE)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\xff", b"x" * 5000])
def test_files_that_are_no_keys_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pem").write_bytes(content)
    with pytest.raises(ConfigError, match=r"a\.pem"):
        keyring([tmp_path], [], lambda *_: None)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_public(tmp_path / "absent")


def test_keys_of_another_kind_are_refused(tmp_path: Path) -> None:
    public = generate_private_key(SECP256R1()).public_key()
    (tmp_path / "a.pub").write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(ConfigError, match="is not an ed25519 key"):
        read_public(tmp_path / "a.pub")


@given(junk=st.binary(max_size=400), place=st.integers(0, 500))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_damaged_key_opens_or_is_a_clear_error(
    junk: bytes, place: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("keys") / "a.pem"
    key = make_key(PASSPHRASE)
    path.write_bytes(key.private[:place] + junk + key.private[place + len(junk) :])
    try:
        open_key(keys.KeyFile(path, read_public(path)), PASSPHRASE)
    except ConfigError as error:
        assert str(path) in str(error)


def test_the_first_line_of_a_file_is_a_passphrase(tmp_path: Path) -> None:
    (tmp_path / "pass").write_text(f"{PASSPHRASE}\nanother line\n")
    assert keys.passphrase_in(tmp_path / "pass") == PASSPHRASE
