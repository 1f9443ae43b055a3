"""Standard output and standard error that cannot be written, at a command's process."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.cli.output import EXIT_OUTPUT

FULL = Path("/dev/full")
NO_SPACE = f"appliance: cannot write to standard output: {os.strerror(errno.ENOSPC)}\n"
AS_MAIN = "from appliance.cli.output import watched_output\nimport click, sys\nwith watched_output():\n    "

needs_full = pytest.mark.skipif(not FULL.is_char_device(), reason="there is no /dev/full")


def python(
    *arguments: str, stdout: int | None = None, stderr: int = subprocess.PIPE, **environment: str
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *arguments],
        check=False,
        stdout=subprocess.PIPE if stdout is None else stdout,
        stderr=stderr,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )


def nobody_reads() -> int:
    """A pipe whose other end is closed."""
    reads, writes = os.pipe()
    os.close(reads)
    return writes


@needs_full
@pytest.mark.slow
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", [["--help"], ["config"], ["handler", "new", "--help"]])
def test_a_command_says_that_its_output_cannot_be_written(command: list[str], unbuffered: str) -> None:
    with FULL.open("w") as full:
        done = python("-m", "appliance", *command, stdout=full.fileno(), PYTHONUNBUFFERED=unbuffered)
    assert (done.returncode, done.stderr) == (EXIT_OUTPUT, NO_SPACE)


@needs_full
@pytest.mark.parametrize(
    "body",
    [
        "sys.stdout.write('nobody flushes this')",
        "sys.stdout.write('much' * 100000)",
        "raise SystemExit(click.echo('and another exit code') or 4)",
        "try: sys.stdout.write('much' * 100000)\n    except OSError as error: raise ExceptionGroup('two', [error])",
    ],
)
def test_it_is_one_line_whatever_came_of_the_error(body: str) -> None:
    with FULL.open("w") as full:
        done = python("-c", AS_MAIN + body, stdout=full.fileno())
    assert (done.returncode, done.stderr) == (EXIT_OUTPUT, NO_SPACE)


def test_other_errors_are_left_alone() -> None:
    done = python("-c", AS_MAIN + "print('said'); open('/nonexistent')")
    assert (done.returncode, done.stdout) == (1, "said\n")
    assert done.stderr.splitlines()[-1].startswith("FileNotFoundError")
    done = python("-c", AS_MAIN + "print('said'); print('aside', file=sys.stderr); raise SystemExit(4)")
    assert (done.returncode, done.stdout, done.stderr) == (4, "said\n", "aside\n")


def test_standard_error_that_nobody_reads_ends_nothing() -> None:
    closed = nobody_reads()
    done = python("-c", AS_MAIN + "[click.echo('progress', err=True) for _ in range(9)]; print('done')", stderr=closed)
    os.close(closed)
    assert (done.returncode, done.stdout) == (0, "done\n")


def test_who_stops_reading_ends_a_command_without_a_word() -> None:
    closed = nobody_reads()
    done = python("-m", "appliance", "--help", stdout=closed)
    os.close(closed)
    assert (done.returncode, done.stderr) == (1, "")
