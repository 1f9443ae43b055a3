"""Standard output and standard error that cannot be written: the disk is full, or who read them has gone."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

EXIT_OUTPUT = os.EX_IOERR
"""As sysexits.h has it."""


@contextmanager
def watched_output() -> Iterator[None]:
    """A command whose output cannot be written ends with one line and EXIT_OUTPUT, whatever came of that error.

    Where nobody reads it any more the command ends as it likes to. What standard error does not take is dropped.
    """
    if not (isinstance(sys.stdout, io.TextIOWrapper) and isinstance(sys.stderr, io.TextIOWrapper)):
        # closed from the beginning, or somebody's own
        yield
        return
    output, errors = _Stream(sys.stdout), _Stream(sys.stderr, dropping=True)
    sys.stdout, sys.stderr = output.text, errors.text
    try:
        yield
    finally:
        with suppress(OSError):
            output.text.flush()
        if output.error is not None and not isinstance(output.error, BrokenPipeError):
            sys.stderr.write(f"appliance: cannot write to standard output: {output.error.strerror}\n")
            raise SystemExit(EXIT_OUTPUT)


class _Stream(io.FileIO):
    """Remembers why it could not be written, and drops the rest: that was said once, and is enough."""

    def __init__(self, like: io.TextIOWrapper, *, dropping: bool = False) -> None:
        """``dropping``: it is not even said."""
        super().__init__(like.fileno(), "w", closefd=False)
        self.error: OSError | None = None
        self._dropping = dropping
        self.text = io.TextIOWrapper(
            io.BufferedWriter(self),
            encoding=like.encoding,
            errors=like.errors,
            line_buffering=like.line_buffering or like.write_through,
        )

    def write(self, data: "ReadableBuffer") -> int:
        if self.error is None:
            try:
                return super().write(data)
            except OSError as error:
                self.error = error
                if not self._dropping:
                    raise
        return memoryview(data).nbytes
