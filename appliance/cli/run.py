"""The commands that run the appliance or a part of it."""

import asyncio
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import msgspec

from appliance.cli.interrupts import importing
from appliance.cli.options import (
    clear_errors,
    config_option,
    effective,
    log_option,
    replace,
    state_option,
    with_cameras,
    with_handlers,
)
from appliance.config import CameraConfig, Config, check_config
from appliance.errors import ConfigError, HandlerError


@click.command(short_help="Run everything on this machine.")
@config_option
@state_option
@log_option
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

    def read() -> Config:
        config = effective(config_path, log, quiet="warning")
        config = with_cameras(config, cameras, frames=frames, lossless=lossless, fps=fps)
        config = with_handlers(config, handlers, settings)
        return replace(config, mqtt=replace(config.mqtt, url=broker)) if broker else config

    with clear_errors():
        _run_appliance(read, state, as_json=as_json, cameras=True, again=config_path is not None)


@click.command(short_help="Run everything but the cameras.")
@config_option
@state_option
@log_option
def zipper(config_path: Path | None, state: str, log: str | None) -> None:
    """Run the zipper alone: handlers, inference, publishing. Cameras connect by `appliance source`."""

    def read() -> Config:
        return with_handlers(effective(config_path, log), (), ())

    with clear_errors():
        _run_appliance(read, state, as_json=False, cameras=False, again=config_path is not None)


@click.command(short_help="Run one camera alone, for a zipper here or elsewhere.")
@config_option
@state_option
@log_option
@click.option("--camera", "name", metavar="NAME", help="Which camera of the configuration, where there are several.")
def source(config_path: Path | None, state: str, log: str | None, name: str | None) -> None:
    """Run one camera alone and stream it to a zipper, on this machine or another (section [link])."""
    with importing():
        from appliance.client import link_to_zipper  # noqa: PLC0415
        from appliance.device.journal import configure_logging  # noqa: PLC0415
        from appliance.source import Source, run_until_signalled  # noqa: PLC0415

    with clear_errors():
        config = effective(config_path, log)
        check_config(config)
        camera = _choose_camera(config, name)
        configure_logging(f"source-{camera.name}", config.log.level, config.log.format)
        address, credential = link_to_zipper(config.link, state or config.device.state_dir)
        asyncio.run(run_until_signalled(lambda: Source(camera, address, credential)))


def _choose_camera(config: Config, name: str | None) -> CameraConfig:
    names = [camera.name for camera in config.cameras]
    if name is None and len(names) == 1:
        return config.cameras[0]
    if name not in names:
        raise ConfigError(f"choose a camera with --camera: {', '.join(names)}")
    return config.cameras[names.index(name)]


# --- running -------------------------------------------------------------------------------------------------


def _run_appliance(read: Callable[[], Config], state: str, *, as_json: bool, cameras: bool, again: bool) -> None:
    """``again``: the configuration is of a file, and SIGHUP has it read again. Without one, SIGHUP ends the run."""
    with importing():
        from appliance.app import Appliance  # noqa: PLC0415
        from appliance.console.plain import plain_console  # noqa: PLC0415
        from appliance.console.run import show_summary  # noqa: PLC0415
        from appliance.device.journal import configure_logging  # noqa: PLC0415
        from appliance.device.state import open_state  # noqa: PLC0415

    config = read()
    configure_logging("zipper", config.log.level, config.log.format)
    directory = open_state(state or config.device.state_dir)
    console = plain_console(stderr=as_json)

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        box = Appliance(config, directory, cameras=cameras, reread=read if again else None)
        hang_up = box.reload_wanted.set if again else stop.set
        for number, action in ((signal.SIGINT, stop.set), (signal.SIGTERM, stop.set), (signal.SIGHUP, hang_up)):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup does with SIGHUP
                loop.add_signal_handler(number, action)
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
    from appliance.console.run import watch  # noqa: PLC0415
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
