"""The commands about a fleet's keys: who may sign what."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from appliance.cli.fleet_options import (
    desk,
    fleet_option,
    given_passphrase,
    key_options,
    new_passphrase,
    passphrase_option,
    say,
    send,
    send_option,
    tell,
    utc_now,
)
from appliance.cli.options import clear_errors
from appliance.errors import ConfigError

if TYPE_CHECKING:
    from securesystemslib.signer import SSlibKey

    from appliance.fleet.repository import Fleet
    from appliance.fleet.signing import Settled

MIN_KEY_ID = 8
"""Digits of a key's id that are enough to name it."""
MANY_ROOTS = 768
"""From this version of the root on people are warned: a device follows no more than 1024 from the one it was given."""


@click.group(short_help="Who may sign what: keys, developers, thresholds, rotation.")
def key() -> None:
    """Who may sign what in a fleet.

    The fleet's own roles are root (says whose keys count), targets (which handlers there are, and what devices
    should run), snapshot and timestamp (what is the newest). A developer has a role, too, for handlers whose names
    begin with a prefix. Each role has keys and a threshold: so many of them have to sign.

    \b
    appliance fleet key new ~/acme                          a developer makes a pair, and sends you ~/acme.pub
    appliance fleet key delegate acme --prefix acme- --public acme.pub
    appliance fleet key list
    appliance fleet key rotate timestamp                    when a key may be known to others
    appliance fleet key revoke acme                         nothing of acme's is taken any more
    """  # noqa: D301 - click wants the character \b


@key.command(short_help="Make a pair of keys.")
@click.argument("path", metavar="NAME", type=click.Path(path_type=Path))
@passphrase_option
def new(path: Path, passphrase_file: Path | None) -> None:
    """Make NAME.pem, a private key that a passphrase of 12 characters or more protects, and NAME.pub for others.

    \b
    appliance fleet key new ~/acme             for a developer
    appliance fleet key new keys/root-2        a second root key, for a threshold
    """  # noqa: D301 - click wants the character \b
    from appliance.fleet.keys import PRIVATE, PUBLIC, new_key  # noqa: PLC0415

    private = path.expanduser().with_name(path.name + PRIVATE)
    with clear_errors():
        made = new_key(private, new_passphrase(passphrase_file, str(private)))
    click.echo(f"{made.keyid}\nkeep {private}; {private.with_suffix(PUBLIC)} may go anywhere")


@key.command("list", short_help="Roles, their keys, thresholds and when they expire.")
@fleet_option
def list_keys(directory: Path) -> None:
    """List roles with threshold, date of expiry, and keys; a key with a file in keys/ has its name beside it."""
    from appliance.fleet.describing import roles_of  # noqa: PLC0415
    from appliance.fleet.repository import Fleet  # noqa: PLC0415

    with clear_errors():
        for line in roles_of(Fleet.open(directory)):
            click.echo(line)


@key.command(short_help="Print the public key of a role, for others.")
@click.argument("which", metavar="ROLE|KEYID")
@fleet_option
def export(which: str, directory: Path) -> None:
    """Print public keys of a role or developer, or one key by its id (or the beginning of it).

    \b
    appliance fleet key export targets > targets.pub
    """  # noqa: D301 - click wants the character \b
    from appliance.fleet.keys import public_text  # noqa: PLC0415
    from appliance.fleet.repository import Fleet  # noqa: PLC0415

    with clear_errors():
        fleet = Fleet.open(directory)
        keys = _keys(fleet)
        for keyid in _keyids(fleet, which) or [_one(which, keys)]:
            click.echo(public_text(keys[keyid]), nl=False)


@key.command(short_help="Let a developer sign handlers of a prefix.")
@click.argument("developer")
@click.option("--prefix", "prefixes", multiple=True, required=True, help="Handlers' names begin so: acme-. Repeatable.")
@click.option("--public", "publics", multiple=True, required=True, metavar="FILE.pub", type=click.Path(path_type=Path))
@click.option(
    "--threshold", type=click.IntRange(min=1), default=1, show_default=True, help="So many keys have to sign."
)
@send_option
@key_options
def delegate(
    developer: str,
    prefixes: tuple[str, ...],
    publics: tuple[Path, ...],
    threshold: int,
    no_send: bool,
    directory: Path,
    key_paths: tuple[Path, ...],
    passphrase_file: Path | None,
) -> None:
    """Let DEVELOPER sign handlers whose names begin with a prefix. Given again, it replaces prefixes and keys.

    What may be signed is one thing, what runs another: that is still for you to say, by `deploy`, version by version.

    \b
    appliance fleet key delegate acme --prefix acme- --public acme.pub
    appliance fleet key delegate acme --prefix acme- --public a.pub --public b.pub --public c.pub --threshold 2
    """  # noqa: D301 - click wants the character \b
    from appliance.fleet.desk import carry_out  # noqa: PLC0415
    from appliance.fleet.draft import Draft  # noqa: PLC0415
    from appliance.fleet.keys import read_public  # noqa: PLC0415

    with desk(directory, key_paths, passphrase_file) as (fleet, keys):
        draft = Draft(fleet, utc_now())
        draft.delegate(developer, prefixes, [read_public(path) for path in publics], threshold)
        settled = carry_out(draft, keys)
    _finish(settled, directory, no_send=no_send)


@key.command(short_help="Take a key, or a developer, away.")
@click.argument("role", metavar="ROLE|DEVELOPER")
@click.option("--old", metavar="KEYID|FILE.pub", help="The key. Without it, the whole developer.")
@click.option("--threshold", type=click.IntRange(min=1), help="So many of the others have to sign.")
@send_option
@key_options
def revoke(
    role: str,
    old: str | None,
    threshold: int | None,
    no_send: bool,
    directory: Path,
    key_paths: tuple[Path, ...],
    passphrase_file: Path | None,
) -> None:
    """Take one key of a role away, or a developer with all handlers.

    What the key has signed is not taken any more, unless enough others have signed it, too. Handlers that run go on
    until they are undeployed.

    \b
    appliance fleet key revoke acme                    nothing of acme's is taken any more
    appliance fleet key revoke acme --old b.pub
    appliance fleet key revoke root --old 3f2a9c01 --threshold 1
    """  # noqa: D301 - click wants the character \b
    from appliance.fleet.desk import carry_out  # noqa: PLC0415
    from appliance.fleet.draft import Draft  # noqa: PLC0415
    from appliance.fleet.state import TOP_LEVEL  # noqa: PLC0415

    with desk(directory, key_paths, passphrase_file) as (fleet, keys):
        draft = Draft(fleet, utc_now())
        if role not in TOP_LEVEL and old is None:
            draft.revoke_developer(role)
        elif old is None:
            raise ConfigError(f"{role} cannot be without a key: name the one to take away with --old")
        elif role in TOP_LEVEL:
            draft.set_keys(role, [_one(old, _keys(fleet), _keyids(fleet, role))], [], threshold)
        else:
            draft.revoke_key(role, _one(old, _keys(fleet), _keyids(fleet, role)), threshold)
        settled = carry_out(draft, keys)
    _finish(settled, directory, no_send=no_send)


@key.command(short_help="Give a role of the fleet's own one more key.")
@click.argument("role")
@click.argument("public", metavar="FILE.pub", type=click.Path(path_type=Path))
@click.option("--threshold", type=click.IntRange(min=1), help="So many keys have to sign from now on.")
@send_option
@key_options
def add(
    role: str,
    public: Path,
    threshold: int | None,
    no_send: bool,
    directory: Path,
    key_paths: tuple[Path, ...],
    passphrase_file: Path | None,
) -> None:
    """Give root, targets, snapshot or timestamp one more key. It takes the root key to do so.

    \b
    appliance fleet key add root keys/root-2.pub --threshold 2
    """  # noqa: D301 - click wants the character \b
    from appliance.fleet.desk import carry_out  # noqa: PLC0415
    from appliance.fleet.draft import Draft  # noqa: PLC0415
    from appliance.fleet.keys import read_public  # noqa: PLC0415

    with desk(directory, key_paths, passphrase_file) as (fleet, keys):
        draft = Draft(fleet, utc_now())
        draft.set_keys(_own(role), [], [read_public(public)], threshold)
        settled = carry_out(draft, keys)
    _finish(settled, directory, no_send=no_send)


@key.command(short_help="Replace a key of a role by a new one.")
@click.argument("role")
@click.option("--old", metavar="KEYID|FILE.pub", help="The key to replace, where the role has several.")
@click.option(
    "--new", "public", metavar="FILE.pub", type=click.Path(path_type=Path), help="The new key; default: one is made."
)
@send_option
@key_options
def rotate(
    role: str,
    old: str | None,
    public: Path | None,
    no_send: bool,
    directory: Path,
    key_paths: tuple[Path, ...],
    passphrase_file: Path | None,
) -> None:
    """Replace a key of root, targets, snapshot or timestamp. It takes the root key to do so, but not the old key.

    Devices follow by themselves: the new root is signed by the old root keys and the new ones. The new key lies in
    keys/, with the passphrase that you give for all keys, or are asked for.

    \b
    appliance fleet key rotate timestamp
    appliance fleet key rotate root --key /media/safe/root.pem
    """  # noqa: D301 - click wants the character \b
    from appliance.fleet.desk import carry_out, free_name  # noqa: PLC0415
    from appliance.fleet.draft import Draft  # noqa: PLC0415
    from appliance.fleet.keys import make_key, read_public  # noqa: PLC0415

    with desk(directory, key_paths, passphrase_file) as (fleet, keys):
        draft, present = Draft(fleet, utc_now()), _keyids(fleet, _own(role))
        if old is None and len(present) > 1:
            raise ConfigError(f"{role} has {len(present)} keys: name the one to replace with --old")
        gone = _one(old, _keys(fleet), present) if old is not None else present[0]
        made = {}
        if public is None:
            name = free_name(directory, role)
            given = given_passphrase(passphrase_file)
            made[name] = make_key(given if given is not None else new_passphrase(None, f"keys/{name}.pem"))
            keys.add(name, made[name])
        added = [read_public(public)] if public else [each.public for each in made.values()]
        draft.set_keys(role, [gone], added, None)
        settled = carry_out(draft, keys, made)
        for name in made:
            say(f"keys/{name}.pem is the new key of {role}; the old one counts no more")
    _finish(settled, directory, no_send=no_send)


def _finish(settled: "Settled", directory: Path, *, no_send: bool) -> None:
    _warn_of_roots(directory)
    tell(settled)
    if not no_send:
        send(directory)


def _warn_of_roots(directory: Path) -> None:
    from appliance.deploy.trust import MAX_ROOT_ROTATIONS  # noqa: PLC0415
    from appliance.fleet.repository import Fleet  # noqa: PLC0415

    with clear_errors():
        version = Fleet.open(directory).state.root.signed.version
    if version >= MANY_ROOTS:
        click.echo(
            f"warning: this is root {version}, and a device follows no more than {MAX_ROOT_ROTATIONS} roots from the "
            "one that it was given: give devices metadata/root.json anew (fleet.root), the oldest first",
            err=True,
        )


# --- keys by what people call them ---------------------------------------------------------------------------


def _own(role: str) -> str:
    from appliance.fleet.state import TOP_LEVEL  # noqa: PLC0415

    if role not in TOP_LEVEL:
        raise ConfigError(f"{role} is not one of {', '.join(TOP_LEVEL)}; a developer's keys: `fleet key delegate`")
    return role


def _keys(fleet: "Fleet") -> "dict[str, SSlibKey]":
    """All public keys of a fleet, by id."""
    from appliance.fleet.describing import keys_of  # noqa: PLC0415

    return keys_of(fleet)


def _keyids(fleet: "Fleet", role: str) -> list[str]:
    """Of a role or developer; empty for what is none."""
    from appliance.fleet.describing import keyids_of  # noqa: PLC0415

    return keyids_of(fleet, role)


def _one(text: str, keys: "dict[str, SSlibKey]", among: Iterable[str] | None = None) -> str:
    """The id of the key that is meant: the beginning of its id, or a file with it."""
    from appliance.fleet.keys import read_public  # noqa: PLC0415

    known = list(keys if among is None else among)
    if Path(text).is_file():
        keyid = read_public(Path(text)).keyid
        found = [keyid] if keyid in known else []
    else:
        found = [keyid for keyid in known if len(text) >= MIN_KEY_ID and keyid.startswith(text)]
    if len(found) != 1:
        raise ConfigError(f"{text}: is not one of these keys: {', '.join(keyid[:12] for keyid in known)}")
    return found[0]
