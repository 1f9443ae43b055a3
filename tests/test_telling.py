"""Retained states are said when they change, and cleared when what they are about is gone."""

from appliance.mqtt.topics import Topics
from appliance.sandbox.host import HandlerStatus
from appliance.telling import Document, Telling
from appliance.zipper.server import SourceStatus

TOPICS = Topics("appliance", "box")
RUNNING = HandlerStatus("running", 1, 0.0, 1, 0, 0, {}, None)


class Heard:
    """What a subscriber has of a box."""

    def __init__(self) -> None:
        self.retained: dict[str, Document] = {}
        self.messages = 0
        self.telling = Telling(TOPICS, self._set, self._clear)

    def _set(self, topic: str, document: Document) -> None:
        self.messages += 1
        self.retained[topic] = document

    def _clear(self, topic: str) -> None:
        self.messages += 1
        del self.retained[topic]


def test_what_has_not_changed_is_not_said_again() -> None:
    heard = Heard()
    for _ in range(2):
        heard.telling.say({"camera": SourceStatus("camera", connected=True)}, {"parts": ("1.0.0", RUNNING)}, ())
    assert heard.messages == 3
    assert heard.retained.keys() == {TOPICS.camera("camera"), TOPICS.handler("parts"), TOPICS.status}
    heard.telling.say({"camera": SourceStatus("camera", connected=True)}, {"parts": ("2.0.0", RUNNING)}, ())
    assert heard.messages == 4
    assert heard.retained[TOPICS.handler("parts")]["version"] == "2.0.0"


def test_a_handler_that_is_gone_is_cleared_and_may_come_again() -> None:
    heard = Heard()
    parts = {"parts": ("1.0.0", RUNNING)}
    heard.telling.say({}, {**parts, "count": ("1.0.0", RUNNING)}, ())
    heard.telling.say({}, parts, ())
    assert heard.retained.keys() == {TOPICS.handler("parts"), TOPICS.status}
    assert heard.retained[TOPICS.status]["handlers"] == {"parts": "running"}
    messages = heard.messages
    heard.telling.say({}, parts, ())
    assert heard.messages == messages
    heard.telling.say({}, {**parts, "count": ("1.0.0", RUNNING)}, ())
    assert heard.retained[TOPICS.handler("count")]["state"] == "running"
