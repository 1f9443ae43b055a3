"""Consoles that take text as it is."""

from rich.console import Console


def plain_console(*, stderr: bool) -> Console:
    """A console that takes text as it is: labels and names of others are no markup."""
    return Console(stderr=stderr, markup=False, highlight=False, emoji=False)
