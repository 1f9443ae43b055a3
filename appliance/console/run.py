"""What ``appliance run`` shows while it runs: one screen on a terminal, plain lines elsewhere."""

import asyncio
import time
from contextlib import suppress
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from appliance.app import Appliance
from appliance.frame import Frame
from appliance.health import camera_document
from appliance.summary import Summary, document, milliseconds
from appliance.text import printable

REFRESH_SECONDS = 0.5
LINE_SECONDS = 2.0
MAX_VALUE = 64
STAGES = ("held", "encode", "transfer", "queue", "decode", "inference", "handler", "publish", "total")


def value_text(frame: Frame) -> str:
    """A result on one short line, with nothing in it that could steer a terminal."""
    return printable(_value_text(frame))


def _value_text(frame: Frame) -> str:
    if frame.format == "json":
        return bytes(frame.payload[: 4 * MAX_VALUE]).decode("utf-8", "replace")[:MAX_VALUE]
    if frame.format != "cbor":
        return f"{len(frame.payload)} bytes of {frame.format}"
    value = document(frame)
    if isinstance(value, dict):
        if "label" in value:
            score = value.get("score")
            return f"{value['label']} {score:.2f}" if isinstance(score, float) else str(value["label"])
        if isinstance(value.get("objects"), list):
            labels = [str(o.get("label")) for o in value["objects"] if isinstance(o, dict)]
            return f"{len(labels)} objects: {', '.join(labels)}"[:MAX_VALUE] if labels else "no objects"
        return ", ".join(f"{key}={_short(item)}" for key, item in value.items())[:MAX_VALUE]
    return str(value)[:MAX_VALUE]


def _short(item: Any) -> str:
    return f"{item:.2f}" if isinstance(item, float) else str(item)


async def watch(appliance: Appliance, console: Console) -> None:
    """Show what happens until cancelled."""
    if not console.is_terminal:
        await _lines(appliance, console)
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            live.update(_screen(appliance), refresh=True)
            await asyncio.sleep(REFRESH_SECONDS)


async def _lines(appliance: Appliance, console: Console) -> None:
    await appliance.up.wait()
    while True:
        stats = appliance.publisher.stats
        total = appliance.publisher.latency.get("total")
        latency = f" p50={milliseconds(total)['p50']:.1f}ms" if total is not None else ""
        seen = "  ".join(f"{name}: {printable(value_text(last))}" for name, last in appliance.last.items())
        console.print(
            f"{time.strftime('%H:%M:%S')} results={stats.results} published={stats.published}{latency}  {seen}",
            soft_wrap=True,
        )
        await asyncio.sleep(LINE_SECONDS)


def _screen(appliance: Appliance) -> Group:
    stats = appliance.publisher.stats
    connected = "connected" if stats.connection.connected else f"away: {stats.connection.error or 'connecting'}"
    header = Text.assemble(
        ("appliance ", "bold"),
        f"{appliance.device}  zipper 127.0.0.1:{appliance.port}  broker {appliance.broker_url} ({connected})",
    )
    cameras = Table("camera", "state", "captured", "received", "dropped", box=None, padding=(0, 2))
    for name, source in appliance.door.sources.items():
        counters = source.report.counters if source.report is not None else {}
        dropped = sum(count for cause, count in counters.items() if cause.startswith("dropped_"))
        state = camera_document(source)["state"]
        cameras.add_row(name, state, str(counters.get("captured", 0)), str(source.received), str(dropped))
    handlers = Table("handler", "state", "handled", "dropped", "faults", "last result", box=None, padding=(0, 2))
    for name, handler in appliance.serving.live.items():
        status = handler.status
        last = appliance.last.get(name)
        observer = appliance.zipper.observers.get(name)
        handlers.add_row(
            name,
            status.state,
            str(status.handled),
            str(observer.counters.dropped if observer else 0),
            str(sum(status.faults.values())),
            printable(value_text(last)) if last else "",
        )
    results = Text(f"results {stats.results}  published {stats.published}  on disk {stats.backlog}  lost {stats.lost}")
    return Group(header, Text(), cameras, Text(), handlers, Text(), results, _latency(appliance))


def _latency(appliance: Appliance) -> Table:
    table = Table("ms", *STAGES, box=None, padding=(0, 1))
    rows = {stage: milliseconds(h) for stage, h in appliance.publisher.latency.items()}
    for percentile in ("p50", "p95"):
        table.add_row(percentile, *(f"{rows[s][percentile]:.1f}" if s in rows else "-" for s in STAGES))
    return table


def show_summary(summary: Summary, console: Console) -> None:
    """The end of a run, for people."""
    with suppress(OSError, SystemExit):  # nobody reads it; rich makes a broken pipe an exit
        _show(summary, console)


def _show(summary: Summary, console: Console) -> None:
    def line(name: str, text: str) -> None:
        console.print(f"{name:<10} {text}", soft_wrap=True)

    dropped = ", ".join(f"{cause} {count}" for cause, count in sorted(summary.dropped.items())) or "none"
    line("captured", f"{summary.captured} frames in {summary.seconds:.1f} s; dropped: {dropped}")
    waiting = f", {summary.spooled} wait on disk for the broker" if summary.spooled else ""
    line("results", f"{summary.results}; published {summary.published}, lost {summary.lost}{waiting}")
    if summary.truth is not None:
        checked, matched = summary.truth["checked"], summary.truth["matched"]
        line("truth", f"{matched} of {checked} verdicts are what the camera showed ({100 * matched / checked:.1f} %)")
    stages = [s for s in STAGES if s in summary.latency_ms]
    if stages:
        line(
            "latency",
            "  ".join(f"{s} {summary.latency_ms[s]['p50']:.1f}/{summary.latency_ms[s]['p95']:.1f}" for s in stages)
            + "  (p50/p95 ms)",
        )
    line("memory", "  ".join(f"{name} {size:.0f}" for name, size in summary.memory_mb.items()) + "  (MB, proportional)")
