"""Ctrl-C while modules are imported."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Within this nothing was begun yet, and Ctrl-C ends the process at once and without a word.

    A KeyboardInterrupt would come out of an import as any other error, or be lost in it.
    """
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # and not what nohup ignores
    if ours:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
