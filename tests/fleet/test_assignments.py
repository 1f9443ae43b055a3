import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from appliance.deploy.desired import MAX_DEPLOYED, Assignment, Desired, decode_desired, encode_desired, merged
from appliance.deploy.versions import is_lower
from appliance.errors import ConfigError, PeerError
from appliance.fleet.assignments import Wanted, changes, deploy, forget, name_of, rollback, target_of, undeploy
from appliance.fleet.history import MAX_BEFORE, MAX_HISTORY_BYTES, History, decode_history, encode_history

ALL, TILLS, GATE = "groups/all.json", "groups/tills.json", "devices/gate.json"
NOTHING = Wanted({}, History())


def version(number: int) -> Assignment:
    return Assignment(version=f"{number}.0.0", digest=f"{number:064x}")


def test_targets_are_named_as_people_call_them() -> None:
    for to, path in (("all", ALL), ("tills", TILLS), ("device:gate", GATE)):
        assert target_of(to) == path
        assert name_of(path) == to
    for wrong in ("", "device:", "Gate", "device:a/b", "../x", "group:a"):
        with pytest.raises(ConfigError, match="--to"):
            target_of(wrong)


def test_what_all_have_is_taken_from_one_by_saying_none() -> None:
    wanted = undeploy(deploy(NOTHING, ALL, "motion", version(1)), GATE, "motion")
    assert merged([wanted.documents[ALL], wanted.documents[GATE]]) == {}
    with pytest.raises(ConfigError, match="is deployed to tills: name it with --to"):
        undeploy(deploy(NOTHING, TILLS, "motion", version(1)), ALL, "motion")
    only = undeploy(deploy(NOTHING, GATE, "motion", version(1)), GATE, "motion")
    assert only.documents[GATE].handlers == {}


def test_a_rollback_of_what_a_group_had_for_itself_gives_it_what_all_have() -> None:
    wanted = deploy(deploy(NOTHING, ALL, "motion", version(1)), TILLS, "motion", version(2))
    for changed in (wanted, undeploy(wanted, TILLS, "motion")):
        back = rollback(changed, TILLS, "motion")
        back = back if changed is wanted else rollback(back, TILLS, "motion")
        assert back.documents[TILLS].handlers == {}
        assert merged([back.documents[ALL], back.documents[TILLS]]) == {"motion": version(1)}
    taken = undeploy(deploy(NOTHING, ALL, "motion", version(1)), TILLS, "motion")
    again = rollback(deploy(taken, TILLS, "motion", version(2)), TILLS, "motion")
    assert again.documents[TILLS].handlers == {"motion": None}


def test_a_device_alone_has_what_others_do_not() -> None:
    wanted = deploy(NOTHING, GATE, "motion", version(1))
    with pytest.raises(ConfigError, match="is deployed to device:gate: name it with --to"):
        undeploy(wanted, TILLS, "motion")


def test_what_is_forgotten_is_what_weaker_groups_say_and_can_be_brought_back() -> None:
    tried = deploy(deploy(NOTHING, ALL, "motion", version(1)), GATE, "motion", version(2))
    for wanted in (deploy(tried, GATE, "motion", version(3)), undeploy(tried, GATE, "motion")):
        after = forget(wanted, GATE, "motion")
        assert merged([after.documents[ALL], after.documents[GATE]]) == {"motion": version(1)}
        assert rollback(after, GATE, "motion").documents == wanted.documents
    with pytest.raises(ConfigError, match="tills says nothing about motion"):
        forget(tried, TILLS, "motion")


def test_no_more_handlers_than_a_device_takes() -> None:
    wanted = NOTHING
    for number in range(MAX_DEPLOYED):
        wanted = deploy(wanted, ALL, f"h{number}", version(1))
    with pytest.raises(ConfigError, match="over the limit"):
        deploy(wanted, ALL, "another", version(1))


def test_changes_are_told_in_words() -> None:
    before = deploy(NOTHING, ALL, "motion", version(2))
    after = deploy(before, ALL, "motion", version(1), downgrade=True)
    assert changes(before, after) == [
        f"all: motion  2.0.0 {'0' * 12} -> 1.0.0 {'0' * 12}",
    ]
    assert changes(before, before) == []


class Operator(RuleBasedStateMachine):
    """Deploys, undeploys and rolls back on one target, with a list to compare with."""

    def __init__(self) -> None:
        super().__init__()
        self.wanted = NOTHING
        self.stack: list[Assignment | None] = []
        self.now: Assignment | None = None

    @rule(number=st.integers(1, 5), downgrade=st.booleans())
    def deploys(self, number: int, downgrade: bool) -> None:
        new = version(number)
        if self.now and is_lower(new.version, self.now.version) and not downgrade:
            with pytest.raises(ConfigError, match="--downgrade"):
                deploy(self.wanted, ALL, "motion", new)
            return
        self.wanted = deploy(self.wanted, ALL, "motion", new, downgrade=downgrade)
        if self.now != new:
            self.stack.append(self.now)
        self.now = new

    @rule()
    def undeploys(self) -> None:
        if self.now is None:
            with pytest.raises(ConfigError):
                undeploy(self.wanted, ALL, "motion")
            return
        self.wanted = undeploy(self.wanted, ALL, "motion")
        self.stack.append(self.now)
        self.now = None

    @rule()
    def rolls_back(self) -> None:
        if not self.stack:
            with pytest.raises(ConfigError, match="has never had another motion"):
                rollback(self.wanted, ALL, "motion")
            return
        self.wanted = rollback(self.wanted, ALL, "motion")
        self.now = self.stack.pop()

    @invariant()
    def agrees(self) -> None:
        self.stack = self.stack[-MAX_BEFORE:]
        there = self.wanted.of(ALL, "motion")
        assert there == self.now
        assert self.wanted.history.of(ALL, "motion") == tuple(each or "nothing" for each in self.stack)
        assert decode_history(encode_history(self.wanted.history)) == self.wanted.history
        document = self.wanted.documents.get(ALL, Desired())
        assert decode_desired(encode_desired(document)) == document


TestOperator = Operator.TestCase
TestOperator.settings = settings(max_examples=50, stateful_step_count=20, deadline=None)


@pytest.mark.parametrize("data", [b"", b"{}x", b'{"v":2}', b"\xff", b" " * (MAX_HISTORY_BYTES + 1)], ids=range(5))
def test_what_is_no_history_is_refused(data: bytes) -> None:
    with pytest.raises(PeerError, match="history"):
        decode_history(data)
