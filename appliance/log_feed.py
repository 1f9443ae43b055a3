"""The log over MQTT: lines as JSON on ``<prefix>/<device>/log``, as many as the broker can bear."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

import msgspec

from appliance.device.journal import text_of
from appliance.device.log_levels import unit_of
from appliance.mqtt.link import Message
from appliance.mqtt.result import rfc3339
from appliance.mqtt.topics import Topics

BURST = 100
"""Lines that are said at once, at most …"""
PER_SECOND = 20.0
"""… and how many a second after that; what is more is dropped and counted."""
OFF = logging.CRITICAL + 1
OWN = ("appliance.mqtt", "appliance.control", "appliance.log_feed")
"""What these say would be about saying it."""


class Voice(Protocol):
    """What of :class:`appliance.control.Control` is needed."""

    def say(self, message: Message) -> bool:
        """Send now or never: whether it was sent."""


class LogFeed(logging.Handler):
    """``with LogFeed(…)`` on the loop: hears all loggers, from any thread. ``level``: as ``mqtt.log_level``.

    What the log itself does not have is not said either.
    """

    def __init__(
        self, voice: Voice, topics: Topics, level: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        self._voice = voice
        self._topic = topics.log
        self._clock = clock
        self._lines: deque[tuple[bytes, int]] = deque()
        """With the number of dropped lines that each tells of."""
        self._tokens = float(BURST)
        self._at = clock()
        self._untold = 0
        self.dropped = 0
        """Lines since the start."""
        self.set_level(level)

    def set_level(self, level: str) -> None:
        self.setLevel(OFF if level == "off" else level.upper())

    def __enter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        logging.getLogger().addHandler(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        logging.getLogger().removeHandler(self)
        self._flush()

    def emit(self, record: logging.LogRecord) -> None:
        """Called by whoever logs, one at a time: a line is kept for the loop to say."""
        if record.name.startswith(OWN):
            return
        try:
            if not self._has_room():
                self.dropped += 1
                self._untold += 1
                return
            line = _line(round(record.created * 1e9), record.levelname.lower(), unit_of(record.name), text_of(record))
            if self._untold:
                told = _line(time.time_ns(), "warning", "log", f"event=log_dropped lines={self._untold}")
                self._lines.append((told, self._untold))
                self._untold = 0
            self._lines.append((line, 0))
            self._loop.call_soon_threadsafe(self._flush)
        except Exception:  # noqa: BLE001 - as all handlers of logging do: who logs shall not fail of it
            self.handleError(record)

    def _flush(self) -> None:
        self.acquire()  # other threads log
        try:
            while self._lines:
                line, told = self._lines.popleft()
                if not self._voice.say(Message(self._topic, line, qos=0)):
                    self.dropped += 0 if told else 1
                    self._untold += told or 1
        finally:
            self.release()

    def _has_room(self) -> bool:
        now = self._clock()
        self._tokens = min(float(BURST), self._tokens + (now - self._at) * PER_SECOND)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


def _line(at_ns: int, level: str, unit: str, text: str) -> bytes:
    return msgspec.json.encode({"at": rfc3339(at_ns), "level": level, "unit": unit, "text": text})
