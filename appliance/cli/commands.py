"""The commands. Heavy parts are imported by the command that needs them, so that ``--help`` is quick."""

from typing import Any

import click

import appliance
from appliance.cli.fleet import fleet
from appliance.cli.handler import handler
from appliance.cli.machine import doctor, show_config
from appliance.cli.run import run, source, zipper

EXIT_INTERRUPTED = 130
"""As shells have it: 128 and the number of SIGINT. The other codes are about what a command has found."""


class Commands(click.Group):
    """Where a command does not end in good order by itself at Ctrl-C, it ends here."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("appliance: interrupted", err=True)
            ctx.exit(EXIT_INTERRUPTED)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(appliance.__version__)
def cli() -> None:
    """Edge vision appliance: camera frames over QUIC to sandboxed WebAssembly handlers, results to MQTT.

    \b
    Try it:            appliance run --frames 300
    Your own video:    appliance run --camera video.mp4 --handler handlers/motion
    What is missing:   appliance doctor
    Your own handler:  appliance handler new NAME
    A handler failed:  appliance handler --help
    Many boxes:        appliance fleet --help
    """  # noqa: D301 - click wants the character \b


for _command in (run, zipper, source, doctor, show_config, handler, fleet):
    cli.add_command(_command)
