from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.mqtt.homeassistant import Document
from appliance.mqtt.ledger import GONE_LOOKS, Announced, Change, Ledger

FULL = {"state_topic": "x", "unique_id": "x"}


def document(*components: str) -> Document:
    """Components are ``platform.name``."""
    return {"device": {}, "components": {key: {"platform": key.partition(".")[0], **FULL} for key in components}}


def removed(*components: str) -> Document:
    return {key: {"platform": key.partition(".")[0]} for key in components}


def test_what_there_is_is_said() -> None:
    ledger = Ledger({})
    assert ledger.look({"a": document("sensor.x")}) == Change({"a": document("sensor.x")}, ())
    assert ledger.record == {"a": {"sensor.x": "sensor"}}


def test_a_component_that_is_no_more_is_named_as_removed_until_the_run_after_next() -> None:
    ledger = Ledger({})
    ledger.look({"a": document("sensor.x", "sensor.y")})
    change = ledger.look({"a": document("binary_sensor.x", "sensor.y")})
    now = document("binary_sensor.x", "sensor.y")
    named = {**now, "components": now["components"] | removed("sensor.x")}
    assert change.say == {"a": named}
    assert ledger.look({"a": now}).say == {"a": named}
    next_run = Ledger(ledger.record)
    assert next_run.look({"a": now}).say == {"a": named}
    assert Ledger(next_run.record).look({"a": now}).say == {"a": now}


def test_a_document_that_is_no_more_is_cleared_after_some_looks_and_then_forgotten() -> None:
    ledger = Ledger({})
    ledger.look({"a": document("sensor.x"), "b": document("sensor.x")})
    for _ in range(GONE_LOOKS - 1):
        assert ledger.look({"b": document("sensor.x")}).clear == ()
    assert ledger.look({"b": document("sensor.x")}).clear == ("a",)
    assert "a" in ledger.record, "the broker may not have heard it"
    assert ledger.look({"b": document("sensor.x")}).clear == ("a",)
    ledger.cleared("a")
    assert ledger.record == {"b": {"sensor.x": "sensor"}}
    assert ledger.look({"b": document("sensor.x")}).clear == ()


def test_a_handler_that_is_started_again_is_not_gone() -> None:
    ledger = Ledger({})
    for _ in range(3):
        ledger.look({"a": document("sensor.x")})
        for _ in range(GONE_LOOKS - 1):
            assert ledger.look({}).clear == ()


def test_what_an_earlier_run_announced_is_taken_back() -> None:
    ledger = Ledger({"a": {"sensor.x": "sensor"}, "b": {"sensor.y": "sensor"}})
    assert ledger.look({}, patient=False) == Change({}, ("a", "b"))
    ledger.cleared("a")
    ledger.cleared("b")
    assert ledger.record == {}


topics = st.sampled_from(["a", "b", "c"])
looks = st.dictionaries(topics, st.sets(st.sampled_from(["sensor.x", "sensor.y", "binary_sensor.x"]), min_size=1))


@settings(deadline=None)
@given(st.lists(st.lists(looks, min_size=1, max_size=8), max_size=3))
def test_home_assistant_ends_with_what_there_is(runs: list[list[dict[str, set[str]]]]) -> None:
    """Whoever takes every message as Home Assistant does has, at the end, what was wanted last."""
    known: dict[str, set[str]] = {}
    record: Announced = {}
    wanted: dict[str, set[str]] = {}
    for run in [*runs, [{}]]:
        ledger = Ledger(record)
        for wanted in run:
            change = ledger.look({topic: document(*sorted(keys)) for topic, keys in wanted.items()}, patient=False)
            record = ledger.record
            for topic, said in change.say.items():
                for key, component in said["components"].items():
                    held = known.setdefault(topic, set())
                    (held.add if len(component) > 1 else held.discard)(key)
            for topic in change.clear:
                known.pop(topic, None)
                ledger.cleared(topic)
            assert known == wanted
            assert set(known) <= record.keys(), "what was said is remembered"
            record = ledger.record
    assert known == {}
