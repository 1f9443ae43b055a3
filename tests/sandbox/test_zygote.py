"""The zygote's process, its forks, and what a worker has and has not."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from sandbox_bench import NOTHING, TIMEOUT, bench, is_alive, proc, spec, until

from appliance.errors import DeviceError
from appliance.ipc.channel import pack, socket_pair
from appliance.ipc.ring import FrameRef, RingWriter
from appliance.manifest import Limits
from appliance.sandbox.host import CPU_SECONDS
from appliance.sandbox.lockdown import MARGIN_BYTES
from appliance.sandbox.messages import Exited, Job, Spawn, SpawnFailed
from appliance.sandbox.spawning import WorkerProcess, Zygote

FORBIDDEN = {"asyncio", "numpy", "aioquic", "ssl", "av", "PIL", "ai_edge_litert", "tflite_runtime", "simplejpeg"}


@pytest.fixture
async def zygote() -> AsyncIterator[Zygote]:
    with RingWriter(1 << 16) as ring:
        async with Zygote(ring.fd) as zygote:
            yield zygote


async def ended(worker: WorkerProcess) -> int:
    async with asyncio.timeout(TIMEOUT):
        return await worker.exited


def test_the_zygote_imports_nothing_that_a_worker_must_not_have() -> None:
    code = "import sys, appliance.sandbox.zygote; print(*{name.split('.')[0] for name in sys.modules})"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "wasm3" in output.split()
    assert not FORBIDDEN & set(output.split())


async def test_a_worker_is_forked_from_the_zygote_and_its_end_is_told(zygote: Zygote) -> None:
    worker = await zygote.spawn()
    assert f"PPid:\t{zygote.pid}" in proc(worker.pid, "status")
    worker.kill()
    assert await ended(worker) == -signal.SIGKILL
    worker.kill()  # too late, and no harm
    worker.close()


async def test_a_worker_ends_when_its_socket_is_closed(zygote: Zygote) -> None:
    worker = await zygote.spawn()
    worker.sock.close()
    assert await ended(worker) == 0
    worker.close()


async def test_a_worker_that_is_told_nonsense_says_so_and_ends(zygote: Zygote) -> None:
    worker = await zygote.spawn()
    worker.sock.send(b"nonsense")
    assert await ended(worker) == 1
    assert b"without a valid first byte" in worker.sock.recv(1 << 16)
    worker.close()


async def test_workers_at_once(zygote: Zygote) -> None:
    workers = await asyncio.gather(*(zygote.spawn() for _ in range(5)))
    assert len({worker.pid for worker in workers}) == 5
    for worker in workers:
        worker.close()
    assert [await ended(worker) for worker in workers] == [-signal.SIGKILL] * 5


async def test_a_dead_zygote_is_replaced_and_its_workers_are_dead(zygote: Zygote) -> None:
    worker, first = await zygote.spawn(), zygote.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    assert await ended(worker) == -signal.SIGKILL
    await until(lambda: not is_alive(worker.pid))
    assert zygote.pid is None
    another = await zygote.spawn()
    assert zygote.pid not in (None, first)
    for each in (worker, another):
        each.close()


def kill_and_wait(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


async def test_a_zygote_that_dies_under_the_request(zygote: Zygote) -> None:
    """Killed, and asked before the loop can have noticed."""
    assert zygote.pid is not None
    kill_and_wait(zygote.pid)
    worker = await zygote.spawn()
    worker.close()


async def test_requests_under_way_when_the_zygote_dies_fail(zygote: Zygote) -> None:
    assert zygote.pid is not None
    os.kill(zygote.pid, signal.SIGSTOP)
    request = asyncio.create_task(zygote.spawn())
    await asyncio.sleep(0)  # it has been sent
    os.kill(zygote.pid, signal.SIGKILL)
    with pytest.raises(DeviceError, match=r"the zygote ended \(status -9\)"):
        await request


async def test_a_zygote_that_hangs_is_replaced(zygote: Zygote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.sandbox.spawning.SPAWN_SECONDS", 0.05)
    assert zygote.pid is not None
    os.kill(zygote.pid, signal.SIGSTOP)
    with pytest.raises(DeviceError, match="did not fork a worker"):
        await zygote.spawn()
    monkeypatch.undo()
    await until(lambda: zygote.pid is None)
    (await zygote.spawn()).close()


async def test_a_cancelled_request_leaves_no_worker(zygote: Zygote) -> None:
    assert zygote.pid is not None
    os.kill(zygote.pid, signal.SIGSTOP)
    request = asyncio.create_task(zygote.spawn())
    await asyncio.sleep(0)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    os.kill(zygote.pid, signal.SIGCONT)
    worker = await zygote.spawn()  # answered after the cancelled one
    children = f"task/{zygote.pid}/children"
    await until(lambda: proc(zygote.pid, children).split() == [str(worker.pid)])
    worker.close()


async def test_after_the_end_there_is_no_zygote() -> None:
    with RingWriter(1 << 16) as ring:
        async with Zygote(ring.fd) as zygote:
            pid = zygote.pid
        assert pid is not None
        assert not is_alive(pid)
        with pytest.raises(DeviceError, match="not running"):
            await zygote.spawn()


async def test_a_zygote_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with RingWriter(1 << 16) as ring, pytest.raises(DeviceError, match="cannot start the zygote"):
        async with Zygote(ring.fd):
            raise AssertionError


async def test_the_environment_holds_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APPLIANCE_PASSWORD", "hunter2")
    with RingWriter(1 << 16) as ring:
        async with Zygote(ring.fd) as zygote:
            worker = await zygote.spawn()
            assert "hunter2" not in proc(worker.pid, "environ")
            worker.close()


def test_descriptors_must_come_with_a_request() -> None:
    """The zygote as its parent sees it, spoken to by hand."""
    ours, theirs = socket_pair()
    with ours, theirs:
        command = [sys.executable, "-m", "appliance.sandbox.zygote", str(theirs.fileno())]
        with subprocess.Popen(command, pass_fds=(theirs.fileno(),)) as process:
            ours.settimeout(TIMEOUT)
            ours.send(pack(Spawn(7))[0])
            answer = msgspec.msgpack.decode(ours.recv(1 << 16)[1:], type=SpawnFailed | Exited)
            assert answer == SpawnFailed(7, "0 descriptors came, 0 workers run")
            theirs.close()
            ours.close()
            assert process.wait(TIMEOUT) == 0


ZIPPER = """
import asyncio
from appliance.ipc.ring import RingWriter
from appliance.sandbox.spawning import Zygote

async def main():
    with RingWriter(1 << 16) as ring:
        async with Zygote(ring.fd) as zygote:
            worker = await zygote.spawn()
            print(zygote.pid, worker.pid, flush=True)
            await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_zygote_and_workers_die_with_the_zipper() -> None:
    """Killed without a chance to clean up."""
    pipe = asyncio.subprocess.PIPE
    zipper = await asyncio.create_subprocess_exec(sys.executable, "-c", ZIPPER, stdout=pipe)
    assert zipper.stdout is not None
    pids = [int(pid) for pid in (await zipper.stdout.readline()).split()]
    assert len(pids) == 2
    assert all(is_alive(pid) for pid in pids)
    zipper.kill()
    await zipper.wait()
    await until(lambda: not any(is_alive(pid) for pid in pids))


# --- what a worker has --------------------------------------------------------------------------------------


def limits(pid: int) -> dict[str, list[str]]:
    lines = proc(pid, "limits").splitlines()[1:]
    return {line[:26].strip(): line[26:].split()[:2] for line in lines}


def descriptors(pid: int) -> list[str]:
    return sorted(str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir())


def mapped_files(pid: int | None) -> set[str]:
    return {line.split(maxsplit=5)[5] for line in proc(pid, "maps").splitlines() if "/" in line}


async def test_a_workers_limits() -> None:
    handler = spec(NOTHING, limits=Limits(memory_mb=3))
    async with bench(handler) as running:
        pid = await running.running()
        found = limits(pid)
        status = proc(pid, "status")
    assert found["Max cpu time"] == [str(CPU_SECONDS), str(CPU_SECONDS + 1)]  # SIGXCPU comes at the soft limit
    for none in ("Max file size", "Max core file size", "Max open files"):
        assert found[none] == ["0", "0"]
    soft, hard = (int(value) for value in found["Max address space"])
    assert soft == hard
    assert (3 << 20) + MARGIN_BYTES < soft < (3 << 20) + MARGIN_BYTES + (64 << 20)
    assert "NoNewPrivs:\t1" in status


async def test_a_worker_has_its_socket_the_ring_and_what_catches_backtraces_and_no_more() -> None:
    async with bench(NOTHING) as handler:
        pid = await handler.running()
        names = descriptors(pid)
        maps = proc(pid, "maps")
    assert names[:2] == ["/dev/null"] * 2
    assert names[2].startswith("/memfd:frames")
    assert all(re.fullmatch(r"socket:\[\d+\]", name) for name in names[3:])
    assert len(names) == 6
    (ring,) = [line for line in maps.splitlines() if "memfd:frames" in line]
    assert " r--s " in ring


async def test_everything_a_worker_needs_is_imported_before_it_is_locked_down() -> None:
    """What was not would have to be opened, and it may open nothing."""
    async with bench(NOTHING) as handler:
        pid = await handler.running()
        own, parent = mapped_files(pid), mapped_files(handler.zygote.pid)
    assert {path for path in own - parent if not path.startswith("/memfd:frames")} == set()


def test_a_job_is_a_few_dozen_bytes() -> None:
    (packet,) = pack(Job(FrameRef(1 << 40, 1 << 24, 50_000, "jpeg", 640, 480), 1, "camera", 1 << 30, 1 << 60))
    assert len(packet) < 100
