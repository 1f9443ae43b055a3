"""Keys: ed25519 pairs in files. The private half is encrypted with a passphrase.

A key's file (``NAME.pem``, mode 0600) has three parts: how the passphrase is stretched, the public key, and the private
key as encrypted PKCS#8. ``NAME.pub`` beside it is the public key alone, which may go anywhere.

What `cryptography` writes as encrypted PKCS#8 is AES-256-CBC under a key that PBKDF2-HMAC-SHA256 derives in 2048
rounds. That is little against somebody who has the file and guesses. So the passphrase goes through scrypt first, which
costs each guess 128 MiB of memory and some tenths of a second; what PKCS#8 is given is 256 bits that nobody guesses.
"""

import re
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from securesystemslib.signer import CryptoSigner, Key, SSlibKey

from appliance.device.durable import write_durably
from appliance.device.reading import open_plain
from appliance.errors import ConfigError, DeviceError
from appliance.frame import is_name

MIN_PASSPHRASE = 12
"""Characters."""
MAX_KEY_BYTES = 4096
SCRYPT_LOG_N = 17
"""scrypt's cost for new keys: 2**17 blocks of 1 KiB, 128 MiB."""
MAX_SCRYPT_LOG_N = 20
"""A file that asks for more memory than 1 GiB is refused."""
PRIVATE, PUBLIC = ".pem", ".pub"
PRIVATE_MODE = 0o600

_HEADER = re.compile(r"appliance-key: scrypt (\d{1,2}) ([0-9a-f]{32})\n")
_BEGIN_PRIVATE = "-----BEGIN ENCRYPTED PRIVATE KEY-----"

AskPassphrase = Callable[[Path, int], str | None]
"""Gets the file of a key and how often its passphrase was wrong; gives one to try, or None where there is none."""


class WrongPassphraseError(ConfigError):
    """Another passphrase may open the key."""


@dataclass(frozen=True, slots=True)
class KeyFile:
    """A private key that is at hand, not opened yet."""

    path: Path
    public: SSlibKey


@dataclass(frozen=True, slots=True)
class NewKey:
    """A pair that is in no file yet."""

    private: bytes = field(repr=False)
    """Content of ``NAME.pem``, encrypted."""
    signer: CryptoSigner = field(repr=False)

    @property
    def public(self) -> SSlibKey:
        return self.signer.public_key


@dataclass(slots=True)
class Keyring:
    """The private keys at hand, by key id. A key is opened when it has to sign, and once."""

    files: dict[str, KeyFile]
    ask: AskPassphrase
    _opened: dict[str, CryptoSigner] = field(default_factory=dict)

    def add(self, name: str, key: NewKey) -> None:
        """A key that is made now."""
        self.files[key.public.keyid] = KeyFile(Path(f"{name}{PRIVATE}"), key.public)
        self._opened[key.public.keyid] = key.signer

    def signers(self, keyids: Iterable[str]) -> list[CryptoSigner]:
        """Of those keys that are at hand. ConfigError where a passphrase is wrong."""
        return [self._signer(keyid) for keyid in keyids if keyid in self.files]

    def _signer(self, keyid: str) -> CryptoSigner:
        if keyid not in self._opened:
            self._opened[keyid] = self._open(self.files[keyid])
        return self._opened[keyid]

    def _open(self, file: KeyFile) -> CryptoSigner:
        wrong = ConfigError(f"{file.path}: there is no passphrase for this key")
        for attempt in count():
            passphrase = self.ask(file.path, attempt)
            if passphrase is None:
                break
            try:
                return open_key(file, passphrase)
            except WrongPassphraseError as error:
                wrong = error
        raise wrong


def keyring(directories: Iterable[Path], files: Iterable[Path], ask: AskPassphrase) -> Keyring:
    """Keys of some directories (one that is not there has none), and single files."""
    paths = [path for directory in directories for path in sorted(directory.glob(f"*{PRIVATE}"))]
    found = [KeyFile(path, _public_of(_text(path), path)) for path in (*paths, *files)]
    return Keyring({file.public.keyid: file for file in found}, ask)


def make_key(passphrase: str) -> NewKey:
    """ConfigError for a passphrase that is no protection."""
    check_passphrase(passphrase)
    private = Ed25519PrivateKey.generate()
    salt = secrets.token_bytes(16)
    password = _stretched(passphrase, salt, SCRYPT_LOG_N)
    encrypted = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(password))
    signer = CryptoSigner(private)
    header = f"appliance-key: scrypt {SCRYPT_LOG_N} {salt.hex()}\n{public_text(signer.public_key)}"
    return NewKey(header.encode() + encrypted, signer)


def new_key(path: Path, passphrase: str) -> SSlibKey:
    """Make ``path`` (``NAME.pem``) and the public key beside it. ConfigError where it exists, or for the passphrase."""
    if path.suffix != PRIVATE or not is_name(path.stem):
        raise ConfigError(f"{path}: a key's file is NAME{PRIVATE}, with a lower-case name of letters, digits, - and _")
    for each in (path, path.with_suffix(PUBLIC)):
        if each.exists():
            raise ConfigError(f"{each}: there is a key already; a key is never overwritten, choose another name")
    key = make_key(passphrase)
    try:
        write_durably(path.with_suffix(PUBLIC), public_text(key.public).encode())
        write_durably(path, key.private, PRIVATE_MODE)
    except OSError as error:
        raise DeviceError(f"{path}: the key cannot be written: {error.strerror}") from error
    return key.public


def open_key(file: KeyFile, passphrase: str) -> CryptoSigner:
    """WrongPassphraseError, or ConfigError for a file that is no key."""
    text = _text(file.path)
    header, begin = _HEADER.match(text), text.find(_BEGIN_PRIVATE)
    if header is None or begin < 0 or not 1 <= int(header[1]) <= MAX_SCRYPT_LOG_N:
        raise ConfigError(f"{file.path}: is not a private key that `appliance fleet` has made")
    password = _stretched(passphrase, bytes.fromhex(header[2]), int(header[1]))
    try:
        private = load_pem_private_key(text[begin:].encode(), password)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise WrongPassphraseError(f"{file.path}: the passphrase does not open this key") from error
    if not isinstance(private, Ed25519PrivateKey) or SSlibKey.from_crypto(private.public_key()) != file.public:
        raise ConfigError(f"{file.path}: its private and its public key are not a pair")
    return CryptoSigner(private, file.public)


def read_public(path: Path) -> SSlibKey:
    """A public key from a ``.pub`` or ``.pem`` file. ConfigError for anything else."""
    return _public_of(_text(path), path)


def public_text(key: SSlibKey) -> str:
    """As in a ``.pub`` file."""
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key.keyval["public"]))
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def id_of(key: Key) -> str:
    """The id that a key has by what it is; empty for a key of another kind than ours."""
    try:
        public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key.keyval["public"]))
    except (ValueError, KeyError, TypeError):
        return ""
    return SSlibKey.from_crypto(public).keyid if (key.keytype, key.scheme) == ("ed25519", "ed25519") else ""


def check_passphrase(passphrase: str) -> None:
    """ConfigError for one that is no protection."""
    if len(passphrase) < MIN_PASSPHRASE:
        raise ConfigError(
            f"the passphrase is shorter than {MIN_PASSPHRASE} characters; whoever has the key's file and guesses it "
            f"decides what runs on every device. Four random words are good"
        )


def passphrase_in(path: Path) -> str:
    """The first line of a file."""
    return next(iter(_text(path).splitlines()), "")


def _stretched(passphrase: str, salt: bytes, log_n: int) -> bytes:
    return Scrypt(salt=salt, length=32, n=1 << log_n, r=8, p=1).derive(passphrase.encode()).hex().encode()


def _public_of(text: str, path: Path) -> SSlibKey:
    begin = text.find("-----BEGIN PUBLIC KEY-----")
    try:
        public = load_pem_public_key(text[max(begin, 0) :].encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path}: has no public key; `appliance fleet key new` makes keys") from error
    if not isinstance(public, Ed25519PublicKey):
        raise ConfigError(f"{path}: is not an ed25519 key; `appliance fleet key new` makes one")
    return SSlibKey.from_crypto(public)


def _text(path: Path) -> str:
    try:
        with open_plain(path) as file:
            data = file.read(MAX_KEY_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        if len(data) > MAX_KEY_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_KEY_BYTES} bytes: not a key or passphrase")
        return data.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not text: not a key or passphrase") from error
