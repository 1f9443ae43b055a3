"""The commands that say what devices should run: deploy, undeploy, rollback."""

import asyncio
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from appliance.cli.fleet_options import (
    Command,
    desk,
    dry_run_option,
    key_options,
    publish_bundle,
    send,
    send_option,
    tell,
    utc_now,
)
from appliance.cli.options import clear_errors
from appliance.errors import ConfigError

if TYPE_CHECKING:
    from appliance.fleet.assignments import Wanted
    from appliance.fleet.draft import Draft
    from appliance.fleet.history import Was
    from appliance.fleet.keys import Keyring
    from appliance.fleet.repository import Fleet
    from appliance.manifest import Manifest

DEFAULT_TIMEOUT = 300.0

to_option = click.option(
    "--to", required=True, multiple=True, metavar="GROUP|device:NAME", help="all, a group or a device. Repeatable."
)


def desired_options(command: Command) -> Command:
    """What the three commands have in common."""
    no_wait = click.option("--no-wait", is_flag=True, help="Do not wait for the devices' reports.")
    timeout = click.option(
        "--timeout",
        type=click.FloatRange(min=0),
        default=DEFAULT_TIMEOUT,
        show_default=True,
        metavar="SECONDS",
        help="Wait so long for the devices' reports.",
    )
    return to_option(dry_run_option(no_wait(timeout(send_option(key_options(command))))))


@click.command(short_help="Say which devices should run a handler.")
@click.argument("what", metavar="NAME[@VERSION]|DIR")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A setting of the handler. Repeatable.")
@click.option("--observes", multiple=True, metavar="TAG", help="Other tags than the manifest's. Repeatable.")
@click.option("--fresh", is_flag=True, help="Forget the settings and tags that an earlier deploy gave.")
@click.option("--downgrade", is_flag=True, help="The version may be lower than what is desired now.")
@click.option("--as", "role", default="targets", metavar="DEVELOPER", help="For DIR: sign it as this developer.")
@desired_options
def deploy(
    what: str,
    settings: tuple[str, ...],
    observes: tuple[str, ...],
    fresh: bool,
    downgrade: bool,
    role: str,
    to: tuple[str, ...],
    dry_run: bool,
    no_wait: bool,
    timeout: float,
    no_send: bool,
    directory: Path,
    key_paths: tuple[Path, ...],
    passphrase_file: Path | None,
) -> None:
    """Say that devices should run a handler, send it, and wait until they do.

    NAME is a handler that is published, in its highest version unless another is given. DIR (with a slash, like
    ./motion) is published first. Settings and tags of an earlier deploy stay, unless --fresh is given.

    Exit code 0: every device runs it; 1: some refused it or went back; 3: signatures of others are needed first;
    4: some devices have not answered yet.

    \b
    appliance fleet deploy ./motion --to device:gate --set threshold=0.2
    appliance fleet deploy motion@1.2.0 --to tills --to device:gate --dry-run
    appliance fleet deploy motion --to all --no-wait
    """  # noqa: D301 - click wants the character \b
    from appliance.deploy.desired import Assignment  # noqa: PLC0415
    from appliance.fleet import assignments  # noqa: PLC0415
    from appliance.fleet.checks import check_assignment  # noqa: PLC0415

    with desk(directory, key_paths, passphrase_file) as (fleet, keys):
        given, tags = _settings(settings), _tags(observes)
        draft, before = _begin(fleet)
        manifest, digest = _bundle(draft, what, role)
        wanted = before
        for target in map(assignments.target_of, to):
            present = None if fresh else wanted.of(target, manifest.name)
            assignment = Assignment(
                version=manifest.version,
                digest=digest,
                settings={**(present.settings if present else {}), **given},
                observes=tags if tags is not None else (present.observes if present else None),
            )
            check_assignment(manifest, assignment)
            wanted = assignments.deploy(wanted, target, manifest.name, assignment, downgrade=downgrade)
        signed = _carry_out(draft, before, wanted, keys, dry_run=dry_run)
    if signed:
        _follow(directory, wanted, manifest.name, to, no_send=no_send, no_wait=no_wait, timeout=timeout)


@click.command(short_help="Take a handler away from devices.")
@click.argument("name")
@click.option("--forget", is_flag=True, help="Say nothing about it any more: what weaker groups say counts again.")
@desired_options
def undeploy(
    name: str,
    forget: bool,
    to: tuple[str, ...],
    dry_run: bool,
    no_wait: bool,
    timeout: float,
    no_send: bool,
    directory: Path,
    key_paths: tuple[Path, ...],
    passphrase_file: Path | None,
) -> None:
    """Take the handler NAME away from devices, though other groups may give it to them.

    With --forget, and where no weaker group has it, what other documents say counts, and is waited for.

    \b
    appliance fleet undeploy motion --to all
    appliance fleet undeploy motion --to device:gate             all others keep it
    appliance fleet undeploy motion --to device:gate --forget    gate runs what its groups do again
    """  # noqa: D301 - click wants the character \b
    from appliance.fleet import assignments  # noqa: PLC0415

    with desk(directory, key_paths, passphrase_file) as (fleet, keys):
        draft, before = _begin(fleet)
        wanted = before
        for target in map(assignments.target_of, to):
            wanted = (assignments.forget if forget else assignments.undeploy)(wanted, target, name)
        signed = _carry_out(draft, before, wanted, keys, dry_run=dry_run)
    if signed:
        _follow(directory, wanted, name, to, no_send=no_send, no_wait=no_wait, timeout=timeout)


@click.command(short_help="Bring back what was desired before.")
@click.argument("name")
@desired_options
def rollback(
    name: str,
    to: tuple[str, ...],
    dry_run: bool,
    no_wait: bool,
    timeout: float,
    no_send: bool,
    directory: Path,
    key_paths: tuple[Path, ...],
    passphrase_file: Path | None,
) -> None:
    """Bring back what was desired of the handler NAME before the last deploy or undeploy, settings included.

    Twice goes two steps back. Devices go back by themselves from a version that fails; this is for one that works,
    and not as it should.

    \b
    appliance fleet rollback motion --to all --dry-run
    """  # noqa: D301 - click wants the character \b
    from appliance.fleet import assignments  # noqa: PLC0415

    with desk(directory, key_paths, passphrase_file) as (fleet, keys):
        draft, before = _begin(fleet)
        wanted = before
        for target in map(assignments.target_of, to):
            wanted = assignments.rollback(wanted, target, name)
            back = wanted.of(target, name)
            there = fleet.find(name, back.version) if back else None
            if back and (there is None or there.digest != back.digest):
                raise ConfigError(f"{name} {back.version} is not signed any more; publish it again, and deploy it")
        signed = _carry_out(draft, before, wanted, keys, dry_run=dry_run)
    if signed:
        _follow(directory, wanted, name, to, no_send=no_send, no_wait=no_wait, timeout=timeout)


# --- what a person says --------------------------------------------------------------------------------------


def _settings(texts: Iterable[str]) -> dict[str, str]:
    given = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not (equals and key):
            raise ConfigError(f"--set {text!r} is not KEY=VALUE, e.g. threshold=0.5")
        given[key] = value
    return given


def _tags(texts: Iterable[str]) -> tuple[int, ...] | None:
    from appliance.frame import MAX_TAG  # noqa: PLC0415

    tags = []
    for text in texts:
        try:
            tag = int(text, 0)
        except ValueError:
            tag = -1
        if not 0 <= tag <= MAX_TAG:
            raise ConfigError(f"--observes {text!r} is not a tag, e.g. 0x10")
        tags.append(tag)
    return tuple(tags) or None


def _bundle(draft: "Draft", what: str, role: str) -> "tuple[Manifest, str]":
    """The manifest and digest of what is to be deployed; a directory is added to what is to be signed."""
    from appliance.deploy.desired import Assignment  # noqa: PLC0415
    from appliance.deploy.versions import Precedence  # noqa: PLC0415
    from appliance.fleet.checks import manifest_of  # noqa: PLC0415
    from appliance.manifest import load_manifest  # noqa: PLC0415

    if "/" in what or what in (".", ".."):
        _, assignment = publish_bundle(draft, Path(what), role)
        return load_manifest(Path(what)), assignment.digest
    name, _, version = what.partition("@")
    found = [each for each in draft.fleet.bundles() if each.name == name and version in ("", each.version)]
    if not found:
        versions = ", ".join(sorted({each.version for each in draft.fleet.bundles() if each.name == name}))
        there = f"published versions: {versions}" if versions else f"no version of {name} is published"
        raise ConfigError(
            f"{what}: {there}. `appliance fleet publish DIR` publishes one, and `deploy ./DIR` does both; "
            f"`appliance fleet refresh` takes in what a developer has published"
        )
    best = max(found, key=lambda each: Precedence(each.version))
    assignment = Assignment(version=best.version, digest=best.digest)
    return manifest_of(draft.fleet, name, assignment), best.digest


# --- what all of them do -------------------------------------------------------------------------------------


def _begin(fleet: "Fleet") -> "tuple[Draft, Wanted]":
    from appliance.fleet.desk import wanted_of  # noqa: PLC0415
    from appliance.fleet.draft import Draft  # noqa: PLC0415

    return Draft(fleet, utc_now()), wanted_of(fleet)


def _carry_out(draft: "Draft", before: "Wanted", wanted: "Wanted", keys: "Keyring", *, dry_run: bool) -> bool:
    """Show what changes and sign it; False for a dry run. Ends the command where signatures are needed."""
    from appliance.fleet.assignments import changes  # noqa: PLC0415
    from appliance.fleet.desk import carry_out  # noqa: PLC0415

    lines = changes(before, wanted)
    click.echo("\n".join(lines) or "nothing changes")
    if dry_run:
        return False
    if lines:
        draft.want(wanted)
    if draft.roles:
        tell(carry_out(draft, keys))
    return True


def _follow(
    directory: Path, wanted: "Wanted", name: str, to: Iterable[str], *, no_send: bool, no_wait: bool, timeout: float
) -> None:
    """Send what is signed, and wait for the devices."""
    from appliance.deploy.desired import Assignment  # noqa: PLC0415
    from appliance.deploy.record import slot_of  # noqa: PLC0415
    from appliance.fleet.assignments import target_of  # noqa: PLC0415
    from appliance.fleet.watching import EXIT_FAILED, NOT_TRIED_AGAIN, exit_code_of  # noqa: PLC0415

    if no_send or not send(directory) or no_wait:
        return
    expected: dict[object, list[str]] = defaultdict(list)
    for target in map(target_of, to):
        was = wanted.was(target, name)
        expected[slot_of(was).report if isinstance(was, Assignment) else was].append(target)
    code = exit_code_of(
        [_wait(directory, name, wanted.was(targets[0], name), targets, timeout) for targets in expected.values()]
    )
    if code == EXIT_FAILED:
        click.echo(NOT_TRIED_AGAIN, err=True)
    raise SystemExit(code)


def _wait(directory: Path, name: str, said: "Was", targets: Iterable[str], timeout: float) -> int:
    """The exit code of waiting until devices and groups run what their documents say: one assignment, or none.

    Where a document says nothing, what others give its devices counts, and is waited for.
    """
    from appliance.console.fleet import fleet_display  # noqa: PLC0415
    from appliance.console.plain import plain_console  # noqa: PLC0415
    from appliance.deploy.desired import Assignment  # noqa: PLC0415
    from appliance.deploy.record import slot_of  # noqa: PLC0415
    from appliance.fleet.operate import wait_for  # noqa: PLC0415
    from appliance.fleet.repository import Fleet  # noqa: PLC0415
    from appliance.fleet.watching import EXIT_UNANSWERED, Expected  # noqa: PLC0415

    assignment = said if isinstance(said, Assignment) else None
    named = [target.removesuffix(".json").split("/") for target in targets]
    expected = Expected(
        handler=name,
        digest=assignment.digest if assignment else None,
        version=assignment.version if assignment else "",
        changes=slot_of(assignment).changes if assignment else "",
        devices=frozenset(each for kind, each in named if kind == "devices"),
        groups=frozenset(each for kind, each in named if kind == "groups"),
        inherited=said == "nothing",
    )
    try:
        with clear_errors(), fleet_display(plain_console(stderr=True)) as display:
            return asyncio.run(wait_for(Fleet.open(directory), expected, display, timeout)).exit_code
    except KeyboardInterrupt:
        click.echo("it is sent, and devices go on; `appliance fleet status` shows how far they are", err=True)
        return EXIT_UNANSWERED
