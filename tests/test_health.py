"""The documents that go to MQTT are what docs/mqtt.md says."""

import json
import re
from pathlib import Path
from typing import get_args

from appliance.health import failure_document, handler_document, overall
from appliance.sandbox.failure import Failure
from appliance.sandbox.host import HandlerStatus, State
from appliance.sandbox.session import Fault

PAGE = (Path(__file__).parents[1] / "docs" / "mqtt.md").read_text("utf-8")
FAILURE = Failure("trap", "unreachable executed", 7, 1_700_000_000_000_000_000, ["0: 0x0000a2 deep"], "x.capsule")


def status(**changes: object) -> HandlerStatus:
    known: dict = {
        "state": "running", "pid": 1, "since": 0.0, "handled": 1, "restarts": 0, "recycled": 0, "faults": {},
        "last_failure": None,
    }  # fmt: skip
    return HandlerStatus(**{**known, **changes})


def test_the_example_of_a_failure_has_the_keys_of_one() -> None:
    (example,) = re.findall(r'^appliance/\S+/handler/\S+ (\{.*"last_failure".*\})$', PAGE, re.MULTILINE)
    document = json.loads(example)
    shown = handler_document("1.0.0", status(last_failure=FAILURE, log_dropped=3))
    assert document.keys() | {"log_dropped"} == shown.keys()
    assert document["last_failure"].keys() == shown["last_failure"].keys()
    for key in shown.keys() | shown["last_failure"].keys():
        assert f"`{key}`" in PAGE or f'"{key}"' in PAGE


def test_every_state_of_a_handler_is_on_the_page() -> None:
    for state in get_args(State):
        assert f"`{state}`" in PAGE


def test_every_kind_of_failure_is_on_the_page() -> None:
    table = PAGE.partition("| kind of failure |")[2].partition("\n\n")[0]
    shown = {kind for row in re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE) for kind in re.findall(r"`(\w+)`", row)}
    kinds = {kind for part in get_args(Fault) for kind in get_args(part)}
    assert shown == kinds - {"unavailable", "stopped"}  # those are outcomes of frames, not failures


def test_what_is_not_known_of_a_failure_is_left_out() -> None:
    assert failure_document(FAILURE) == {
        "kind": "trap",
        "message": "unreachable executed",
        "seq": 7,
        "at": "2023-11-14T22:13:20.000000000Z",
        "backtrace": ["0: 0x0000a2 deep"],
        "capsule": "x.capsule",
    }
    assert failure_document(Failure("crash", "gone")).keys() == {"kind", "message", "seq", "at"}


def test_a_handler_in_quarantine_makes_the_box_degraded() -> None:
    documents = [handler_document("1.0.0", status(state=state)) for state in ("running", "quarantined")]
    assert overall([], documents[:1], []) == "ready"
    assert overall([], documents, []) == "degraded"
