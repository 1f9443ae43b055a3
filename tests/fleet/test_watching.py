"""What is made of what devices say."""

from dataclasses import replace
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.deploy.desired import Assignment
from appliance.deploy.record import slot_of
from appliance.deploy.report import DeviceReport, HandlerReport, HandlerState, Progress, SlotReport, encode_report
from appliance.errors import PeerError
from appliance.fleet import watching
from appliance.fleet.log_lines import LogLine, log_lines
from appliance.fleet.watching import (
    KEPT_OVERHEAD,
    MAX_DEVICES,
    MAX_HANDLERS,
    MAX_STATUS_BYTES,
    SILENT_SECONDS,
    Arrival,
    Device,
    Expected,
    Outcome,
    Reports,
    exit_code_of,
    outcome,
    rows,
    seconds_of,
    silent_since,
    span,
)

AT = "2026-11-24T12:00:00.000000001Z"
NOW = datetime(2026, 11, 24, 12, 0, 10, tzinfo=UTC).timestamp()
OLD, NEW = SlotReport("1.0.0", "1" * 64), SlotReport("2.0.0", "2" * 64)
EXPECTED = Expected("parts", NEW.digest, NEW.version, groups=frozenset({"all"}))


def report(**changes: object) -> DeviceReport:
    return DeviceReport(**{"fleet": "plant", "state": "current", "at": AT, **changes})  # type: ignore[arg-type]


def parts(state: HandlerState, **changes: object) -> HandlerReport:
    given = {"handler": "parts", "state": state, "since": AT, "desired": NEW, "current": NEW, **changes}
    return HandlerReport(**given)  # type: ignore[arg-type]


def device(handler: HandlerReport | None = None, **changes: object) -> Device:
    return Device("box", report=report(**changes), handlers={"parts": handler} if handler else {})


def wanted(digest: str | None = NEW.digest, version: str = NEW.version) -> dict[str, Assignment]:
    return {"parts": Assignment(version=version, digest=digest)} if digest else {}


def arrival(some: Device, expected: Expected = EXPECTED, now: float = NOW) -> Arrival:
    (only,) = outcome(expected, [some], lambda *_: wanted(expected.digest), now).arrivals
    return only


# --- reports ----------------------------------------------------------------------------------------------------


def test_reports_are_taken_by_their_topics() -> None:
    reports = Reports("site/a", "plant")
    reports.received("site/a/box/status", b'{"state":"ready","version":"1"}')
    reports.received("site/a/box/deployment", encode_report(report()), NOW)
    reports.received("site/a/box/deployment/parts", encode_report(parts("active")))
    assert reports.devices() == (Device("box", "ready", report(), {"parts": parts("active")}, NOW),)
    reports.received("site/a/box/deployment/parts", b"")
    assert reports.devices()[0].handlers == {}
    reports.received("site/a/box/deployment", b"")
    assert reports.devices() == ()
    assert reports.nonsense == 0


@pytest.mark.parametrize("name", ["status", "deployment"])
def test_names_that_are_topics_too_confuse_nobody(name: str) -> None:
    reports = Reports("appliance", "plant")
    reports.received(f"appliance/{name}/deployment", encode_report(report()))
    reports.received(
        f"appliance/{name}/deployment/{name}", encode_report(msgspec.structs.replace(parts("active"), handler=name))
    )
    assert reports.nonsense == 0
    (only,) = reports.devices()
    assert (only.name, list(only.handlers), only.status) == (name, [name], "")


def test_devices_of_another_fleet_are_not_shown() -> None:
    reports = Reports("appliance", "plant")
    reports.received("appliance/box/deployment", encode_report(report(fleet="other")))
    assert reports.devices() == ()
    assert reports.nonsense == 0


topics = st.lists(st.sampled_from(["appliance", "box", "deployment", "status", "parts", "", "+", "Ü", "x" * 65]))
payloads = st.binary(max_size=64) | st.sampled_from(
    [encode_report(report()), encode_report(parts("canary")), b'{"state":1}', b'{"state":"lost"}', b"x" * 70_000]
)


@given(st.lists(st.tuples(topics, payloads)))
def test_nothing_that_comes_does_any_harm(messages: list[tuple[list[str], bytes]]) -> None:
    reports = Reports("appliance", "plant")
    for parts_of_topic, payload in messages:
        reports.received("/".join(parts_of_topic), payload)
    rows(reports.devices(), NOW)
    outcome(EXPECTED, reports.devices(), lambda *_: wanted(), NOW)
    assert all(each.name == "box" or each.name in topics_of_names for each in reports.devices())


topics_of_names = {"appliance", "deployment", "status", "parts"}


def test_handlers_of_a_device_are_bounded_and_reports_are_of_their_topic() -> None:
    reports = Reports("appliance", "plant")
    reports.received("appliance/box/deployment", encode_report(report()))
    for number in range(MAX_HANDLERS + 5):
        name = f"parts-{number}"
        some = msgspec.structs.replace(parts("active"), handler=name)
        reports.received(f"appliance/box/deployment/{name}", encode_report(some))
    assert reports.nonsense == 5
    assert len(reports.devices()[0].handlers) == MAX_HANDLERS
    reports.received("appliance/box/deployment/parts-1", encode_report(parts("active")))
    reports.received("appliance/box/status", b"x" * (MAX_STATUS_BYTES + 1))
    assert reports.nonsense == 7


DEEP = b'{"more":' + b"[" * 4000 + b"]" * 4000 + b"}"
"""Less than any bound on bytes, and deeper than a decoder goes."""


@pytest.mark.parametrize("about", ["status", "deployment", "deployment/parts"])
def test_what_is_nested_too_deep_is_nonsense_as_well(about: str) -> None:
    reports = Reports("appliance", "plant")
    reports.received(f"appliance/box/{about}", DEEP)
    assert reports.nonsense == 1


def test_devices_are_bounded() -> None:
    reports = Reports("appliance", "plant")
    for number in range(MAX_DEVICES + 5):
        reports.received(f"appliance/box-{number}/status", b'{"state":"ready"}')
    assert reports.nonsense == 5


def test_what_is_kept_of_reports_is_bounded_and_what_is_taken_back_counts_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watching, "MAX_KEPT_BYTES", 3 * (KEPT_OVERHEAD + 40))
    reports, ready = Reports("appliance", "plant"), b'{"state":"ready"}'.ljust(40)
    for _ in range(2):
        for number in range(3):
            reports.received(f"appliance/box-{number}/status", ready)
    with pytest.raises(PeerError, match=r"more than 1656 bytes of reports on appliance/\+/deployment/#: clear"):
        reports.received("appliance/box-3/status", ready)
    reports = Reports("appliance", "plant")
    for number in range(5):
        reports.received(f"appliance/box-{number}/status", ready)
        reports.received(f"appliance/box-{number}/status", b"")
    assert reports.nonsense == 0


# --- silence ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("some", "now", "silent"),
    [
        (device(), NOW, None),
        (device(), NOW - 3600, None),  # the device's clock is ahead of ours
        (device(), NOW + SILENT_SECONDS, seconds_of(AT)),
        (replace(device(), heard=NOW + 100), NOW + SILENT_SECONDS, None),
        (replace(device(), status="lost"), NOW, seconds_of(AT)),
        (replace(device(), status="disconnected"), NOW, seconds_of(AT)),
        (replace(device(), status="degraded"), NOW, None),
        (replace(device(at="1970-01-01T00:05:00Z"), status="ready"), NOW, None),  # never had a clock
        (replace(device(at="1970-01-01T00:05:00Z"), status="lost"), NOW, 0.0),
        (device(at="yesterday"), NOW, 0.0),
        (Device("box"), NOW, 0.0),
        (Device("box", status="ready"), NOW, 0.0),
    ],
)
def test_who_is_silent_and_since_when(some: Device, now: float, silent: float | None) -> None:
    assert silent_since(some, now) == pytest.approx(silent) if silent is not None else silent_since(some, now) is None


def test_times_are_told_in_the_unit_that_fits() -> None:
    texts = [span(seconds) for seconds in (-5, 0, 59, 60, 3599, 7200, 86_400 * 3)]
    assert texts == ["0 s", "0 s", "59 s", "1 min", "60 min", "2 h", "3 d"]


# --- waiting ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("some", "verdict", "state", "reason"),
    [
        (device(parts("active")), "converged", "active", ""),
        (device(parts("active", trial=True)), "converged", "active", ""),
        (device(parts("active", desired=OLD, current=OLD)), "waiting", "waiting", ""),
        (device(parts("canary", current=OLD)), "waiting", "canary", ""),
        (device(parts("waiting", current=OLD, reason="no room")), "waiting", "waiting", "no room"),
        (device(parts("refused", current=OLD, reason="traps")), "failed", "refused", "traps"),
        (device(parts("rolled-back", current=OLD, reason="3 faults")), "failed", "rolled-back", "3 faults"),
        (device(parts("refused", desired=OLD, current=None, reason="traps")), "waiting", "waiting", ""),
        (device(), "waiting", "waiting", ""),
        (device(state="stale", reason="expired"), "waiting", "waiting", "expired"),
        (device(state="untrusted"), "waiting", "waiting", "untrusted"),
        (replace(device(parts("canary")), status="lost"), "waiting", "silent", "silent for 10 s"),
        (replace(device(parts("active")), status="lost"), "converged", "active", ""),
    ],
)
def test_where_a_device_is(some: Device, verdict: str, state: str, reason: str) -> None:
    found = arrival(some)
    assert (found.verdict, found.state, found.reason) == (verdict, state, reason)


def test_progress_is_the_devices() -> None:
    found = arrival(device(parts("fetching", current=OLD, progress=Progress(3, 10))))
    assert (found.version, found.progress) == ("1.0.0", Progress(3, 10))


@pytest.mark.parametrize(
    ("some", "verdict"),
    [
        (device(), "converged"),
        (device(parts("active", desired=None)), "waiting"),
        (Device("box"), "waiting"),
    ],
)
def test_a_handler_that_should_be_gone(some: Device, verdict: str) -> None:
    gone = Expected("parts", None, devices=frozenset({"box"}))
    assert arrival(some, gone).verdict == verdict


def test_other_settings_of_the_same_bundle_are_waited_for() -> None:
    bundle = wanted()["parts"]
    before, after = (slot_of(msgspec.structs.replace(bundle, settings={"dark": value})) for value in ("0.1", "0.4"))
    expected = replace(EXPECTED, changes=after.changes)
    assigned = {"parts": Assignment(version=NEW.version, digest=NEW.digest, settings={"dark": "0.4"})}

    def verdict(desired: SlotReport, current: SlotReport) -> str:
        some = device(parts("active", desired=desired, current=current))
        return outcome(expected, [some], lambda *_: assigned, NOW).arrivals[0].verdict

    assert verdict(before.report, before.report) == "waiting"
    assert verdict(after.report, before.report) == "waiting"
    assert verdict(after.report, after.report) == "converged"
    assert verdict(NEW, NEW) == "converged", "a device that does not tell"
    pinned = outcome(expected, [device()], lambda *_: {"parts": bundle}, NOW).arrivals[0]
    assert pinned.state == "other"


def test_a_device_with_a_document_of_its_own_is_not_waited_for() -> None:
    old = wanted(OLD.digest, OLD.version)
    pinned = outcome(EXPECTED, [device(parts("active", desired=OLD, current=OLD))], lambda *_: old, NOW)
    assert (pinned.arrivals[0].state, pinned.exit_code) == ("other", 0)
    assert pinned.arrivals[0].reason == "should run 1.0.0 by another document"


def test_only_those_are_asked_whom_it_concerns() -> None:
    some = [replace(device(groups=("line",)), name="a"), replace(device(), name="b"), replace(device(), name="c")]
    expected = replace(EXPECTED, groups=frozenset({"line"}), devices=frozenset({"c", "never"}))
    found = outcome(expected, some, lambda *_: wanted(), NOW)
    assert [(each.device, each.state) for each in found.arrivals] == [
        ("a", "waiting"),
        ("c", "waiting"),
        ("never", "silent"),
    ]


@given(st.lists(st.sampled_from(["converged", "failed", "waiting"])))
def test_the_exit_code_says_the_worst_that_is_certain(verdicts: list[str]) -> None:
    found = Outcome(tuple(Arrival("box", verdict, "x") for verdict in verdicts))  # type: ignore[arg-type]
    if "failed" in verdicts:
        assert found.exit_code == 1
    elif "waiting" in verdicts or not verdicts:
        assert found.exit_code == 4
    else:
        assert found.exit_code == 0
    assert found.settled == bool(verdicts and "waiting" not in verdicts)


@pytest.mark.parametrize(
    ("states", "only"),
    [((), True), (("active", "silent"), True), (("silent", "fetching"), False), (("refused",), True)],
)
def test_whether_anybody_is_left_who_is_there(states: tuple[str, ...], only: bool) -> None:
    verdicts = {"active": "converged", "refused": "failed"}
    arrivals = (Arrival("box", verdicts.get(state, "waiting"), state) for state in states)  # type: ignore[arg-type]
    assert Outcome(tuple(arrivals)).only_silent is only


# --- status and logs --------------------------------------------------------------------------------------------


def test_a_row_for_each_handler_and_one_for_a_device_without_any() -> None:
    full = parts("active", previous=OLD, trial=True)
    table = rows([device(full), replace(device(state="stale", reason="refresh it", expires=AT), name="c")], NOW)
    assert [(row.device, row.handler, row.desired, row.current, row.previous) for row in table] == [
        ("box", "parts", "2.0.0", "2.0.0", "1.0.0"),
        ("c", "", "", "", ""),
    ]
    assert (table[0].state, table[0].trial) == ("active", True)
    assert table[0].digest == NEW.digest
    assert table[1].note == f"metadata stale since {AT}: refresh it"


def test_lines_of_logs_are_taken_and_nonsense_is_not() -> None:
    line = {"at": AT, "level": "error", "unit": "zipper", "text": "broken", "more": 1}
    payload = b"\n".join([msgspec.json.encode(line), b"{}", b"\xff", b'{"at":1}', b"", DEEP])
    assert list(log_lines("box", payload)) == [LogLine("box", AT, "error", "zipper", "broken")]


@pytest.mark.parametrize(("codes", "code"), [([0, 0], 0), ([0, 4], 4), ([4, 1], 1), ([1, 4], 1), ([0, 1], 1), ([], 0)])
def test_a_refusal_is_not_hidden_by_what_has_not_been_answered(codes: list[int], code: int) -> None:
    assert exit_code_of(codes) == code


def test_what_a_document_says_no_more_is_waited_for_as_others_say_it() -> None:
    inherited = Expected("parts", None, devices=frozenset({"box"}), inherited=True)

    def verdict(some: Device, digest: str | None) -> tuple[str, str]:
        (only,) = outcome(inherited, [some], lambda *_: wanted(digest), NOW).arrivals
        return only.verdict, only.state

    old = parts("active", desired=OLD, current=OLD)
    assert verdict(device(old), NEW.digest) == ("waiting", "waiting")
    assert verdict(device(parts("active")), NEW.digest) == ("converged", "active")
    assert verdict(device(parts("refused", current=OLD)), NEW.digest) == ("failed", "refused")
    assert verdict(device(old), None) == ("waiting", "waiting")
    assert verdict(device(), None) == ("converged", "removed")
