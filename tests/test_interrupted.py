"""Ctrl-C at a command, from its first moment on."""

import signal
import subprocess
import sys

import pytest
from click.testing import CliRunner

from appliance.cli.commands import EXIT_INTERRUPTED, cli

AT_AN_IMPORT = """
import os, signal, sys

def interrupt(event, arguments):
    if event == "import" and arguments[0] == "appliance.cli.run":
        os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, getattr(signal, sys.argv.pop(1)))
sys.addaudithook(interrupt)
from appliance.cli import main
main()
"""


def interrupted_at_an_import(handling: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", AT_AN_IMPORT, handling, "--version"]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


def test_while_the_commands_are_imported_nothing_is_said() -> None:
    done = interrupted_at_an_import("default_int_handler")
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_what_ignores_interrupts_goes_on_doing_so() -> None:
    done = interrupted_at_an_import("SIG_IGN")
    assert done.returncode == 0
    assert "version" in done.stdout


def test_a_command_that_is_interrupted_has_an_exit_code_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("appliance.cli.machine.check_config", interrupt)
    done = CliRunner().invoke(cli, ["config"])
    assert done.exit_code == EXIT_INTERRUPTED == 128 + signal.SIGINT
    assert done.stderr == "appliance: interrupted\n"
