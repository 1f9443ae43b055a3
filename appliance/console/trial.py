"""What the trial of a handler shows while it runs: lines, and a bar below them on a terminal."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from appliance.console.plain import plain_console


class Bar:
    """Lines of text, and below them how far it is where somebody watches."""

    def __init__(self, lines: Console, bar: Progress, task: TaskID) -> None:
        self._lines = lines
        self._bar = bar
        self._task = task

    def line(self, text: str) -> None:
        self._lines.print(text, soft_wrap=True)

    def step(self) -> None:
        self._bar.advance(self._task)


@contextmanager
def progress(total: int | None) -> Iterator[Bar]:
    """A bar for ``total`` frames (None: nobody knows how many), on the terminal there is; without one, no bar."""
    lines = plain_console(stderr=False)
    screen = lines if lines.is_terminal else plain_console(stderr=True)
    columns = (TextColumn("{task.completed:.0f} frames"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bar:
        yield Bar(lines, bar, bar.add_task("", total=total))
