"""The commands that say how things are on this machine."""

import asyncio
from pathlib import Path
from typing import Any

import click
import msgspec

from appliance.cli.options import EXIT_FAILURE, clear_errors, config_option, effective, state_option, with_handlers
from appliance.config import check_config


@click.command(short_help="Say what this machine has and lacks.")
@config_option
@state_option
def doctor(config_path: Path | None, state: str) -> None:
    """Say what this machine has and lacks, one line each, with the remedy. Exit code 1 where something is missing."""
    from appliance.doctor import examine  # noqa: PLC0415

    with clear_errors():
        config = with_handlers(effective(config_path, None), (), ())
        findings = asyncio.run(examine(config, state or config.device.state_dir))
    signs = {True: click.style("ok  ", fg="green"), False: click.style("FAIL", fg="red"), None: "-   "}
    for finding in findings:
        click.echo(f"{signs[finding.good]} {finding.subject:<16} {finding.text}")
    if any(finding.good is False for finding in findings):
        raise SystemExit(EXIT_FAILURE)


@click.command("config", short_help="Print the configuration that is in force.")
@config_option
def show_config(config_path: Path | None) -> None:
    """Print the effective configuration as TOML, defaults included and secrets left out."""
    import tomli_w  # noqa: PLC0415

    with clear_errors():
        config = with_handlers(effective(config_path, None), (), ())
        check_config(config)
    click.echo(tomli_w.dumps(_without_secrets(msgspec.to_builtins(config))), nl=False)


def _without_secrets(value: Any) -> Any:
    """For TOML, which has no null, and for eyes, which need no secrets (a ``file:`` reference is none)."""
    if isinstance(value, dict):
        return {
            key: "…"
            if key in ("password", "credential") and item and not item.startswith("file:")
            else _without_secrets(item)
            for key, item in value.items()
            if item is not None
        }
    return [_without_secrets(item) for item in value] if isinstance(value, list | tuple) else value
