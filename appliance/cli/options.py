"""What commands share: options, the configuration that is in force, and errors in one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import msgspec

import appliance
from appliance.config import CameraConfig, Config, HandlerConfig, load_config
from appliance.errors import ApplianceError, ConfigError, deliberate

HANDLERS = Path(appliance.__file__).parent.parent / "handlers"
"""The example handlers, in a checkout."""
EXIT_FAILURE, EXIT_USAGE = 1, 2

replace = msgspec.structs.replace
config_option = click.option(
    "--config", "config_path", type=click.Path(path_type=Path), help="Configuration (TOML): docs/configuration.md."
)
state_option = click.option(
    "--state", default="", help="State directory (keys, spool); default $APPLIANCE_STATE or ~/.local/state/appliance."
)
log_option = click.option(
    "--log", type=click.Choice(["debug", "info", "warning", "error"]), help="Log level; default info, for run warning."
)


# --- the configuration, and what the command line changes of it ----------------------------------------------


def effective(path: Path | None, log: str | None, quiet: str | None = None) -> Config:
    """The file's configuration; ``log`` is the user's word, ``quiet`` a level for where there is no file."""
    config = load_config(path)
    level = log or (quiet if path is None else None)
    return replace(config, log=replace(config.log, level=level)) if level else config


def with_cameras(
    config: Config, urls: tuple[str, ...], *, frames: int | None, lossless: bool, fps: float | None
) -> Config:
    cameras = config.cameras
    if urls:
        names = ["camera", *(f"camera{number}" for number in range(2, len(urls) + 1))]
        cameras = tuple(CameraConfig(name=name, url=url) for name, url in zip(names, urls, strict=True))
    changes: dict[str, Any] = {"frames": frames, "lossless": lossless, "fps": fps}
    given = {key: value for key, value in changes.items() if value}
    return replace(config, cameras=tuple(replace(camera, **given) for camera in cameras))


def with_handlers(config: Config, paths: tuple[str, ...], settings: tuple[str, ...]) -> Config:
    from appliance.manifest import load_manifest  # noqa: PLC0415

    handlers = config.handlers
    if paths or not (handlers or config.fleet.name):  # a box of a fleet may well have none of its own
        handlers = tuple(HandlerConfig(path=path) for path in paths or (str(HANDLERS / "parts"),))
    given: dict[str, dict[str, str]] = {}
    for text in settings:
        target, equals, value = text.partition("=")
        name, dot, key = target.partition(".")
        if not (equals and dot and name and key):
            raise ConfigError(f"--set {text!r} is not HANDLER.KEY=VALUE, e.g. classify.labels=labels.txt")
        given.setdefault(name, {})[key] = value
    changed = []
    for handler in handlers:
        name = handler.name or load_manifest(Path(handler.path)).name
        changed.append(replace(handler, settings=handler.settings | given.pop(name, {})))
    if given:
        raise ConfigError(f"--set {next(iter(given))}.…: there is no handler of that name; see --handler")
    return replace(config, handlers=tuple(changed))


def settings_of(name: str, texts: tuple[str, ...]) -> dict[str, str]:
    """KEY=VALUE, or as for `run` HANDLER.KEY=VALUE."""
    given = {}
    for text in texts:
        key, equals, value = text.removeprefix(f"{name}.").partition("=")
        if not (equals and key):
            raise ConfigError(f"--set {text!r} is not KEY=VALUE, e.g. threshold=0.5")
        given[key] = value
    return given


@contextmanager
def clear_errors() -> Iterator[None]:
    """A deliberate error is one line and an exit code, not a traceback."""
    try:
        yield
    except (ApplianceError, BaseExceptionGroup) as raised:
        error = deliberate(raised)
        if error is None:
            raise
        click.echo(f"appliance: {error}", err=True)
        raise SystemExit(EXIT_USAGE if isinstance(error, ConfigError) else EXIT_FAILURE) from raised
