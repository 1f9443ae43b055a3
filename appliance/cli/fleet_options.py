"""What the fleet's commands share: where the fleet is, keys and passphrases, and how it went."""

import asyncio
import getpass
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from appliance.cli.options import clear_errors
from appliance.errors import ApplianceError, ConfigError

if TYPE_CHECKING:
    from appliance.deploy.desired import Assignment
    from appliance.fleet.draft import Draft
    from appliance.fleet.keys import Keyring
    from appliance.fleet.repository import Fleet
    from appliance.fleet.signing import Settled

EXIT_WAITS = 3
"""Nothing went wrong, but signatures of others are needed before devices see anything of it."""
CLOSING = ("snapshot", "timestamp")
"""Roles whose keys the operator has, and no developer: nobody is asked to sign for them alone."""
FLEET_VARIABLE = "APPLIANCE_FLEET"
PASSPHRASE_VARIABLE = "APPLIANCE_FLEET_PASSPHRASE"  # noqa: S105 - its name, not its value
TRIES = 3

Command = TypeVar("Command", bound=Callable[..., Any])

fleet_option = click.option(
    "-C",
    "--fleet",
    "directory",
    type=click.Path(path_type=Path),
    envvar=FLEET_VARIABLE,
    default=".",
    help=f"The fleet's directory. Default: ${FLEET_VARIABLE}, or the current one.",
)
passphrase_option = click.option(
    "--passphrase-file",
    type=click.Path(path_type=Path),
    help=f"Its first line opens the keys. Default: ${PASSPHRASE_VARIABLE}, or you are asked.",
)
dry_run_option = click.option("--dry-run", is_flag=True, help="Show what would change, and change nothing.")
send_option = click.option("--no-send", is_flag=True, help="Sign only; `appliance fleet refresh` sends it.")


def key_options(command: Command) -> Command:
    """The options of every command that signs."""
    key = click.option(
        "--key",
        "key_paths",
        multiple=True,
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="A private key beside those in keys/ of the fleet's directory. Repeatable.",
    )
    return fleet_option(key(passphrase_option(command)))


# --- passphrases ---------------------------------------------------------------------------------------------


def given_passphrase(file: Path | None) -> str | None:
    """From the file or the environment; None where somebody has to be asked."""
    from appliance.fleet.keys import passphrase_in  # noqa: PLC0415

    return passphrase_in(file) if file is not None else os.environ.get(PASSPHRASE_VARIABLE)


def new_passphrase(file: Path | None, what: str) -> str:
    """For keys that are made now; asked twice where it is typed. ConfigError for one that is no protection."""
    from appliance.fleet.keys import check_passphrase  # noqa: PLC0415

    given = given_passphrase(file)
    if given is None:
        given = _prompt(f"New passphrase for {what}", confirm=True)
    check_passphrase(given)
    return given


def passphrases(file: Path | None) -> Callable[[Path, int], str | None]:
    """Gives the passphrase of a key to try; None after those there are. One that was typed is tried for all keys."""
    typed: list[str] = []

    def ask(path: Path, attempt: int) -> str | None:
        given = given_passphrase(file)
        if given is not None:
            return given if attempt == 0 else None
        if attempt == 0 and typed:
            return typed[-1]
        if attempt > TRIES:
            return None
        typed.append(_prompt(f"Passphrase of {path}"))
        return typed[-1]

    return ask


def _prompt(text: str, *, confirm: bool = False) -> str:
    try:
        with warnings.catch_warnings(action="error", category=getpass.GetPassWarning):
            answer = click.prompt(text, hide_input=True, confirmation_prompt=confirm, err=True)
    except (click.Abort, getpass.GetPassWarning):  # the latter: there is no terminal
        raise ConfigError(
            f"no passphrase was given; type it, or use --passphrase-file or ${PASSPHRASE_VARIABLE}"
        ) from None
    return str(answer)


# --- a fleet and its keys ------------------------------------------------------------------------------------


@contextmanager
def desk(directory: Path, key_paths: Iterable[Path], passphrase_file: Path | None) -> "Iterator[tuple[Fleet, Keyring]]":
    """A fleet to be changed, with the keys at hand; errors are one line."""
    from appliance.fleet.desk import opened  # noqa: PLC0415
    from appliance.fleet.keys import keyring  # noqa: PLC0415
    from appliance.fleet.repository import KEYS  # noqa: PLC0415

    with clear_errors(), opened(directory) as fleet:
        yield fleet, keyring([directory / KEYS], key_paths, passphrases(passphrase_file))


def utc_now() -> datetime:
    return datetime.now(UTC)


def publish_bundle(draft: "Draft", bundle: Path, role: str) -> "tuple[str, Assignment]":
    """Add a handler's directory to what is to be signed, unless it is signed as it is."""
    from appliance.deploy.desired import Assignment  # noqa: PLC0415
    from appliance.deploy.packing import pack  # noqa: PLC0415
    from appliance.fleet.checks import check_module  # noqa: PLC0415

    packed = pack(bundle)
    name, version = packed.bundle.name, packed.bundle.version
    assignment = Assignment(version=version, digest=packed.digest)
    there = draft.fleet.find(name, version)
    if there is None or (there.digest, there.role) != (packed.digest, role):
        asyncio.run(check_module(bundle))
        files = {packed.bundle.files[file].sha256: path for file, path in packed.files.items()}
        draft.add_bundle(role, name, version, packed.index, files)
    return name, assignment


def say(text: str) -> None:
    """A line about what is signed already: that is sent though nobody reads it, or the disk is full."""
    with suppress(OSError):
        click.echo(text)


def tell(settled: "Settled") -> None:
    """What is in force and what waits. Ends the command with EXIT_WAITS where all of it waits."""
    if settled.in_force:
        say(f"signed: {', '.join(settled.in_force)}")
    for missing in settled.missing:
        say(f"waits:  {missing}")
    lacking = [missing.role for missing in settled.missing if missing.role not in CLOSING]
    if lacking:
        say(f"        who has such a key adds it: `appliance fleet sign {lacking[0]} --key FILE`")
    elif settled.missing:
        say("        commit metadata/pending/ and targets/: the operator's `appliance fleet refresh` takes them in")
    if not settled.in_force:
        raise SystemExit(EXIT_WAITS)


def send(directory: Path, *, sweep: bool = False) -> bool:
    """Bring what is signed to the broker; False where the fleet has none. Called without the lock."""
    with clear_errors():
        try:
            return _send(directory, sweep=sweep)
        except (ApplianceError, KeyboardInterrupt):
            click.echo("it is signed, but not sent; `appliance fleet refresh` sends it", err=True)
            raise


def _send(directory: Path, *, sweep: bool) -> bool:
    from appliance.console.fleet import fleet_display  # noqa: PLC0415
    from appliance.console.plain import plain_console  # noqa: PLC0415
    from appliance.fleet.operate import synchronise  # noqa: PLC0415
    from appliance.fleet.repository import Fleet  # noqa: PLC0415

    fleet = Fleet.open(directory)
    if not fleet.settings.mqtt.url:
        click.echo("not sent: fleet.toml has no mqtt.url", err=True)
        return False
    with fleet_display(plain_console(stderr=True)) as display:
        asyncio.run(synchronise(fleet, display, sweep=sweep))
    return True
