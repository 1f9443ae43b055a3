"""docs/fleet.md describes fleet.toml and the commands as they are."""

import re
from pathlib import Path

import click
from msgspec import inspect

from appliance.cli.fleet import fleet
from appliance.cli.fleet_key import MANY_ROOTS
from appliance.deploy.trust import MAX_ROOT_ROTATIONS
from appliance.fleet.broker import SETTLE_TOTAL_SECONDS
from appliance.fleet.publication import MAX_PIECES
from appliance.fleet.settings import PASSWORD_FILE_VARIABLE, FleetSettings
from appliance.fleet.watching import MAX_DEVICES, MAX_KEPT_BYTES

PAGE_DIRECTORY = Path(__file__).parents[2] / "docs"
PAGE = (PAGE_DIRECTORY / "fleet.md").read_text("utf-8")


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


def test_bounds_are_on_the_page_and_in_the_decision() -> None:
    words = " ".join(PAGE.split())
    assert f"the tools keep what {MAX_DEVICES} devices have said, {MAX_KEPT_BYTES >> 20} MiB of it" in words
    assert f"an end within {SETTLE_TOTAL_SECONDS / 60:.0f} minutes" in words
    assert f"at most {MAX_PIECES} pieces of files" in words
    assert f"no more than {MAX_ROOT_ROTATIONS} roots from the one they were given" in words
    assert f"from the {MANY_ROOTS}th on, the `key` commands warn" in words
    assert PASSWORD_FILE_VARIABLE in words
    decision = PAGE_DIRECTORY / "adr" / "0015-what-a-fleet-signs.md"
    assert f"follow {MAX_ROOT_ROTATIONS} of them from the one they were given" in " ".join(decision.read_text().split())


def test_every_command_explains_itself() -> None:
    def commands(group: click.Group) -> list[click.Command]:
        inner = list(group.commands.values())
        return [*inner, *(more for each in inner if isinstance(each, click.Group) for more in commands(each))]

    for command in commands(fleet):
        assert command.help
        assert command.short_help, command.name
        assert "appliance fleet" in command.help or command.name == "list", f"{command.name} has no example"
