"""The zipper's side, with real children, and with children that misbehave."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest
from admission_bench import LIMIT, MODULES, Run, admitted
from sandbox_bench import NOTHING, TIMEOUT, proc, until

from appliance.errors import DeviceError, HandlerError
from appliance.sandbox.admission import admit
from appliance.sandbox.admission.admit import CHILD, MAX_CHILDREN, Admission, RefusedError
from appliance.sandbox.admission.verdict import EngineName, Order

ORDER = Order(NOTHING, "wasm3", LIMIT)
FAILS_AT_ONCE = (sys.executable, "-c", "raise SystemExit(9)")


def saying(code: str) -> tuple[str, ...]:
    """A child that runs this."""
    return sys.executable, "-c", f"import os, sys, time\n{code}"


async def refusal(admission: Admission, order: Order = ORDER) -> RefusedError:
    async with asyncio.timeout(TIMEOUT):
        with pytest.raises(RefusedError) as failure:
            await admission.admit(order)
    return failure.value


def files_in(directory: Path) -> list[Path]:
    return list(directory.iterdir())


def children() -> list[int]:
    return [int(pid) for pid in proc(os.getpid(), f"task/{os.getpid()}/children").split()]


MEMORY_WITH_A_NAME = b"\0asm\1\0\0\0\2\x0f\1\4a\n\x1b[\5evil\x07\2\0\1"
"""Imports a memory whose names hold a line break, and what steers a terminal."""


# --- real children ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restorable", [False, True])
async def test_a_module_is_admitted_as_it_is_judged(tmp_path: Path, restorable: bool) -> None:
    module = MODULES[0].read_bytes()
    found = await Admission(tmp_path).admit(Order(module, "wasm3", LIMIT, restorable))
    assert found == admitted(module, restorable=restorable)


async def test_a_module_is_compiled_for_wasmtime(tmp_path: Path) -> None:
    found = await Admission(tmp_path).admit(Order(NOTHING, "wasmtime", LIMIT))
    assert found.code[:4] == b"\x7fELF"
    assert found.functions == {"handle": "i()"}


async def test_a_refusal_is_one_harmless_line_whatever_the_module_calls_things(tmp_path: Path) -> None:
    error = await refusal(Admission(tmp_path), Order(MEMORY_WITH_A_NAME, "wasm3", LIMIT))
    assert error.rule == "import-kind"
    assert "evil" in str(error)
    assert str(error).isprintable()


async def test_a_refusal_names_the_rule_and_the_offset(tmp_path: Path) -> None:
    error = await refusal(Admission(tmp_path), Order(NOTHING[:-1], "wasm3", LIMIT))
    assert error.rule == "damaged"
    assert error.offset is not None
    assert str(error).startswith("the module is refused (damaged): it ends too early")
    assert isinstance(error, HandlerError)


async def test_a_verdict_is_remembered(tmp_path: Path) -> None:
    first = await Admission(tmp_path).admit(ORDER)
    bad = Order(b"\0asm", "wasm3", LIMIT)
    await refusal(Admission(tmp_path), bad)
    without_children = Admission(tmp_path, child=FAILS_AT_ONCE)
    assert await without_children.admit(ORDER) == first
    assert (await refusal(without_children, bad)).rule == "not-a-module"
    assert (await refusal(without_children, Order(NOTHING, "wasm3", 2 * LIMIT))).rule == "crashed"


async def test_a_damaged_memory_of_it_is_made_anew(tmp_path: Path) -> None:
    first = await Admission(tmp_path).admit(ORDER)
    (file,) = files_in(tmp_path)
    file.write_bytes(file.read_bytes()[:-1])
    assert (await refusal(Admission(tmp_path, child=FAILS_AT_ONCE))).rule == "crashed"
    assert await Admission(tmp_path).admit(ORDER) == first
    assert await Admission(tmp_path, child=FAILS_AT_ONCE).admit(ORDER) == first


async def test_a_disk_that_fails_is_said_and_no_fault_of_the_module(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    found = await Admission(tmp_path / "file" / "directory").admit(ORDER)
    assert Run(found.code, found.imports).call("handle") == 0
    assert "event=verdict_not_stored" in caplog.text


# --- children that fail -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "rule", "message"),
    [
        ("os.abort()", "crashed", "was ended by SIGABRT"),
        ("os.kill(os.getpid(), 35)", "crashed", "ended with status -35"),
        ("sys.exit(3)", "crashed", "ended with status 3"),
        ("", "crashed", "gave no verdict"),
        ("print('hello')", "crashed", "gave no verdict"),
        ("sys.stdout.buffer.write(bytes(range(256)) * 999)", "crashed", "gave no verdict"),
        ("sys.stdin.close(); sys.exit(3)", "crashed", "ended with status 3"),
        ("time.sleep(1000)", "deadline", "takes over 0.4 s"),
        ("os.close(1); time.sleep(1000)", "deadline", "takes over 0.4 s"),
        ("sys.stdin.read(); time.sleep(1000)", "deadline", "takes over 0.4 s"),
        ("\nwhile True: pass", "deadline", "takes over 0.4 s"),
    ],
)
async def test_a_child_that_fails_is_a_refusal(tmp_path: Path, code: str, rule: str, message: str) -> None:
    deadline = 0.4 if rule == "deadline" else 10.0
    error = await refusal(Admission(tmp_path, child=saying(code), deadline_seconds=deadline))
    assert error.rule == rule
    assert message in str(error)
    assert files_in(tmp_path) == [], "it may be the machine's fault"
    assert children() == []


async def test_what_a_child_says_is_bounded_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admit, "MAX_VERDICT_BYTES", 1 << 20)
    endless = saying("\nwhile True: os.write(1, bytes(65536))")
    error = await refusal(Admission(tmp_path, child=endless))
    assert (error.rule, "more than 1048576 bytes" in str(error)) == ("crashed", True)


async def test_a_child_that_somebody_else_kills_is_the_devices_fault(tmp_path: Path) -> None:
    """As the kernel does where memory runs out."""
    with pytest.raises(DeviceError, match="was killed, as Linux does where memory runs out") as failure:
        await Admission(tmp_path, child=saying("os.kill(os.getpid(), 9)")).admit(ORDER)
    assert not isinstance(failure.value, RefusedError)
    assert files_in(tmp_path) == []


async def test_the_system_is_told_to_spare_the_zipper() -> None:
    child = await asyncio.create_subprocess_exec(*CHILD, stdin=asyncio.subprocess.PIPE)  # it waits for its order
    try:
        await until(lambda: oom_score(child.pid) > oom_score(os.getpid()))
    finally:
        child.kill()
        await child.wait()


def oom_score(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


async def test_a_program_that_is_missing_is_the_devices_fault(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="no process can be started"):
        await Admission(tmp_path, child=("/nowhere/to/be/found",)).admit(ORDER)


async def test_so_many_children_at_a_time(tmp_path: Path) -> None:
    admission = Admission(tmp_path, child=saying("time.sleep(1000)"))
    async with asyncio.timeout(TIMEOUT):
        orders = [Order(bytes((number,)), "wasm3", LIMIT) for number in range(5)]
        tasks = [asyncio.create_task(refusal(admission, order)) for order in orders]
        for left in range(len(orders), 0, -1):
            await until(lambda left=left: len(children()) == min(left, MAX_CHILDREN))
            first, *_ = children()
            os.kill(first, signal.SIGABRT)
            await until(lambda first=first: first not in children())
        assert {error.rule for error in await asyncio.gather(*tasks)} == {"crashed"}


async def test_a_child_ends_with_who_waits_for_it(tmp_path: Path) -> None:
    admission = Admission(tmp_path, child=saying("time.sleep(1000)"))
    task = asyncio.create_task(admission.admit(ORDER))
    await until(lambda: len(children()) == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert children() == []


# --- the child's lockdown -----------------------------------------------------------------------------------


async def test_a_child_is_told_nothing_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "secret")
    error = await refusal(Admission(tmp_path, child=saying("sys.exit(40 + ('A_SECRET' in os.environ))")))
    assert "ended with status 40" in str(error)
    assert CHILD[1:] == ("-m", "appliance.sandbox.admission.child")


def breaking_out(attempt: str) -> tuple[str, ...]:
    """The real child, but for a module that makes it do this."""
    return saying(
        "from appliance.sandbox.admission import child\n"
        f"def judge(order, engine):\n    {attempt}\n    os._exit(77)\nchild.judge = judge\nchild.main()"
    )


@pytest.mark.parametrize("engine", ["wasm3", "wasmtime"])
@pytest.mark.parametrize(
    "attempt",
    ["open('/etc/passwd')", "os.fork()", "os.kill(os.getppid(), 0)", "os.unlink('/x')", "os.pipe()", "os.getpid()"],
)
async def test_a_child_cannot_get_out(tmp_path: Path, engine: EngineName, attempt: str) -> None:
    pytest.importorskip("pyseccomp", exc_type=RuntimeError, reason="libseccomp is not installed")
    order = Order(NOTHING, engine, LIMIT)
    error = await refusal(Admission(tmp_path, child=breaking_out(attempt)), order)
    assert "was ended by SIGSYS, as it is where memory runs out" in str(error)
    assert "ended with status 77" in str(await refusal(Admission(tmp_path, child=breaking_out("pass")), order))


async def test_a_child_has_so_much_memory(tmp_path: Path) -> None:
    error = await refusal(Admission(tmp_path, child=breaking_out("len(bytes(4 << 30))")))
    assert "ended with status 77" not in str(error)
