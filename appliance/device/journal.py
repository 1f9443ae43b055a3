"""Logging for people and for journald: one line an event, ``key=value`` or JSON.

Messages are written as ``event=name key=value …``. Under systemd (``JOURNAL_STREAM`` is set) each line starts
with its priority as ``<N>``, see sd-daemon(3), and without a time, which journald adds itself.
"""

import json
import logging
import os
import sys
import time
from typing import TextIO

MAX_LINE = 2000
"""A line longer than this is cut: nobody's data floods the journal."""
_PRIORITY = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(0x20), 0x7F)}


def _one_line(text: str) -> str:
    """Control characters escaped, length bounded."""
    line = text.translate(_ESCAPES)
    return line if len(line) <= MAX_LINE else line[: MAX_LINE - 1] + "…"


def text_of(record: logging.LogRecord) -> str:
    """What a record says, its traceback included: one line, bounded."""
    message = record.getMessage()
    if record.exc_info:
        message = f"{message} traceback={logging.Formatter().formatException(record.exc_info)!r}"
    return _one_line(message)


class LineFormatter(logging.Formatter):
    """One line for a record, whatever its message or traceback holds."""

    def __init__(self, unit: str, *, as_json: bool, journald: bool) -> None:
        super().__init__()
        self._unit = unit
        self._json = as_json
        self._journald = journald

    def format(self, record: logging.LogRecord) -> str:
        message = text_of(record)
        if self._json:
            body = json.dumps(
                {
                    "time": round(record.created, 3),
                    "level": record.levelname.lower(),
                    "unit": self._unit,
                    "logger": record.name,
                    "message": message,
                },
                ensure_ascii=False,
            )
        else:
            body = f"{record.levelname.lower()} unit={self._unit} logger={record.name} {message}"
        if self._journald:
            return f"<{_PRIORITY.get(record.levelno, 6)}>{body}"
        if self._json:
            return body
        stamp = time.strftime("%H:%M:%S", time.localtime(record.created))
        return f"{stamp}.{int(record.msecs):03d} {body}"


def configure_logging(unit: str, level: str, format: str, stream: TextIO | None = None) -> None:
    """Send all records of this process to ``stream`` (stderr). ``unit`` tells the processes apart."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(LineFormatter(unit, as_json=format == "json", journald="JOURNAL_STREAM" in os.environ))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # aioquic logs every stream and every handshake at INFO
    logging.getLogger("quic").setLevel(logging.WARNING)
