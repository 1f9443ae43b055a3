"""What the fleet's commands show: bars and a live table on a terminal, plain lines elsewhere.

Reasons, versions and lines of logs come from devices and handlers: nothing of them steers a terminal.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import msgspec
from rich.console import Console, Group, RenderableType
from rich.filesize import decimal
from rich.live import Live
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from appliance.console.plain import plain_console
from appliance.fleet.log_lines import LogLine
from appliance.fleet.operate import Display
from appliance.fleet.watching import FIRST_CLOCK, NEVER_HEARD_OF, Arrival, Row, seconds_of, span
from appliance.text import printable

DRAW_SECONDS = 0.1
"""A screen is drawn again so often at most."""
STEP_PERCENT = 10
"""Lines about bytes come so often."""
BAR_WIDTH = 20
STYLES = {"converged": "green", "failed": "red", "waiting": "yellow"}
STATE_STYLES = {"active": "green", "refused": "red", "rolled-back": "red"}
COLUMNS = ("device", "seen", "handler", "desired", "current", "previous", "state", "since", "reason")


@contextmanager
def fleet_display(console: Console) -> Iterator[Display]:
    """What the console can show; what is on a screen at the end stays there."""
    if not console.is_terminal:
        yield Lines(console)
        return
    with Live(console=console, auto_refresh=False) as live:
        screen = Screen(live)
        try:
            yield screen
        finally:
            screen.draw()


# --- lines ------------------------------------------------------------------------------------------------------


class Lines:
    """One line for everything that changes. What is said goes to standard error where the rest is JSON."""

    def __init__(self, console: Console, *, as_json: bool = False) -> None:
        """``as_json``: lines of logs are JSON objects."""
        self._console = console
        self._as_json = as_json
        self._aside = plain_console(stderr=True) if as_json else console
        self._percent = 0
        self._shown: dict[str, tuple[str, ...]] = {}

    def say(self, text: str) -> None:
        self._aside.print(printable(text), soft_wrap=True)

    def sending(self, sent: int, total: int) -> None:
        percent = 100 * sent // total if total else 100
        if total and (percent == 100 or percent >= self._percent + STEP_PERCENT) and percent != self._percent:
            self._percent = percent
            self.say(f"sent {decimal(sent)} of {decimal(total)}")

    def devices(self, arrivals: Sequence[Arrival]) -> None:
        for arrival in arrivals:
            shown = (arrival.state, arrival.version, _reason(arrival))
            if self._shown.get(arrival.device) != shown:
                self._shown[arrival.device] = shown
                self.say("  ".join(filter(None, (arrival.device, *shown))))

    def log_line(self, line: LogLine) -> None:
        if self._as_json:
            self._console.print(printable(msgspec.json.encode(line).decode()), soft_wrap=True)
        else:
            self.say(_log_text(line))


def _log_text(line: LogLine) -> str:
    return f"{line.at} {line.device} {line.level:<7} {line.unit}: {line.text}"


def _reason(arrival: Arrival) -> str:
    """Without what changes from second to second."""
    return "" if arrival.state == "silent" and arrival.reason != NEVER_HEARD_OF else arrival.reason


# --- a screen ---------------------------------------------------------------------------------------------------


class Screen:
    """One live area: what is being sent, and how far the devices are."""

    def __init__(self, live: Live, clock: Callable[[], float] = time.monotonic) -> None:
        self._live = live
        self._clock = clock
        self._drawn = 0.0
        self._arrivals: Sequence[Arrival] = ()
        self._progress = Progress(
            TextColumn("sending"),
            BarColumn(BAR_WIDTH),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=live.console,
            auto_refresh=False,
        )
        self._task: TaskID | None = None

    def say(self, text: str) -> None:
        self._live.console.print(printable(text), soft_wrap=True)

    def sending(self, sent: int, total: int) -> None:
        if not total:
            return
        if self._task is None:
            self._task = self._progress.add_task("", total=total)
        self._progress.update(self._task, completed=sent, total=total)
        self._draw_soon()

    def devices(self, arrivals: Sequence[Arrival]) -> None:
        self._arrivals = tuple(arrivals)
        self._draw_soon()

    def log_line(self, line: LogLine) -> None:
        self.say(_log_text(line))

    def draw(self) -> None:
        parts: list[RenderableType] = []
        if self._task is not None:
            parts.append(self._progress)
        if self._arrivals:
            answered = sum(each.verdict != "waiting" for each in self._arrivals)
            parts += [f"{answered} of {len(self._arrivals)} have answered", _arrivals(self._arrivals)]
        self._live.update(Group(*parts), refresh=True)

    def _draw_soon(self) -> None:
        if (now := self._clock()) - self._drawn >= DRAW_SECONDS:
            self._drawn = now
            self.draw()


def _arrivals(arrivals: Sequence[Arrival]) -> Table:
    """What needs to be seen comes first: a screen has an end."""
    table = Table("device", "state", "version", "progress", "reason", box=None, padding=(0, 2))
    for arrival in sorted(arrivals, key=lambda each: ("failed", "waiting", "converged").index(each.verdict)):
        progress = arrival.progress
        bar: RenderableType = ""
        if progress is not None and progress.total > 0:
            bar = ProgressBar(progress.total, min(max(progress.received, 0), progress.total), width=BAR_WIDTH)
        state = Text(printable(arrival.state), STYLES[arrival.verdict])
        table.add_row(arrival.device, state, printable(arrival.version), bar, Text(printable(arrival.reason)))
    return table


# --- status -----------------------------------------------------------------------------------------------------


def show_status(rows: Sequence[Row], console: Console, now: float) -> None:
    """A table on a terminal; elsewhere a line for each row, its columns separated by tabs."""
    cells = [_cells(row, now) for row in rows]
    if not console.is_terminal:
        for line in (COLUMNS, *cells):
            console.file.write("\t".join(line) + "\n")  # rich would make spaces of tabs
        return
    # on a narrow terminal a name goes on in the next line: half of one is of no use
    table = Table(*(Column(name, overflow="fold") for name in COLUMNS), box=None, padding=(0, 2, 0, 0))
    for row, (device, seen, *some, state, since, reason) in zip(rows, cells, strict=True):
        shown = Text(state, STATE_STYLES.get(row.state, ""))
        table.add_row(device, Text(seen, "red" if row.silence else ""), *some, shown, since, Text(reason))
    console.print(table)


def _cells(row: Row, now: float) -> tuple[str, ...]:
    """Texts for ``COLUMNS``: times as how long ago, what is not there as ``-``."""
    since = _ago(row.since, now) if row.since else ""
    seen = row.silence or _ago(row.seen, now)
    reason = "; ".join(filter(None, (row.note, row.reason)))
    state = _state(row)
    cells = (row.device, seen, row.handler, row.desired, row.current, row.previous, state, since, reason)
    return tuple(printable(cell) or "-" for cell in cells)


def _state(row: Row) -> str:
    """What is on trial is what serves frames; any other state is of what is desired, another than that."""
    if not row.trial:
        return row.state
    return "active, on trial" if row.state == "active" else f"desired {row.state}, current on trial"


def _ago(text: str, now: float) -> str:
    """A time that a device has said, as how long ago; a device may have no clock, or not yet."""
    seconds = seconds_of(text)
    return f"{span(now - seconds)} ago" if seconds >= FIRST_CLOCK else "no clock"
