import pytest

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
