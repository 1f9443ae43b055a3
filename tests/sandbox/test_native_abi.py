"""Every function of the native ABI, called by a guest in a real worker of each engine: docs/handler-abi.md."""

import json
import math
import struct
from collections.abc import Sequence
from typing import Any

import cbor2
import pytest
import sandbox_bench
from hypothesis import given
from hypothesis import strategies as st
from sandbox_bench import (
    BOXES,
    FUNCTIONS,
    INPUT,
    MAX_CALLS,
    OUT,
    OUTPUT,
    RUN,
    TAG,
    TEXT,
    Call,
    FakeInference,
    Report,
    bench,
    driver,
    guest,
    report,
    spec,
    until,
)

from appliance.errors import ModelError, PeerError
from appliance.inference.messages import LETTERBOX, STRETCH, Crop, TensorInfo, View
from appliance.sandbox.abi.native import DTYPES, dequantised
from appliance.sandbox.messages import (
    MAX_DOCUMENT_BYTES,
    MAX_EMITS,
    MAX_LOGS_PER_FRAME,
    MAX_STATE_KEY,
    MAX_STATE_KEYS,
    MAX_STATE_VALUE,
    MAX_WISHES,
    Emit,
    Errno,
)

EINVAL, ENOENT, ETOOBIG, EDENIED, EMODEL, EFRAME = Errno
JPEG, RGB, GRAY, CBOR, JSON, BYTES = range(1, 7)
PAGES = 2 << 16
"""Bytes of the driver's memory."""
PICTURE: dict[str, Any] = {"format": "jpeg", "width": 640, "height": 480}
MODEL = 0


@pytest.fixture(autouse=True, params=["wasm3", pytest.param("wasmtime", marks=pytest.mark.slow)])
def _engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the workers; tests without one run twice."""
    monkeypatch.setattr(sandbox_bench, "ENGINE", request.param)


async def ask(*calls: Call, texts: bytes = b"", inference: FakeInference | None = None, **frame: Any) -> Report:
    """One frame in a fresh worker."""
    async with bench(driver(), inference) as handler:
        return await handler.calls(calls, texts, **frame)


async def test_frame_info() -> None:
    answer = await ask(("frame_info", OUT), **PICTURE)
    job = answer.finished.job
    assert answer.results == [0]
    assert struct.unpack_from("<QQIIIIII", answer.out) == (
        job.seq, job.captured_ns, 1, JPEG, 640, 480, job.frame.length, 0,
    )  # fmt: skip


async def test_frame_source_is_never_cut() -> None:
    answer = await ask(("frame_source", OUT, 6), ("frame_source", OUT + 16, 5))
    assert answer.results == [6, ETOOBIG]
    assert answer.out[:32] == b"camera".ljust(32, b"\0")


async def test_frame_read_copies_what_fits() -> None:
    texts = b"0123456789"
    answer = await ask(
        ("frame_read", TEXT, OUT, 4),
        ("frame_read", TEXT + 8, OUT + 16, 100),
        ("frame_read", TEXT + 10, OUT + 32, 100),
        ("frame_read", 0xFFFF_FFFF, OUT + 32, 100),
        ("frame_read", 0, OUT + 32, 0),
        texts=texts,
    )
    assert answer.results == [4, 2, 0, 0, 0]
    assert answer.out[:48] == b"0123".ljust(16, b"\0") + b"89".ljust(32, b"\0")


async def test_frame_pixels() -> None:
    crop = struct.pack("<4i", 10, 20, 30, 40)
    inference = FakeInference()
    answer = await ask(
        ("frame_pixels", 0, RGB, 4, 3, OUT, 36),
        ("frame_pixels", TEXT, GRAY, 4, 3, OUT + 64, 36),
        texts=crop,
        inference=inference,
        **PICTURE,
    )
    assert answer.results == [36, 12]
    assert answer.out[:36] == bytes(range(36))
    assert answer.out[64:100] == bytes(range(12)).ljust(36, b"\0")
    assert inference.asked == [(Crop(), "rgb", 4, 3), (Crop(10, 20, 30, 40), "gray", 4, 3)]


async def test_frame_pixels_that_cannot_be() -> None:
    answer = await ask(
        ("frame_pixels", 0, JPEG, 4, 3, OUT, 36),
        ("frame_pixels", 0, 99, 4, 3, OUT, 36),
        ("frame_pixels", 0, RGB, 4, 3, OUT, 35),
        ("frame_pixels", 0, RGB, 0, 3, OUT, 36),
        ("frame_pixels", 0, GRAY, 0xFFFF_FFFF, 0xFFFF_FFFF, OUT, 0xFFFF_FFFF),
        ("frame_pixels", 0, GRAY, 0xFFFF_FFFF, 0xFFFF_FFFF, OUT, 36),
        **PICTURE,
    )
    assert answer.results == [EINVAL, EINVAL, ETOOBIG, EINVAL, EINVAL, ETOOBIG]


OUTSIDE = [(-1, 0, 5, 5), (0, -1, 5, 5), (0, 0, 641, 5), (0, 0, 5, 481), (639, 479, 2, 1), (1, 1, 5, 0), (0, 0, -5, 5)]


async def test_a_crop_outside_the_picture() -> None:
    inference = FakeInference()
    calls: list[Call] = []
    for at in range(TEXT, TEXT + 16 * len(OUTSIDE), 16):
        calls += [("frame_pixels", at, GRAY, 2, 2, OUT, 4), ("infer_frame", MODEL, at, 0)]
    texts = b"".join(struct.pack("<4i", *crop) for crop in OUTSIDE)
    answer = await ask(*calls, texts=texts, inference=inference, **PICTURE)
    assert answer.results == [EINVAL] * len(calls)
    assert not inference.asked


async def test_a_crop_of_width_0_is_the_whole_picture() -> None:
    inference = FakeInference()
    answer = await ask(
        ("infer_frame", MODEL, TEXT, 1), texts=struct.pack("<4i", 5, 5, 0, 9), inference=inference, **PICTURE
    )
    assert answer.results == [0]
    assert inference.asked == [(answer.finished.job.frame, View(Crop(), LETTERBOX))]


async def test_only_a_picture_has_pixels() -> None:
    answer = await ask(("frame_pixels", 0, GRAY, 2, 2, OUT, 4), ("infer_frame", MODEL, 0, 0), format="cbor")
    assert answer.results == [EFRAME, EFRAME]


async def test_a_picture_that_cannot_be_decoded() -> None:
    answer = await ask(
        ("frame_pixels", 0, GRAY, 2, 2, OUT, 4),
        ("infer_frame", MODEL, 0, 0),
        inference=FakeInference(error=PeerError("not a JPEG")),
        **PICTURE,
    )
    assert answer.results == [EFRAME, EFRAME]


async def test_models_by_name() -> None:
    answer = await ask(("model", TEXT, 5), ("model", TEXT, 4), ("model", TEXT, 0), texts=b"model")
    assert answer.results == [0, ENOENT, ENOENT]


def packed(tensor: TensorInfo) -> bytes:
    shape = (*tensor.shape, *(0,) * (8 - len(tensor.shape)))
    number = DTYPES[tensor.dtype][0]
    elements = math.prod(tensor.shape)
    return struct.pack(
        "<II8IIIfi", number, len(tensor.shape), *shape, tensor.nbytes, elements, tensor.scale, tensor.zero_point
    )


async def test_tensors_of_a_model() -> None:
    answer = await ask(
        ("model_input", MODEL, 0, OUT),
        ("model_output", MODEL, 0, OUT + 64),
        ("model_output", MODEL, 1, OUT + 128),
        ("model_input", MODEL, 1, OUT),
        ("model_output", MODEL, 2, OUT),
        ("model_output", 1, 0, OUT),
        ("model_output", -1, 0, OUT),
        ("model_output_named", MODEL, TEXT, 5),
        ("model_output_named", MODEL, TEXT, 4),
        ("model_output_named", 1, TEXT, 5),
        texts=b"boxes",
    )
    assert answer.results == [0, 0, 0, EINVAL, EINVAL, EINVAL, EINVAL, 1, ENOENT, EINVAL]
    for offset, tensor in ((0, INPUT), (64, OUTPUT), (128, BOXES)):
        assert answer.out[offset : offset + 56] == packed(tensor)


async def test_labels() -> None:
    answer = await ask(
        ("model_label", MODEL, 1, OUT, 3),
        ("model_label", MODEL, 1, OUT + 16, 2),
        ("model_label", MODEL, 2, OUT, 100),
        ("model_label", 1, 0, OUT, 100),
    )
    assert answer.results == [3, ETOOBIG, ENOENT, EINVAL]
    assert answer.out[:32] == b"dog".ljust(32, b"\0")


async def test_inference_on_the_frame() -> None:
    inference = FakeInference()
    answer = await ask(
        ("output_read", MODEL, 0, 0, OUT, 4),
        ("infer_frame", MODEL, 0, 0),
        ("output_read", MODEL, 0, 0, OUT, 100),
        ("output_read", MODEL, 0, 3, OUT + 16, 100),
        ("output_read", MODEL, 0, 4, OUT + 16, 100),
        ("output_f32", MODEL, 0, 1, OUT + 32, 100),
        ("output_f32", MODEL, 1, 0, OUT + 64, 1),
        ("output_f32", MODEL, 0, 9, OUT + 64, 1),
        ("output_read", MODEL, 2, 0, OUT, 100),
        ("output_f32", 1, 0, 0, OUT, 100),
        inference=inference,
        **PICTURE,
    )
    assert answer.results == [ENOENT, 0, 4, 1, 0, 3, 1, 0, EINVAL, EINVAL]
    assert answer.out[:17] == bytes([2, 4, 6, 0]).ljust(16, b"\0") + b"\0"
    assert struct.unpack_from("<3f", answer.out, 32) == (1.0, 2.0, -1.0)  # 0.5 * (stored - 2)
    assert struct.unpack_from("<2f", answer.out, 64) == (1.0, 0.0)
    assert inference.asked == [(answer.finished.job.frame, View(Crop(), STRETCH))]
    assert answer.finished.models == (RUN,)
    assert (answer.finished.decode_us, answer.finished.invoke_us) == (3, 5)


async def test_inference_on_the_guests_own_tensors() -> None:
    inference = FakeInference()
    answer = await ask(
        ("infer_tensor", MODEL, TEXT, 12),
        ("output_read", MODEL, 0, 0, OUT, 4),
        ("infer_tensor", MODEL, TEXT, 11),
        ("infer_tensor", 1, TEXT, 12),
        texts=bytes(range(12)),
        inference=inference,
    )
    assert answer.results == [0, 4, EINVAL, EINVAL]
    assert inference.asked == [[bytes(range(12))]]


async def test_what_cannot_be_inferred() -> None:
    answer = await ask(("infer_frame", 1, 0, 0), ("infer_frame", MODEL, 0, 2), **PICTURE)
    assert answer.results == [EINVAL, EINVAL]


async def test_a_failed_inference_takes_the_answer_before_with_it() -> None:
    inference = FakeInference()
    async with bench(driver(), inference) as handler:
        calls: list[Call] = [("infer_frame", MODEL, 0, 0), ("output_read", MODEL, 0, 0, OUT, 4)]
        assert (await handler.calls(calls, **PICTURE)).results == [0, 4]
        inference.error = ModelError("the model's process died")
        assert (await handler.calls(calls, **PICTURE)).results == [EMODEL, ENOENT]


async def test_answers_of_the_frame_before_are_gone() -> None:
    async with bench(driver()) as handler:
        await handler.calls([("infer_frame", MODEL, 0, 0)], **PICTURE)
        assert (await handler.calls([("output_read", MODEL, 0, 0, OUT, 4)])).results == [ENOENT]


async def test_wishes_about_one_frame_are_bounded() -> None:
    greedy = guest(
        f"""(loop $next
          (i32.store (i32.shl (local.get $i) (i32.const 2))
            (call $infer_frame (i32.const 0) (i32.const 0) (i32.const 0)))
          (local.set $i (i32.add (local.get $i) (i32.const 1)))
          (br_if $next (i32.le_u (local.get $i) (i32.const {MAX_WISHES}))))
        (call $emit (i32.const {TAG}) (i32.const 6) (i32.const 0) (i32.const {4 * (MAX_WISHES + 1)}))"""
    )
    inference = FakeInference()
    async with bench(greedy, inference) as handler:
        finished = await handler.handle(**PICTURE)
    assert struct.unpack(f"<{MAX_WISHES + 1}i", finished.emits[0].payload) == (0,) * MAX_WISHES + (ETOOBIG,)
    assert len(inference.asked) == MAX_WISHES


async def test_emit() -> None:
    document = cbor2.dumps({"label": "cat", "score": 0.5})
    async with bench(spec(driver(), emits={TAG: True, 7: False, 0xF001: True})) as handler:
        answer = await handler.calls(
            [
                ("emit", 7, CBOR, TEXT, len(document)),
                ("emit", 7, BYTES, TEXT, 3),
                ("emit", 7, JPEG, TEXT, 0),
                ("emit", 8, CBOR, TEXT, len(document)),
                ("emit", 0xF001, CBOR, TEXT, len(document)),
                ("emit", 7, RGB, TEXT, 3),
                ("emit", 7, 0, TEXT, 3),
                ("emit", 7, BYTES, 0, (1 << 20) + 1),
            ],
            document,
        )
    assert answer.results == [0, 0, 0, EDENIED, EDENIED, EINVAL, EINVAL, EINVAL]
    assert answer.finished.emits[:-1] == (
        Emit(7, "cbor", document),
        Emit(7, "bytes", document[:3]),
        Emit(7, "jpeg", b""),
    )


MALFORMED = [
    (CBOR, b""),
    (CBOR, b"\x01\x01"),
    (CBOR, b"\x9f\x01\xff"),
    (CBOR, b"\xc0\x61a"),
    (CBOR, b"\xa2\x01\x01\x01\x02"),
    (CBOR, b"\x81" * 17 + b"\x01"),
    (JSON, b'{"a": 1'),
    (JSON, b"[1] 2"),
    (JSON, b'{"a": 1, "a": 2}'),
    (JSON, b"NaN"),
    (JSON, b'"\xff"'),
    (JSON, b"[" * 17 + b"]" * 17),
    (JSON, b"[" * 900),
]


async def test_a_malformed_document_is_refused_at_once() -> None:
    async with bench(driver()) as handler:
        for format, document in MALFORMED:
            answer = await handler.calls([("emit", TAG, format, TEXT, len(document))], document)
            assert answer.results == [EINVAL], document
            assert len(answer.finished.emits) == 1  # the driver's report


async def test_json_is_a_document() -> None:
    document = json.dumps({"käse": [1, 2.5, None, True]}).encode()
    answer = await ask(("emit", TAG, JSON, TEXT, len(document)), texts=document)
    assert answer.finished.emits[0] == Emit(TAG, "json", document)


async def test_emits_are_bounded() -> None:
    answer = await ask(*[("emit", TAG, BYTES, TEXT, 1)] * (MAX_EMITS - 1))
    assert answer.results == [0] * (MAX_EMITS - 1)
    assert len(answer.finished.emits) == MAX_EMITS  # the report is the last one
    length = 50_000
    document = cbor2.dumps(bytes(length))[:5]
    calls: list[Call] = [("emit", TAG, CBOR, TEXT, length + 3)] * 3
    assert MAX_DOCUMENT_BYTES // length == 2
    assert (await ask(*calls, texts=document)).results == [0, 0, ETOOBIG]


async def test_log(caplog: pytest.LogCaptureFixture) -> None:
    texts = b"all\x1b[31m w\xffll\n"
    with caplog.at_level(10, "handler.guest"):
        answer = await ask(("log", 30, TEXT, len(texts)), ("log", 20, TEXT, 60_000), ("log", 25, TEXT, 3), texts=texts)
    assert answer.results == [0, 0, EINVAL]
    lines = [record for record in caplog.records if record.message.startswith("event=guest_says ")]
    assert {line.name for line in lines} == {"handler.guest"}
    assert [record.levelno for record in lines] == [30, 20]
    assert lines[0].message == "event=guest_says text=all [31m w\ufffdll "
    assert len(lines[1].message) == len("event=guest_says text=") + 512


async def test_lines_about_one_frame_are_bounded() -> None:
    async with bench(driver(init=[("log", 20, TEXT, 1)] * MAX_CALLS)) as handler:
        started = report(await handler.handle(b"init"), MAX_CALLS)
        assert started.results == [0] * MAX_LOGS_PER_FRAME
        two = [("log", 20, TEXT, 1)] * MAX_CALLS
        assert (await handler.calls(two)).results == [0] * MAX_LOGS_PER_FRAME


async def test_settings() -> None:
    answer = await ask(
        ("setting", TEXT, 9, OUT, 3),
        ("setting", TEXT, 9, OUT + 16, 2),
        ("setting", TEXT, 8, OUT, 3),
        ("setting", TEXT, 0, OUT, 3),
        texts=b"threshold",
    )
    assert answer.results == [3, ETOOBIG, ENOENT, ENOENT]
    assert answer.out[:32] == b"0.5".ljust(32, b"\0")


async def test_state_lives_from_frame_to_frame() -> None:
    async with bench(driver()) as handler:
        texts = b"key" + b"value"
        key, value = (TEXT, 3), (TEXT + 3, 5)
        first = await handler.calls(
            [
                ("state_get", *key, OUT, 100),
                ("state_set", *key, *value),
                ("state_get", *key, OUT, 100),
                ("state_get", *key, OUT, 4),
            ],
            texts,
        )
        assert first.results == [ENOENT, 0, 5, ETOOBIG]
        assert first.out[:5] == b"value"
        second = await handler.calls(
            [("state_get", *key, OUT, 5), ("state_set", *key, 0, 0), ("state_get", *key, OUT, 5)], texts
        )
        assert second.results == [5, 0, ENOENT]
        assert (await handler.calls([("state_get", *key, OUT, 5)], texts)).results == [ENOENT]


async def test_state_is_bounded() -> None:
    answer = await ask(
        ("state_set", TEXT, 0, TEXT, 1),
        ("state_set", TEXT, MAX_STATE_KEY, TEXT, 1),
        ("state_set", TEXT, MAX_STATE_KEY + 1, TEXT, 1),
        ("state_set", TEXT, 1, 0, MAX_STATE_VALUE),
        ("state_set", TEXT, 1, 0, MAX_STATE_VALUE + 1),
        ("state_set", OUT - 1, 2, TEXT, 1),
        texts=b"k" * 100 + bytes(OUT - TEXT - 101) + b"\xff",
    )
    assert answer.results == [EINVAL, 0, ETOOBIG, 0, ETOOBIG, EINVAL]


async def test_keys_of_state_are_counted() -> None:
    texts = bytes(range(32, 127))
    async with bench(driver()) as handler:
        for start in (0, MAX_CALLS):
            some: list[Call] = [("state_set", TEXT + start + i, 1, TEXT, 1) for i in range(MAX_CALLS)]
            assert (await handler.calls(some, texts)).results == [0] * MAX_CALLS
        assert MAX_STATE_KEYS == 2 * MAX_CALLS
        key = TEXT + MAX_STATE_KEYS, 1
        more: list[Call] = [
            ("state_set", *key, TEXT, 1),
            ("state_set", TEXT, 1, 0, 0),
            ("state_set", *key, TEXT, 1),
            ("state_set", TEXT, 1, TEXT, 1),
        ]
        assert (await handler.calls(more, texts)).results == [ETOOBIG, 0, 0, ETOOBIG]


async def test_any_number_of_keys_that_are_not_there_can_be_deleted() -> None:
    """They are no changes, and so no more is said about a frame than the zipper takes."""
    deleting = guest(
        """(loop $next
          (i32.store8 (i32.const 0) (i32.add (i32.const 32) (i32.and (local.get $i) (i32.const 63))))
          (i32.store8 (i32.const 1) (i32.add (i32.const 32) (i32.shr_u (local.get $i) (i32.const 6))))
          (drop (call $state_set (i32.const 0) (i32.const 2) (i32.const 0) (i32.const 0)))
          (local.set $i (i32.add (local.get $i) (i32.const 1)))
          (br_if $next (i32.lt_u (local.get $i) (i32.const 1000))))
        i32.const 0"""
    )
    async with bench(deleting) as handler:
        assert (await handler.handle()).outcome == "ok"


@pytest.mark.parametrize("init", ["", f"(i32.sub (i32.load8_u (i32.const {OUT})) (i32.const 7))"], ids=["", "init"])
async def test_constructors_run_before_all_else_and_once(init: str) -> None:
    """Of a module that has a C library; a ``main`` is not a native handler's."""
    constructed = guest(
        f"(i32.sub (i32.load8_u (i32.const {OUT})) (i32.const 7))",
        init=init,
        extra=f"""(func (export "_initialize")
          (i32.store8 (i32.const {OUT}) (i32.add (i32.load8_u (i32.const {OUT})) (i32.const 7))))
        (func (export "_start") unreachable)""",
    )
    async with bench(constructed) as handler:
        assert [(await handler.handle()).message for _ in range(2)] == ["", ""]


async def test_constructors_that_trap_are_a_handler_that_cannot_run() -> None:
    async with bench(guest("i32.const 0", extra='(func (export "_initialize") unreachable)')) as handler:
        await until(lambda: handler.host.status.last_failure is not None)
        assert set(handler.host.status.faults) == {"trap"}


async def test_in_init_there_is_no_frame() -> None:
    calls: list[Call] = [
        ("frame_info", OUT),
        ("frame_source", OUT, 100),
        ("frame_read", 0, OUT, 100),
        ("frame_pixels", 0, GRAY, 2, 2, OUT, 4),
        ("infer_frame", MODEL, 0, 0),
        ("infer_tensor", MODEL, OUT, 12),
        ("output_read", MODEL, 0, 0, OUT, 4),
        ("output_f32", MODEL, 0, 0, OUT, 1),
        ("emit", TAG, BYTES, OUT, 1),
        ("state_set", TEXT, 1, TEXT, 1),
        ("model", 0x8800, 5),
        ("model_input", MODEL, 0, OUT),
        ("setting", 0x8805, 9, OUT, 3),
        ("log", 20, 0x8800, 5),
        ("state_get", 0x8800, 5, OUT, 1),
    ]
    async with bench(driver(init=calls, texts=b"modelthreshold")) as handler:
        answer = report(await handler.handle(b"init"), len(calls))
    assert answer.results == [EFRAME] * 10 + [0, 0, 3, 0, ENOENT]


POINTERS: dict[str, Sequence[Call]] = {
    "frame_info": [("frame_info", PAGES - 39)],
    "frame_source": [("frame_source", PAGES - 99, 100)],
    "frame_read": [("frame_read", 0, PAGES - 1, 2), ("frame_read", 0xFFFF_FFFF, PAGES, 1)],
    "frame_pixels": [
        ("frame_pixels", 0, GRAY, 2, 2, PAGES - 3, 4),
        ("frame_pixels", PAGES - 15, GRAY, 2, 2, OUT, 4),
        ("frame_pixels", 0, GRAY, 2, 2, OUT, 0xFFFF_FFFF),
    ],
    "model": [("model", PAGES - 1, 2)],
    "model_input": [("model_input", MODEL, 0, PAGES - 55)],
    "model_output": [("model_output", MODEL, 0, PAGES - 55)],
    "model_output_named": [("model_output_named", MODEL, PAGES, 1)],
    "model_label": [("model_label", MODEL, 0, PAGES - 99, 100)],
    "infer_frame": [("infer_frame", MODEL, PAGES - 15, 0)],
    "infer_tensor": [("infer_tensor", MODEL, PAGES - 11, 12)],
    "output_read": [("output_read", MODEL, 0, 0, PAGES - 3, 4)],
    "output_f32": [("output_f32", MODEL, 0, 0, PAGES - 3, 1), ("output_f32", MODEL, 0, 0, OUT, 0xFFFF_FFFF)],
    "emit": [("emit", TAG, BYTES, PAGES - 1, 2), ("emit", TAG, BYTES, 0xFFFF_FFFF, 0xFFFF_FFFF)],
    "log": [("log", 20, PAGES - 1, 2)],
    "setting": [("setting", PAGES - 1, 2, OUT, 1), ("setting", TEXT, 9, PAGES - 2, 3)],
    "state_get": [("state_get", PAGES - 1, 2, OUT, 1), ("state_get", TEXT, 1, PAGES, 1)],
    "state_set": [("state_set", PAGES - 1, 2, OUT, 1), ("state_set", TEXT, 1, PAGES - 1, 2)],
}


async def test_pointers_outside_the_memory() -> None:
    """Of each function, each pointer: by one byte, and around the end of 32 bits."""
    assert POINTERS.keys() == set(FUNCTIONS)
    async with bench(driver()) as handler:
        calls: list[Call] = [("infer_frame", MODEL, 0, 0), ("state_set", TEXT, 1, TEXT, 1)]
        calls += [call for some in POINTERS.values() for call in some]
        answer = await handler.calls(calls, b"threshold", **PICTURE)
        assert answer.results == [0, 0] + [EINVAL] * (len(calls) - 2)
        edges: list[Call] = [("frame_source", PAGES - 6, 6), ("emit", TAG, BYTES, PAGES, 0), ("log", 20, PAGES, 0)]
        assert (await handler.calls(edges)).results == [6, 0, 0]


async def test_the_memory_is_looked_at_anew_after_it_has_grown() -> None:
    grown = guest(
        f"""(drop (memory.grow (i32.const 3)))
        (drop (call $frame_source (i32.const 200000) (i32.const 100)))
        (drop (call $emit (i32.const {TAG}) (i32.const 6) (i32.const 200000) (i32.const 6))) i32.const 0""",
    )
    async with bench(grown) as handler:
        finished = await handler.handle()
    assert finished.emits == (Emit(TAG, "bytes", b"camera"),)


CALLS = st.tuples(
    st.sampled_from(FUNCTIONS),
    *[st.one_of(st.integers(0, 40), st.sampled_from([OUT, TEXT, PAGES - 8, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF]))]
    * 6,
)


async def test_no_arguments_break_the_worker() -> None:
    """Whatever a guest calls with whatever numbers, it gets an answer, and the worker lives on."""
    batches: list[list[Call]] = []

    @given(st.lists(CALLS, min_size=1, max_size=MAX_CALLS))
    def draw(calls: list[Call]) -> None:
        batches.append(calls)

    draw()
    async with bench(driver()) as handler:
        pid = await handler.running()
        for calls in batches:
            # the report is emitted last: leave it room, and leave the script itself alone
            safe = [call for call in calls if call[0] != "emit" and not _overwrites(call)]
            answer = await handler.calls(safe, b"model", **PICTURE)
            assert all(result >= EFRAME for result in answer.results)
        assert handler.host.status.pid == pid
        assert not handler.host.status.faults


def _overwrites(call: Call) -> bool:
    """It would have the host write below OUT, where the script is."""
    written = {"frame_info": 1, "frame_source": 1, "frame_read": 2, "frame_pixels": 5, "model_input": 3}
    written |= {"model_output": 3, "model_label": 3, "output_read": 4, "output_f32": 4, "setting": 3, "state_get": 3}
    at = written.get(str(call[0]))
    return at is not None and int(call[at]) < OUT


@pytest.mark.parametrize("dtype", DTYPES)
def test_dequantised_is_what_numpy_says(dtype: str) -> None:
    np = pytest.importorskip("numpy")
    stored = np.array([0, 1, 1, 0, 1], dtype) if dtype == "bool" else np.array([0, 1, 7, 100, 127], dtype)
    for scale, zero in ((0.0, 0), (0.25, 3)):
        tensor = TensorInfo("t", dtype, (5,), stored.nbytes, scale, zero)
        real = stored.astype(np.float32) if not scale else scale * (stored.astype(np.float64) - zero)
        expected = np.asarray(real, np.float32)[1:4].tobytes()
        assert dequantised(stored.tobytes(), tensor, 1, 3) == expected
        assert dequantised(stored.tobytes(), tensor, 5, 3) == b""


def test_a_number_too_large_for_float32_is_infinite() -> None:
    tensor = TensorInfo("t", "float64", (1,), 8, 0.0, 0)
    assert struct.unpack("<f", dequantised(struct.pack("<d", 1e300), tensor, 0, 1)) == (math.inf,)
