"""Where a guest was when it trapped: the few functions that were called last, short enough for a log line.

wasm3 prints it, up to 2,048 lines, on standard error, which in a worker is a socket to itself. Function names are the
module's own, so they may hold anything.
"""

import os
import re
import socket

from appliance.sandbox.messages import MAX_BACKTRACE, MAX_BACKTRACE_LINE

KEPT_BYTES = 8 << 10
"""Of what was printed, the first are looked at: far more than MAX_BACKTRACE lines of usual names."""
STANDARD_ERROR = 2

_HEADER = b"==== wasm backtrace:"
_LINE = re.compile(rb"\s*(\d{1,4}): 0x([0-9a-f]{1,16}) - (.*)")
_NUMBERED = re.compile(r"\d+:(?=.)")
"""Names of a module that was rewritten begin with the function's number."""
_MODULE = ".unnamed!"
_NO_FUNCTION = b".unnamed!<unnamed>"
"""Where the stack is overrun wasm3 begins with a place that is none, and a number that is an address of the host."""


class PrintedBacktrace:
    """Standard error of this process, turned into a socket that it reads itself. Make it before the lockdown.

    A socket, since a worker may receive, but not read. What is beyond its buffer is lost.
    """

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            theirs.setblocking(False)
            os.dup2(theirs.fileno(), STANDARD_ERROR)
        self._ours.setblocking(False)

    def take(self) -> tuple[str, ...]:
        """The backtrace that was printed since the last call; nothing is left afterwards."""
        kept = bytearray()
        while part := self._waiting():
            kept += part[: KEPT_BYTES - len(kept)]
        return parse_backtrace(bytes(kept))

    def _waiting(self) -> bytes:
        try:
            return self._ours.recv(KEPT_BYTES)
        except BlockingIOError:
            return b""


def parse_backtrace(printed: bytes) -> tuple[str, ...]:
    """The innermost functions of what wasm3 printed, as ``0: 0x0000a2 deep``; none where it printed no backtrace."""
    _, header, body = printed.partition(_HEADER)
    found = []
    for line in body.splitlines() if header else ():
        match = _LINE.fullmatch(line)
        if match is not None and match[3] != _NO_FUNCTION:
            depth, offset, name = (part.decode("utf-8", "replace") for part in match.groups())
            found.append(frame_line(int(depth), int(offset, 16), name.removeprefix(_MODULE)))
        if len(found) == MAX_BACKTRACE:
            break
    return tuple(found)


def frame_line(depth: int, offset: int, name: str) -> str:
    """One line of a backtrace: ``offset`` is that of the instruction in the module, ``name`` the function's."""
    line = f"{depth}: 0x{offset:06x} {_NUMBERED.sub('', name, count=1) or '?'}"
    return "".join(letter if letter.isprintable() else "?" for letter in line[:MAX_BACKTRACE_LINE])
