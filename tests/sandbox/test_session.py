"""The protocol of one worker, message by message, with the tests' own clock."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sandbox_bench import RUN, TAG, Answer

from appliance.errors import PeerError
from appliance.frame import ModelRun
from appliance.inference.messages import Crop, View
from appliance.ipc.ring import FrameRef
from appliance.manifest import Limits
from appliance.sandbox.budget import Budgets
from appliance.sandbox.messages import (
    MAX_EMIT_BYTES,
    MAX_GUEST_MODEL_BYTES,
    MAX_LOG_LINE,
    MAX_LOGS_PER_FRAME,
    MAX_PICTURE_BYTES,
    MAX_PIXEL_BYTES,
    MAX_STATE_KEYS,
    MAX_STATE_VALUE,
    MAX_TRAP_TEXT,
    MAX_WISHES,
    MODEL_WISHES,
    Done,
    Emit,
    FromWorker,
    Job,
    Loaded,
    Log,
    Started,
    Trapped,
    WantInference,
    WantModel,
    WantPixels,
)
from appliance.sandbox.session import LOAD_SECONDS, Broken, Finished, LineDropped, Rules, Running, Session
from appliance.text import printable

DEADLINE = 0.5
RULES = Rules(DEADLINE, frozenset({TAG}), ((12, 3), (5,)))
DONE = Done([], {}, 0)
WISH = WantInference(0, View())


def job(seq: int = 1) -> Job:
    return Job(FrameRef(seq, 0, 0, "bytes", 0, 0), 1, "camera", seq, 0)


def started(*jobs: Job, now: float = 0.0) -> Session:
    session = Session(RULES, {}, now)
    session.receive(Loaded(), now)
    assert session.receive(Started(), now) == Running()
    for one in jobs:
        session.give(one, now)
    return session


def test_a_frame_is_handled() -> None:
    session = started(one := job())
    assert session.job is one
    finished = session.receive(Done([Emit(TAG, "bytes", b"x")], {}, 40), 0.1)
    assert finished == Finished(one, "ok", emits=(Emit(TAG, "bytes", b"x"),), guest_us=40)
    assert session.job is None
    assert session.deadline is None


def test_gas_and_memory_are_passed_on_and_never_below_zero() -> None:
    session = started(job(1), job(2))
    finished = session.receive(Done([], {}, 40, gas=7, memory_bytes=65_536), 0.1)
    assert isinstance(finished, Finished)
    assert (finished.gas, finished.memory_bytes) == (7, 65_536)
    finished = session.receive(Done([], {}, 40, gas=-7, memory_bytes=-1), 0.1)
    assert isinstance(finished, Finished)
    assert (finished.gas, finished.memory_bytes) == (0, 0)


def test_the_next_frame_begins_when_the_one_before_ends() -> None:
    session = started(one := job(1), two := job(2))
    assert session.deadline == DEADLINE
    assert session.receive(DONE, 0.4) == Finished(one, "ok")
    assert session.job is two
    assert session.deadline == 0.4 + DEADLINE


def test_jobs_given_before_the_start_begin_with_it() -> None:
    session = Session(RULES, {}, 10.0)
    session.give(one := job(), 10.1)
    assert session.job is None
    assert session.deadline == 10.0 + LOAD_SECONDS
    session.receive(Loaded(), 10.5)
    assert session.job is None
    assert session.deadline == 10.5 + DEADLINE
    session.receive(Started(), 10.7)
    assert session.job is one
    assert session.deadline == 10.7 + DEADLINE


def test_waiting_for_the_zipper_does_not_count() -> None:
    session = started(job())
    assert session.receive(WISH, 0.1) is WISH
    assert session.deadline is None
    session.answered(5.1, Answer([], decode_us=1000, invoke_us=2000))
    assert session.deadline == pytest.approx(5.1 + DEADLINE - 0.1)
    session.receive(WISH, 5.2)
    session.answered(6.2)
    assert session.deadline == pytest.approx(6.2 + DEADLINE - 0.2)
    finished = session.receive(Done([], {}, 10**9), 6.3)
    assert isinstance(finished, Finished)
    assert finished.guest_us == pytest.approx(300_000, abs=2)  # what it claims is bounded by what is seen from here
    assert (finished.decode_us, finished.invoke_us, finished.models) == (1000, 2000, (RUN,))
    assert finished.wait_us == pytest.approx(5_000_000 - 3000 + 1_000_000, abs=2)


def test_a_model_that_is_brought_may_be_used_from_then_on() -> None:
    session = started(job())
    with pytest.raises(PeerError, match="wish for model 2"):
        session.receive(WantInference(2, View(), [b"four"]), 0.0)
    model = WantModel(b"model")
    assert session.receive(model, 0.0) is model
    session.brought([4])
    session.answered(0.0)
    with pytest.raises(PeerError, match="not as long as"):
        session.receive(WantInference(2, View(), [b"five."]), 0.0)
    wish = WantInference(2, View(), [b"four"])
    assert session.receive(wish, 0.0) is wish


def test_models_may_be_brought_before_the_first_frame_and_loading_them_does_not_count() -> None:
    session = Session(RULES, {}, 0.0)
    with pytest.raises(PeerError, match="is not due"):
        session.receive(WantModel(b"model"), 0.0)
    session.receive(Loaded(), 0.0)
    session.receive(WantModel(b"model"), 0.1)
    assert session.deadline is None
    session.answered(60.1, refusal="guest_models is 0")
    assert session.deadline == pytest.approx(60.1 + DEADLINE - 0.1)
    assert session.receive(Trapped("init", "init returned 6", fatal=True), 60.2) == Broken(
        "init", "init returned 6; guest_models is 0"
    )


def test_loading_models_counts_as_many_wishes() -> None:
    session = started(job())
    for _ in range(MAX_WISHES // MODEL_WISHES):
        session.receive(WantModel(b"model"), 0.0)
        session.answered(0.0)
    with pytest.raises(PeerError, match="wishes"):
        session.receive(WISH, 0.0)


def test_waiting_for_a_model_in_init_is_not_charged_to_the_first_frame() -> None:
    session = Session(RULES, {}, 0.0)
    session.give(job(), 0.0)
    session.receive(Loaded(), 0.0)
    session.receive(WantModel(b"model"), 0.0)
    session.answered(60.0)
    session.receive(Started(), 60.0)
    finished = session.receive(DONE, 60.0)
    assert isinstance(finished, Finished)
    assert finished.wait_us == 0


def test_models_that_answered_are_named_once() -> None:
    other = ModelRun("other", "1" * 64, "double 1.0", "edgetpu")
    session = started(job())
    for run in (RUN, other, RUN):
        session.receive(WISH, 0.0)
        session.answered(0.0, Answer([], run=run))
    finished = session.receive(DONE, 0.0)
    assert isinstance(finished, Finished)
    assert finished.models == (RUN, other)


def test_the_reason_of_a_refusal_is_told_with_the_failure() -> None:
    session = started(job(), job(2))
    session.receive(WISH, 0.0)
    session.answered(0.0, refusal="the model's\nprocess died")
    failed = session.receive(Trapped("error", "handle returned -5 (EMODEL)", fatal=False), 0.0)
    assert isinstance(failed, Finished)
    assert (failed.outcome, failed.message) == ("error", "handle returned -5 (EMODEL); the model's process died")
    again = session.receive(Trapped("error", "handle returned 1", fatal=False), 0.0)
    assert isinstance(again, Finished)
    assert again.message == "handle returned 1"


def test_a_failure_that_is_not_fatal_ends_the_frame_only() -> None:
    session = started(one := job(1), two := job(2))
    session.receive(Log(20, "so far"), 0.0)
    assert session.receive(Trapped("trap", "unreachable", fatal=False), 0.1) == Finished(
        one, "trap", "unreachable", guest_us=100_000
    )
    assert session.job is two


def test_a_fatal_failure_breaks_the_worker_and_leaves_the_frame_to_be_abandoned() -> None:
    session = started(one := job(1), two := job(2))
    assert session.receive(Trapped("memory", "all gone", fatal=True), 0.1) == Broken("memory", "all gone")
    assert session.abandon("memory", "all gone", 0.2) == Finished(one, "memory", "all gone", guest_us=200_000)
    assert list(session.unread()) == [two]


def test_before_the_start_every_failure_is_fatal_and_no_frame_is_in_hand() -> None:
    session = Session(RULES, {}, 0.0)
    session.give(one := job(), 0.0)
    assert session.receive(Trapped("init", "it refuses", fatal=False), 0.1) == Broken("init", "it refuses")
    assert session.abandon("init", "it refuses", 0.2) is None
    assert list(session.unread()) == [one]


def test_an_orderly_exit_is_one_after_a_frame() -> None:
    session = started(job(1), two := job(2))
    assert not session.told_nothing_since_a_frame
    session.receive(DONE, 0.1)
    assert session.told_nothing_since_a_frame
    assert list(session.unread()) == [two]
    session = started(job(1), job(2))
    session.receive(DONE, 0.1)
    session.receive(Log(20, "I have begun"), 0.2)
    assert not session.told_nothing_since_a_frame


def test_state_is_committed_with_the_frame() -> None:
    session = Session(RULES, {"a": b"1", "b": b"2"}, 0.0)
    session.receive(Loaded(), 0.0)
    session.receive(Started(), 0.0)
    for one in (job(1), job(2)):
        session.give(one, 0.0)
    session.receive(Done([], {"a": b"", "c": b"3"}, 0), 0.0)
    assert session.state == {"b": b"2", "c": b"3"}
    session.receive(Trapped("error", "", fatal=False), 0.0)
    assert session.state == {"b": b"2", "c": b"3"}


PROTOCOL_ERRORS: list[tuple[str, FromWorker]] = [
    ("not due", Started()),
    ("loaded again", Loaded()),
    ("negative model", WantInference(-1, View())),
    ("model that is not declared", WantInference(2, View())),
    ("crop", WantInference(0, View(Crop(-1, 0, 1, 1)))),
    ("large crop", WantPixels(Crop(0, 0, 1 << 40, 1), "rgb", 1, 1)),
    ("fit", WantInference(0, View(fit="squeeze"))),
    ("tensor missing", WantInference(0, View(), [bytes(12)])),
    ("tensor length", WantInference(0, View(), [bytes(12), bytes(4)])),
    ("no tensors", WantInference(0, View(), [])),
    ("pixel format", WantPixels(Crop(), "jpeg", 1, 1)),
    ("no pixels", WantPixels(Crop(), "gray", 0, 1)),
    ("too wide", WantPixels(Crop(), "gray", 1 << 15, 1)),
    ("too many pixels", WantPixels(Crop(), "gray", 16_384, MAX_PIXEL_BYTES // 16_384 + 1)),
    ("tag", Done([Emit(TAG + 1, "bytes", b"")], {}, 0)),
    ("format", Done([Emit(TAG, "rgb", b"")], {}, 0)),
    ("too many emits", Done([Emit(TAG, "bytes", b"")] * 17, {}, 0)),
    ("too large an emit", Done([Emit(TAG, "bytes", bytes(MAX_EMIT_BYTES + 1))], {}, 0)),
    ("malformed document", Done([Emit(TAG, "cbor", b"\xff")], {}, 0)),
    ("value of state", Done([], {"k": bytes(MAX_STATE_VALUE + 1)}, 0)),
    ("key of state", Done([], {"ä" * 33: b"1"}, 0)),
    ("empty key", Done([], {"": b"1"}, 0)),
    ("too many keys", Done([], {str(n): b"1" for n in range(MAX_STATE_KEYS + 1)}, 0)),
    ("picture", WantPixels(Crop(), "rgb", 1, 1, bytes(MAX_PICTURE_BYTES + 1))),
    ("float pixels", WantPixels(Crop(), "rgb32f", MAX_PIXEL_BYTES // 12 // 64 + 1, 64)),
    ("guest's model", WantModel(bytes(MAX_GUEST_MODEL_BYTES + 1))),
    ("log level", Log(50, "")),
    ("log line", Log(20, "x" * (MAX_LOG_LINE + 1))),
    ("explanation", Trapped("trap", "x" * (MAX_TRAP_TEXT + 1), fatal=False)),
]


@pytest.mark.parametrize("message", [m for _, m in PROTOCOL_ERRORS], ids=[name for name, _ in PROTOCOL_ERRORS])
def test_what_no_honest_worker_says(message: FromWorker) -> None:
    session = started(one := job())
    with pytest.raises(PeerError):
        session.receive(message, 0.1)
    assert session.state == {}
    finished = session.abandon("protocol", "killed", 0.1)
    assert finished is not None
    assert (finished.job, finished.outcome) == (one, "protocol")


@pytest.mark.parametrize(
    "message",
    [Loaded(), Started(), DONE, WISH, WantPixels(Crop(), "rgb", 1, 1), Log(20, ""), Trapped("trap", "", fatal=False)],
)
def test_a_worker_without_a_frame_has_nothing_to_say(message: FromWorker) -> None:
    with pytest.raises(PeerError, match="without a frame"):
        started().receive(message, 0.0)


@pytest.mark.parametrize("message", [DONE, WISH, Log(20, ""), Started()])
def test_a_worker_that_waits_for_an_answer_says_nothing(message: FromWorker) -> None:
    session = started(job())
    session.receive(WISH, 0.0)
    with pytest.raises(PeerError, match="waits for an answer"):
        session.receive(message, 0.0)


@pytest.mark.parametrize("message", [DONE, WISH, WantPixels(Crop(), "rgb", 1, 1)])
def test_before_the_start_there_is_no_frame_to_speak_of(message: FromWorker) -> None:
    session = Session(RULES, {}, 0.0)
    session.give(job(), 0.0)
    with pytest.raises(PeerError, match="not due"):
        session.receive(message, 0.0)


def test_log_and_wishes_are_counted_for_each_frame() -> None:
    session = started(*(job(n) for n in range(3)))
    for _ in range(2):
        for _ in range(MAX_LOGS_PER_FRAME):
            session.receive(Log(20, ""), 0.0)
        for _ in range(MAX_WISHES):
            session.receive(WISH, 0.0)
            session.answered(0.0)
        session.receive(DONE, 0.0)
    for _ in range(MAX_LOGS_PER_FRAME):
        session.receive(Log(20, ""), 0.0)
    with pytest.raises(PeerError, match="more log"):
        session.receive(Log(20, ""), 0.0)
    for _ in range(MAX_WISHES):
        session.receive(WISH, 0.0)
        session.answered(0.0)
    with pytest.raises(PeerError, match="wishes"):
        session.receive(WISH, 0.0)


def test_what_is_over_the_emit_budget_is_withheld_and_the_state_kept() -> None:
    budgets = Budgets(Limits(emits_per_second=1), 0.0)
    session = Session(RULES, {}, 0.0, budgets)
    for message in (Loaded(), Started()):
        session.receive(message, 0.0)
    outcomes = []
    for number, now in enumerate((0.0, 0.5, 2.0)):
        session.give(job(number), now)
        finished = session.receive(Done([Emit(TAG, "bytes", b"x")], {"n": bytes([number])}, 40), now)
        assert isinstance(finished, Finished)
        outcomes.append((finished.outcome, len(finished.emits), finished.job.seq))
        assert session.state == {"n": bytes([number])}  # as the guest has it
    assert outcomes == [("ok", 1, 0), ("budget", 0, 1), ("ok", 1, 2)]


def test_what_may_not_be_emitted_at_all_is_no_matter_of_budgets() -> None:
    session = Session(RULES, {}, 0.0, Budgets(Limits(emits_per_second=1), 0.0))
    for message in (Loaded(), Started()):
        session.receive(message, 0.0)
    session.give(job(), 0.0)
    with pytest.raises(PeerError, match="would not have passed this on"):
        session.receive(Done([Emit(TAG + 1, "bytes", b"")] * 2, {}, 0), 0.0)


def test_lines_over_the_log_budget_are_dropped() -> None:
    session = Session(RULES, {}, 0.0, Budgets(Limits(log_lines_per_second=2), 0.0))
    session.receive(Loaded(), 0.0)
    line = Log(20, "hello")
    assert [session.receive(line, now) for now in (0.0, 0.0, 0.1, 0.6)] == [line, line, LineDropped(), line]


@given(st.text())
def test_printable_is_one_harmless_line(text: str) -> None:
    shown = printable(text)
    assert len(shown) == len(text)
    assert shown.isprintable()


# --- any worker at all --------------------------------------------------------------------------------------

MESSAGES: st.SearchStrategy[FromWorker] = st.one_of(
    st.sampled_from([Loaded(), Started()]),
    st.just(DONE),
    st.builds(
        Done, st.just([Emit(TAG, "cbor", b"\x01")]), st.dictionaries(st.text(max_size=3), st.binary()), st.integers()
    ),
    st.builds(Trapped, st.sampled_from(["trap", "error", "memory"]), st.text(max_size=9), st.booleans()),
    st.builds(Log, st.sampled_from([20, 40, 41]), st.text(max_size=9)),
    st.builds(WantInference, st.integers(-1, 3), st.builds(View, st.builds(Crop, st.integers(-1, 2)))),
    st.builds(
        WantPixels, st.just(Crop()), st.sampled_from(["rgb", "gray", "cmyk"]), st.integers(-1, 3), st.integers(0, 3)
    ),
    st.builds(WantModel, st.binary(max_size=3)),
    st.sampled_from([message for _, message in PROTOCOL_ERRORS]),
)
STEPS = st.lists(st.one_of(MESSAGES, st.just("give"), st.just("answer"), st.floats(0.0, 0.2)), max_size=60)


@dataclass
class Ledger:
    """Plays steps against a session, and keeps the books."""

    session: Session = field(default_factory=lambda: Session(RULES, {}, 0.0))
    given: list[int] = field(default_factory=list)
    finished: list[int] = field(default_factory=list)
    now: float = 0.0

    def play(self, steps: list[object]) -> None:
        try:
            for step in steps:
                if self._step(step) or self._overdue():
                    break
        except PeerError:
            pass
        cut = self.session.abandon("crash", "the end", self.now)
        self.finished += [cut.job.seq] if cut else []

    def _step(self, step: object) -> bool:
        match step:
            case float():
                self.now += step
            case "give":
                self.given.append(len(self.given) + 1)
                self.session.give(job(len(self.given)), self.now)
            case "answer":
                if self.session.asking:
                    self.session.answered(self.now)
            case _:
                event = self.session.receive(step, self.now)  # type: ignore[arg-type]
                if isinstance(event, Finished):
                    self.finished.append(event.job.seq)
                    assert 0 <= event.guest_us <= round((DEADLINE + 0.2) * 1e6)
                return isinstance(event, Broken)
        return False

    def _overdue(self) -> bool:
        deadline = self.session.deadline
        return deadline is not None and deadline < self.now


@settings(max_examples=300)
@given(STEPS)
def test_whatever_a_worker_says_every_job_ends_once_and_in_order(steps: list[object]) -> None:
    ledger = Ledger()
    ledger.play([Loaded(), Started(), *steps] if len(steps) % 2 else steps)
    unread = [one.seq for one in ledger.session.unread()]
    assert ledger.finished + unread == ledger.given


@settings(max_examples=200)
@given(STEPS)
def test_a_worker_that_owes_something_always_has_a_deadline_or_waits_for_us(steps: list[object]) -> None:
    ledger = Ledger()
    for step in [Loaded(), Started(), "give", *steps]:
        try:
            if ledger._step(step):
                return
        except PeerError:
            return
        session = ledger.session
        owes = session.starting or session.job is not None
        assert owes == (session.deadline is not None or session.asking)
