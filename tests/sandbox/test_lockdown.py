"""Workers are locked down, from within and in every way that this machine has; and they work all the same."""

import asyncio
import errno
import logging
import os
import random
import signal
from functools import cache
from pathlib import Path

import cbor2
import msgspec
import pytest
from escapes import HARMFUL, HARMLESS, SECOND_LINE, USERS, WITH_LANDLOCK, attempts, run
from sandbox_bench import NOTHING, TAG, TIMEOUT, admit, bench, guest, proc, until

from appliance.errors import PeerError
from appliance.ipc.channel import pack
from appliance.ipc.packets import Assembler
from appliance.ipc.report import MAX_MEASURES, MAX_REASON, Lockdown
from appliance.ipc.ring import RingWriter
from appliance.sandbox.admission.verdict import Admitted
from appliance.sandbox.lockdown import COMPILED_CALLS, LOADING_CALLS, MAPPING_CALLS, NOBODY, SYSTEM_CALLS
from appliance.sandbox.messages import (
    FromWorker,
    Inferred,
    Loaded,
    Setup,
    Started,
    Trapped,
)
from appliance.sandbox.spawning import Zygote

pyseccomp = pytest.importorskip("pyseccomp", exc_type=RuntimeError, reason="libseccomp is not installed")


@cache
def report() -> Lockdown:
    """What a process of this machine says once it is locked down."""
    return msgspec.json.decode(run("-m", "appliance.sandbox.lockdown"), type=Lockdown)


def landlock() -> bool:
    return "landlock" not in report().missing


# --- attempts to get out ------------------------------------------------------------------------------------


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("name", ["nothing", *HARMLESS])
def test_the_attempts_succeed_in_a_process_that_is_not_locked_down(name: str, user: str) -> None:
    """Else what follows would show nothing. Containers and kernels may deny some of their own accord."""
    found = attempts("free", user)[name]
    if name in ("ptrace", "user namespace") and found:
        pytest.skip(f"denied to everybody here ({errno.errorcode[found]})")
    assert found == 0


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("name", [*HARMLESS, *HARMFUL])
def test_an_attempt_to_get_out_ends_the_worker(name: str, user: str) -> None:
    assert attempts("full", user)[name] == -signal.SIGSYS


@pytest.mark.parametrize("name", [*HARMLESS, *HARMFUL, "filter"])
def test_an_attempt_to_get_out_of_compiled_code_ends_the_worker_too(name: str) -> None:
    """It had more calls while it loaded that code."""
    assert attempts("full", who="compiled")[name] == -signal.SIGSYS


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("who", ["worker", "compiled"])
def test_what_a_locked_down_process_does_not_try_does_not_end_it(who: str, user: str) -> None:
    assert attempts("full", user, who)["nothing"] == 0


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="another machine has no such calls")
def test_calls_by_the_numbers_of_another_architecture() -> None:
    assert attempts("full", "")["x32"] == -signal.SIGSYS


FORK = {"fork": {errno.EAGAIN}}


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("name", [*FORK, *SECOND_LINE, *WITH_LANDLOCK])
def test_where_no_call_is_filtered_other_measures_deny_the_same(name: str, user: str) -> None:
    if name in WITH_LANDLOCK and not landlock():
        pytest.skip("this kernel has no Landlock")
    assert attempts("unfiltered", user)[name] in (FORK | SECOND_LINE | WITH_LANDLOCK)[name]


# --- what is in force ---------------------------------------------------------------------------------------


def status_of(pid: int) -> dict[str, list[str]]:
    lines = (line.partition(":") for line in proc(pid, "status").splitlines())
    return {name: value.split() for name, _, value in lines}


def network_of(pid: int) -> Path:
    return Path(f"/proc/{pid}/ns/net").readlink()


async def test_a_worker_says_what_is_in_force_and_the_kernel_agrees() -> None:
    async with bench(NOTHING) as handler:
        pid = await handler.running()
        assert (await handler.handle()).outcome == "ok"
        lockdown, status = handler.host.status.lockdown, status_of(pid)
        network = network_of(pid)
    assert lockdown == report()
    assert "seccomp" in lockdown.in_force
    assert status["Seccomp"] == ["2"]
    assert status["CapEff"] == status["CapPrm"] == ["0" * 16]
    assert ("uid" in lockdown.missing) == (os.geteuid() != 0)
    if "uid" not in lockdown.missing:
        assert status["Uid"] == status["Gid"] == [str(NOBODY)] * 4
        assert status["Groups"] == []
    assert ("network namespace" in lockdown.in_force) == (network != network_of(os.getpid()))


async def test_a_worker_still_dies_with_its_zygote() -> None:
    """A change of user makes the kernel forget that."""
    async with bench(NOTHING) as handler:
        pid = await handler.running()
        assert handler.zygote.pid is not None
        os.kill(handler.zygote.pid, signal.SIGKILL)
        await until(lambda: not Path(f"/proc/{pid}").exists() or status_of(pid)["State"][0] == "Z")


def test_the_report_in_words() -> None:
    assert str(Lockdown(["landlock 4", "seccomp"])) == "landlock 4, seccomp"
    assert str(Lockdown(["seccomp"], {"uid": "not root"})) == "seccomp; not in force: uid (not root)"
    assert str(Lockdown()) == "limits alone"


def test_a_report_is_as_bounded_as_all_that_a_worker_says() -> None:
    long = "x" * (MAX_REASON + 1)
    many = {str(number): "" for number in range(MAX_MEASURES + 1)}
    for lockdown in (Lockdown([long]), Lockdown([], {"uid": long}), Lockdown([], many), Lockdown(list(many))):
        (packet,) = pack(Loaded(lockdown))
        with pytest.raises(PeerError):
            Assembler[FromWorker](FromWorker).feed(packet)


@pytest.mark.parametrize("architecture", ["X86_64", "AARCH64"])
def test_the_calls_have_names_on_the_machines_this_is_for(architecture: str) -> None:
    number = getattr(pyseccomp.Arch, architecture)
    calls = {*SYSTEM_CALLS, *MAPPING_CALLS, *LOADING_CALLS, *COMPILED_CALLS}
    known = {name for name in calls if pyseccomp.resolve_syscall(number, name) >= 0}
    other = {"send", "recv", "mmap2", "futex_time64", "clock_gettime64"}  # of 32-bit machines
    assert known == calls - other


async def test_without_libseccomp_workers_run_and_it_is_said_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "pyseccomp.py").write_text('raise RuntimeError("Unable to find libseccomp")')
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    with caplog.at_level(logging.WARNING):
        async with bench(NOTHING) as handler:
            pid = await handler.running()
            os.kill(pid, signal.SIGKILL)
            await until(lambda: handler.host.status.restarts == 1 and handler.host.status.state == "running")
            assert (await handler.handle()).outcome == "ok"
            lockdown = handler.host.status.lockdown
    assert lockdown is not None
    reason = "libseccomp cannot be loaded (Unable to find libseccomp): apt-get install libseccomp2"
    assert lockdown.missing["seccomp"] == reason
    assert [record.getMessage() for record in caplog.records].count(f"event=calls_not_filtered reason={reason}") == 1


# --- what goes on working -----------------------------------------------------------------------------------


async def talk(*messages: Setup | Inferred) -> tuple[list[FromWorker], int]:
    """Send a fresh worker these; all that it says, and the status with which it ends."""
    assembler = Assembler[FromWorker](FromWorker)
    said: list[FromWorker] = []
    loop = asyncio.get_running_loop()
    with RingWriter(1 << 16) as ring:
        async with Zygote(ring.fd) as zygote, asyncio.timeout(TIMEOUT):
            worker = await zygote.spawn()
            worker.sock.setblocking(False)
            for message in messages:
                worker.sock.send(pack(message)[0])
            while packet := await loop.sock_recv(worker.sock, 1 << 16):
                said += filter(None, [assembler.feed(packet)])
            status = await worker.exited
            worker.close()
    return said, status


def setup(module: Admitted) -> Setup:
    return Setup("guest", module, "native", [TAG], [], {}, {}, 1 << 20, 10)


async def test_a_defect_of_ours_after_the_lockdown_is_told_not_killed() -> None:
    """Lines of source cannot be read any more."""
    (loaded, started, told), status = await talk(setup(admit(NOTHING)), Inferred([]))
    assert isinstance(loaded, Loaded)
    assert isinstance(started, Started)
    assert isinstance(told, Trapped)
    assert told.message.startswith("PeerError: a Inferred between two frames; at ")
    assert "worker.py" in told.message
    assert status == 1


async def test_a_module_that_cannot_be_loaded_ends_its_worker_in_order() -> None:
    (told,), status = await talk(setup(msgspec.structs.replace(admit(NOTHING), code=b"no module")))
    assert isinstance(told, Trapped)
    assert (told.kind, status) == ("load", 1)


DOCUMENTS = (4, 5)
"""Formats of the native ABI: CBOR and JSON."""


async def test_no_document_makes_a_decoder_do_what_a_worker_may_not() -> None:
    """Decoders import what they need for dates, decimals or regular expressions when they first meet one."""
    chosen = random.Random(5)
    tags = [*range(300), 1004, 43000, 55799]
    values: list[object] = [0, "2020-01-01T00:00:00Z", b"\1", 1.5, [1, 2], [-2, 27], ["a", "b"], {}, "[", "::1"]
    documents = [cbor2.dumps(cbor2.CBORTag(tag, value)) for tag in tags for value in (chosen.choice(values), "x")]
    documents += [bytes([first, *chosen.randbytes(6)]) for first in range(256)]
    documents += [b"1e999", b"NaN", b'{"a":1,"a":2}', b"9" * 5000, b'"\\ud800"', b"\xff", b"[" * 2000, b"{", b"1" * 400]
    kinds = "".join(
        f"(drop (call $emit (i32.const {TAG}) (i32.const {kind}) (i32.const 0) (local.get $i)))" for kind in DOCUMENTS
    )
    module = guest(
        f"(local.set $i (call $frame_read (i32.const 0) (i32.const 0) (i32.const 65536))) {kinds} i32.const 0"
    )
    async with bench(module) as handler:
        pid = await handler.running()
        for document in documents:
            job = handler.submit(document)
            assert (await handler.finish(job)).outcome == "ok", document
            handler.ring.free(job.frame)
        assert handler.host.status.pid == pid
