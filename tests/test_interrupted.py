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
    if event == "import" and arguments[0] == module:
        os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, getattr(signal, sys.argv.pop(1)))
module = sys.argv.pop(1)
sys.addaudithook(interrupt)
from appliance.cli import main
main()
"""


def interrupted_at_an_import(handling: str, module: str, *command: str) -> "subprocess.CompletedProcess[str]":
    words = [sys.executable, "-c", AT_AN_IMPORT, handling, module, *command]
    return subprocess.run(words, check=False, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("appliance.cli.run", ["--version"]),
        ("aioquic.tls", ["source"]),
        ("aioquic.tls", ["run"]),
        ("aioquic.tls", ["zipper"]),
        ("appliance.author.trial", ["handler", "test", ".", "."]),
        ("appliance.author.trial", ["handler", "bench", ".", "."]),
    ],
)
def test_while_modules_are_imported_nothing_is_said(module: str, command: list[str]) -> None:
    done = interrupted_at_an_import("default_int_handler", module, *command)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_what_ignores_interrupts_goes_on_doing_so() -> None:
    done = interrupted_at_an_import("SIG_IGN", "appliance.cli.run", "--version")
    assert done.returncode == 0
    assert "version" in done.stdout


def test_a_command_that_is_interrupted_has_an_exit_code_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("appliance.cli.machine.check_config", interrupt)
    done = CliRunner().invoke(cli, ["config"])
    assert done.exit_code == EXIT_INTERRUPTED == 128 + signal.SIGINT
    assert done.stderr == "appliance: interrupted\n"
