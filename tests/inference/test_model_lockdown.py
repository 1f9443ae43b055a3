"""Processes of models are locked down before they interpret anything; and they work all the same."""

import asyncio
import errno
import logging
import os
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
import pytest
import tiny_models
from escapes import HARMFUL, HARMLESS, SECOND_LINE, USERS, WITH_LANDLOCK, attempts, run
from pictures import SHARED_DATA, samples, write
from tiny_models import Save

from appliance.errors import ModelError
from appliance.health import model_document
from appliance.inference import lockdown as profiles
from appliance.inference.broker import Broker
from appliance.inference.messages import Crop, View
from appliance.inference.model import ModelSpec, UnavailableError, digest_of
from appliance.inference.runtime import Runtime
from appliance.ipc.calls import Calls
from appliance.ipc.lockdown import NOBODY
from appliance.ipc.report import Lockdown
from appliance.ipc.ring import RingWriter

pyseccomp = pytest.importorskip("pyseccomp", exc_type=RuntimeError, reason="libseccomp is not installed")

WHOLE = View()
SCRIPT = str(Path(__file__).with_name("service_variant.py"))
ROOT = os.geteuid() == 0
REFUSED = {"open", "write", "environ", "environ of the parent", "stat"}
"""Attempts that fail, rather than ending the process."""
WITH_DELEGATE = {
    **dict.fromkeys(("open", "write", "environ", "environ of the parent", "unlink"), errno.EACCES),
    **dict.fromkeys(("socket", "unix socket"), errno.EACCES),
    **dict.fromkeys(("fork", "execve", "ptrace", "kill", "kill a thread", "user namespace"), errno.EPERM),
    **dict.fromkeys(("mount", "bpf", "io_uring_setup"), errno.EPERM),
}
"""What a delegate may not either, and how that fails. All on files is Landlock's."""
LANDLOCKS = {"open", "write", "environ", "environ of the parent", "unlink"}


def variant(name: str) -> tuple[str, ...]:
    return (sys.executable, SCRIPT, name)


@cache
def report(*arguments: str) -> Lockdown:
    """What a process of this machine says once it is locked down."""
    return msgspec.json.decode(run("-m", "appliance.inference.lockdown", *arguments), type=Lockdown)


def skip_without_landlock() -> None:
    if "landlock" in report().missing:
        pytest.skip("this kernel has no Landlock")


# --- attempts to get out ------------------------------------------------------------------------------------


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("name", [*HARMLESS, *HARMFUL])
def test_an_attempt_to_get_out_fails_or_ends_the_process(name: str, user: str) -> None:
    assert attempts("full", user, "model")[name] == (errno.EACCES if name in REFUSED else -signal.SIGSYS)


@pytest.mark.parametrize("user", USERS)
def test_what_a_locked_down_process_does_not_try_does_not_end_it(user: str) -> None:
    assert attempts("full", user, "model")["nothing"] == 0


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("name", [*SECOND_LINE, *WITH_LANDLOCK])
def test_where_no_call_is_filtered_other_measures_deny_the_same(name: str, user: str) -> None:
    if name in WITH_LANDLOCK:
        skip_without_landlock()
    assert attempts("unfiltered", user, "model")[name] in (SECOND_LINE | WITH_LANDLOCK)[name]


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("name", WITH_DELEGATE)
def test_a_delegate_may_not_get_out_either(name: str, user: str) -> None:
    if name in LANDLOCKS:
        skip_without_landlock()
    assert attempts("full", user, "delegate")[name] == WITH_DELEGATE[name]


def test_a_delegate_hears_of_devices_and_reads_libraries(tmp_path: Path) -> None:
    skip_without_landlock()
    (tmp_path / "device").touch()
    script = f"""
import os, socket
from appliance.inference import lockdown
lockdown.DEVICES = ({str(tmp_path / "device")!r}, "/dev/null", "/not/there")
lockdown.lock_down(0, "libedgetpu.so.1")
socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 15).close()
os.close(os.open("/usr/lib", os.O_RDONLY))
os.close(os.open("/sys", os.O_RDONLY))
os.close(os.open({str(tmp_path / "device")!r}, os.O_RDWR))
os.close(os.open("/dev/null", os.O_RDWR))
os._exit(0)  # what measures coverage could write nothing
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.parametrize("architecture", ["X86_64", "AARCH64"])
def test_the_calls_have_names_on_the_machines_this_is_for(architecture: str) -> None:
    """Names that another machine has, or an older one, are listed beside those of this one."""
    number = getattr(pyseccomp.Arch, architecture)
    calls: tuple[Calls, ...] = (profiles.on_the_cpu(1), profiles.with_delegate(1))
    names = {name for each in calls for rule in each.rules for name in rule.names}
    unknown = {name for name in names if pyseccomp.resolve_syscall(number, name) < 0}
    of_32_bits = {"send", "recv", "mmap2", "futex_time64", "clock_gettime64", "clock_nanosleep_time64", "_llseek"}
    of_32_bits |= {"stat64", "lstat64", "fstat64", "fstatat64", "clock_settime64", "umount"}
    of_old_ones = {"open", "access", "readlink", "stat", "lstat", "fork", "vfork", "iopl", "ioperm", "modify_ldt"}
    assert unknown == of_32_bits | (of_old_ones if architecture == "AARCH64" else set())


# --- what is in force ---------------------------------------------------------------------------------------


def status_of(pid: int) -> dict[str, list[str]]:
    lines = (line.partition(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {name: value.split() for name, _, value in lines}


def network_of(pid: int) -> Path:
    return Path(f"/proc/{pid}/ns/net").readlink()


def has_ended(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists() or status_of(pid)["State"][0] == "Z"


def limits_of(pid: int) -> dict[str, str]:
    """Hard limits by name."""
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()[1:]
    return {line[:26].strip(): line[47:68].strip() for line in lines}


@pytest.mark.parametrize("of", ["model", "pixels"])
async def test_a_process_says_what_is_in_force_and_the_kernel_agrees(ring: RingWriter, save: Save, of: str) -> None:
    async with Broker(ring.fd) as broker:
        if of == "model":
            await broker.ready(save(tiny_models.echo()))
        else:
            await broker.pixels(write(ring, samples(8, 8)), Crop(), "rgb", 4, 4)
        (status,) = broker.status()
        assert status.pid is not None
        kernels, limits = status_of(status.pid), limits_of(status.pid)
        network = network_of(status.pid)
    assert status.lockdown == report()
    assert "seccomp" in status.lockdown.in_force
    assert (kernels["Seccomp"], kernels["NoNewPrivs"]) == (["2"], ["1"])
    assert kernels["CapEff"] == kernels["CapPrm"] == ["0" * 16]
    assert ("uid" in status.lockdown.missing) == (not ROOT)
    if ROOT:
        assert kernels["Uid"] == kernels["Gid"] == [str(NOBODY)] * 4
        assert kernels["Groups"] == []
    assert ("network namespace" in status.lockdown.in_force) == (network != network_of(os.getpid()))
    assert {limits[f"Max {what}"] for what in ("open files", "file size", "core file size")} == {"0"}
    assert profiles.MEMORY_BYTES < int(limits["Max address space"]) < 2 * profiles.MEMORY_BYTES
    assert "not_in_force" not in model_document(status)


async def test_a_process_with_a_delegate_keeps_its_user_and_its_network(ring: RingWriter, save: Save) -> None:
    async with Broker(ring.fd) as broker:
        await broker.ready(save(tiny_models.echo(), delegate="libedgetpu.so.1"))
        (status,) = broker.status()
        assert status.pid is not None
        kernels, limits = status_of(status.pid), limits_of(status.pid)
    assert status.lockdown == report("libedgetpu.so.1")
    assert "seccomp" in status.lockdown.in_force
    assert "network namespace" in status.lockdown.missing
    assert kernels["Uid"] == [str(os.getuid())] * 4
    assert kernels["CapEff"] == ["0" * 16]
    assert limits["Max file size"] == "0"


async def test_a_process_still_dies_with_the_one_that_started_it(save: Save) -> None:
    """A change of user makes the kernel forget that."""
    spec = save(tiny_models.echo())
    script = f"""
import asyncio
from pathlib import Path
from appliance.inference.broker import Broker
from appliance.inference.model import ModelSpec
from appliance.ipc.ring import RingWriter
async def main():
    with RingWriter(1 << 16) as ring:
        async with Broker(ring.fd) as broker:
            await broker.ready(ModelSpec(Path({str(spec.path)!r}), {spec.digest!r}))
            print(broker.status()[0].pid, flush=True)
            await asyncio.sleep(60)
asyncio.run(main())
"""
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    parent.kill()
    await parent.wait()
    async with asyncio.timeout(20):
        while not has_ended(pid):
            await asyncio.sleep(0.01)


# --- what is missing ----------------------------------------------------------------------------------------


async def test_without_libseccomp_models_run_and_it_is_said_once(
    ring: RingWriter, save: Save, caplog: pytest.LogCaptureFixture
) -> None:
    spec = save(tiny_models.echo())
    with caplog.at_level(logging.WARNING):
        async with Broker(ring.fd, command=variant("without_libseccomp")) as broker:
            await broker.ready(spec)
            pid = broker.status()[0].pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            async with asyncio.timeout(20):
                while broker.status()[0].pid in (pid, None):
                    await asyncio.sleep(0.01)
            assert (await broker.infer(spec, write(ring, samples(8, 8)), WHOLE)).run.device == "cpu"
            (status,) = broker.status()
    document = model_document(status)
    assert document["not_in_force"]["seccomp"] == "no libseccomp"
    messages = [record.getMessage() for record in caplog.records]
    assert messages.count("event=calls_not_filtered model=model.tflite reason='no libseccomp'") == 1


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("without_limits", r"the process cannot be limited \(resource \d+ to \d+\): not allowed"),
        ("with_a_thread", "2 threads run already"),
    ],
)
async def test_where_there_can_be_no_limits_nothing_is_interpreted(
    ring: RingWriter, save: Save, name: str, reason: str
) -> None:
    async with Broker(ring.fd, command=variant(name)) as broker:
        with pytest.raises(ModelError, match=reason):
            await broker.ready(save(tiny_models.echo()))
        with pytest.raises(ModelError, match=reason):
            await broker.pixels(write(ring, samples(8, 8)), Crop(), "rgb", 4, 4)


# --- what goes on working -----------------------------------------------------------------------------------

MODELS = ["mobilenet_v2_1.0_224_quant", "coco_ssd_mobilenet_v1_1.0_quant_2018_06_29", "vww_96_int8"]
VARIANTS = ["strict", pytest.param("ordinary_user", marks=pytest.mark.skipif(not ROOT, reason="needs another user"))]


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("who", VARIANTS)
async def test_real_models_look_for_no_file_and_say_the_same(
    ring: RingWriter, runtime: str, name: str, threads: int, who: str
) -> None:
    path = SHARED_DATA / "models" / f"{name}.tflite"
    if not path.exists():
        pytest.skip("needs the models of ../shared/data")
    free = Runtime(runtime).load(path.read_bytes(), threads)
    (info,) = free.inputs
    picture = samples(info.shape[2], info.shape[1], seed=threads)
    expected = free.run([(picture ^ (0x80 if info.dtype == "int8" else 0)).view(info.dtype)[np.newaxis]])
    spec = ModelSpec(path, digest_of(path), runtime, threads)
    async with Broker(ring.fd, memo=0, command=variant(who)) as broker:
        for _ in range(3):
            inference = await broker.infer(spec, write(ring, picture), WHOLE)
            assert inference.tensors == expected
        await broker.infer(spec, write(ring, samples(640, 480), "jpeg"), View(fit="letterbox"))
        assert broker.status()[0].restarts == 0


@pytest.mark.parametrize("who", VARIANTS)
async def test_decoding_looks_for_no_file(ring: RingWriter, who: str) -> None:
    whole = write(ring, samples(640, 480), "jpeg")
    cut = ring.write(bytes(ring._map[whole.offset : whole.offset + whole.length // 2]), "jpeg", 640, 480)
    junk = ring.write(b"\xff\xd8 no picture", "jpeg", 640, 480)
    assert cut is not None
    assert junk is not None
    async with Broker(ring.fd, command=variant(who)) as broker:
        for frame in (whole, write(ring, samples(640, 480)), cut, junk):
            for crop in (Crop(), Crop(10, 10, 100, 101), Crop(1, 1, 1, 1)):
                for format in ("rgb", "gray"):
                    asked = broker.pixels(frame, crop, format, 33, 44)
                    (answer,) = await asyncio.gather(asked, return_exceptions=True)
                    assert isinstance(answer, bytes) == (frame not in (cut, junk)), answer
        assert broker.status()[0].restarts == 0


@pytest.mark.parametrize(
    ("name", "how"),
    [("aborts", "it was ended by SIGABRT"), ("has_a_defect", r"it exited with status 1 \(IndexError: list index")],
)
async def test_how_a_process_ends_is_told_as_before(ring: RingWriter, save: Save, name: str, how: str) -> None:
    async with Broker(ring.fd, command=variant(name)) as broker:
        with pytest.raises(ModelError, match=how):
            await broker.ready(save(tiny_models.echo()))


async def test_no_memory_before_the_model_is_looked_at_is_not_its_fault(ring: RingWriter, save: Save) -> None:
    async with Broker(ring.fd, command=variant("has_no_memory")) as broker:
        with pytest.raises(UnavailableError, match="no memory left"):
            await broker.ready(save(tiny_models.echo()))


async def test_a_model_that_wants_all_memory_gets_an_error(ring: RingWriter, save: Save, runtime: str) -> None:
    async with Broker(ring.fd) as broker:
        with pytest.raises(ModelError):
            await broker.ready(save(tiny_models.echo((1, 40_000, 40_000, 1)), runtime=runtime))
        assert (await broker.pixels(write(ring, samples(8, 8)), Crop(), "rgb", 1, 1)) != b""
