"""Where a frame's time went, as the handler's end of it is told."""

from appliance.frame import Frame
from appliance.ipc.ring import FrameRef
from appliance.sandbox.messages import Job
from appliance.sandbox.session import Finished
from appliance.zipper.handlers import timed

CAPTURED_NS = 1_000_000_000
FRAME = Frame(1, "camera", 0, CAPTURED_NS, "jpeg", b"", 8, 8, spent={"transfer": 500})
JOB = Job(FrameRef(1, 0, 0, "jpeg", 8, 8), 1, "camera", 0, CAPTURED_NS)


def at(microseconds: int) -> int:
    """The wall clock so long after capture."""
    return CAPTURED_NS + microseconds * 1000


def test_what_is_nobodys_work_was_waiting() -> None:
    finished = Finished(JOB, "ok", guest_us=100, decode_us=200, invoke_us=300)
    after = timed(FRAME, finished, at(600), at(2000))
    assert list(after.spent.items()) == [
        ("transfer", 500),
        ("queue", 100 + 800),
        ("decode", 200),
        ("inference", 300),
        ("handler", 100),
    ]
    assert sum(after.spent.values()) == 2000


def test_stages_that_overlap_are_told_as_they_were() -> None:
    finished = Finished(JOB, "ok", guest_us=900, decode_us=200, invoke_us=800)
    after = timed(FRAME, finished, at(600), at(1600))
    assert after.spent == {"transfer": 500, "queue": 100, "decode": 200, "inference": 800, "handler": 900}
    assert after.after("transfer", at(1700)).spent == after.spent  # a later stage takes nothing back
