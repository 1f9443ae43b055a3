"""What a device does about one handler, whatever happens: a table of stages and events. Pure.

:func:`step` takes the record and an event, and gives the record as it is to be kept and what is to be done, in that
order: where the record changed, ``Save`` is the first action. A device that loses power anywhere goes on from what it
last saved by the event ``Booted``. ``docs/fleet.md`` shows the same tables.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, get_args

from msgspec.structs import replace

from appliance.deploy.events import (
    Abandon,
    Action,
    Admit,
    Admitted,
    Blocked,
    Booted,
    Collect,
    Damaged,
    Event,
    Faulted,
    Fetch,
    Fetched,
    Forget,
    Hindered,
    Keep,
    Kept,
    Passed,
    Refused,
    RetryLater,
    Save,
    Serve,
    Stale,
    Stop,
    TrialOver,
    Try,
    Unwanted,
    Wanted,
)
from appliance.deploy.record import MAX_BAD, UNDER_WAY, Bad, Record, Slot, Stage, Trial, one_line

TABLE = """
            gone      waiting   fetching  admitting  storing   canary    settled
Wanted      consider  consider  consider  consider   consider  consider  consider
Unwanted    -         leave     leave     leave      leave     leave     leave
Blocked     block     block     block     block      block     block     block
Stale       -         hold      hold      hold       hold      -         -
Fetched     -         -         admit     -          -         -         -
Admitted    -         -         -         store      -         -         -
Kept        -         -         -         -          try       -         -
Passed      -         -         -         -          -         activate  -
Refused     -         -         -         refuse     -         refuse    -
Hindered    -         -         wait      wait       wait      wait      -
Faulted     -         go-back   go-back   go-back    go-back   go-back   go-back
TrialOver   -         trust     trust     trust      trust     trust     trust
Booted      forget    resume    resume    resume     resume    resume    resume
Damaged     -         repair    repair    repair     repair    repair    repair
"""
"""Rule by event and stage; ``-``: nothing happens. Answers that come after what they answer has been given up are
among those."""

OUTCOMES = """
consider  same settled fetching  | Abandon Fetch Collect
leave     gone                   | Abandon Stop Collect Forget
block     settled waiting        | Abandon Collect
hold      same waiting           | Abandon
admit     admitting              | Admit
store     storing                | Keep
try       canary                 | Try
activate  settled                | Serve Collect
refuse    settled                | Abandon Collect
wait      waiting                | Abandon RetryLater
go-back   same settled           | Abandon Serve Try Collect
trust     same                   |
resume    same settled waiting   | Serve Try
repair    same waiting           | Abandon Serve Stop Try RetryLater
forget    gone                   | Collect Forget
"""
"""Stages a rule may lead to, and the most that it does there, in that order, after ``Save``."""

TRIAL_BOOTS = 3
"""The device starts so often while a version is on trial, or is admitted or tried before that: it is taken for the
cause. Twice can be the power."""
RESTARTED = "the device was restarted; waiting for the fleet's metadata"


Outcome: TypeAlias = tuple[Record, tuple[Action, ...]]
Rule: TypeAlias = Callable[[Record, Any, int], Outcome]


def step(record: Record, event: Event, now_ns: int) -> Outcome:
    """The record after ``event``, and what to do. ``now_ns`` is wall-clock time."""
    name = RULE_OF[type(event).__name__, record.stage]
    if name == IGNORED:
        return record, ()
    after, actions = RULES[name](record, event, now_ns)
    if after.starts and after.candidate != record.candidate:
        after = replace(after, starts=0)
    return after, ((Save(), *actions) if after != record else actions)


# --- rules ------------------------------------------------------------------------------------------------------


def _consider(record: Record, event: Wanted, now: int) -> Outcome:
    """What runs already, and what may not run, is settled; what is under way goes on; anything else is fetched."""
    slot = event.slot
    if slot == record.active:
        return _settle(record, "active", record.reason if record.state == "active" else "", now)
    if bad := record.badness(slot):
        return _settle(record, bad.state, bad.reason, now)
    if slot == record.candidate and record.state in UNDER_WAY:
        return record, ()
    return _enter(record, "fetching", "", now, candidate=slot), (Abandon(), Fetch(slot))


def _leave(record: Record, _event: Unwanted, now: int) -> Outcome:
    """Stop it and forget it, but for what is in quarantine."""
    return Record(handler=record.handler, bad=record.bad, since_ns=now), (Abandon(), Stop(), Collect(), Forget())


def _block(record: Record, event: Blocked, now: int) -> Outcome:
    """Give up the candidate: the reason says why another is not begun with. What runs goes on."""
    if event.slot == record.active:
        return _settle(record, "active", record.reason if record.state == "active" else "", now)
    return _settle(record, "refused" if event.final else "waiting", event.reason, now)


def _hold(record: Record, event: Stale, now: int) -> Outcome:
    """Nothing new is begun until the metadata is fresh again."""
    if record.candidate is None:
        return record, ()
    return _enter(record, "waiting", event.reason, now), (Abandon(),)


def _admit(record: Record, _event: Fetched, now: int) -> Outcome:
    """Judge what was fetched."""
    return _enter(record, "admitting", "", now), (Admit(_candidate(record)),)


def _store(record: Record, _event: Admitted, now: int) -> Outcome:
    """Keep what was admitted."""
    return _enter(record, "storing", "", now), (Keep(_candidate(record)),)


def _try(record: Record, _event: Kept, now: int) -> Outcome:
    """Run it as canary."""
    return _enter(record, "canary", "", now), (Try(_candidate(record)),)


def _activate(record: Record, _event: Passed, now: int) -> Outcome:
    """Put the candidate into service, on trial. What was in service is kept, unless it was itself on trial."""
    slot = _candidate(record)
    comes_back = slot == record.previous
    stays = record.trial is not None and record.previous is not None and not comes_back
    after = _enter(
        record,
        "active",
        "",
        now,
        active=slot,
        previous=record.previous if stays else record.active,
        proven=record.proven if stays else record.active is not None and record.trial is None,
        candidate=None,
        trial=None if comes_back and record.proven else Trial(since_ns=now),
    )
    return after, (Serve(slot), Collect())


def _refuse(record: Record, event: Refused, now: int) -> Outcome:
    """Give up the candidate and put it in quarantine. What runs goes on."""
    after = _quarantined(record, _candidate(record), "refused", event.reason)
    return _settle(after, "refused", event.reason, now)


def _wait(record: Record, event: Hindered, now: int) -> Outcome:
    """Try again later, from the beginning; what is here already is not fetched again."""
    return _enter(record, "waiting", event.reason, now), (Abandon(), RetryLater())


def _go_back(record: Record, event: Faulted, now: int) -> Outcome:
    """Bring the previous version back, and put the other in quarantine. Without a previous one it goes on."""
    if record.previous is None or event.slot != record.active:
        if record.state != "active" or record.reason or event.slot != record.active:
            return record, ()
        return _enter(record, "active", f"{event.reason}; there is no version to go back to", now), ()
    after = _back(record, event.reason, now)
    return after, (*_serving(after, abandon=record.state == "canary" or after.candidate is None), Collect())


def _trust(record: Record, _event: TrialOver, _now: int) -> Outcome:
    """The trial is over."""
    return replace(record, trial=None), ()


def _resume(record: Record, _event: Booted, now: int) -> Outcome:
    """Start what is active, then go on. Before that, the third start refuses what was admitted or tried, and otherwise
    ends a trial: the previous version is back."""
    after = record
    if record.state in ("admitting", "canary"):  # the newest is blamed first
        after = replace(record, starts=record.starts + 1)
        if after.starts >= TRIAL_BOOTS:
            slot = _candidate(record)
            reason = f"the device started {after.starts} times while {slot.version} was admitted or tried"
            after = _quarantined(after, slot, "refused", reason)
            after = _enter(after, "refused", reason, now, candidate=None)
    elif record.trial:
        boots = record.trial.boots + 1
        after = replace(record, trial=replace(record.trial, boots=boots))
        if boots >= TRIAL_BOOTS and record.previous:
            after = _back(after, f"the device started {boots} times while {_version(record.active)} was on trial", now)
    if after.stage not in ("settled", "canary"):
        after = _enter(after, "waiting", RESTARTED if after.candidate else after.reason, now)
    return after, _serving(after, abandon=False, stop=False)


def _repair(record: Record, event: Damaged, now: int) -> Outcome:
    """Do without the damaged bundle: the previous version serves where it was active. Then fetch it again."""

    def whole(slot: Slot | None) -> Slot | None:
        return None if slot is None or slot.digest == event.digest else slot

    active, previous, candidate = whole(record.active), whole(record.previous), whole(record.candidate)
    serves = active or previous
    after = replace(
        record,
        active=serves,
        previous=previous if active else None,
        proven=record.proven and active is not None and previous is not None,
        candidate=candidate,
        trial=record.trial if active else None,
    )
    moved = serves != record.active
    lost = candidate != record.candidate
    if lost or (moved and candidate is None):
        after = _enter(after, "waiting", event.reason, now)
    served = _serving(after, abandon=lost or record.state == "canary") if moved else ()
    given_up = (Abandon(),) if lost and not moved else ()
    return after, (*served, *given_up, RetryLater())


def _forget(record: Record, _event: Booted, _now: int) -> Outcome:
    """Power failed before it was forgotten."""
    return record, (Collect(), Forget())


# --- what rules have in common ------------------------------------------------------------------------------------


def _candidate(record: Record) -> Slot:
    if record.candidate is None:
        raise AssertionError(f"{record.state} without a candidate")
    return record.candidate


def _version(slot: Slot | None) -> str:
    return slot.version if slot else "nothing"


def _enter(record: Record, state: str, reason: str, now: int, **changes: object) -> Record:
    since = record.since_ns if state == record.state else now
    return replace(record, state=state, reason=one_line(reason), since_ns=since, **changes)


def _settle(record: Record, state: str, reason: str, now: int) -> Outcome:
    """Without a candidate, which is given up where there is one."""
    actions: tuple[Action, ...] = (Abandon(),) if record.candidate or record.state == "waiting" else ()
    if record.candidate:
        actions = (*actions, Collect())
    return _enter(record, state, reason, now, candidate=None), actions


def _quarantined(record: Record, slot: Slot, state: str, reason: str) -> Record:
    """With ``slot`` among the bad."""
    bad = Bad(
        digest=slot.digest,
        version=slot.version,
        state=state,  # type: ignore[arg-type]  # the callers' literals
        reason=one_line(reason),
        changes=slot.changes,
    )
    return replace(record, bad=(*(each for each in record.bad if not each.is_about(slot)), bad)[-MAX_BAD:])


def _back(record: Record, reason: str, now: int) -> Record:
    """The previous version is active again. A candidate stays on its way, unless it is that one."""
    active, previous, candidate = record.active, record.previous, record.candidate
    assert active is not None
    after = _quarantined(record, active, "rolled-back", reason)
    after = replace(after, active=previous, previous=None, proven=False, trial=None)
    if candidate is None or candidate == previous:
        state = "active" if candidate else "rolled-back"
        return _enter(after, state, reason, now, candidate=None)
    return after


def _serving(record: Record, *, abandon: bool, stop: bool = True) -> tuple[Action, ...]:
    """Have in service, and beside it, what the record says."""
    serve: tuple[Action, ...] = (Serve(record.active),) if record.active else ((Stop(),) if stop else ())
    tried: tuple[Action, ...] = (Try(_candidate(record)),) if record.state == "canary" else ()
    return (*((Abandon(),) if abandon else ()), *serve, *tried)


# --- the tables, for machines -------------------------------------------------------------------------------------

IGNORED = "-"
RULES: Mapping[str, Rule] = {
    "consider": _consider,
    "leave": _leave,
    "block": _block,
    "hold": _hold,
    "admit": _admit,
    "store": _store,
    "try": _try,
    "activate": _activate,
    "refuse": _refuse,
    "wait": _wait,
    "go-back": _go_back,
    "trust": _trust,
    "resume": _resume,
    "repair": _repair,
    "forget": _forget,
}
"""By the name in TABLE; their docstrings are what ``docs/fleet.md`` says of them."""
STAGES: tuple[Stage, ...] = get_args(Stage)


def _read_outcomes(table: str) -> dict[str, tuple[list[str], list[str]]]:
    rows = [line.partition("|") for line in table.strip().splitlines()]
    return {left.split()[0]: (left.split()[1:], right.split()) for left, _, right in rows}


def _read(table: str) -> dict[tuple[str, Stage], str]:
    _head, *rows = [line.split() for line in table.strip().splitlines()]
    return {(event, stage): rule for event, *rules in rows for stage, rule in zip(STAGES, rules, strict=True)}


RULE_OF: Mapping[tuple[str, Stage], str] = _read(TABLE)
OUTCOMES_OF = _read_outcomes(OUTCOMES)
"""(stages, actions) by rule."""
