"""What was sent to which broker: ``published.json`` in the fleet's directory.

It saves sending, and is not relied upon: what the broker really holds is looked at where the two differ.
"""

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from appliance.device.durable import write_durably
from appliance.errors import DeviceError
from appliance.fleet.publication import Held

LEDGER_FILE = "published.json"
MAX_LEDGER_BYTES = 64 << 20
MAX_BROKERS = 64


class _Ledgers(msgspec.Struct, forbid_unknown_fields=True):
    v: Literal[1] = 1
    brokers: Annotated[dict[str, Held], msgspec.Meta(max_length=MAX_BROKERS)] = msgspec.field(default_factory=dict)


class Ledger:
    """The ledger of one fleet at one broker. Its methods read and write a file: they block."""

    def __init__(self, directory: Path, broker: str, root: str) -> None:
        self._path = directory / LEDGER_FILE
        self._key = f"{broker}/{root}"

    def read(self) -> Held | None:
        """None where nothing is known: a broker not used before, or a file that cannot be read."""
        return self._all().brokers.get(self._key)

    def write(self, held: Held) -> None:
        """DeviceError where the disk does not take it."""
        ledgers = self._all()
        while len(ledgers.brokers) >= MAX_BROKERS and self._key not in ledgers.brokers:
            del ledgers.brokers[next(iter(ledgers.brokers))]
        ledgers.brokers[self._key] = held
        try:
            write_durably(self._path, msgspec.json.format(msgspec.json.encode(ledgers, order="sorted"), indent=0))
        except OSError as error:
            raise DeviceError(f"{self._path}: cannot be written: {error.strerror}") from error

    def _all(self) -> _Ledgers:
        try:
            with self._path.open("rb") as file:
                return msgspec.json.decode(file.read(MAX_LEDGER_BYTES), type=_Ledgers, strict=True)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return _Ledgers()
