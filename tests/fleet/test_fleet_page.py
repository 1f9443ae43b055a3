"""docs/fleet.md describes fleet.toml and the commands as they are."""

import re
from pathlib import Path

import click
from msgspec import inspect

from appliance.cli.fleet import fleet
from appliance.fleet.settings import FleetSettings

PAGE = (Path(__file__).parents[2] / "docs" / "fleet.md").read_text("utf-8")


def keys(kind: inspect.StructType, path: str = "") -> dict[str, object]:
    """Key -> default, ``...`` where it is required."""
    found: dict[str, object] = {}
    for field in kind.fields:
        if isinstance(field.type, inspect.StructType):
            found |= keys(field.type, f"{path}{field.name}.")
        else:
            found[path + field.name] = ... if field.required else field.default
    return found


def test_every_key_is_on_the_page_with_its_default() -> None:
    table = PAGE.partition("### fleet.toml")[2].partition("\n#")[0]
    shown = dict(re.findall(r"^\| `([a-z_.]+)` \| [^|]+ \| ([^|]+) \|", table, re.MULTILINE))
    kind = inspect.type_info(FleetSettings)
    assert isinstance(kind, inspect.StructType)
    assert shown == {
        key: "required" if default is ... else f'`"{default}"`' if isinstance(default, str) else f"`{default}`"
        for key, default in keys(kind).items()
    }


def test_every_command_explains_itself() -> None:
    def commands(group: click.Group) -> list[click.Command]:
        inner = list(group.commands.values())
        return [*inner, *(more for each in inner if isinstance(each, click.Group) for more in commands(each))]

    for command in commands(fleet):
        assert command.help
        assert command.short_help, command.name
        assert "appliance fleet" in command.help or command.name == "list", f"{command.name} has no example"
