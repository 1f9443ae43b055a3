"""The commands of who runs a fleet: handlers are published, deployed and brought back, all signed."""

from pathlib import Path

import click

from appliance.cli.fleet_desired import deploy, rollback, undeploy
from appliance.cli.fleet_key import key
from appliance.cli.fleet_options import (
    desk,
    dry_run_option,
    key_options,
    new_passphrase,
    passphrase_option,
    publish_bundle,
    send,
    send_option,
    tell,
    utc_now,
)
from appliance.cli.fleet_watch import logs, status
from appliance.cli.options import clear_errors
from appliance.errors import ConfigError


@click.group(short_help="Deploy handlers to many boxes: keys, signatures, desired states.")
def fleet() -> None:
    """Deploy handlers to many boxes, over a broker that need not be trusted.

    A fleet is a directory that may live in git: metadata/ says, signed, which handlers there are and which of them
    each device should run; targets/ holds their files; keys/ holds your private keys, encrypted, and is not for git.
    docs/fleet.md begins at the beginning.

    \b
    appliance fleet init shops --name shops --broker mqtts://broker.example
    export APPLIANCE_FLEET=shops
    appliance fleet deploy ./motion --to device:gate      publish the directory, and run it on one box
    appliance fleet deploy motion --to all                then everywhere
    appliance fleet rollback motion --to all              back to what was there
    appliance fleet refresh                               from time to time: signatures expire
    """  # noqa: D301 - click wants the character \b


for _command in (deploy, undeploy, rollback, status, logs, key):
    fleet.add_command(_command)


@fleet.command(short_help="Make a fleet: its directory, keys and first metadata.")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--name", required=True, help="Of the fleet: lower-case letters, digits, - and _.")
@click.option(
    "--broker", default="", metavar="URL", help="mqtt://host[:port] or mqtts://…; fleet.toml can say it later."
)
@passphrase_option
def init(directory: Path, name: str, broker: str, passphrase_file: Path | None) -> None:
    """Make a fleet in DIRECTORY: four keys, signed metadata without any handler, and fleet.toml.

    The keys (root, targets, snapshot, timestamp) are encrypted with a passphrase of 12 characters or more, which you
    are asked for. Afterwards move keys/root.pem to a safe place off this machine: it is needed to replace lost keys,
    and for nothing else.

    \b
    appliance fleet init shops --name shops --broker mqtt://192.0.2.7
    appliance fleet init . --name shops --passphrase-file ~/.shops-passphrase
    """  # noqa: D301 - click wants the character \b
    from appliance.fleet.desk import create  # noqa: PLC0415
    from appliance.fleet.keys import make_key  # noqa: PLC0415
    from appliance.fleet.settings import FleetMqtt, FleetSettings, checked  # noqa: PLC0415
    from appliance.fleet.state import TOP_LEVEL  # noqa: PLC0415

    with clear_errors():
        settings = checked(FleetSettings(name=name, mqtt=FleetMqtt(url=broker)))
        passphrase = new_passphrase(passphrase_file, "the fleet's keys")
        create(directory, settings, {role: make_key(passphrase) for role in TOP_LEVEL}, utc_now())
    click.echo(f"""\
{directory} is a fleet now.

On each device, copy {directory / "metadata" / "root.json"} beside its configuration, and say there:

[mqtt]
url = "{broker or "mqtt://…"}"

[fleet]
name = "{name}"
root = "root.json"

Next:
  git -C {directory} init && git -C {directory} add .       # keys/*.pem stay out of it
  move {directory / "keys" / "root.pem"} to a safe place, and keep a copy of the other keys
  appliance fleet deploy HANDLER_DIR --to all -C {directory}""")


@fleet.command(short_help="Sign a handler's directory, so that it can be deployed.")
@click.argument("bundle", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--as", "role", default="targets", metavar="DEVELOPER", help="Sign as this developer, not as operator.")
@key_options
def publish(
    bundle: Path, role: str, directory: Path, key_paths: tuple[Path, ...], passphrase_file: Path | None
) -> None:
    """Sign the handler in DIR: from then on it can be deployed, and no device runs it yet.

    The manifest and the files it names are copied into the fleet's directory. The module is judged first, as a device
    does it. A version never changes: other content needs another `version` in handler.toml.

    A developer publishes in a clone of the fleet's git repository, and sends the change to the operator, who takes it
    in with `appliance fleet refresh`. Exit code 3: signatures of others are needed before devices see it.

    \b
    appliance fleet publish ./motion
    appliance fleet publish ./acme-count --as acme --key ~/acme.pem
    """  # noqa: D301 - click wants the character \b
    from appliance.fleet.desk import carry_out  # noqa: PLC0415
    from appliance.fleet.draft import Draft  # noqa: PLC0415

    with desk(directory, key_paths, passphrase_file) as (opened, keys):
        draft = Draft(opened, utc_now())
        name, assignment = publish_bundle(draft, bundle, role)
        if not draft.roles:
            click.echo(f"{name} {assignment.version} is published already, as it is")
            return
        settled = carry_out(draft, keys)
        click.echo(f"{name} {assignment.version} {assignment.digest}")
        tell(settled)


@fleet.command(short_help="Add a signature to what waits for one.")
@click.argument("role")
@click.option("--yes", is_flag=True, help="Do not ask.")
@key_options
def sign(role: str, yes: bool, directory: Path, key_paths: tuple[Path, ...], passphrase_file: Path | None) -> None:
    """Add a signature to the change of ROLE that waits in metadata/pending/.

    ROLE is `root`, `targets` or a developer. Shows what would be signed first. With enough signatures it comes into
    force, where the keys of snapshot and timestamp are at hand; elsewhere the operator's `refresh` takes it in.

    \b
    appliance fleet sign acme --key ~/acme-2.pem
    """  # noqa: D301 - click wants the character \b
    from appliance.fleet.describing import described  # noqa: PLC0415
    from appliance.fleet.desk import add_signature  # noqa: PLC0415
    from appliance.fleet.signing import pending  # noqa: PLC0415

    with desk(directory, key_paths, passphrase_file) as (opened, keys):
        change = pending(opened).get(role)
        if change is not None:
            for line in described(opened, role, change):
                click.echo(line)
            if not yes and not click.confirm("Sign this?", err=True):
                raise ConfigError("nothing was signed")
        tell(add_signature(opened, role, keys, utc_now()))
        click.echo("`appliance fleet refresh` sends it")


@fleet.command(short_help="Renew signatures, take in what waits, and send what the broker lacks.")
@click.option("--sweep", is_flag=True, help="Look at all that the broker holds, and mend it.")
@send_option
@key_options
def refresh(
    sweep: bool, no_send: bool, directory: Path, key_paths: tuple[Path, ...], passphrase_file: Path | None
) -> None:
    """Sign the timestamp anew, and what else expires soon; take in what developers have signed; send it.

    The timestamp lasts 30 days (fleet.toml: expiry.timestamp): after that devices take nothing new, and say so. What
    runs goes on. Let a timer call this every week; it needs the keys of snapshot and timestamp, and those of other
    roles once a year.

    \b
    appliance fleet refresh --passphrase-file ~/.shops-passphrase
    """  # noqa: D301 - click wants the character \b
    from appliance.fleet.desk import refresh as renew  # noqa: PLC0415

    with desk(directory, key_paths, passphrase_file) as (opened, keys):
        refreshed = renew(opened, keys, utc_now())
        for role in refreshed.left:
            click.echo(f"{role} expires soon or waits, and no key at hand can renew it: add it with --key", err=True)
        tell(refreshed.settled)
    if not no_send:
        send(directory, sweep=sweep)


@fleet.command(short_help="Drop versions that nothing desires.")
@click.option(
    "--as", "developers", multiple=True, metavar="DEVELOPER", help="Those that this developer has signed, too."
)
@dry_run_option
@key_options
def prune(
    developers: tuple[str, ...],
    dry_run: bool,
    directory: Path,
    key_paths: tuple[Path, ...],
    passphrase_file: Path | None,
) -> None:
    """Drop versions of handlers that no device should run and no rollback would bring back, and their files.

    Metadata has to fit in a message of the broker: a fleet of very many versions needs this now and then. Versions
    that are in git can be published again.

    \b
    appliance fleet prune --dry-run
    """  # noqa: D301 - click wants the character \b
    from appliance.fleet.desk import carry_out, opened, sweep, unwanted  # noqa: PLC0415
    from appliance.fleet.draft import Draft  # noqa: PLC0415

    with desk(directory, key_paths, passphrase_file) as (before, keys):
        draft = Draft(before, utc_now())
        dropped = list(unwanted(before, {"targets", *developers}))
        if not dropped:
            click.echo("no version to drop")
        for role, name, version in dropped:
            click.echo(f"{name} {version}")
            draft.remove_bundle(role, name, version)
        if dry_run:
            return
        if draft.roles:
            draft.forget()
            tell(carry_out(draft, keys))
    with clear_errors(), opened(directory) as after:
        click.echo(f"{sweep(after)} files removed")
