"""What is kept of handlers that failed, in the state directory: crash capsules, and records of quarantines.

All of it blocks: call it off the event loop. OSError where the disk is full or fails.
"""

import logging
from datetime import UTC, datetime
from pathlib import Path

from appliance.device.durable import write_durably
from appliance.errors import ConfigError, DeviceError
from appliance.frame import is_name
from appliance.sandbox.capsule import MAX_CAPSULE_BYTES, Capsule, decode_capsule, encode_capsule
from appliance.sandbox.quarantine import MAX_RECORD_BYTES, Quarantined, decode_record, encode_record

log = logging.getLogger(__name__)

MAX_CAPSULES = 16
MAX_CAPSULES_BYTES = 32 << 20
"""Beyond either, the oldest capsules are removed."""
CAPSULE_SUFFIX = ".capsule"
RECORD_SUFFIX = ".json"
_SECRET = 0o600
"""Pictures are in them, and settings."""


class Capsules:
    """A ring of files, ``TIME-HANDLER-KIND.capsule``: their order by name is that of their times."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def write(self, capsule: Capsule) -> str:
        """Store it, durably, and remove what is too much; the name of its file."""
        self.directory.mkdir(mode=0o700, exist_ok=True)
        at = datetime.fromtimestamp(capsule.failure.at_ns // 10**9, UTC)
        stamp = f"{at:%Y%m%dT%H%M%S}.{capsule.failure.at_ns % 10**9 // 1000:06d}Z"
        name = f"{stamp}-{capsule.handler}-{capsule.failure.kind}{CAPSULE_SUFFIX}"
        data = encode_capsule(capsule)
        self._make_room(name, len(data))
        write_durably(self.directory / name, data, _SECRET)
        return name

    def _make_room(self, name: str, size: int) -> None:
        for left in self.directory.glob(f".*{CAPSULE_SUFFIX}.*"):  # of a write that a power cut ended
            left.unlink()
        files = sorted(path for path in self.directory.glob(f"*{CAPSULE_SUFFIX}") if path.name != name)
        sizes = [path.stat().st_size for path in files]
        while files and (len(files) >= MAX_CAPSULES or sum(sizes) + size > MAX_CAPSULES_BYTES):
            files.pop(0).unlink()
            sizes.pop(0)


def read_capsule(path: Path) -> Capsule:
    """ConfigError, which names the file, where it cannot be read or is no capsule."""
    try:
        with path.open("rb") as file:
            return decode_capsule(file.read(MAX_CAPSULE_BYTES + 1))
    except OSError as error:
        raise ConfigError(f"{path}: the capsule cannot be read: {error.strerror}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


class Quarantines:
    """One small file for each handler in quarantine, ``NAME.json``; removing it is what releases it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def write(self, record: Quarantined) -> None:
        self.directory.mkdir(mode=0o700, exist_ok=True)
        write_durably(self._path(record.handler), encode_record(record), _SECRET)

    def read(self, handler: str) -> Quarantined | None:
        """None where there is no record, or one that is damaged: of that, the log has a warning."""
        path = self._path(handler)
        try:
            with path.open("rb") as file:
                data = file.read(MAX_RECORD_BYTES + 1)
            if len(data) > MAX_RECORD_BYTES:
                raise ValueError(f"larger than {MAX_RECORD_BYTES} bytes")  # noqa: TRY301 - as damaged as the others
            return decode_record(data)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.warning("event=quarantine_record_damaged file=%s then=ignored error=%s", path, error)
            return None

    def there_is(self, handler: str) -> bool:
        return self._path(handler).exists()

    def all(self) -> list[Quarantined]:
        names = sorted(path.stem for path in self.directory.glob(f"*{RECORD_SUFFIX}") if is_name(path.stem))
        return [record for name in names if (record := self.read(name)) is not None]

    def release(self, handler: str) -> None:
        """Remove its record; ConfigError where there is none."""
        try:
            self._path(handler).unlink()
        except FileNotFoundError:
            others = ", ".join(record.handler for record in self.all()) or "none is"
            raise ConfigError(f"handler {handler!r} is not in quarantine; {others}") from None
        except OSError as error:
            raise DeviceError(f"{self._path(handler)}: cannot be removed: {error.strerror}") from error

    def _path(self, handler: str) -> Path:
        if not is_name(handler):
            raise ConfigError(f"{handler!r} is not the name of a handler")
        return self.directory / f"{handler}{RECORD_SUFFIX}"
