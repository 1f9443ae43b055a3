"""The state directory: what a device keeps between starts, and the secrets nobody else may read."""

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from appliance.device.durable import write_durably, writing
from appliance.errors import ConfigError, DeviceError

STATE_VARIABLE = "APPLIANCE_STATE"
MIN_SECRET = 16
"""Characters, as configuration asks of a credential it holds itself."""
MAX_SECRET_BYTES = 4096
CREDENTIAL_BYTES = 32


@dataclass(frozen=True, slots=True)
class StateDirectory:
    path: Path

    @property
    def spool(self) -> Path:
        return self.path / "spool.sqlite"

    @property
    def address_file(self) -> Path:
        """``host port`` of the running zipper, for clients on this box."""
        return self.path / "zipper.address"

    @property
    def credential_file(self) -> Path:
        return self.path / "local.credential"

    @property
    def broker(self) -> Path:
        return self.path / "broker"

    @property
    def modules(self) -> Path:
        """What admission found of handlers' modules."""
        return self.path / "modules"

    @property
    def guest_models(self) -> Path:
        """Models that handlers have brought."""
        return self.path / "guest-models"

    @property
    def capsules(self) -> Path:
        """Crash capsules of handlers."""
        return self.path / "capsules"

    @property
    def quarantine(self) -> Path:
        """Records of handlers in quarantine."""
        return self.path / "quarantine"

    @property
    def deploy(self) -> Path:
        """What the fleet has deployed, and what is known of the fleet."""
        return self.path / "deploy"

    def local_credential(self) -> str:
        """The credential of processes on this box, made at first start, readable by its owner only."""
        if not self.credential_file.exists():
            secret = secrets.token_urlsafe(CREDENTIAL_BYTES).encode()
            with writing(self.path):
                write_durably(self.credential_file, secret, 0o600)
        return read_secret(self.credential_file)

    @contextmanager
    def announced(self, host: str, port: int) -> Iterator[None]:
        """Tell the programs on this box where the zipper listens, while the block lasts."""
        with writing(self.path):
            self.address_file.write_text(f"{host} {port}\n", "utf-8")
        try:
            yield
        finally:
            self.address_file.unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory: two appliances must not share keys, spool and broker."""
        with writing(self.path):
            lock = (self.path / "lock").open("w")
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(
                    f"{self.path} is in use by another running appliance; stop it, or choose another directory with "
                    f"--state or device.state_dir"
                ) from None
            yield


def open_state(configured: str) -> StateDirectory:
    """The directory from the configuration, $APPLIANCE_STATE or ~/.local/state/appliance; made where missing."""
    path = Path(configured or os.environ.get(STATE_VARIABLE) or Path.home() / ".local/state/appliance").expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise DeviceError(f"{path}: the state directory cannot be made: {error.strerror}; see --state") from error
    return StateDirectory(path.absolute())


def read_secret(path: Path) -> str:
    """A credential from a file, without the newline at its end; one that anybody could guess is refused."""
    try:
        with path.open("rb") as file:
            secret = file.read(MAX_SECRET_BYTES).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the secret cannot be read: {error}") from error
    if len(secret) < MIN_SECRET:
        raise ConfigError(f"{path}: the secret is shorter than {MIN_SECRET} characters")
    return secret
