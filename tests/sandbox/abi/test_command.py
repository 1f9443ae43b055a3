"""Programs of several languages as handlers: what they are given, and what becomes of what they print."""

import json
from typing import Any

import pytest
from guest_builds import c_program, go_program, rust_program
from local_host import TAG, LocalHost
from sandbox_bench import Bench, assemble, bench, guest, spec

from appliance.manifest import Limits
from appliance.sandbox.abi.command import arguments
from appliance.sandbox.engine import GuestFailedError
from appliance.sandbox.messages import MAX_EMIT_BYTES, MAX_LOGS_PER_FRAME, CommandSpec, Emit, Job
from appliance.sandbox.spec import HandlerSpec

LABELS = b"cat\ndog\nbird\n"
PICTURE: dict[str, Any] = {"format": "jpeg", "width": 5, "height": 3}
RGB = bytes(range(45))
LIMITS = Limits(deadline_ms=5000, memory_mb=16)


def program(module: bytes, *words: str, frame: str = "frame.jpg", **options: Any) -> LocalHost:
    host = LocalHost(module, command=CommandSpec(["program", *words], frame), files={"labels.txt": LABELS}, **options)
    host.pixels = RGB
    host.abi.start()
    return host


def habit(*words: str, **options: Any) -> LocalHost:
    return program(c_program("habits"), *words, **options)


def document(emits: list[Emit]) -> Any:
    """The one result."""
    (emit,) = emits
    assert (emit.tag, emit.format) == (TAG, "json")
    return json.loads(emit.payload)


# --- what a program is given --------------------------------------------------------------------------------


@pytest.mark.parametrize("frame", ["frame.bmp", "frame.ppm", "frame.PPM"])
def test_a_program_reads_the_frame_as_a_picture_and_the_bundles_files(frame: str) -> None:
    host = program(c_program("describe"), "{frame}", "{source}", frame=frame)
    assert document(host.handle(b"a jpeg", **PICTURE)) == {
        "width": 5,
        "height": 3,
        "bytes": 102 if frame.endswith("bmp") else 56,
        "mean": [21, 22, 23],
        "labels": 3,
        "source": "door",
    }
    (asked,) = host.asked
    assert (asked.format, asked.width, asked.height) == ("rgb", 5, 3)


@pytest.mark.parametrize("frame", ["frame.jpg", "frame.jpeg", "frame.dat", "frame"])
def test_other_files_hold_the_frame_as_it_came(frame: str) -> None:
    host = habit("copy", "{frame}", frame=frame)
    assert document(host.handle(b"a jpeg", **PICTURE)) == {"text": "a jpeg"}
    assert not host.asked


def test_nothing_is_decoded_for_a_program_that_does_not_look() -> None:
    host = habit("arguments", frame="frame.png")
    host.handle(b"a jpeg", **PICTURE)
    assert not host.asked


@pytest.mark.parametrize(
    ("frame", "format", "reason"),
    [
        ("frame.jpg", "cbor", "the frame is cbor, not jpeg"),
        ("frame.bmp", "cbor", "'cbor' is not a picture"),
        ("frame.bmp", "jpeg", "damaged"),
    ],
)
def test_a_frame_that_is_no_such_picture_cannot_be_opened(frame: str, format: str, reason: str) -> None:
    host = habit("copy", "{frame}", frame=frame)
    host.pixels = None
    with pytest.raises(GuestFailedError, match=f"exit status 7: /{frame}: ") as failure:
        host.handle(b"\xa0", format=format, width=5, height=3)
    assert failure.value.kind == "error"
    assert any(reason in line for _, line in host.lines)


def test_the_words_in_braces_are_filled_in() -> None:
    host = habit("arguments", "{frame}", "{seq}-{tag}", "{source}", "{other}", "{}")
    host.handle(**PICTURE)
    assert document(host.handle(tag=0x21, **PICTURE)) == ["/frame.jpg", "2-33", "door", "{other}", "{}"]


def test_what_a_source_is_called_is_not_filled_in() -> None:
    host = LocalHost(instance=None, module=c_program("empty"))
    host.begin()
    job = host.services.job()
    odd = Job(job.frame, job.tag, "{seq}\0{tag}", job.seq, job.captured_ns)
    assert arguments(CommandSpec(["a", "{source}{seq}"], "f"), odd) == (b"a", b"{seq}{tag}1")


def test_the_directory_holds_the_bundle_and_the_frame() -> None:
    listed = document(habit("list").handle(**PICTURE))["text"].split()
    assert listed == [".", "..", "frame.jpg", "labels.txt"]


def test_no_path_leads_out() -> None:
    assert document(habit("escape").handle(**PICTURE)) == {
        "../../etc/passwd": False,
        "/../etc/passwd": False,
        "/etc/passwd": False,
        "labels.txt/../../etc/passwd": False,
        "/proc/self/environ": False,
        "..": False,
        "new.txt": False,
        "/labels.txt": True,
        "./labels.txt": True,
        "labels.txt": True,
    }


# --- what becomes of it -------------------------------------------------------------------------------------


def test_an_exit_status_fails_the_frame_and_says_the_last_line() -> None:
    host = habit("fail")
    for _ in range(2):
        with pytest.raises(GuestFailedError, match=r"^exit status 3: no luck$") as failure:
            host.handle(**PICTURE)
        assert failure.value.kind == "error"
    assert host.lines == [(30, "looking for luck"), (30, "no luck")] * 2


def test_a_trap_is_a_trap_with_last_words() -> None:
    with pytest.raises(GuestFailedError, match=r"unreachable.*: cannot go on$") as failure:
        habit("trap").handle(**PICTURE)
    assert failure.value.kind == "trap"


def test_a_program_that_prints_for_ever_is_stopped() -> None:
    with pytest.raises(GuestFailedError, match=f"more than {MAX_EMIT_BYTES} bytes") as failure:
        habit("flood").handle(**PICTURE)
    assert failure.value.kind == "output"


def test_a_program_that_mutters_has_its_log_cut() -> None:
    host = habit("mutter", host_calls=100_000)
    assert document(host.handle(**PICTURE)) == {"text": "done"}
    assert len(host.lines) == MAX_LOGS_PER_FRAME


def test_nothing_is_emitted_of_a_program_that_prints_nothing() -> None:
    assert program(c_program("empty")).handle(**PICTURE) == []


@pytest.mark.parametrize(
    ("payload", "result"),
    [
        (b'{"a": [1]}\r\n', {"a": [1]}),
        (b"12", 12),
        (b'{"a": 1, "a": 2}', {"text": '{"a": 1, "a": 2}'}),
        (b"{}{}", {"text": "{}{}"}),
        (b"NaN", {"text": "NaN"}),
        (b"[" * 40 + b"]" * 40, {"text": "[" * 40 + "]" * 40}),
        (b'a "b" \xff\n', {"text": 'a "b" \ufffd'}),
        ("größe".encode(), {"text": "größe"}),
    ],
)
def test_a_result_is_json_or_a_text(payload: bytes, result: Any) -> None:
    assert document(habit("copy", "{frame}", frame="frame.txt").handle(payload)) == result


def test_a_result_without_a_tag() -> None:
    with pytest.raises(GuestFailedError, match="has no `emits`") as failure:
        habit("list", emits=()).handle(**PICTURE)
    assert failure.value.kind == "output"


def test_a_result_has_the_first_tag_of_the_manifest() -> None:
    (emit,) = habit("list", emits=(0x30, 0x20)).handle(**PICTURE)
    assert emit.tag == 0x30


def test_a_result_that_is_too_long_for_a_document() -> None:
    with pytest.raises(GuestFailedError, match="cannot be emitted") as failure:
        habit("copy", "{frame}", frame="f").handle(b"x" * 200_000)
    assert failure.value.kind == "output"


def test_every_frame_finds_the_program_as_it_was() -> None:
    host = habit("hoard")
    assert [document(host.handle(**PICTURE)) for _ in range(30)] == [1] * 30


def test_sleeping_takes_no_time_of_the_frames() -> None:
    assert document(habit("nap").handle(**PICTURE)) == 1


def test_chance_differs_from_frame_to_frame() -> None:
    host = habit("chance")
    assert document(host.handle(**PICTURE)) != document(host.handle(**PICTURE))


def test_a_module_that_is_no_program() -> None:
    with pytest.raises(GuestFailedError, match="does not export _start") as failure:
        program(guest("i32.const 0"))
    assert failure.value.kind == "link"


# --- other languages ----------------------------------------------------------------------------------------


def test_a_program_in_rust() -> None:
    host = program(rust_program("report"), "{frame}")
    for _ in range(2):
        result = document(host.handle(b"a jpeg", **PICTURE))
        assert result.pop("missing")
        assert result == {"bytes": 6, "size": 6, "names": ["frame.jpg", "labels.txt"]}
    assert host.lines == [(30, "it took 0 s")] * 2


def test_a_program_in_rust_that_fails() -> None:
    with pytest.raises(GuestFailedError, match="exit status 9: nowhere: No such file"):
        program(rust_program("report"), "nowhere").handle(**PICTURE)


@pytest.mark.slow
def test_a_program_in_go() -> None:
    host = program(go_program("report"), "{frame}")
    assert document(host.handle(b"abc", **PICTURE)) == {"bytes": 3, "sum": 97 + 98 + 99}


# --- in a worker --------------------------------------------------------------------------------------------


def handler(*words: str, frame: str = "frame.jpg", module: str = "habits") -> HandlerSpec:
    return spec(
        c_program(module),
        models=0,
        abi="command",
        limits=LIMITS,
        files={"labels.txt": LABELS},
        command=CommandSpec(["program", *words], frame),
    )


async def handled(words: list[str], **options: Any) -> tuple[Bench, Any]:
    async with bench(handler(*words, **options)) as running:
        return running, await running.handle(b"a jpeg", **PICTURE)


async def test_a_worker_runs_a_program_for_every_frame() -> None:
    async with bench(handler("{frame}", frame="frame.bmp", module="describe")) as running:
        pid = await running.running()
        for _ in range(3):
            finished = await running.handle(b"a jpeg", **PICTURE)
            assert finished.outcome == "ok", finished.message
            assert document(list(finished.emits))["labels"] == 3
        assert running.host.status.pid == pid


@pytest.mark.parametrize(
    ("words", "outcome", "message"),
    [
        (["fail"], "error", "exit status 3: no luck"),
        (["flood"], "output", "it printed more than"),
        (["mutter"], "budget", "host calls"),
    ],
)
async def test_a_worker_survives_a_program_that_fails(words: list[str], outcome: str, message: str) -> None:
    async with bench(handler(*words)) as running:
        pid = await running.running()
        for _ in range(2):
            finished = await running.handle(b"a jpeg", **PICTURE)
            assert finished.outcome == outcome
            assert message in finished.message
            assert not finished.emits
        assert running.host.status.pid == pid


@pytest.mark.parametrize("words", [["chance"], ["nap"], ["hoard"], ["list"], ["escape"]])
async def test_a_program_asks_nothing_of_the_kernel_that_its_worker_may_not(words: list[str]) -> None:
    _, finished = await handled(words)
    assert finished.outcome == "ok", finished.message


async def test_workers_have_different_chances() -> None:
    first, second = [(await handled(["chance"]))[1] for _ in range(2)]
    assert first.emits != second.emits


async def test_proc_exit_in_a_native_guest_is_a_trap() -> None:
    module = assemble(
        """(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (memory (export "memory") 1) (func (export "handle") (result i32) (call $exit (i32.const 5)) i32.const 0))"""
    )
    async with bench(module) as running:
        finished = await running.handle()
    assert finished.outcome == "trap"
    assert "exit status 5" in finished.message
