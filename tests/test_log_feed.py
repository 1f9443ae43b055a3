"""Lines of the log on their way to MQTT."""

import asyncio
import json
import logging
from typing import Any

import pytest

from appliance.log_feed import BURST, PER_SECOND, LogFeed
from appliance.mqtt.link import Message
from appliance.mqtt.topics import Topics

log = logging.getLogger("appliance.zipper.test_log_feed")
TOPICS = Topics("appliance", "box")


class Voice:
    def __init__(self) -> None:
        self.connected = True
        self.said: list[Message] = []

    def say(self, message: Message) -> bool:
        logging.getLogger("appliance.mqtt.link").warning("event=about_saying_it")
        if self.connected:
            self.said.append(message)
        return self.connected

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(message.payload) for message in self.said]


@pytest.fixture
def voice(monkeypatch: pytest.MonkeyPatch) -> Voice:
    monkeypatch.setattr(logging.getLogger(), "level", logging.DEBUG)
    return Voice()


async def turn() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_lines_are_json_on_the_topic_of_the_log(voice: Voice) -> None:
    with LogFeed(voice, TOPICS, "info"):
        log.info("event=one value=%d", 7)
        log.debug("event=not_said")
        logging.getLogger("handler.parts").error("event=two")
        await turn()
    assert [(m.topic, m.qos, m.retain) for m in voice.said] == [("appliance/box/log", 0, False)] * 2
    assert [{**line, "at": ""} for line in voice.lines] == [
        {"at": "", "level": "info", "unit": "zipper", "text": "event=one value=7"},
        {"at": "", "level": "error", "unit": "handler.parts", "text": "event=two"},
    ]
    assert voice.lines[0]["at"].endswith("Z")
    log.info("event=after")
    assert len(voice.said) == 2


async def test_what_the_connection_says_is_not_said_over_it(voice: Voice) -> None:
    with LogFeed(voice, TOPICS, "debug"):
        for name in ("appliance.mqtt.client", "appliance.mqtt.link.paho", "appliance.control"):
            logging.getLogger(name).critical("event=own")
        log.info("event=other")
        await turn()
    assert [line["text"] for line in voice.lines] == ["event=other"]


async def test_a_flood_is_bounded_and_what_was_dropped_is_told(voice: Voice) -> None:
    now = 0.0
    with LogFeed(voice, TOPICS, "info", clock=lambda: now) as feed:
        for number in range(BURST + 50):
            log.info("event=flood number=%d", number)
        await turn()
        assert len(voice.said) == BURST
        now = 2.0
        log.info("event=later")
        await turn()
        assert [line["text"] for line in voice.lines[BURST:]] == ["event=log_dropped lines=50", "event=later"]
        for number in range(100):
            log.info("event=flood number=%d", number)
        await turn()
        assert len(voice.said) == BURST + 1 + 2 * PER_SECOND
        assert feed.dropped == 50 + 100 - 2 * PER_SECOND + 1


async def test_without_a_connection_lines_are_dropped_and_counted(voice: Voice) -> None:
    voice.connected = False
    with LogFeed(voice, TOPICS, "info") as feed:
        log.info("event=lost")
        await turn()
        voice.connected = True
        log.info("event=back")
        await turn()
        assert feed.dropped == 1
    assert [line["text"] for line in voice.lines] == ["event=log_dropped lines=1", "event=back"]


async def test_threads_may_log(voice: Voice) -> None:
    with LogFeed(voice, TOPICS, "info"):
        await asyncio.gather(*(asyncio.to_thread(log.info, "event=thread number=%d", number) for number in range(40)))
        await turn()
        assert sorted(line["text"] for line in voice.lines) == sorted(f"event=thread number={n}" for n in range(40))


async def test_off_says_nothing_and_the_level_may_change(voice: Voice) -> None:
    with LogFeed(voice, TOPICS, "off") as feed:
        log.critical("event=off")
        feed.set_level("error")
        log.warning("event=too_mild")
        log.error("event=on")
        await turn()
    assert [line["text"] for line in voice.lines] == ["event=on"]


async def test_tracebacks_and_long_lines_are_one_bounded_line(voice: Voice) -> None:
    with LogFeed(voice, TOPICS, "info"):
        try:
            int("boom\nsecond line")
        except ValueError:
            log.exception("event=failed")
        log.info("x" * 100_000)
        await turn()
    assert "ValueError: invalid literal" in voice.lines[0]["text"]
    assert "\n" not in voice.lines[0]["text"]
    assert len(voice.lines[1]["text"]) == 2000


async def test_a_line_that_cannot_be_made_does_not_fail_who_logs(
    voice: Voice, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", True)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    with LogFeed(voice, TOPICS, "info"):
        log.info("event=%d", "not a number")
        log.info("event=fine")
        await turn()
    assert [line["text"] for line in voice.lines] == ["event=fine"]
    assert "not a number" in capsys.readouterr().err
