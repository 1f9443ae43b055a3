from appliance.frame import Frame
from appliance.summary import Verdicts, captured_by, document
from appliance.wire import Report
from appliance.zipper.server import SourceStatus


def emitted(payload: bytes, format: str = "cbor") -> Frame:
    return Frame(0x40, "camera", 0, 0, format, payload, meta={"truth": "ok"})


def test_verdicts_are_compared_with_the_truth() -> None:
    verdicts = Verdicts()
    verdicts.see(emitted(b"\xa1\x65label\x62ok"))
    verdicts.see(emitted(b"\xa1\x65label\x63bad"))
    assert (verdicts.checked, verdicts.matched) == (2, 1)


def test_what_a_remote_peer_says_is_cbor_need_not_be() -> None:
    verdicts = Verdicts()
    for frame in (emitted(b""), emitted(b"\xff\xff"), emitted(b"{}", "json")):
        assert document(frame) is None
        verdicts.see(frame)
    assert verdicts.checked == 0


def test_as_many_pictures_were_captured_as_have_come_at_least() -> None:
    early = SourceStatus("early", received=25)
    late = SourceStatus("late", received=3, report=Report("streaming", {"captured": 5}))
    assert captured_by({each.name: each for each in (early, late)}) == 30
