"""Runs a command on copies of a fleet's directory, killed at its first change of a file, at its second, and so on.

``killed_tool.py FLEET WORK COMMAND…``, where ``PLACE`` is the copy's path. Afterwards ``WORK/1``, ``WORK/2`` … are
what the killed tools left; the last one was not killed. A kill is an exit at an audit event: nothing of the tool's own
runs any more.
"""

import os
import shutil
import sys
from pathlib import Path

import appliance.fleet.checks
import appliance.fleet.keys
from appliance.cli.commands import cli

MAX_CHANGES = 500
CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "os.link", "os.truncate"}


async def _good(directory: Path) -> None:
    """Modules are not judged: that takes a process each time."""


def _run_killed_at(number: int, command: list[str]) -> None:
    """Exits with 9 before change ``number``, or as the command does."""
    left = number

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if event in CHANGES or writes:
            left -= 1
            if left == 0:
                os._exit(9)

    sys.addaudithook(count)
    try:
        cli(["fleet", *command], standalone_mode=False)
    except SystemExit as end:
        os._exit(int(end.code or 0))
    except BaseException:  # noqa: BLE001 - a child must not go on as its parent; the test sees the exit code
        os._exit(1)
    os._exit(0)


def main(template: str, work: str, *command: str) -> int:
    appliance.fleet.keys.SCRYPT_LOG_N = 4
    appliance.fleet.checks.check_module = _good
    for number in range(1, MAX_CHANGES):
        place = Path(work) / str(number)
        shutil.copytree(template, place)
        os.environ["APPLIANCE_FLEET"] = str(place)
        child = os.fork()
        if child == 0:
            _run_killed_at(number, [word.replace("PLACE", str(place)) for word in command])
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status != 9:
            return status
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
