"""What came of a trial, in lines for people. Pure."""

from collections.abc import Mapping

import msgspec

from appliance.author.outcome import Tried, TriedResult
from appliance.author.tally import Needs, Spread, Summary, as_toml
from appliance.text import printable


def frame_lines(tried: Tried) -> list[str]:
    """A line for each result; for a failed frame what went wrong, and where in the guest."""
    if tried.outcome != "ok":
        failure = f"{tried.frame}  failed: {tried.outcome}: {tried.message}"
        return [printable(failure), *(printable(f"    {line}") for line in tried.backtrace)]
    if not tried.results:
        return [printable(f"{tried.frame}  no result")]
    return [printable(f"{tried.frame}  {result.tag:#04x}  {_value(result)}") for result in tried.results]


def _value(result: TriedResult) -> str:
    if result.refused:
        return f"not published: {result.refused}"
    if result.value is None and result.format not in ("cbor", "json"):
        return f"{result.bytes} bytes of {result.format}"
    return msgspec.json.encode(result.value).decode()


def summary_lines(summary: Summary) -> list[str]:
    """How many frames, results and failures; times."""
    faults = ", ".join(f"{kind} {count}" for kind, count in sorted(summary.faults.items()))
    lines = [
        f"frames     {summary.frames}, failed {summary.failed}{f' ({faults})' if faults else ''}",
        f"results    {summary.results}",
    ]
    if summary.frames > summary.failed:
        named = [("handler", summary.guest_us), ("waiting", summary.wait_us)]
        if summary.invoke_us["p95"]:
            named[1:1] = [("decode", summary.decode_us), ("inference", summary.invoke_us)]
        times = "  ".join(f"{name} {_ms(spent['p50'])}/{_ms(spent['p95'])}" for name, spent in named)
        lines.append(f"times      {times}  (p50/p95 ms)")
    return lines


def needs_lines(needs: Needs, limits: Mapping[str, int], *, frames: int, failed: int) -> list[str]:
    """A table, and what to write in the manifest."""
    rows = [("handler, ms", needs.guest_us, 1e3)]
    if needs.invoke_us.max:
        rows += [("decode, ms", needs.decode_us, 1e3), ("inference, ms", needs.invoke_us, 1e3)]
    rows += [
        ("waiting, ms", needs.wait_us, 1e3),
        ("instructions", needs.gas, 1),
        ("memory, KiB", needs.memory_bytes, 1024),
    ]
    return [
        f"{frames} frames{f', {failed} of them failed and are not in the figures' if failed else ''}",
        f"{'':14} {'p50':>12} {'p95':>12} {'max':>12}",
        *(_row(name, figures, unit) for name, figures, unit in rows),
        "",
        "with room to spare, in handler.toml:",
        "",
        as_toml(limits),
    ]


def _row(name: str, figures: Spread, unit: float) -> str:
    places = 2 if unit == 1e3 else 0
    shown = (f"{figure / unit:,.{places}f}" for figure in (figures.p50, figures.p95, figures.max))
    return f"{name:14} " + " ".join(f"{text:>12}" for text in shown)


def _ms(microseconds: int) -> str:
    return f"{microseconds / 1000:.2f}"
