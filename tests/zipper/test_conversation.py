"""The protocol's table: whatever a peer says in whatever order is a listed step or a refusal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from appliance.config import PeerConfig
from appliance.wire import PROTOCOL_VERSION, Accept, Control, Credit, Goaway, Header, Hello, Reject, Report
from appliance.zipper.access import Access, RefusedError
from appliance.zipper.conversation import MAX_PEER_STAGES, REMOTE_CREDITS, SOURCE_CREDITS, TABLE, Conversation, State

SECRET = "a-credential-of-this-box"
HELLOS = {
    role: Hello(PROTOCOL_VERSION, role, "peer", SECRET, observes=(1,), emits=(1,), window=2)
    for role in ("source", "handler", "sink")
}
HEADER = Header(tag=1, source="peer", seq=0, time=0, format="jpeg")


def conversation() -> Conversation:
    return Conversation(Access((), SECRET), "box")


@pytest.mark.parametrize(
    ("role", "state", "credits"),
    [("source", State.SOURCE, SOURCE_CREDITS), ("handler", State.HANDLER, REMOTE_CREDITS), ("sink", State.SINK, 0)],
)
def test_a_hello_decides_the_state(role: str, state: State, credits: int) -> None:
    peer = conversation()
    assert peer.control(HELLOS[role]) == Accept(PROTOCOL_VERSION, "box", credits)
    assert (peer.state, peer.credits) == (state, credits)


def test_credits_are_spent_and_granted() -> None:
    peer = conversation()
    peer.control(HELLOS["source"])
    for _ in range(SOURCE_CREDITS):
        peer.frame(HEADER)
    with pytest.raises(RefusedError, match="without credit"):
        peer.frame(HEADER)
    assert peer.grant(1) == Credit(1)
    peer.frame(HEADER)


def test_the_zippers_own_stages_find_room() -> None:
    """A peer that fills them would make the zipper send frames on that other peers must refuse."""
    peer = conversation()
    peer.control(HELLOS["source"])
    stages = {f"stage {number}": 1 for number in range(MAX_PEER_STAGES)}
    peer.frame(replace(HEADER, spent=stages))
    with pytest.raises(RefusedError, match="no room"):
        peer.frame(replace(HEADER, spent={**stages, "one more": 1}))


def test_credit_may_not_exceed_what_was_sent() -> None:
    peer = conversation()
    peer.control(HELLOS["sink"])
    peer.sent()
    peer.control(Credit(1))
    with pytest.raises(RefusedError, match="more frames"):
        peer.control(Credit(1))


messages = st.sampled_from(
    [*HELLOS.values(), Credit(1), Goaway("finished"), Report("streaming", {}), Reject("x", "y"), Accept(1, "box", 1)]
)


@given(st.lists(messages | st.just(HEADER), max_size=12))
def test_any_sequence_is_listed_or_refused(sequence: list[Control | Header]) -> None:
    peer = conversation()
    for message in sequence:
        before = peer.state
        listed = type(message) in TABLE[before]
        try:
            if isinstance(message, Header):
                peer.frame(message)
            else:
                peer.control(message)
        except RefusedError as error:
            assert listed or error.code == "protocol"
            return
        assert listed
        assert peer.credits >= 0
        assert peer.owed >= 0


def test_every_state_lists_its_way_out() -> None:
    assert set(TABLE) == set(State)
    for state, steps in TABLE.items():
        assert steps[Goaway] is State.LEAVING, state


def test_the_credential_of_another_name_does_not_serve() -> None:
    peers = tuple(
        PeerConfig(name=name, credential=f"credential-of-{name}", roles=("sink",), observes=(1,)) for name in ("a", "b")
    )
    access = Access(peers, SECRET)
    access.check(Hello(PROTOCOL_VERSION, "sink", "a", "credential-of-a", observes=(1,)))
    with pytest.raises(RefusedError) as refused:
        access.check(Hello(PROTOCOL_VERSION, "sink", "a", "credential-of-b", observes=(1,)))
    assert refused.value.code == "credential"
    assert "credential-of" not in str(refused.value)
