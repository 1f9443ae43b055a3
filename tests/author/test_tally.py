"""Summaries of trials and the limits that come of them."""

import tomllib

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from appliance.author.outcome import Tried, TriedResult
from appliance.author.tally import Needs, Tally, as_toml, needs_of, spread, suggest
from appliance.author.telling import frame_lines, needs_lines, summary_lines
from appliance.manifest import Limits

GOOD = Tried(
    frame="a.jpg",
    outcome="ok",
    message="",
    backtrace=[],
    results=[TriedResult(0x20, "cbor", 9, {"label": "cat"})],
    guest_us=900,
    decode_us=2000,
    invoke_us=0,
    wait_us=100,
    gas=400_000,
    memory_bytes=65_536,
)
TRAPPED = msgspec.structs.replace(
    GOOD, outcome="trap", message="integer divide by zero", backtrace=["0: 0x00007c mean"], results=[]
)


def test_failed_frames_are_counted_by_kind_and_their_times_are_not() -> None:
    tally = Tally()
    for tried in (GOOD, TRAPPED, GOOD):
        tally.see(tried)
    summary = tally.summary()
    assert (summary.frames, summary.failed, summary.results) == (3, 1, 2)
    assert summary.faults == {"trap": 1}
    assert summary.guest_us["count"] == 2
    assert summary_lines(summary)[:2] == ["frames     3, failed 1 (trap 1)", "results    2"]


def test_a_trial_of_nothing_has_a_summary() -> None:
    assert summary_lines(Tally().summary()) == ["frames     0, failed 0", "results    0"]


def test_lines_say_what_came_of_a_frame() -> None:
    assert frame_lines(GOOD) == ['a.jpg  0x20  {"label":"cat"}']
    assert frame_lines(TRAPPED) == ["a.jpg  failed: trap: integer divide by zero", "    0: 0x00007c mean"]
    assert frame_lines(msgspec.structs.replace(GOOD, results=[])) == ["a.jpg  no result"]
    (line,) = frame_lines(msgspec.structs.replace(GOOD, results=[TriedResult(0x21, "jpeg", 1200)]))
    assert line == "a.jpg  0x21  1200 bytes of jpeg"
    (line,) = frame_lines(msgspec.structs.replace(GOOD, results=[TriedResult(0x21, "cbor", 9, refused="too deep")]))
    assert line == "a.jpg  0x21  not published: too deep"


def test_lines_steer_no_terminal() -> None:
    hostile = msgspec.structs.replace(GOOD, results=[TriedResult(0x20, "cbor", 9, {"label": "\x9b2J\x1b"})])
    assert all(line.isprintable() for line in frame_lines(hostile))
    assert all(line.isprintable() for line in frame_lines(msgspec.structs.replace(TRAPPED, message="\x1b[2J\nx")))


def test_limits_have_room_and_are_easy_to_read() -> None:
    needs = needs_of([GOOD, msgspec.structs.replace(GOOD, guest_us=40_000), TRAPPED])
    assert needs is not None
    assert (needs.guest_us.p50, needs.guest_us.max) == (900, 40_000)
    limits = suggest(needs)
    assert limits == {"deadline_ms": 500, "gas": 2, "memory_mb": 1}
    lines = needs_lines(needs, limits, frames=3, failed=1)
    assert lines[0] == "3 frames, 1 of them failed and are not in the figures"
    assert "\n".join(lines).endswith(as_toml(limits))


def test_nothing_is_needed_by_a_handler_that_never_succeeds() -> None:
    assert needs_of([TRAPPED]) is None


figures = st.integers(0, 1 << 40)


@given(guest_us=figures, gas=figures, memory=st.integers(0, 1 << 32))
def test_suggested_limits_are_those_of_a_manifest_and_enough_where_any_are(
    guest_us: int, gas: int, memory: int
) -> None:
    none = spread([0])
    limits = suggest(Needs(spread([guest_us]), none, none, none, spread([gas]), spread([memory])))
    read = msgspec.convert(tomllib.loads(as_toml(limits))["limits"], Limits, strict=True)
    assert read.deadline_ms * 1000 > guest_us or read.deadline_ms == 60_000
    assert read.gas is None or read.gas * 1_000_000 > gas or read.gas == 1_000_000
    assert read.memory_mb << 20 >= memory or read.memory_mb == 256


@given(st.lists(figures, min_size=1))
def test_percentiles_are_figures_that_were_seen(seen: list[int]) -> None:
    found = spread(seen)
    assert found.max == max(seen)
    assert {found.p50, found.p95} <= set(seen)
    assert found.p50 <= found.p95 <= found.max
