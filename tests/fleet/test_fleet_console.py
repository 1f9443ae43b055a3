"""What the operator sees."""

import asyncio
import datetime as dt
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from mosquitto import Mosquitto
from rich.console import Console
from test_fleet_broker import AT, device, parts, say

from appliance.cli.commands import cli
from appliance.console.fleet import Lines, Screen, fleet_display, show_status
from appliance.deploy.report import Progress
from appliance.fleet.desk import create
from appliance.fleet.keys import NewKey
from appliance.fleet.log_lines import LogLine
from appliance.fleet.settings import FleetMqtt, FleetSettings
from appliance.fleet.watching import NOT_TRIED_AGAIN, Arrival, Row, seconds_of

HOSTILE = "\x1b[2J\r\n\x9b[red]bad"
FETCHING = Arrival("a", "waiting", "fetching", "1.0.0", "", Progress(1, 4))


def console(*, terminal: bool) -> Console:
    return Console(
        file=io.StringIO(), force_terminal=terminal, width=160, markup=False, highlight=False, emoji=False,
        color_system=None,
    )  # fmt: skip


def text(some: Console) -> str:
    assert isinstance(some.file, io.StringIO)
    return some.file.getvalue()


def test_lines_come_when_something_has_changed() -> None:
    some = console(terminal=False)
    with fleet_display(some) as display:
        for sent in range(0, 1001, 10):
            display.sending(sent, 1000)
        for _ in range(3):
            display.devices([FETCHING, Arrival("b", "waiting", "silent", "", "silent for 10 s")])
        display.devices([Arrival("c", "waiting", "silent", "", "never heard of")])
        display.devices([Arrival("a", "failed", "refused", "1.0.0", HOSTILE)])
        display.say("done")
    lines = text(some).splitlines()
    assert lines[0] == "sent 100 bytes of 1.0 kB"
    assert lines[9] == "sent 1.0 kB of 1.0 kB"
    assert lines[10:] == [
        "a  fetching  1.0.0",
        "b  silent",
        "c  silent  never heard of",
        "a  refused  1.0.0   [2J   [red]bad",
        "done",
    ]


def test_lines_of_logs_are_text_or_json() -> None:
    line = LogLine("a", AT, "error", "zipper", HOSTILE)
    as_text, as_json = console(terminal=False), console(terminal=False)
    Lines(as_text).log_line(line)
    Lines(as_json, as_json=True).log_line(line)
    assert text(as_text) == f"{AT} a error   zipper:  [2J   [red]bad\n"
    assert json.loads(text(as_json))["text"] == HOSTILE.replace("\x9b", " ")
    assert text(as_json).isascii()


def test_nothing_to_send_is_not_told() -> None:
    for terminal in (False, True):
        some = console(terminal=terminal)
        with fleet_display(some) as display:
            display.sending(0, 0)
        assert "sen" not in text(some)


def test_a_screen_shows_what_is_sent_and_where_each_device_is() -> None:
    some = console(terminal=True)
    with fleet_display(some) as display:
        assert isinstance(display, Screen)
        display.sending(500, 1000)
        display.say("looking")
        display.devices([FETCHING, Arrival("b", "failed", "refused", "1.0.0", HOSTILE)])
        display.log_line(LogLine("a", AT, "error", "zipper", HOSTILE))
    shown = text(some)
    assert "0.5/1.0 kB" in shown
    assert "looking" in shown
    last = shown.rpartition("of 2 have answered")[2]
    assert last.index("refused") < last.index("fetching")
    assert "fetching" in last
    assert "━" in last
    assert "[red]bad" in last
    assert "\x1b[2J" not in shown


ROWS = (
    Row("a", AT, "", "", "parts", "2.0.0", "1.0.0", "0.9.0", "1" * 64, "active", True, AT, HOSTILE),
    Row("b", AT, "silent for 2 h", "metadata stale since then", state="", reason=""),
)


@pytest.mark.parametrize("terminal", [False, True])
def test_status_is_a_table(terminal: bool) -> None:
    some = console(terminal=terminal)
    show_status(ROWS, some, seconds_of(AT) + 90)
    head, first, second = (" ".join(line.split()) for line in text(some).splitlines())
    assert head == "device seen handler desired current previous state since reason"
    assert first == "a 2 min ago parts 2.0.0 1.0.0 0.9.0 active, on trial 2 min ago [2J [red]bad"
    assert second == "b silent for 2 h - - - - - - metadata stale since then"
    assert ("\t" in text(some)) is not terminal


def test_on_a_narrow_terminal_nothing_of_a_name_is_left_out() -> None:
    some = console(terminal=True)
    some.width = 60
    show_status([Row("a", AT, "", "", "acme-counter", "2.0.0", "1.0.0", state="active", since=AT)], some, 0.0)
    assert "…" not in text(some)


def test_a_version_that_is_refused_is_not_the_one_on_trial() -> None:
    some = console(terminal=False)
    show_status([Row("a", AT, "", "", "parts", "2.0.0", "1.0.0", state="refused", trial=True, since=AT)], some, 0.0)
    assert text(some).splitlines()[1].split("\t")[6] == "desired refused, current on trial"


def test_a_device_without_a_clock_was_not_seen_decades_ago() -> None:
    some = console(terminal=False)
    row = Row("a", "1970-01-01T00:01:00Z", "", "", "parts", state="active", since="1970-01-01T00:00:05Z")
    show_status([row], some, seconds_of(AT))
    device, seen, *_, since, _ = text(some).splitlines()[1].split("\t")
    assert (device, seen, since) == ("a", "no clock", "no clock")


# --- commands ---------------------------------------------------------------------------------------------------


@pytest.fixture
def directory(tmp_path: Path, broker: Mosquitto, role_keys: dict[str, NewKey]) -> Path:
    """A fleet that is signed, and a device that has said something."""
    settings = FleetSettings(name="plant", mqtt=FleetMqtt(url=broker.url))
    create(tmp_path / "plant", settings, role_keys, dt.datetime.now(dt.UTC))
    return tmp_path / "plant"


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli, ["fleet", *arguments])
    return result.exit_code, result.stdout, result.stderr


async def test_status_prints_a_table_or_json(directory: Path, broker: Mosquitto) -> None:
    code, out, err = await asyncio.to_thread(run, "status", "-C", str(directory))
    assert (code, out) == (1, "")
    assert "no device of this fleet" in err
    await say(broker.port, [device("a"), parts("a", "refused", None, "traps")])
    code, out, err = await asyncio.to_thread(run, "status", "-C", str(directory))
    assert (code, err) == (0, f"{NOT_TRIED_AGAIN}\n")
    assert out.splitlines()[1].startswith("a\t")
    assert out.splitlines()[1].endswith("\ttraps")
    code, out, err = await asyncio.to_thread(run, "status", "--json", "-C", str(directory))
    assert (code, err) == (0, "")
    (row,) = json.loads(out)
    assert (row["device"], row["handler"], row["desired"], row["current"]) == ("a", "parts", "2.0.0", "")
    assert (row["state"], row["reason"]) == ("refused", "traps")
    await say(broker.port, [parts("a", "active")])
    assert (await asyncio.to_thread(run, "status", "-C", str(directory)))[2] == ""


def test_commands_name_what_is_wrong(directory: Path, broker: Mosquitto) -> None:
    assert run("logs", "a/b", "-C", str(directory))[0] == 2
    broker.kill()
    code, _, err = run("status", "-C", str(directory))
    assert code == 1
    assert "cannot be reached" in err
    code, _, err = run("status", "-C", str(directory.parent))
    assert code == 2
    assert "is not a fleet's directory" in err


def test_logs_say_that_they_listen_and_what_a_device_needs(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def follow(fleet: object, device: str, display: object, listening: Callable[[], None]) -> None:
        listening()
        raise KeyboardInterrupt

    monkeypatch.setattr("appliance.fleet.operate.follow_logs", follow)
    code, out, err = run("logs", "a", "--json", "-C", str(directory))
    assert (code, out) == (0, "")
    assert "listening to the log of a until Ctrl-C" in err
    assert "mqtt.log_level" in err
    assert "log.level" in err
