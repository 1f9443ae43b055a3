"""The table, rule by rule, and then everything that can happen in any order, with power failing anywhere."""

import re
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
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
from appliance.deploy.machine import IGNORED, OUTCOMES_OF, RULE_OF, RULES, STAGES, TRIAL_BOOTS, step
from appliance.deploy.record import MAX_BAD, UNDER_WAY, Record, Slot, Trial, decode_record, encode_record

PAGE = Path(__file__).parents[2] / "docs" / "fleet.md"
A, B, C = (Slot(version=f"1.{n}.0", digest=f"{n:x}" * 64) for n in range(3))
B_LOUD = replace(B, settings={"volume": "11"})
NEW = Record(handler="parts")
ON_A = replace(NEW, state="active", active=A, since_ns=1)
ON_B = replace(NEW, state="active", active=B, previous=A, trial=Trial(since_ns=1), since_ns=1)
TO_B = {
    state: replace(ON_A, state=state, candidate=B)
    for state in ("waiting", "fetching", "admitting", "storing", "canary")
}
NOW = 1_000


def after(record: Record, *events: Event) -> Record:
    for event in events:
        record, _ = step(record, event, NOW)
    return record


def actions(record: Record, event: Event) -> tuple[Action, ...]:
    return step(record, event, NOW)[1]


# --- the table -----------------------------------------------------------------------------------------------


def test_every_event_has_a_rule_at_every_stage() -> None:
    names = {event.__name__ for event in get_args(Event)}
    assert set(RULE_OF) == {(name, stage) for name in names for stage in STAGES}
    assert set(RULE_OF.values()) - {IGNORED} == set(RULES)


def rows(section: str) -> list[list[str]]:
    text = PAGE.read_text("utf-8").partition(f"### {section}\n")[2].partition("\n#")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]


def test_the_page_shows_the_table() -> None:
    head, _, *shown = rows("What follows what")
    assert tuple(head[1:]) == STAGES
    assert {(row[0], stage): rule for row in shown for stage, rule in zip(STAGES, row[1:], strict=True)} == RULE_OF


def test_the_page_tells_the_rules() -> None:
    _, _, *shown = rows("The rules")
    assert shown == [
        [name, " ".join((rule.__doc__ or "").split()), *(", ".join(part) for part in OUTCOMES_OF[name])]
        for name, rule in RULES.items()
    ]
    assert set(RULES) == set(OUTCOMES_OF)


def test_the_page_tells_the_events() -> None:
    _, _, *shown = rows("The events")
    told = {name: re.sub(r"`", "", text) for name, text in shown}
    assert told == {kind.__name__: " ".join((kind.__doc__ or "").replace("`", "").split()) for kind in get_args(Event)}


def check_outcome(before: Record, event: Event, record: Record, todo: tuple[Action, ...]) -> None:
    """No rule does more than the table says, or in another order."""
    name = RULE_OF[type(event).__name__, before.stage]
    if name == IGNORED:
        assert (record, todo) == (before, ())
        return
    stages, most = OUTCOMES_OF[name]
    assert record.stage in stages or (record.stage == before.stage and "same" in stages)
    places = [most.index(type(action).__name__) for action in todo if action != Save()]
    assert places == sorted(places)


# --- rules ------------------------------------------------------------------------------------------------------


def test_a_new_version_goes_its_way_step_by_step() -> None:
    record, way = ON_A, []
    for event in (Wanted(B), Fetched(), Admitted(), Kept(), Passed()):
        record, done = step(record, event, NOW)
        assert done[0] == Save()
        way.append((record.state, done[1:]))
    assert way == [
        ("fetching", (Abandon(), Fetch(B))),
        ("admitting", (Admit(B),)),
        ("storing", (Keep(B),)),
        ("canary", (Try(B),)),
        ("active", (Serve(B), Collect())),
    ]
    assert (record.active, record.previous, record.candidate) == (B, A, None)
    assert record.trial == Trial(since_ns=NOW)
    assert after(record, TrialOver()).trial is None


def test_what_runs_already_is_nothing_to_do() -> None:
    assert step(ON_A, Wanted(A), NOW) == (ON_A, ())


def test_other_settings_are_another_candidate_of_the_same_bundle() -> None:
    on_b = after(ON_B, TrialOver())
    assert actions(on_b, Wanted(B_LOUD)) == (Save(), Abandon(), Fetch(B_LOUD))


def test_the_same_order_again_changes_nothing_under_way() -> None:
    for state in UNDER_WAY:
        assert step(TO_B[state], Wanted(B), NOW) == (TO_B[state], ())


def test_the_same_order_again_ends_waiting() -> None:
    assert actions(TO_B["waiting"], Wanted(B)) == (Save(), Abandon(), Fetch(B))


@pytest.mark.parametrize("state", TO_B)
def test_a_newer_order_ends_what_is_under_way(state: str) -> None:
    record, done = step(TO_B[state], Wanted(C), NOW)
    assert (record.state, record.candidate) == ("fetching", C)
    assert done == (Save(), Abandon(), Fetch(C))


@pytest.mark.parametrize("state", TO_B)
def test_the_old_version_wanted_again_ends_what_is_under_way(state: str) -> None:
    record, done = step(TO_B[state], Wanted(A), NOW)
    assert (record.state, record.candidate, record.active) == ("active", None, A)
    assert done == (Save(), Abandon(), Collect())


def test_a_lower_version_is_as_good_as_a_higher_one() -> None:
    assert actions(ON_B, Wanted(A)) == (Save(), Abandon(), Fetch(A))


@pytest.mark.parametrize("state", ["admitting", "canary"])
def test_a_refused_one_is_quarantined_and_what_runs_goes_on(state: str) -> None:
    record, done = step(TO_B[state], Refused("3 faults"), NOW)
    assert (record.state, record.reason, record.active, record.candidate) == ("refused", "3 faults", A, None)
    assert done == (Save(), Abandon(), Collect())
    again = after(record, Wanted(C), Wanted(B))
    assert (again.state, again.reason, again.active) == ("refused", "3 faults", A)
    assert step(again, Wanted(B), NOW) == (again, ())


def test_other_settings_of_the_same_bundle_have_done_nothing_yet() -> None:
    record = after(TO_B["canary"], Refused("3 faults"))
    assert record.badness(B)
    assert record.badness(B_LOUD) is None
    assert after(record, Wanted(B_LOUD)).state == "fetching"


@pytest.mark.parametrize("state", ["fetching", "admitting", "storing", "canary"])
def test_what_the_device_cannot_do_is_tried_again(state: str) -> None:
    record, done = step(TO_B[state], Hindered("the disk is full"), NOW)
    assert (record.state, record.reason, record.candidate, record.bad) == ("waiting", "the disk is full", B, ())
    assert done == (Save(), Abandon(), RetryLater())


def test_a_version_that_fails_in_service_goes() -> None:
    record, done = step(ON_B, Faulted(B, "3 faults in a row"), NOW)
    assert (record.state, record.reason) == ("rolled-back", "3 faults in a row")
    assert (record.active, record.previous, record.trial) == (A, None, None)
    assert done == (Save(), Abandon(), Serve(A), Collect())
    assert step(record, Wanted(B), NOW) == (record, ())
    assert after(record, Wanted(A)).state == "active"


def test_a_fault_of_a_version_that_has_gone_is_nobodys() -> None:
    assert step(ON_B, Faulted(A, "late"), NOW) == (ON_B, ())


def test_where_there_is_nothing_to_go_back_to_it_goes_on_and_says_so_once() -> None:
    record, done = step(ON_A, Faulted(A, "3 faults in a row"), NOW)
    assert (record.state, record.active) == ("active", A)
    assert "no version to go back to" in record.reason
    assert done == (Save(),)
    assert step(record, Faulted(A, "4 faults in a row"), NOW) == (record, ())
    assert step(record, Wanted(A), NOW) == (record, ())


def test_a_candidate_stays_on_its_way_when_the_one_in_service_goes() -> None:
    to_c = replace(ON_B, state="canary", candidate=C)
    record, done = step(to_c, Faulted(B, "3 faults in a row"), NOW)
    assert (record.state, record.active, record.candidate) == ("canary", A, C)
    assert done == (Save(), Abandon(), Serve(A), Try(C), Collect())
    fetching = replace(ON_B, state="fetching", candidate=C)
    assert actions(fetching, Faulted(B, "x")) == (Save(), Serve(A), Collect())


def test_a_candidate_of_the_bundle_that_goes_with_other_settings_goes_on() -> None:
    record, done = step(replace(ON_B, state="canary", candidate=B_LOUD), Faulted(B, "x"), NOW)
    assert (record.state, record.active, record.candidate) == ("canary", A, B_LOUD)
    assert done == (Save(), Abandon(), Serve(A), Try(B_LOUD), Collect())


def test_a_candidate_that_is_the_previous_one_is_there_already() -> None:
    record = after(replace(ON_B, state="canary", candidate=A), Faulted(B, "x"))
    assert (record.state, record.active, record.candidate) == ("active", A, None)


def test_a_version_on_trial_is_not_what_is_gone_back_to() -> None:
    record = after(ON_B, Wanted(C), Fetched(), Admitted(), Kept(), Passed())
    assert (record.active, record.previous) == (C, A)


def test_after_its_trial_it_is() -> None:
    record = after(ON_B, TrialOver(), Wanted(C), Fetched(), Admitted(), Kept(), Passed())
    assert (record.active, record.previous) == (C, B)


def test_a_previous_version_that_was_through_its_trial_is_not_on_trial_again() -> None:
    back = (Wanted(A), Fetched(), Admitted(), Kept(), Passed())
    record = after(replace(ON_B, proven=True), *back)
    assert (record.active, record.previous, record.proven, record.trial) == (A, B, False, None)
    assert after(ON_B, *back).trial == Trial(since_ns=NOW)


def test_the_third_start_on_trial_goes_back_before_anything_starts() -> None:
    record = ON_B
    for _ in range(TRIAL_BOOTS - 1):
        record, done = step(record, Booted(), NOW)
        assert done == (Save(), Serve(B))
    record, done = step(record, Booted(), NOW)
    assert done == (Save(), Serve(A))
    assert (record.state, record.active, record.trial) == ("rolled-back", A, None)
    assert record.badness(B)


def test_after_the_trial_starts_are_not_counted() -> None:
    trusted = after(ON_B, TrialOver())
    for _ in range(2 * TRIAL_BOOTS):
        assert step(trusted, Booted(), NOW) == (trusted, (Serve(B),))


def test_the_first_version_has_nothing_to_go_back_to() -> None:
    record = replace(ON_A, trial=Trial(since_ns=1))
    for _ in range(2 * TRIAL_BOOTS):
        record = after(record, Booted())
    assert record.active == A


@pytest.mark.parametrize("state", ["fetching", "admitting", "storing"])
def test_what_was_under_way_waits_for_the_order_after_a_start(state: str) -> None:
    record, done = step(TO_B[state], Booted(), NOW)
    assert (record.state, record.candidate) == ("waiting", B)
    assert done == (Save(), Serve(A))


def test_a_canary_is_begun_anew_after_a_start() -> None:
    assert actions(TO_B["canary"], Booted()) == (Save(), Serve(A), Try(B))
    assert actions(replace(TO_B["canary"], active=None), Booted()) == (Save(), Try(B))


@pytest.mark.parametrize("trial", [None, Trial(since_ns=1)])
def test_a_canary_with_which_the_device_starts_again_and_again_is_refused(trial: Trial | None) -> None:
    record = replace(TO_B["canary"], trial=trial)
    for _ in range(TRIAL_BOOTS - 1):
        record, done = step(record, Booted(), NOW)
        assert done == (Save(), Serve(A), Try(B))
    record, done = step(record, Booted(), NOW)
    assert done == (Save(), Serve(A))
    assert (record.state, record.active, record.candidate, record.trial) == ("refused", A, None, trial)
    assert "started 3 times while 1.1.0 was admitted or tried" in record.reason
    assert after(record, Wanted(B)).state == "refused"


def test_one_that_takes_the_device_down_while_it_is_admitted_is_refused_too() -> None:
    record = TO_B["admitting"]
    for _ in range(TRIAL_BOOTS - 1):
        record = after(record, Booted(), Wanted(B), Fetched())
        assert record.state == "admitting"
    assert after(record, Booted()).state == "refused"


def test_another_candidate_is_not_blamed_for_starts_before_it() -> None:
    record = after(TO_B["canary"], Booted(), Booted(), Wanted(C), Fetched(), Admitted(), Kept(), Booted(), Booted())
    assert (record.state, record.candidate) == ("canary", C)
    assert after(record, Passed(), Booted()).trial == Trial(since_ns=NOW, boots=1)


@pytest.mark.parametrize("state", TO_B)
def test_a_removed_handler_is_forgotten_but_for_its_quarantine(state: str) -> None:
    record = replace(TO_B[state], bad=after(TO_B["canary"], Refused("x")).bad)
    gone, done = step(record, Unwanted(), NOW)
    assert gone == Record(handler="parts", bad=record.bad, since_ns=NOW)
    assert done == (Save(), Abandon(), Stop(), Collect(), Forget())
    assert actions(gone, Booted()) == (Collect(), Forget())
    assert after(gone, Wanted(B)).state == "refused"


def test_what_cannot_be_verified_is_not_begun_with() -> None:
    for final, state in ((False, "waiting"), (True, "refused")):
        record, done = step(TO_B["canary"], Blocked(C, "expired", final), NOW)
        assert (record.state, record.reason, record.candidate, record.active) == (state, "expired", None, A)
        assert done == (Save(), Abandon(), Collect())
        assert after(record, Wanted(C)).candidate == C


def test_what_runs_does_not_have_to_be_verified_again() -> None:
    assert step(ON_A, Blocked(A, "expired"), NOW) == (ON_A, ())


def test_a_blocked_handler_that_was_never_here_says_why() -> None:
    assert after(NEW, Blocked(A, "expired")).state == "waiting"


@pytest.mark.parametrize("state", ["waiting", "fetching", "admitting", "storing"])
def test_stale_metadata_begins_nothing(state: str) -> None:
    record, done = step(TO_B[state], Stale("expired"), NOW)
    assert (record.state, record.reason, record.candidate) == ("waiting", "expired", B)
    assert done == (Save(), Abandon())


def test_stale_metadata_changes_nothing_for_what_runs() -> None:
    for record in (ON_A, ON_B, TO_B["canary"], after(NEW, Blocked(A, "x"))):
        assert step(record, Stale("expired"), NOW) == (record, ())


def test_the_previous_version_stands_in_for_a_damaged_one() -> None:
    record, done = step(ON_B, Damaged(B.digest, "damaged"), NOW)
    assert (record.state, record.active, record.previous, record.trial) == ("waiting", A, None, None)
    assert record.bad == ()
    assert done == (Save(), Serve(A), RetryLater())
    assert after(record, Wanted(B)).state == "fetching"


def test_without_a_previous_version_nothing_runs_until_it_is_fetched_again() -> None:
    record, done = step(ON_A, Damaged(A.digest, "damaged"), NOW)
    assert (record.state, record.active) == ("waiting", None)
    assert done == (Save(), Stop(), RetryLater())


def test_a_damaged_candidate_is_fetched_again() -> None:
    record, done = step(TO_B["canary"], Damaged(B.digest, "damaged"), NOW)
    assert (record.state, record.active, record.candidate) == ("waiting", A, None)
    assert done == (Save(), Abandon(), RetryLater())


def test_a_canary_goes_on_beside_the_one_that_stands_in() -> None:
    to_c = replace(ON_B, state="canary", candidate=C)
    record, done = step(to_c, Damaged(B.digest, "damaged"), NOW)
    assert (record.state, record.active, record.candidate) == ("canary", A, C)
    assert done == (Save(), Abandon(), Serve(A), Try(C), RetryLater())


def test_a_state_keeps_its_time_while_its_reason_changes() -> None:
    waiting = after(TO_B["fetching"], Hindered("one"))
    assert waiting.since_ns == NOW
    held, _ = step(waiting, Stale("two"), NOW + 1)
    assert (held.reason, held.since_ns) == ("two", NOW)


# --- anything, in any order ---------------------------------------------------------------------------------------

SLOTS = [
    Slot(version=f"{major}.0.0", digest=f"{major:x}" * 64, settings={"s": s} if s else {})
    for major in range(1, 5)
    for s in ("", "1")
]
CUT = st.none() | st.integers(0, 4)
"""Power fails before so many actions of a step have been carried out."""


class Device(RuleBasedStateMachine):
    """A device that does what the machine says, and loses power anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.disk = encode_record(NEW)
        self.kept: set[str] = set()
        self.broken: set[str] = set()
        self.refused: set[tuple[str, str]] = set()
        self.proven: Slot | None = None
        self.had_active = False
        self.off()

    def off(self) -> None:
        self.record = decode_record(self.disk, "parts")
        self.served: Slot | None = None
        self.tried: Slot | None = None
        self.work: Event | None = None

    def crash(self) -> None:
        self.off()
        trial, candidate = self.record.trial, self.record.candidate
        self.feed(Booted())
        if candidate and self.record.state == "refused":
            self.refused.add((candidate.digest, candidate.changes))
        if trial and not self.record.trial:
            self.proven = self.record.active

    def feed(self, event: Event, cut: int | None = None) -> None:
        record, todo = step(self.record, event, 1)
        check_outcome(self.record, event, record, todo)
        assert (Save() in todo) == (record != self.record)
        assert Save() not in todo[1:]
        damaged: list[Event] = []
        for number, action in enumerate(todo):
            if number == cut:
                self.crash()
                return
            if action == Save():
                self.disk, self.record = encode_record(record), record
                assert decode_record(self.disk, "parts") == record
            else:
                damaged += self.do(action)
        if isinstance(event, Passed) and self.record.active and not self.record.trial:
            self.proven = self.record.active  # it comes back, and was through its trial before
        for consequence in damaged:
            self.proven, self.had_active = None, False
            self.feed(consequence)

    def do(self, action: Action) -> list[Event]:
        match action:
            case Abandon():
                self.tried = self.work = None
            case Fetch():
                assert self.work is None
                self.work = Fetched()
            case Admit():
                self.work = Admitted()
            case Keep(slot):
                self.kept.add(slot.digest)
                self.work = Kept()
            case Serve(slot) | Try(slot):
                return self.start(slot, canary=isinstance(action, Try))
            case Stop():
                self.served = None
            case Collect():
                self.kept &= self.record.slots
        return []

    def start(self, slot: Slot, *, canary: bool) -> list[Event]:
        assert self.record.badness(slot) is None
        assert (slot.digest, slot.changes) not in self.refused
        if slot.digest not in self.kept:
            assert slot.digest in self.broken, "what was needed has been removed"
            return [Damaged(slot.digest, "damaged")]
        if canary:
            assert self.tried is None
            self.tried, self.work = slot, None
        else:
            self.served = slot
            self.tried = None if self.tried == slot else self.tried
        return []

    # what happens

    @rule(slot=st.sampled_from(SLOTS), cut=CUT)
    def want(self, slot: Slot, cut: int | None) -> None:
        self.feed(Wanted(slot), cut)

    @rule(cut=CUT)
    def unwant(self, cut: int | None) -> None:
        self.proven, self.had_active = None, False
        self.feed(Unwanted(), cut)

    @rule(slot=st.sampled_from(SLOTS), final=st.booleans(), cut=CUT)
    def block(self, slot: Slot, final: bool, cut: int | None) -> None:
        self.feed(Blocked(slot, "expired", final), cut)

    @rule(cut=CUT)
    def expire(self, cut: int | None) -> None:
        self.feed(Stale("expired"), cut)

    @precondition(lambda self: self.work)
    @rule(cut=CUT)
    def answer(self, cut: int | None) -> None:
        event, self.work = self.work, None
        assert event is not None
        self.feed(event, cut)

    @precondition(lambda self: self.work or self.tried)
    @rule(cut=CUT)
    def hinder(self, cut: int | None) -> None:
        self.feed(Hindered("the disk is full"), cut)

    @precondition(lambda self: isinstance(self.work, Admitted) or self.tried)
    @rule(cut=CUT)
    def refuse(self, cut: int | None) -> None:
        slot = self.record.candidate
        assert slot is not None
        self.work = None
        self.feed(Refused("3 faults"), cut)
        if cut != 0:
            self.refused.add((slot.digest, slot.changes))

    @precondition(lambda self: self.tried)
    @rule(cut=CUT)
    def passes(self, cut: int | None) -> None:
        self.feed(Passed(), cut)

    @precondition(lambda self: self.served)
    @rule(cut=CUT)
    def fault(self, cut: int | None) -> None:
        active, previous = self.served, self.record.previous
        assert active is not None
        self.feed(Faulted(active, "3 faults in a row"), cut)
        if cut != 0 and previous:
            self.proven = self.record.active
            if active != previous:
                self.refused.add((active.digest, active.changes))

    @precondition(lambda self: self.record.trial)
    @rule(cut=CUT)
    def prove(self, cut: int | None) -> None:
        self.feed(TrialOver(), cut)
        if self.record.trial is None:
            self.proven = self.record.active

    @rule()
    def power_cut(self) -> None:
        self.crash()

    @rule(slot=st.sampled_from(SLOTS))
    def damage(self, slot: Slot) -> None:
        """Found out when it is started the next time."""
        self.kept.discard(slot.digest)
        self.broken.add(slot.digest)

    @rule(slot=st.sampled_from(SLOTS))
    def converge(self, slot: Slot) -> None:
        """Where nothing goes wrong, what is wanted runs, unless it is in quarantine."""
        self.feed(Wanted(slot))
        while self.work or self.tried:
            if self.work:
                self.answer(None)
            else:
                self.feed(Passed())
        if bad := self.record.badness(slot):
            if self.record.active != slot:
                assert (self.record.state, self.record.reason) == (bad.state, bad.reason)
        else:
            assert self.record.state == "active"
            assert self.record.active == self.served == slot

    # what is always true

    @invariant()
    def what_runs_is_what_the_record_says(self) -> None:
        assert self.served == self.record.active
        assert (self.tried is not None) == (self.record.state == "canary")
        assert not self.tried or self.tried == self.record.candidate
        assert (self.work is not None) == (self.record.state in ("fetching", "admitting", "storing"))

    @invariant()
    def what_ran_once_runs_in_some_version(self) -> None:
        self.had_active = self.had_active or self.record.active is not None
        assert not self.had_active or self.record.active is not None

    @invariant()
    def the_last_proven_version_is_kept(self) -> None:
        assert self.proven in (None, self.record.active, self.record.previous)

    @invariant()
    def the_record_is_sound(self) -> None:
        record = self.record
        assert record == decode_record(self.disk, "parts")
        needed = (record.active, record.previous, record.candidate if record.state == "canary" else None)
        assert {slot.digest for slot in needed if slot} <= self.kept | self.broken
        assert len(record.bad) <= MAX_BAD
        assert record.stage != "settled" or record.candidate is None
        assert record.state not in UNDER_WAY or record.candidate is not None
        assert record.state != "active" or record.active is not None
        assert record.active is None or record.active != record.previous
        assert not record.trial or record.active
        assert not record.proven or record.previous


Device.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestDevice = Device.TestCase
