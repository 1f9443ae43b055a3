"""YoMo v1's stream functions."""

import pytest
from guest_builds import c_library
from local_host import LocalHost
from sandbox_bench import assemble, bench, data, spec

from appliance.manifest import Limits
from appliance.sandbox.abi.yomo import MAX_OBSERVED
from appliance.sandbox.engine import GuestFailedError
from appliance.sandbox.messages import MAX_EMIT_BYTES, Emit

IMPORTS = """(import "env" "yomo_observe_datatag" (func $observe (param i32)))
(import "env" "yomo_write" (func $write (param i32 i32 i32) (result i32)))
(import "env" "yomo_context_data" (func $data (param i32 i32) (result i32)))
(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
(memory (export "memory") 1 32)"""


def guest(observe: str = "", handler: str = "", more: str = "", abi: str = "yomo") -> LocalHost:
    module = assemble(
        f"""(module {IMPORTS} (func (export "yomo_observe_datatags") {observe})
        (func (export "yomo_handler") {handler}) {more})"""
    )
    return LocalHost(module, abi, emits=(0x34,), observes=(0x33,))


def test_a_guest_in_c() -> None:
    host = LocalHost(c_library("yomo", libc=True), "yomo", emits=(0x34,), observes=(0x33,))
    host.abi.start()
    assert host.lines == [
        (30, "yomo_write: its result cannot be emitted: there is no frame yet"),
        (20, "size 0, tag 0, write 2"),
    ]
    host.lines.clear()
    assert host.handle(b"Hello, YoMo!", tag=0x33) == [Emit(0x34, "bytes", b"HELLO, YOMO!")]
    assert host.lines == [
        (20, "tag 0x33: 12 bytes"),
        (30, "yomo_write: its result cannot be emitted: tag 0x99 is not among the `emits` of the manifest"),
        (30, "0 2 1"),
    ]
    assert host.handle(b"[1, 2]", tag=0x33) == [Emit(0x34, "json", b"[1, 2]")]


async def test_a_guest_in_c_in_a_worker() -> None:
    limits = Limits(deadline_ms=5000, memory_mb=16)
    module = c_library("yomo", libc=True)
    handler = spec(module, models=0, abi="yomo", observes=(0x33,), emits={0x34: True}, limits=limits)
    async with bench(handler) as running:
        for _ in range(50):
            finished = await running.handle(b"Hello, YoMo!")
            assert finished.outcome == "ok", finished.message
            assert finished.emits == (Emit(0x34, "bytes", b"HELLO, YOMO!"),)


def started(host: LocalHost) -> LocalHost:
    host.abi.start()
    return host


@pytest.mark.parametrize(
    ("observe", "more", "kind", "reason"),
    [
        ("(call $observe (i32.const 0x40)) (call $observe (i32.const 0x33))", "", "link", "tag 0x40: name it in `obs"),
        ("unreachable", "", "trap", "unreachable"),
        ("(call $exit (i32.const 1))", "", "trap", "exit status 1"),
        ("", '(func (export "yomo_init") (result i32) (i32.const 7))', "init", "yomo_init returned 7"),
        ("", '(func (export "yomo_init") (param i32))', "link", "its export yomo_init is"),
        ("", '(func (export "_start") (call $exit (i32.const 4)))', "init", "_start ended with exit status 4"),
    ],
)
def test_what_goes_wrong_at_the_start(observe: str, more: str, kind: str, reason: str) -> None:
    host = guest(observe, more=more)
    with pytest.raises(GuestFailedError, match=reason) as failed:
        host.abi.start()
    assert failed.value.kind == kind


def test_a_guest_that_asks_for_everything_is_refused() -> None:
    host = guest(
        f"""(local $i i32) (loop $l (call $observe (local.get $i))
        (local.set $i (i32.add (local.get $i) (i32.const 1)))
        (br_if $l (i32.le_u (local.get $i) (i32.const {MAX_OBSERVED}))))"""
    )
    with pytest.raises(GuestFailedError, match=f"more than {MAX_OBSERVED} tags"):
        host.abi.start()


@pytest.mark.parametrize("name", ["yomo_observe_datatags", "yomo_handler"])
def test_what_a_guest_must_export(name: str) -> None:
    other = {"yomo_observe_datatags": "yomo_handler", "yomo_handler": "yomo_observe_datatags"}[name]
    host = LocalHost(assemble(f'(module (func (export "{other}")))'), "yomo")
    with pytest.raises(GuestFailedError, match=f"does not export {name}") as failed:
        host.abi.start()
    assert failed.value.kind == "link"


@pytest.mark.parametrize(
    "init", ["", '(func (export "yomo_init"))', '(func (export "yomo_init") (result i32) i32.const 0)']
)
def test_constructors_and_main_run_first(init: str) -> None:
    """As TinyGo has it: ``main`` may end the program, which goes on being called."""
    main = '(func (export "_start") (i32.store (i32.const 0) (i32.const 0x33)) (call $exit (i32.const 0)))'
    host = started(guest("(call $observe (i32.load (i32.const 0)))", more=main + init))
    assert host.handle(b"x") == []


def test_a_guest_that_ends_itself_is_done_or_stopped() -> None:
    host = started(guest(handler="(call $exit (i32.const 0))"))
    assert host.handle() == []
    host = started(guest(handler="(call $exit (i32.const 3))"))
    with pytest.raises(GuestFailedError, match="exit status 3") as failed:
        host.handle()
    assert failed.value.kind == "trap"


def written(host: LocalHost, payload: bytes) -> int:
    """What the call of the handler returned, which it emits afterwards."""
    *_, last = started(host).handle(payload)
    return int.from_bytes(last.payload, "little")


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("(call $write (i32.const 0x34) (i32.const 64) (i32.const 3))", 0),
        ("(call $write (i32.const 0x34) (i32.const 64) (i32.const 0))", 0),
        ("(call $write (i32.const 0x33) (i32.const 64) (i32.const 3))", 2),
        ("(call $write (i32.const -1) (i32.const 64) (i32.const 3))", 2),
        ("(call $write (i32.const 0x34) (i32.const -1) (i32.const 3))", 1),
        (f"(call $write (i32.const 0x34) (i32.const 0) (i32.const {MAX_EMIT_BYTES + 1}))", 2),
        ("(call $data (i32.const 100) (i32.const 5))", 5),
        ("(call $data (i32.const 100) (i32.const 4))", 5),
        ("(call $data (i32.const -1) (i32.const 5))", 0),
    ],
)
def test_what_the_functions_return(call: str, expected: int) -> None:
    host = guest(
        handler=f"""(drop (memory.grow (i32.const 20))) (i32.store (i32.const 0) {call})
        (drop (call $write (i32.const 0x34) (i32.const 0) (i32.const 4)))""",
        more=data(64, b"abc"),
    )
    assert written(host, b"frame") == expected


def test_a_frame_larger_than_the_guests_buffer_is_not_cut() -> None:
    host = started(
        guest(
            handler="""(drop (call $data (i32.const 64) (i32.const 4)))
            (drop (call $write (i32.const 0x34) (i32.const 64) (i32.const 5)))"""
        )
    )
    assert host.handle(b"frame") == [Emit(0x34, "bytes", bytes(5))]
