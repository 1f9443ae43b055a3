"""The commands. Heavy parts are imported by the command that needs them, so that ``--help`` is quick."""

import asyncio
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import msgspec

import appliance
from appliance.config import CameraConfig, Config, HandlerConfig, LogConfig, check_config, load_config
from appliance.errors import ApplianceError, ConfigError, HandlerError, deliberate

HANDLERS = Path(appliance.__file__).parent.parent / "handlers"
"""The example handlers, in a checkout."""
EXIT_FAILURE, EXIT_USAGE, EXIT_NOT_REPRODUCED = 1, 2, 3

_replace = msgspec.structs.replace
_config = click.option(
    "--config", "config_path", type=click.Path(path_type=Path), help="Configuration (TOML): docs/configuration.md."
)
_state = click.option(
    "--state", default="", help="State directory (keys, spool); default $APPLIANCE_STATE or ~/.local/state/appliance."
)
_log = click.option(
    "--log", type=click.Choice(["debug", "info", "warning", "error"]), help="Log level; default info, for run warning."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(appliance.__version__)
def cli() -> None:
    """Edge vision appliance: camera frames over QUIC to sandboxed WebAssembly handlers, results to MQTT.

    \b
    Try it:            appliance run --frames 300
    Your own video:    appliance run --camera video.mp4 --handler handlers/motion
    What is missing:   appliance doctor
    A handler failed:  appliance handler --help
    """  # noqa: D301 - click wants the character \b


@cli.command(short_help="Run everything on this machine.")
@_config
@_state
@_log
@click.option(
    "--camera",
    "cameras",
    multiple=True,
    metavar="URL",
    help="synthetic:, a video file, a directory of images, rtsp://…, /dev/video0, picamera2:. "
    "Repeatable; replaces those of the configuration.",
)
@click.option(
    "--handler",
    "handlers",
    multiple=True,
    metavar="DIR",
    help="A handler's directory. Repeatable; replaces those of the configuration. Default: handlers/parts.",
)
@click.option(
    "--set", "settings", multiple=True, metavar="HANDLER.KEY=VALUE", help="A handler's setting or model. Repeatable."
)
@click.option("--broker", metavar="URL", help="mqtt://host[:port] or mqtts://…; default: a private one.")
@click.option("--frames", type=click.IntRange(min=1), metavar="N", help="End after N frames of each camera.")
@click.option("--lossless", is_flag=True, help="Deliver every frame, as fast as the handlers take them.")
@click.option("--fps", type=click.FloatRange(min=0.01, max=240), help="At most so many frames per second.")
@click.option("--json", "as_json", is_flag=True, help="Standard output is one JSON object, at the end.")
def run(
    config_path: Path | None,
    state: str,
    log: str | None,
    cameras: tuple[str, ...],
    handlers: tuple[str, ...],
    settings: tuple[str, ...],
    broker: str | None,
    frames: int | None,
    lossless: bool,
    fps: float | None,
    as_json: bool,
) -> None:
    """Run everything on this machine: cameras, zipper, handlers, inference, publishing.

    Ends when every camera has ended (a video file, --frames) or at Ctrl-C, and tells how it went.

    \b
    appliance run                                the synthetic conveyor and the parts handler
    appliance run --camera food.mp4 --lossless --handler handlers/classify \\
        --set classify.model=mobilenet.tflite --set classify.labels=labels.txt
    appliance run --config appliance.toml --broker mqtt://homeassistant.local
    """  # noqa: D301 - click wants the character \b
    with _clear_errors():
        config = _effective(config_path, log, quiet="warning")
        config = _with_cameras(config, cameras, frames=frames, lossless=lossless, fps=fps)
        config = _with_handlers(config, handlers, settings)
        if broker:
            config = _replace(config, mqtt=_replace(config.mqtt, url=broker))
        _run_appliance(config, state, as_json=as_json, cameras=True)


@cli.command(short_help="Run everything but the cameras.")
@_config
@_state
@_log
def zipper(config_path: Path | None, state: str, log: str | None) -> None:
    """Run the zipper alone: handlers, inference, publishing. Cameras connect by `appliance source`."""
    with _clear_errors():
        _run_appliance(_with_handlers(_effective(config_path, log), (), ()), state, as_json=False, cameras=False)


@cli.command(short_help="Run one camera alone, for a zipper here or elsewhere.")
@_config
@_state
@_log
@click.option("--camera", "name", metavar="NAME", help="Which camera of the configuration, where there are several.")
def source(config_path: Path | None, state: str, log: str | None, name: str | None) -> None:
    """Run one camera alone and stream it to a zipper, on this machine or another (section [link])."""
    from appliance.client import link_to_zipper  # noqa: PLC0415
    from appliance.device.journal import configure_logging  # noqa: PLC0415
    from appliance.source import Source, run_until_signalled  # noqa: PLC0415

    with _clear_errors():
        config = _effective(config_path, log)
        check_config(config)
        camera = _choose_camera(config, name)
        configure_logging(f"source-{camera.name}", config.log.level, config.log.format)
        address, credential = link_to_zipper(config.link, state or config.device.state_dir)
        asyncio.run(run_until_signalled(lambda: Source(camera, address, credential)))


@cli.command(short_help="Say what this machine has and lacks.")
@_config
@_state
def doctor(config_path: Path | None, state: str) -> None:
    """Say what this machine has and lacks, one line each, with the remedy. Exit code 1 where something is missing."""
    from appliance.doctor import examine  # noqa: PLC0415

    with _clear_errors():
        config = _with_handlers(_effective(config_path, None), (), ())
        findings = asyncio.run(examine(config, state or config.device.state_dir))
    signs = {True: click.style("ok  ", fg="green"), False: click.style("FAIL", fg="red"), None: "-   "}
    for finding in findings:
        click.echo(f"{signs[finding.good]} {finding.subject:<16} {finding.text}")
    if any(finding.good is False for finding in findings):
        raise SystemExit(EXIT_FAILURE)


@cli.command("config", short_help="Print the configuration that is in force.")
@_config
def show_config(config_path: Path | None) -> None:
    """Print the effective configuration as TOML, defaults included and secrets left out."""
    import tomli_w  # noqa: PLC0415

    with _clear_errors():
        config = _with_handlers(_effective(config_path, None), (), ())
        check_config(config)
    click.echo(tomli_w.dumps(_without_secrets(msgspec.to_builtins(config))), nl=False)


@cli.group(short_help="Look into handlers that failed, and let them run again.")
def handler() -> None:
    """Look into handlers that failed, and let them run again.

    A handler that fails too often is put in quarantine: it is not run any more until it is released. The frames around
    its first failures are kept as crash capsules, and can be played to it again. docs/handlers.md tells more.

    \b
    appliance handler release                             who is in quarantine, and why
    appliance handler replay CAPSULE --handler DIR        have the failure again
    appliance handler release NAME                        let it run again
    """  # noqa: D301 - click wants the character \b


@handler.command("release", short_help="Who is in quarantine; or let a handler out of it.")
@_config
@_state
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

    with _clear_errors():
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
@_config
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

    with _clear_errors():
        config = load_config(config_path)
        configure_logging("replay", config.log.level, config.log.format)
        capsule = read_capsule(capsule_path)
        given = _settings_of(capsule.handler, settings)
        spec, notes = prepare(
            capsule, directory or HANDLERS / capsule.handler, given, config.inference, any_module=any_module
        )
        replayed = asyncio.run(replay(capsule, spec, notes, config.inference))
    click.echo(msgspec.json.encode(replayed).decode() if as_json else in_words(replayed))
    if not replayed.reproduced:
        raise SystemExit(EXIT_NOT_REPRODUCED)


def _settings_of(name: str, texts: tuple[str, ...]) -> dict[str, str]:
    """KEY=VALUE, or as for `run` HANDLER.KEY=VALUE."""
    given = {}
    for text in texts:
        key, equals, value = text.removeprefix(f"{name}.").partition("=")
        if not (equals and key):
            raise ConfigError(f"--set {text!r} is not KEY=VALUE, e.g. threshold=0.5")
        given[key] = value
    return given


# --- the configuration, and what the command line changes of it ----------------------------------------------


def _effective(path: Path | None, log: str | None, quiet: str | None = None) -> Config:
    """The file's configuration; ``log`` is the user's word, ``quiet`` a level for where nobody has said any."""
    config = load_config(path)
    level = log or (quiet if config.log == LogConfig() else None)
    return _replace(config, log=_replace(config.log, level=level)) if level else config


def _with_cameras(
    config: Config, urls: tuple[str, ...], *, frames: int | None, lossless: bool, fps: float | None
) -> Config:
    cameras = config.cameras
    if urls:
        names = ["camera", *(f"camera{number}" for number in range(2, len(urls) + 1))]
        cameras = tuple(CameraConfig(name=name, url=url) for name, url in zip(names, urls, strict=True))
    changes: dict[str, Any] = {"frames": frames, "lossless": lossless, "fps": fps}
    given = {key: value for key, value in changes.items() if value}
    return _replace(config, cameras=tuple(_replace(camera, **given) for camera in cameras))


def _with_handlers(config: Config, paths: tuple[str, ...], settings: tuple[str, ...]) -> Config:
    from appliance.manifest import load_manifest  # noqa: PLC0415

    handlers = config.handlers
    if paths or not handlers:
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
        changed.append(_replace(handler, settings=handler.settings | given.pop(name, {})))
    if given:
        raise ConfigError(f"--set {next(iter(given))}.…: there is no handler of that name; see --handler")
    return _replace(config, handlers=tuple(changed))


def _choose_camera(config: Config, name: str | None) -> CameraConfig:
    names = [camera.name for camera in config.cameras]
    if name is None and len(names) == 1:
        return config.cameras[0]
    if name not in names:
        raise ConfigError(f"choose a camera with --camera: {', '.join(names)}")
    return config.cameras[names.index(name)]


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


# --- running -------------------------------------------------------------------------------------------------


def _run_appliance(config: Config, state: str, *, as_json: bool, cameras: bool) -> None:
    from appliance.app import Appliance  # noqa: PLC0415
    from appliance.console import plain_console, show_summary  # noqa: PLC0415
    from appliance.device.journal import configure_logging  # noqa: PLC0415
    from appliance.device.state import open_state  # noqa: PLC0415

    configure_logging("zipper", config.log.level, config.log.format)
    directory = open_state(state or config.device.state_dir)
    console = plain_console(stderr=as_json)

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup does with SIGHUP
                loop.add_signal_handler(number, stop.set)
        box = Appliance(config, directory, cameras=cameras)
        async with asyncio.TaskGroup() as tasks:
            shown = tasks.create_task(_show(box, console, stop, quiet=as_json or not cameras))
            summary = await box.run(stop)
            shown.cancel()
        if as_json:
            click.echo(msgspec.json.encode(summary).decode())
        elif cameras:
            show_summary(summary, console)
        _refuse_failed(summary.handlers)

    asyncio.run(main())


def _refuse_failed(handlers: Mapping[str, str]) -> None:
    """A handler that does not run at the end makes the run a failure: HandlerError."""
    failed = [name for name, state in handlers.items() if state == "failed"]
    quarantined = [name for name, state in handlers.items() if state == "quarantined"]
    if failed:
        raise HandlerError(f"{', '.join(failed)} could not be started: the log says why")
    if quarantined:
        raise HandlerError(
            f"{', '.join(quarantined)} failed too often and is in quarantine: the log says why; "
            f"`appliance handler release {quarantined[0]}` lets it run again"
        )


async def _show(box: Any, console: Any, stop: asyncio.Event, *, quiet: bool) -> None:
    """What happens, on the console, until cancelled; where nobody reads that any more, the run ends."""
    from appliance.console import watch  # noqa: PLC0415
    from appliance.mqtt.endpoint import PORTS  # noqa: PLC0415

    await box.up.wait()
    if quiet:
        return
    topic = box.publisher.topics.root
    broker = urlsplit(box.broker_url)
    port = broker.port or PORTS[broker.scheme]
    try:
        console.print(f"results: mosquitto_sub -h {broker.hostname} -p {port} -t '{topic}/#' -v", soft_wrap=True)
        await watch(box, console)
    except (OSError, SystemExit):  # rich makes a broken pipe an exit
        stop.set()


@contextmanager
def _clear_errors() -> Iterator[None]:
    """A deliberate error is one line and an exit code, not a traceback."""
    try:
        yield
    except (ApplianceError, BaseExceptionGroup) as raised:
        error = deliberate(raised)
        if error is None:
            raise
        click.echo(f"appliance: {error}", err=True)
        raise SystemExit(EXIT_USAGE if isinstance(error, ConfigError) else EXIT_FAILURE) from raised


def main() -> None:
    """Entry point of the ``appliance`` command."""
    cli()
    sys.exit(0)
