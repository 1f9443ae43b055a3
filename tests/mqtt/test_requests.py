import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.mqtt.link import Received
from appliance.mqtt.requests import (
    ARGUMENTS,
    BURST,
    MAX_ERROR,
    MAX_REQUEST_BYTES,
    PER_SECOND,
    REMEMBERED,
    REMEMBERED_SECONDS,
    Ignored,
    Inbox,
    LogArguments,
    Refused,
    Request,
    RestartArguments,
    ReturnAddress,
    SnapshotArguments,
    done,
    failed,
)
from appliance.mqtt.topics import Topics

TOPICS = Topics("appliance", "box")
ALL = tuple(ARGUMENTS)
BACK = "appliance/box/response/me"


def request(command: str = "restart", payload: Any = None, **changes: Any) -> Received:
    body = payload if isinstance(payload, bytes) else json.dumps(payload or {"handler": "parts"}).encode()
    fields: dict[str, Any] = {"response_topic": BACK, "correlation": b"", **changes}
    return Received(TOPICS.command(command), body, **fields)


def judge(message: Received, allowed: tuple[str, ...] = ALL) -> Request | Refused | Ignored:
    return Inbox(TOPICS).judge(message, allowed, 0.0)


def test_a_request_is_decoded_with_where_to_answer() -> None:
    message = request("snapshot", {"camera": "line-2"}, correlation=b"\0\xff", expiry=30)
    back = ReturnAddress(BACK, b"\0\xff")
    assert Inbox(TOPICS).judge(message, ALL, 100.0) == Request(
        "snapshot", SnapshotArguments(camera="line-2"), back, 130.0
    )


def test_every_command_has_its_arguments() -> None:
    for command, payload, arguments in (
        ("restart", {"handler": "parts"}, RestartArguments(handler="parts")),
        ("log", {"unit": "mqtt", "level": "debug"}, LogArguments(unit="mqtt", level="debug")),
        (
            "log",
            {"unit": "handler.parts", "level": "error", "seconds": 600},
            LogArguments(unit="handler.parts", level="error", seconds=600.0),
        ),
    ):
        decoded = judge(request(command, payload))
        assert isinstance(decoded, Request)
        assert decoded.arguments == arguments
    assert isinstance(judge(request("reload", b"")), Request)
    assert isinstance(judge(request("reload", b"{}")), Request)


@pytest.mark.parametrize(
    ("command", "payload"),
    [
        ("restart", b""),
        ("restart", b"{"),
        ("restart", b"[" * MAX_REQUEST_BYTES),
        ("restart", b'{"handler":' * 300),
        ("restart", b"\xff\xfe"),
        ("restart", {"handler": "Not A Name"}),
        ("restart", {"handler": 7}),
        ("restart", {"handler": "parts", "other": 1}),
        ("reload", {"file": "/etc/shadow"}),
        ("log", {"unit": "mqtt", "level": "off"}),
        ("log", {"unit": "mqtt", "level": "debug", "seconds": 0}),
        ("log", {"unit": "mqtt", "level": "debug", "seconds": 1e9}),
        ("log", {"unit": "u" * 81, "level": "debug"}),
        ("restart", b'{"handler":"parts"}'.ljust(MAX_REQUEST_BYTES + 1)),
    ],
)
def test_a_payload_that_is_not_the_commands_is_refused(command: str, payload: Any) -> None:
    answer = judge(request(command, payload))
    assert isinstance(answer, Refused)
    assert answer.back == ReturnAddress(BACK, b"")


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "appliance/box/status",
        "appliance/box/response",
        "appliance/box/response/",
        "appliance/box/response//x",
        "appliance/box/response/x/",
        "appliance/box/response/+",
        "appliance/box/response/#",
        "appliance/box/response/x\0",
        "appliance/box/response/x\n",
        "appliance/box/response/ü",
        "appliance/box/response/" + "x" * 256,
        "appliance/box2/response/x",
        "appliance/box/command/restart",
        "xappliance/box/response/x",
        "$SYS/x",
    ],
)
def test_nobody_makes_the_device_say_something_elsewhere(topic: str) -> None:
    assert isinstance(judge(request(response_topic=topic)), Ignored)


def test_only_what_the_configuration_lists_is_carried_out() -> None:
    for command in ("restart", "shutdown", "", "restart/now", "+"):
        answer = judge(request(command), ("reload",))
        assert isinstance(answer, Refused)
        assert "mqtt.commands" in answer.error


def test_a_retained_request_is_refused() -> None:
    answer = judge(request(retain=True))
    assert isinstance(answer, Refused)
    assert "retained" in answer.error


def test_a_second_copy_is_answered_once_for_as_long_as_it_is_remembered() -> None:
    inbox = Inbox(TOPICS)

    def taken(now: float, **changes: Any) -> bool:
        return isinstance(inbox.judge(request(**changes), ALL, now), Request)

    assert taken(0, correlation=b"1")
    assert not taken(1, correlation=b"1")
    assert taken(2, correlation=b"2")
    assert taken(3, correlation=b"1", response_topic=BACK + "/other")
    assert taken(4, correlation=b"")
    assert taken(5, correlation=b"")
    assert not taken(REMEMBERED_SECONDS - 1, correlation=b"1")
    assert taken(REMEMBERED_SECONDS + 1, correlation=b"1")


def test_the_memory_of_copies_is_bounded() -> None:
    inbox = Inbox(TOPICS)
    for number in range(REMEMBERED * 3):
        inbox.judge(request(correlation=str(number).encode()), ALL, 0.0)
    assert len(inbox._seen) == REMEMBERED


def test_too_many_requests_are_told_so_once() -> None:
    inbox = Inbox(TOPICS)
    outcomes = [inbox.judge(request(), ALL, 0.0) for _ in range(BURST + 3)]
    assert [type(each) for each in outcomes] == [Request] * BURST + [Refused, Ignored, Ignored]
    later = 2 / PER_SECOND
    assert [type(inbox.judge(request(), ALL, later)) for _ in range(4)] == [Request, Request, Refused, Ignored]


def test_a_request_of_little_time_left_still_has_a_moment() -> None:
    taken = judge(request(expiry=0))
    assert isinstance(taken, Request)
    assert taken.deadline == 1.0


def test_answers_are_json_and_bounded() -> None:
    assert json.loads(done({"changed": ["a"]}).payload) == {"ok": True, "changed": ["a"]}
    answer = json.loads(failed("bad\x1b[2J" + "x" * 5000).payload)
    assert answer["ok"] is False
    assert len(answer["error"]) == MAX_ERROR + 1
    assert "\x1b" not in answer["error"]
    message = done().to(ReturnAddress(BACK, b"7"))
    assert (message.topic, message.correlation, message.content_type) == (BACK, b"7", "application/json")
    assert (message.qos, message.retain) == (1, False)


@given(
    st.sampled_from(["reload", "snapshot", "log", "restart", "x", ""]),
    st.binary(max_size=200)
    | st.dictionaries(
        st.sampled_from(["camera", "handler", "unit", "level", "seconds", "y"]),
        st.text(max_size=5) | st.integers() | st.floats() | st.none() | st.sampled_from(["debug", "parts"]),
        max_size=4,
    ).map(lambda each: json.dumps(each).encode()),
    st.text(max_size=30) | st.text(max_size=10).map(lambda text: f"{TOPICS.root}/response/{text}"),
    st.booleans(),
    st.none() | st.integers(0, 2**32 - 1),
)
def test_whatever_comes_is_judged_and_answered_at_home_alone(
    command: str, payload: bytes, response_topic: str, retain: bool, expiry: int | None
) -> None:
    message = Received(TOPICS.command(command), payload, retain, response_topic, b"", expiry)
    outcome = judge(message)
    if isinstance(outcome, Request):
        assert isinstance(outcome.arguments, ARGUMENTS[outcome.command])
        assert not retain
    if not isinstance(outcome, Ignored):
        assert outcome.back.topic.startswith("appliance/box/response/")
        assert not set("+#\0") & set(outcome.back.topic)
