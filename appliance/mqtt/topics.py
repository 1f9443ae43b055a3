"""The topics of one device: ``<prefix>/<device>/…``. ``docs/mqtt.md`` is the text of record."""

from dataclasses import dataclass

from appliance.config import check_prefix
from appliance.errors import ConfigError
from appliance.frame import is_name


@dataclass(frozen=True, slots=True)
class Topics:
    """Where a device publishes. ConfigError for a prefix or device that no topic can be made of."""

    prefix: str
    device: str

    def __post_init__(self) -> None:
        check_prefix("mqtt.prefix", self.prefix)
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

    @property
    def deployment(self) -> str:
        """Retained: what the device has of its fleet."""
        return f"{self.root}/deployment"

    def deployed(self, handler: str) -> str:
        """Retained: how far the deployment of a handler has come."""
        return f"{self.root}/deployment/{_name(handler)}"

    def command(self, name: str) -> str:
        """Requests to the device come here, and are answered where they say."""
        return f"{self.root}/command/{name}"

    @property
    def log(self) -> str:
        """Not retained: lines of the device's log."""
        return f"{self.root}/log"


def _name(text: str) -> str:
    if not is_name(text):
        raise ValueError(f"{text!r} is not a lower-case name of letters, digits, - and _")
    return text
