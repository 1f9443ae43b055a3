import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from appliance.deploy.desired import MAX_DEPLOYED
from appliance.discovery import MAX_DOCUMENTS
from appliance.mqtt.retained import MAX_STATE_BYTES, MAX_TOPICS, Retained


def test_the_newest_wins_and_one_is_under_way_for_each_topic() -> None:
    retained = Retained()
    retained.set("a", b"1")
    assert retained.next() == ("a", b"1")
    retained.set("a", b"2")
    retained.set("b", b"1")
    retained.set("a", b"3")
    assert retained.next() == ("b", b"1")
    assert retained.next() is None
    retained.acknowledged("a")
    assert retained.next() == ("a", b"3")
    assert retained.pending
    retained.acknowledged("a")
    retained.acknowledged("b")
    assert not retained.pending


def test_what_the_broker_knows_is_not_said_again() -> None:
    retained = Retained()
    retained.set("a", b"1")
    assert retained.next() == ("a", b"1")
    retained.acknowledged("a")
    retained.set("a", b"1")
    assert retained.next() is None
    assert not retained.pending


def test_a_new_connection_hears_everything_again_as_it_is_now() -> None:
    retained = Retained()
    retained.set("a", b"1")
    retained.set("b", b"1")
    assert retained.next() == ("a", b"1")
    retained.acknowledged("a")
    assert retained.next() == ("b", b"1")
    retained.disconnected()
    retained.set("a", b"2")
    assert [retained.next(), retained.next(), retained.next()] == [("a", b"2"), ("b", b"1"), None]


def test_bounds() -> None:
    retained = Retained()
    with pytest.raises(ValueError, match="over the limit"):
        retained.set("a", b"x" * (MAX_STATE_BYTES + 1))
    for number in range(MAX_TOPICS):
        retained.set(str(number), b"")
    retained.set("0", b"new")
    with pytest.raises(ValueError, match="over the limit"):
        retained.set("one more", b"")


def test_a_box_with_all_that_it_may_have_is_within_the_bound() -> None:
    """ValueError would be its end."""
    cameras, peers, configured, own = 16, 512, 64, 2
    assert own + cameras + peers + configured + 2 * MAX_DEPLOYED + MAX_DOCUMENTS <= MAX_TOPICS


def test_what_the_broker_knows_is_said_again_on_demand() -> None:
    retained = Retained()
    retained.set("a", b"1")
    assert retained.next() == ("a", b"1")
    retained.acknowledged("a")
    retained.set("a", b"1", again=True)
    assert not retained.settled("a")
    assert retained.next() == ("a", b"1")


def test_a_cleared_topic_is_forgotten_once_that_is_acknowledged() -> None:
    retained = Retained()
    retained.set("a", b"1")
    assert retained.next() == ("a", b"1")
    retained.clear("a")
    retained.acknowledged("a")
    assert not retained.settled("a"), "what was acknowledged is the state, not its end"
    assert retained.next() == ("a", b"")
    retained.disconnected()
    assert retained.next() == ("a", b""), "the broker may not have heard it"
    retained.acknowledged("a")
    assert retained.settled("a")
    retained.disconnected()
    assert retained.next() is None


def test_a_cleared_topic_may_say_something_again() -> None:
    retained = Retained()
    retained.set("a", b"1")
    assert retained.next() == ("a", b"1")
    retained.acknowledged("a")
    retained.clear("a")
    assert retained.next() == ("a", b"")
    retained.set("a", b"1")
    retained.acknowledged("a")
    assert retained.next() == ("a", b"1")
    retained.acknowledged("a")
    retained.disconnected()
    assert retained.next() == ("a", b"1")


def test_the_bound_counts_topics_that_say_something() -> None:
    retained = Retained()
    for number in range(MAX_TOPICS):
        retained.set(str(number), b"1")
    retained.clear("0")
    retained.set("one more", b"1")
    for number in range(1, MAX_TOPICS):
        retained.clear(str(number))
    retained.clear("5")
    with pytest.raises(ValueError, match="being cleared"):
        retained.clear("one more")


class ABrokerThatComesAndGoes(RuleBasedStateMachine):
    """What was said last on each topic is what a broker has that has acknowledged everything."""

    topics = st.sampled_from(["a", "b", "c"])

    def __init__(self) -> None:
        super().__init__()
        self.retained = Retained()
        self.wanted: dict[str, bytes] = {}
        self.on_the_way: list[tuple[str, bytes]] = []
        self.broker: dict[str, bytes] = {}

    @rule(topic=topics, payload=st.sampled_from([b"1", b"2"]), again=st.booleans())
    def say(self, topic: str, payload: bytes, again: bool) -> None:
        self.retained.set(topic, payload, again=again)
        self.wanted[topic] = payload

    @rule(topic=topics)
    def clear(self, topic: str) -> None:
        self.retained.clear(topic)
        self.wanted.pop(topic, None)

    @rule()
    def send(self) -> None:
        message = self.retained.next()
        if message is not None:
            assert message[0] not in [topic for topic, _ in self.on_the_way], "one at a time for each topic"
            self.on_the_way.append(message)

    @precondition(lambda self: bool(self.on_the_way))
    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        topic, payload = self.on_the_way.pop(data.draw(st.integers(0, len(self.on_the_way) - 1)))
        self.take(topic, payload)
        self.retained.acknowledged(topic)

    @rule(taken=st.integers(0, 3), forgets=st.booleans())
    def lose_the_connection(self, taken: int, forgets: bool) -> None:
        """The broker may have taken what it did not acknowledge, and may be another one afterwards."""
        for topic, payload in self.on_the_way[:taken]:
            self.take(topic, payload)
        self.on_the_way.clear()
        self.retained.disconnected()
        if forgets:
            self.broker.clear()

    def take(self, topic: str, payload: bytes) -> None:
        if payload:
            self.broker[topic] = payload
        else:
            self.broker.pop(topic, None)

    @invariant()
    def a_broker_that_has_acknowledged_all_has_what_was_said_last(self) -> None:
        if not self.retained.pending:
            assert self.broker == self.wanted


TestABrokerThatComesAndGoes = ABrokerThatComesAndGoes.TestCase
TestABrokerThatComesAndGoes.settings = settings(deadline=None)
