"""Entry point of the ``appliance`` command. The commands are imported by it, and not with it."""

from appliance.cli.interrupts import importing


def main() -> None:
    with importing():
        from appliance.cli.commands import cli  # noqa: PLC0415
        from appliance.cli.output import watched_output  # noqa: PLC0415

    with watched_output():
        cli()
