"""The commands. Heavy parts are imported by the command that needs them, so that ``--help`` is quick."""

import sys

import click

import appliance
from appliance.cli.fleet import fleet
from appliance.cli.handler import handler
from appliance.cli.machine import doctor, show_config
from appliance.cli.run import run, source, zipper


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
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


def main() -> None:
    """Entry point of the ``appliance`` command."""
    cli()
    sys.exit(0)
