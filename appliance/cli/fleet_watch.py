"""The fleet's commands that only look."""

import asyncio
import time
from contextlib import suppress
from pathlib import Path

import click
import msgspec

from appliance.cli.fleet_options import fleet_option
from appliance.cli.options import EXIT_FAILURE, clear_errors
from appliance.text import printable


@click.command(short_help="What every device runs, and how it got there.")
@click.option("--json", "as_json", is_flag=True, help="Standard output is one JSON array, an object for each row.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0.1),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="Wait so long for the broker.",
)
@fleet_option
def status(as_json: bool, timeout: float, directory: Path) -> None:
    """What every device of the fleet has said last: what it should run, what it runs, and what it would go back to.

    A device that is not there, or has said nothing for three minutes, is shown as silent. One whose metadata has
    expired says `metadata stale`: what runs there goes on, and nothing new is taken; see `appliance fleet refresh`.

    Where standard output is no terminal, columns are separated by tabs.

    \b
    appliance fleet status
    appliance fleet status --json | jq '.[] | select(.state == "refused")'
    """  # noqa: D301 - click wants the character \b
    from appliance.console.fleet import show_status  # noqa: PLC0415
    from appliance.console.plain import plain_console  # noqa: PLC0415
    from appliance.deploy.report import FAILED_STATES  # noqa: PLC0415
    from appliance.fleet.operate import read_status  # noqa: PLC0415
    from appliance.fleet.repository import Fleet  # noqa: PLC0415
    from appliance.fleet.watching import NOT_TRIED_AGAIN  # noqa: PLC0415

    with clear_errors():
        rows = asyncio.run(read_status(Fleet.open(directory), timeout))
    if as_json:
        click.echo(printable(msgspec.json.encode(rows).decode()))
    elif rows:
        show_status(rows, plain_console(stderr=False), time.time())
        if any(row.state in FAILED_STATES for row in rows):
            click.echo(NOT_TRIED_AGAIN, err=True)
    else:
        click.echo("no device of this fleet has said anything yet: docs/fleet.md says how one joins it", err=True)
        raise SystemExit(EXIT_FAILURE)


@click.command(short_help="Follow the logs of devices.")
@click.argument("device", required=False)
@click.option("--json", "as_json", is_flag=True, help="Each line is one JSON object.")
@fleet_option
def logs(device: str | None, as_json: bool, directory: Path) -> None:
    """Show what DEVICE logs, or what all devices do, until Ctrl-C.

    A device publishes its log where its configuration (mqtt.log_level) or a request says so: docs/mqtt.md.

    \b
    appliance fleet logs box-7
    appliance fleet logs --json | jq 'select(.level == "error")'
    """  # noqa: D301 - click wants the character \b
    from appliance.console.fleet import Lines  # noqa: PLC0415
    from appliance.console.plain import plain_console  # noqa: PLC0415
    from appliance.fleet.operate import follow_logs  # noqa: PLC0415
    from appliance.fleet.repository import Fleet  # noqa: PLC0415

    def listening() -> None:
        whose = f"the log of {device}" if device else "the logs of all devices"
        click.echo(
            f"listening to {whose} until Ctrl-C; a device sends lines from its mqtt.log_level on (off, unless it is "
            "set), as far as its log.level has them",
            err=True,
        )

    with clear_errors(), suppress(KeyboardInterrupt):
        display = Lines(plain_console(stderr=False), as_json=as_json)
        asyncio.run(follow_logs(Fleet.open(directory), device, display, listening=listening))
