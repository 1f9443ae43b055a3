"""What ``--help`` shows can be typed as it stands."""

import re
import shlex
from collections.abc import Iterator

import click
import pytest

from appliance.cli.commands import cli


def commands(group: click.Group) -> Iterator[click.Command]:
    yield group
    for command in group.commands.values():
        yield from commands(command) if isinstance(command, click.Group) else [command]


def examples() -> list[str]:
    texts = [re.sub(r"\\\n\s*", "", command.help or "") for command in commands(cli)]
    lines = [line.strip() for text in texts for line in text.splitlines()]
    shown = [line.partition("appliance ")[2] for line in lines if re.match(r"([A-Z][^:]*:\s+)?appliance [a-z]", line)]
    return [re.split(r"  |[|>]| && ", line)[0] for line in shown]


@pytest.mark.parametrize("example", examples())
def test_an_example_has_the_options_and_arguments_that_its_command_wants(example: str) -> None:
    command: click.Command = cli
    context, words = click.Context(cli), shlex.split(example)
    while isinstance(command, click.Group) and words and words[0] in command.commands:
        command = command.commands[words.pop(0)]
        context = click.Context(command, parent=context)
    assert not (isinstance(command, click.Group) and set(words) - {"--help"})
    if not isinstance(command, click.Group):
        command.parse_args(context, words)  # UsageError
