"""The topics of one device: ``<prefix>/<device>/…``. ``docs/mqtt.md`` is the text of record."""

import re
from dataclasses import dataclass

from appliance.errors import ConfigError
from appliance.frame import is_name

MAX_PREFIX = 128
_PREFIX = re.compile(r"[A-Za-z0-9_.-]+(?:/[A-Za-z0-9_.-]+)*")


@dataclass(frozen=True, slots=True)
class Topics:
    """Where a device publishes. ConfigError for a prefix or device that no topic can be made of."""

    prefix: str
    device: str

    def __post_init__(self) -> None:
        if len(self.prefix) > MAX_PREFIX or not _PREFIX.fullmatch(self.prefix):
            raise ConfigError(
                f"mqtt.prefix: {self.prefix!r} must be 1 to {MAX_PREFIX} letters, digits, - _ . and single / between"
            )
        if not is_name(self.device):
            raise ConfigError(f"device.name: {self.device!r} must be a lower-case name of letters, digits, - and _")

    @property
    def root(self) -> str:
        return f"{self.prefix}/{self.device}"

    @property
    def status(self) -> str:
        """Retained: the device's state, which the last will sets to ``lost``."""
        return f"{self.root}/status"

    @property
    def stats(self) -> str:
        """Not retained: counters and latencies."""
        return f"{self.root}/stats"

    def result(self, source: str, handler: str) -> str:
        """Not retained: what ``handler`` found in the frames of ``source``; ValueError for what is no name."""
        return f"{self.root}/result/{_name(source)}/{_name(handler)}"

    def camera(self, name: str) -> str:
        """Retained: the state of a camera."""
        return f"{self.root}/camera/{_name(name)}"

    def handler(self, name: str) -> str:
        """Retained: the state of a handler."""
        return f"{self.root}/handler/{_name(name)}"


def _name(text: str) -> str:
    if not is_name(text):
        raise ValueError(f"{text!r} is not a lower-case name of letters, digits, - and _")
    return text
