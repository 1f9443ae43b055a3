"""The commands for who writes a handler."""

import asyncio
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from appliance.cli.interrupts import importing
from appliance.cli.options import clear_errors, config_option, effective, log_option, settings_of
from appliance.config import Config, HandlerConfig
from appliance.errors import ConfigError, HandlerError
from appliance.manifest import load_manifest

if TYPE_CHECKING:
    from appliance.author.outcome import Tried
    from appliance.frame import Frame
    from appliance.sandbox.spec import HandlerSpec

BENCH_FRAMES = 200
MAX_FRAMES = 100_000

set_option = click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="A setting, or a file of a model. Repeatable."
)
frames_option = click.IntRange(min=1, max=MAX_FRAMES)


@click.command("new", short_help="Begin a handler: a directory that builds at once.")
@click.argument("name")
@click.option(
    "--language",
    type=click.Choice(["c", "rust", "assemblyscript"]),
    default="c",
    show_default=True,
    help="What it is written in.",
)
@click.option("--dir", "directory", type=click.Path(path_type=Path), help="Where; default: ./NAME.")
def new_handler(name: str, language: Any, directory: Path | None) -> None:
    """Begin the handler NAME: a directory with a manifest, code that says how bright a picture is, and what it needs.

    \b
    appliance handler new brightness
    appliance handler new brightness --language rust --dir ~/brightness
    """  # noqa: D301 - click wants the character \b
    from appliance.author.beginning import begin, next_steps  # noqa: PLC0415

    directory = directory or Path(name)
    with clear_errors():
        for path in begin(name, language, directory):
            click.echo(path)
    click.echo("next:")
    for step in next_steps(language, directory):
        click.echo(f"  {step}")


@click.command("build", short_help="Make a handler's module of its source.")
@click.argument("directory", metavar="[DIR]", default=".", type=click.Path(path_type=Path))
def build_handler(directory: Path) -> None:
    """Compile handler.c, handler.rs or handler.ts of DIR (default: here), and say what admission says of the module.

    C needs ziglang from PyPI (the extra `author`), Rust a rustc with the target wasm32-unknown-unknown,
    AssemblyScript its compiler (`npm install` in DIR). A handler whose module came ready made is judged alone.

    Exit code 1: it does not build, or its module is refused.
    """
    from appliance.author.building import build, source_of  # noqa: PLC0415
    from appliance.author.inspection import judge, module_in_words  # noqa: PLC0415

    with clear_errors():
        manifest = load_manifest(directory)
        source = source_of(directory)
        if source is None:
            click.echo(f"{directory}: no source; the module {manifest.module} is used as it is")
        else:
            built = build(directory, manifest.module)
            if built.warnings:
                click.echo(built.warnings, err=True)
            click.echo(f"built      {source} -> {manifest.module}{'' if built.changed else ', unchanged'}")
        module = asyncio.run(judge(directory, manifest))
        for line in module_in_words(module):
            click.echo(line)
    if not module.admitted:
        raise SystemExit(1)


@click.command("test", short_help="Run a handler on pictures or a video, here and now.")
@config_option
@log_option
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True)
@set_option
@click.option("--frames", type=frames_option, metavar="N", help="At most N frames of each input.")
@click.option(
    "--annotate",
    "drawings",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="OUTDIR",
    help="Write the pictures there, with boxes, labels and values drawn on them.",
)
@click.option("--json", "as_json", is_flag=True, help="A JSON object a line: each frame, and at the end the summary.")
def test_handler(
    config_path: Path | None,
    log: str | None,
    directory: Path,
    inputs: tuple[str, ...],
    settings: tuple[str, ...],
    frames: int | None,
    drawings: Path | None,
    as_json: bool,
) -> None:
    """Run the handler of DIR in the sandbox of the appliance on each INPUT: a picture, a directory of them, a video,
    or any other camera. Every frame is handled, none is dropped; nothing is published. For a handler that observes what
    another emits, an INPUT is a file NAME.jsonl of what `test --json` printed of the other.

    A line for each result, then a summary. Ctrl-C ends it with the summary of what was done. A camera that gives no
    picture at the first try is not waited for. Exit code 1: a frame failed.

    \b
    appliance handler test brightness pictures/
    appliance handler test handlers/detect street.mp4 --frames 100 --annotate drawn \\
        --set model=ssd.tflite --set labels=coco.txt
    """  # noqa: D301 - click wants the character \b
    with importing():
        from appliance.author.inputs import cameras  # noqa: PLC0415
        from appliance.author.outcome import NOT_RUNNING  # noqa: PLC0415
        from appliance.author.tally import Tally  # noqa: PLC0415
        from appliance.author.telling import frame_lines, summary_lines  # noqa: PLC0415
        from appliance.author.trial import try_out  # noqa: PLC0415
        from appliance.console.trial import progress  # noqa: PLC0415

    with clear_errors():
        config, spec = _load(config_path, log, directory, settings)
        configs = cameras(inputs, frames=frames)
        tally = Tally()
        gone = ""
        try:
            with progress(frames * len(inputs) if frames else None) as bar:

                async def on_tried(tried: "Tried", frame: "Frame") -> None:
                    nonlocal gone
                    tally.see(tried)
                    gone = tried.message if tried.outcome == NOT_RUNNING else ""
                    for line in [msgspec.json.encode(tried).decode()] if as_json else frame_lines(tried):
                        bar.line(line)
                    if drawings and frame.format == "jpeg":
                        await asyncio.to_thread(_draw, drawings, tally.frames, tried, frame)
                    bar.step()

                _run(try_out(spec, config.inference, configs, on_tried))
        finally:
            summary = tally.summary()
            if tally.frames:
                click.echo(msgspec.json.encode({"summary": summary}) if as_json else "\n".join(summary_lines(summary)))
        if gone:
            raise HandlerError(f"{spec.name}: {gone}")
    if summary.failed:
        raise SystemExit(1)


@click.command("bench", short_help="What a handler needs about a frame, and what its limits should be.")
@config_option
@log_option
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("given", metavar="INPUT", nargs=1)
@set_option
@click.option(
    "--frames",
    type=frames_option,
    metavar="N",
    default=BENCH_FRAMES,
    show_default=True,
    help="How many frames; the input is repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="Standard output is one JSON object.")
def bench_handler(
    config_path: Path | None,
    log: str | None,
    directory: Path,
    given: str,
    settings: tuple[str, ...],
    frames: int,
    as_json: bool,
) -> None:
    """Measure the handler of DIR on INPUT, a picture, a directory of them or a video: time of its own, decoding and
    inference, instructions (gas) and memory. Suggests `limits` for its manifest, with room to spare.

    Times are those of this machine; instructions and memory are the same on every one. Exit code 1: a frame failed.

    \b
    appliance handler bench brightness picture.jpg
    """  # noqa: D301 - click wants the character \b
    with importing():
        from appliance.author.inputs import cameras  # noqa: PLC0415
        from appliance.author.tally import needs_of, suggest  # noqa: PLC0415
        from appliance.author.telling import needs_lines  # noqa: PLC0415
        from appliance.author.trial import fitted, try_out  # noqa: PLC0415
        from appliance.console.trial import progress  # noqa: PLC0415

    with clear_errors():
        config, spec = _load(config_path, log, directory, settings)
        seen: list[Tried] = []
        with progress(frames) as bar:

            async def on_tried(tried: "Tried", _: "Frame") -> None:
                seen.append(tried)
                bar.step()

            configs = cameras([given], frames=frames, loop=True)
            _run(try_out(spec, config.inference, configs, on_tried, measure=True))
        needs = needs_of(seen)
        failed = [tried for tried in seen if tried.outcome != "ok"]
        if needs is None:
            why = f" ({failed[-1].outcome}: {failed[-1].message})" if failed else ""
            raise HandlerError(f"{spec.name}: no frame went well{why}, so nothing was measured")
        limits = asyncio.run(fitted(spec, config.inference, suggest(needs)))
        if as_json:
            document = {"frames": len(seen), "failed": len(failed), "needs": needs, "limits": limits}
            click.echo(msgspec.json.encode(document))
        else:
            click.echo("\n".join(needs_lines(needs, limits, frames=len(seen), failed=len(failed))))
    if failed:
        raise SystemExit(1)


@click.command("inspect", short_help="What a handler, a module or a bundle is.")
@config_option
@click.argument("path", metavar="DIR|MODULE.wasm|INDEX.json", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Standard output is one JSON object.")
def inspect_handler(config_path: Path | None, path: Path, as_json: bool) -> None:
    """Show what there is to know without running it: the manifest, the module with its imports and the verdict of
    admission, models with their tensors, and the bundle that the directory would be deployed as.

    PATH is a handler's directory, a module, or the index of a bundle. Exit code 1: the module is refused.
    """
    from appliance.author import inspection  # noqa: PLC0415

    with clear_errors():
        view: inspection.HandlerView | inspection.ModuleView | inspection.BundleView
        if path.is_dir():
            inference = effective(config_path, None).inference
            view = asyncio.run(inspection.inspect_handler(path, inference))
            lines, admitted = inspection.handler_in_words(view), view.module.admitted
        elif path.suffix == ".json":
            view = inspection.inspect_index(path)
            lines, admitted = inspection.bundle_in_words(view), True
        else:
            view = asyncio.run(inspection.inspect_module(path))
            lines, admitted = inspection.module_in_words(view), view.admitted
        click.echo(msgspec.json.encode(view) if as_json else "\n".join(lines))
    if not admitted:
        raise SystemExit(1)


# --- trials --------------------------------------------------------------------------------------------------


def _load(
    config_path: Path | None, log: str | None, directory: Path, settings: tuple[str, ...]
) -> "tuple[Config, HandlerSpec]":
    """The configuration, and the handler with what the command line changes of it."""
    from appliance.device.journal import configure_logging  # noqa: PLC0415
    from appliance.sandbox.spec import load_handler  # noqa: PLC0415

    config = effective(config_path, log, quiet="warning")
    configure_logging("trial", config.log.level, config.log.format)
    given = settings_of(load_manifest(directory).name, settings)
    return config, load_handler(HandlerConfig(path=str(directory), settings=given), config.inference)


def _run(work: Coroutine[Any, Any, None]) -> None:
    """To its end, or to Ctrl-C: then it ends in good order, and what was done is told of."""

    async def main() -> None:
        task = asyncio.ensure_future(work)
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        try:
            await task
        except asyncio.CancelledError:
            click.echo("interrupted: this is what was done until then", err=True)

    asyncio.run(main())


def _draw(directory: Path, number: int, tried: "Tried", frame: "Frame") -> None:
    """Write the picture of a frame with what came of it."""
    from appliance.author.drawing import Mark, annotated, marks  # noqa: PLC0415

    drawn = [mark for result in tried.results for mark in marks(result.value)]
    if tried.outcome != "ok":
        drawn.append(Mark(f"{tried.outcome}: {tried.message}"))
    try:
        picture = annotated(bytes(frame.payload), drawn)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{number:06d}-{Path(tried.frame).stem}.jpg").write_bytes(picture)
    except ValueError as error:
        click.echo(f"{tried.frame}: not drawn: {error}", err=True)
    except OSError as error:
        raise ConfigError(f"--annotate {directory}: cannot be written: {error.strerror}") from error
