"""The commands about handlers."""

import asyncio
from pathlib import Path

import click
import msgspec

from appliance.cli.author import bench_handler, build_handler, inspect_handler, new_handler, test_handler
from appliance.cli.options import HANDLERS, clear_errors, config_option, settings_of, state_option
from appliance.config import load_config

EXIT_NOT_REPRODUCED = 3


@click.group(short_help="Write handlers and try them; look into those that failed.")
def handler() -> None:
    """Write a handler and try it off-device; look into handlers that failed, and let them run again.

    \b
    appliance handler new brightness                      begin one: docs/handlers.md
    appliance handler build brightness                    make its module
    appliance handler test brightness pictures/           run it on pictures or a video
    appliance handler bench brightness pictures/          what it needs about a frame
    appliance handler inspect brightness                  what it is, and whether it is admitted

    A handler that fails too often is put in quarantine: it is not run any more until it is released. The frames around
    its first failures are kept as crash capsules, and can be played to it again. docs/handlers.md tells more.

    \b
    appliance handler release                             who is in quarantine, and why
    appliance handler replay CAPSULE --handler DIR        have the failure again
    appliance handler release NAME                        let it run again
    """  # noqa: D301 - click wants the character \b


for _command in (new_handler, build_handler, test_handler, bench_handler, inspect_handler):
    handler.add_command(_command)


@handler.command("release", short_help="Who is in quarantine; or let a handler out of it.")
@config_option
@state_option
@click.argument("name", required=False)
def release_handler(config_path: Path | None, state: str, name: str | None) -> None:
    """Let the handler NAME out of quarantine; without NAME, list what is in quarantine and why.

    A handler that fails on more than about 5 % of its frames for long is put in quarantine: it is not run any more,
    not after a restart either. Another version or module of it runs at once, without a release. A running appliance
    notices the release by itself.

    \b
    appliance handler release            who is in quarantine
    appliance handler release parts      let it try again
    """  # noqa: D301 - click wants the character \b
    from appliance.device.state import open_state  # noqa: PLC0415
    from appliance.mqtt.result import rfc3339  # noqa: PLC0415
    from appliance.sandbox.evidence import Quarantines  # noqa: PLC0415

    with clear_errors():
        quarantines = Quarantines(open_state(state or load_config(config_path).device.state_dir).quarantine)
        if name is not None:
            quarantines.release(name)
            click.echo(f"{name} is released: an appliance that runs starts it within a second")
            return
        records = quarantines.all()
        if not records:
            click.echo("no handler is in quarantine", err=True)
        for record in records:
            failure = record.failure
            since = rfc3339(failure.at_ns)
            click.echo(f"{record.handler} {record.version}  since {since}  {failure.kind}: {failure.message}")


@handler.command("replay", short_help="Play the frames around a failure to the handler again.")
@config_option
@click.argument("capsule_path", metavar="CAPSULE", type=click.Path(path_type=Path))
@click.option(
    "--handler",
    "directory",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="The handler's directory. Default: handlers/NAME of a checkout.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="A setting or model, instead of the capsule's. Repeatable.",
)
@click.option("--any-module", is_flag=True, help="Go on where the handler's module is not the one that failed.")
@click.option("--json", "as_json", is_flag=True, help="Standard output is one JSON object.")
def replay_capsule(
    config_path: Path | None,
    capsule_path: Path,
    directory: Path | None,
    settings: tuple[str, ...],
    any_module: bool,
    as_json: bool,
) -> None:
    """Have a failure again: give a handler the frames of a crash CAPSULE, in the sandbox of the appliance.

    Needs no camera, no broker and no running appliance. Capsules lie in `capsules/` of the state directory; the
    handler's state on MQTT and the log name them.

    Exit code 0: the handler failed as it did then; 3: it did not; 2: it was not tried, for example because its module
    is another one. With --any-module that is tried, so a script can tell whether it mends the failure.

    \b
    appliance handler replay 20260301T120000.000000Z-parts-trap.capsule
    appliance handler replay parts.capsule --handler ~/parts --set threshold=0.5
    appliance handler replay parts.capsule --any-module && echo still broken
    """  # noqa: D301 - click wants the character \b
    from appliance.device.journal import configure_logging  # noqa: PLC0415
    from appliance.replay import in_words, prepare, replay  # noqa: PLC0415
    from appliance.sandbox.evidence import read_capsule  # noqa: PLC0415

    with clear_errors():
        config = load_config(config_path)
        configure_logging("replay", config.log.level, config.log.format)
        capsule = read_capsule(capsule_path)
        given = settings_of(capsule.handler, settings)
        spec, notes = prepare(
            capsule, directory or HANDLERS / capsule.handler, given, config.inference, any_module=any_module
        )
        replayed = asyncio.run(replay(capsule, spec, notes, config.inference))
    click.echo(msgspec.json.encode(replayed).decode() if as_json else in_words(replayed))
    if not replayed.reproduced:
        raise SystemExit(EXIT_NOT_REPRODUCED)
