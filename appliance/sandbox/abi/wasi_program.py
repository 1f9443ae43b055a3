"""What a running guest has been given, and how it ends itself."""

from collections.abc import Callable
from dataclasses import dataclass, field

from appliance.sandbox.abi.wasi_files import FileSystem
from appliance.sandbox.engine import GuestFailedError
from appliance.sandbox.messages import MAX_LOG_LINE


class ExitError(GuestFailedError):
    """The guest has ended itself. A convention that expects it catches it; in all others it is a trap."""

    def __init__(self, status: int) -> None:
        super().__init__("trap", f"it ended itself with exit status {status} (proc_exit)")
        self.status = status


class LineLog:
    """A stream whose lines go to the handler's log. A line that is not ended waits for its end, over frames, too."""

    def __init__(self, say: Callable[[bytes], None]) -> None:
        self._say = say
        self._line = bytearray()
        self.last = b""
        """The last line that was not empty."""

    def write(self, data: bytes) -> None:
        *ended, rest = data.split(b"\n")
        for part in ended:
            self._extend(part)
            self.flush()
        self._extend(rest)

    def _extend(self, part: bytes) -> None:
        self._line += part[: MAX_LOG_LINE - len(self._line)]

    def flush(self) -> None:
        """The line so far is a line."""
        if self._line.strip():
            self.last = bytes(self._line)
            self._say(self.last)
        self._line.clear()


@dataclass
class Program:
    """What a running guest has been given."""

    files: FileSystem = field(default_factory=FileSystem)
    arguments: tuple[bytes, ...] = ()
