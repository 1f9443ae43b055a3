"""The convention of wasmedge-bindgen, with guests that keep it and guests that do not."""

import json
import struct
from itertools import pairwise
from typing import Any

import pytest
from guest_builds import c_library, rust_library
from hypothesis import given, settings
from hypothesis import strategies as st
from local_host import TAG, LocalHost, Memory
from sandbox_bench import assemble, bench, spec

from appliance.manifest import Limits
from appliance.sandbox.abi.bindgen import MAX_ERROR_TEXT, MAX_RESULTS
from appliance.sandbox.engine import Function, GuestFailedError
from appliance.sandbox.messages import Emit

PAGE = 1 << 16


def guest(**options: Any) -> LocalHost:
    host = LocalHost(c_library("bindgen", libc=False), "bindgen", **options)
    host.abi.start()
    return host


def failure(host: LocalHost, payload: bytes) -> GuestFailedError:
    with pytest.raises(GuestFailedError) as failed:
        host.handle(payload)
    return failed.value


@pytest.mark.parametrize(
    ("payload", "emit"),
    [
        (b"j", Emit(TAG, "json", b'{"food": "ramen"}')),
        (b"s", Emit(TAG, "json", b'{"text": "ramen"}')),
        (b"b", Emit(TAG, "bytes", b"\xff\xfe")),
    ],
)
def test_results(payload: bytes, emit: Emit) -> None:
    host = guest()
    for _ in range(3):
        assert host.handle(payload) == [emit]


@pytest.mark.parametrize("payload", [b"", b"0"])
def test_an_empty_result_is_none(payload: bytes) -> None:
    assert guest().handle(payload) == []


def test_an_error_is_the_guests_own() -> None:
    host = guest()
    failed = failure(host, b"e")
    assert (failed.kind, str(failed)) == ("error", "infer failed: not a jpg")
    assert host.handle(b"s")


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"p", "outside the memory"),
        (b"q", "outside the memory"),
        (b"r", "outside the memory"),
        (b"t", "a value of type 6"),
        (b"m", f"more than {MAX_RESULTS}"),
    ],
)
def test_what_is_malformed_is_named(payload: bytes, reason: str) -> None:
    host = guest()
    failed = failure(host, payload)
    assert failed.kind == "output"
    assert reason in str(failed)
    assert host.handle(b"s")


def in_use(host: LocalHost) -> int:
    """Bytes that the guest believes are in use, and its answer's own."""
    (emit,) = host.handle(b"u")
    return int(emit.payload)


def test_what_the_guest_returns_is_freed_and_what_it_takes_is_not() -> None:
    host = guest()
    first = in_use(host)
    for payload in (b"j", b"s" * 1000, b"b", b"e", b"", b"t", b"p"):
        try:
            host.handle(payload)
        except GuestFailedError:
            continue
        assert in_use(host) == first, payload


def calls(host: LocalHost) -> int:
    """How often the guest has been called since it began."""
    (emit,) = host.handle(b"c")
    return int(emit.payload)


def test_a_guest_begins_anew_when_it_has_grown() -> None:
    """This one frees nothing: each frame takes two pages of the 128 that it may have."""
    host = guest(memory_bytes=128 * PAGE)
    seen = []
    sizes = []
    for _ in range(200):
        host.handle(b"s" * 2 * PAGE)
        seen.append(calls(host))
        sizes.append(len(host.instance.memory()))
    begun_anew = sum(later < earlier for earlier, later in pairwise(seen))
    assert 3 <= begun_anew <= 20
    assert max(sizes) < 0.6 * 128 * PAGE


def test_a_guest_begins_anew_after_a_trap() -> None:
    host = guest()
    assert [calls(host), calls(host)] == [1, 2]
    assert failure(host, b"x").kind == "trap"
    assert calls(host) == 1


def test_a_frame_that_does_not_fit() -> None:
    host = guest(memory_bytes=4 * PAGE)
    assert failure(host, b"s" * 8 * PAGE).kind == "trap"
    assert host.handle(b"s")


def test_a_guest_that_was_allocated_nowhere() -> None:
    module = assemble(
        """(module (memory (export "memory") 1)
        (func (export "allocate") (param i32) (result i32) (i32.const -16))
        (func (export "infer") (param i32 i32) (result i32) (i32.const 0)))"""
    )
    host = LocalHost(module, "bindgen")
    host.abi.start()
    assert failure(host, b"x" * 100).kind == "output"


def test_an_error_text_is_bounded() -> None:
    module = assemble(
        """(module (memory (export "memory") 2)
        (func (export "allocate") (param i32) (result i32) (i32.const 1024))
        (func (export "infer") (param i32 i32) (result i32)
          (i32.store8 (i32.const 0) (i32.const 1)) (i32.store (i32.const 1) (i32.const 16))
          (i32.store (i32.const 5) (i32.const 100000)) (i32.const 0)))"""
    )
    host = LocalHost(module, "bindgen")
    host.abi.start()
    assert len(str(failure(host, b"x"))) == len("infer failed: ") + MAX_ERROR_TEXT


@pytest.mark.parametrize(
    ("exports", "reason"),
    [
        ("", "does not export allocate"),
        ('(func (export "allocate") (param i32) (result i32) (i32.const 0))', "does not export infer"),
        ('(func (export "allocate") (param i64) (result i32) (i32.const 0))', "its export allocate is"),
        ('(func (export "__wbindgen_malloc") (param i32) (result i32) (i32.const 0))', "older convention"),
    ],
)
def test_what_a_guest_must_export(exports: str, reason: str) -> None:
    host = LocalHost(assemble(f'(module (memory (export "memory") 1) {exports})'), "bindgen")
    with pytest.raises(GuestFailedError, match=reason) as failed:
        host.abi.start()
    assert failed.value.kind == "link"


class Arbitrary(Memory):
    """A guest whose allocator and ``infer`` answer with anything, in a memory that holds anything."""

    def __init__(self, content: bytes, allocated: int, returned: int) -> None:
        super().__init__(len(content))
        self.data[:] = content
        self.freed: list[tuple[int, int]] = []
        self._functions = {
            "allocate": lambda _size: allocated,
            "infer": lambda _inputs, _count: returned,
            "deallocate": lambda pointer, size: self.freed.append((pointer, size)),
        }

    def find(self, name: str, signature: str = "i()") -> Function | None:
        return self._functions.get(name)

    def reset(self) -> None:
        pass


SMALL = st.integers(0, 300)
POINTERS = SMALL | st.integers(-(1 << 31), (1 << 31) - 1)


RECORDS = [
    *(struct.pack("<BII", flag, at, n) for flag in (0, 1) for at in (16, 250) for n in (0, 1, 2, 17, 1 << 31)),
    *(struct.pack("<III", at, type, n) for at in (0, 200) for type in (21, 31, 5) for n in (0, 3, 60)),
]
"""Some that are as they should be."""


@settings(max_examples=500, deadline=None)
@given(
    st.binary(max_size=200),
    st.lists(st.tuples(SMALL, st.sampled_from(RECORDS)), max_size=5),
    POINTERS,
    POINTERS,
)
def test_whatever_a_guest_returns_is_a_result_or_named(
    content: bytes, records: list[tuple[int, bytes]], allocated: int, returned: int
) -> None:
    memory = bytearray(content.ljust(400, b"\0"))
    for at, record in records:
        memory[at : at + len(record)] = record
    host = LocalHost(abi="bindgen", instance=Arbitrary(bytes(memory), allocated, returned))
    host.abi.start()
    for _ in range(2):
        try:
            host.handle(b"x" * 20)
        except GuestFailedError as failed:
            assert failed.kind in ("output", "error")


async def test_a_guest_in_rust_in_a_worker() -> None:
    module = rust_library("bindgen_rust")
    limits = Limits(deadline_ms=5000, memory_mb=16)
    async with bench(spec(module, models=0, abi="bindgen", limits=limits)) as running:
        for _ in range(100):
            finished = await running.handle(b"\1\2\3" * 1000, "jpeg", 4, 3)
            assert finished.outcome == "ok", finished.message
            (emit,) = finished.emits
            assert json.loads(emit.payload) == {"bytes": 3000, "mean": 2.0}
        finished = await running.handle(b"")
        assert (finished.outcome, finished.message) == ("error", "infer failed: an empty picture")
