"""Entry point of the ``appliance`` command. The commands are imported by it, and not with it: see :func:`main`."""

import signal


def main() -> None:
    """Until the commands are there nothing was begun, and Ctrl-C ends the process without a word."""
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # and not what nohup ignores
    if ours:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from appliance.cli.commands import cli  # noqa: PLC0415
    from appliance.cli.output import watched_output  # noqa: PLC0415

    if ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with watched_output():
        cli()
