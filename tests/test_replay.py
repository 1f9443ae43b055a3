"""A capsule that the appliance wrote, replayed by the command, in a process of its own."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from crash_bench import box, directory_of, failing
from sandbox_bench import NOTHING
from test_hostile_worker import FakeZygote
from test_quarantine import RECORD

from appliance.sandbox.capsule import encode_capsule
from appliance.sandbox.evidence import Capsules, Quarantines, read_capsule
from appliance.sandbox.spec import HandlerSpec

COMMAND = [sys.executable, "-m", "appliance", "handler"]


def run(*arguments: str | Path, state: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "APPLIANCE_STATE": str(state or "/nonexistent")}
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=60, env=environment, check=False
    )


async def crashed(directory: Path, *payloads: bytes, handler: HandlerSpec | None = None) -> Path:
    """The capsule of a handler that failed on the last of these payloads."""
    async with box(directory, handler) as running:
        for payload in payloads:
            await running.see(payload)
    return running.capsules()[-1]


async def test_a_trap_is_had_again(tmp_path: Path) -> None:
    capsule = await crashed(tmp_path, b"", b"e", b"t")
    ran = run("replay", capsule, "--handler", directory_of(failing(), tmp_path / "guest"))
    assert ran.returncode == 0, ran.stderr
    first, emitted, second, third, *backtrace, verdict = ran.stdout.splitlines()
    assert first.startswith("frame 1 tag 0x1: ok (")
    assert emitted == "    tag 0x10, 4 bytes of bytes"
    assert ": error (" in second
    assert third.startswith("frame 3 tag 0x1: trap (")
    assert third.endswith("): unreachable executed")
    assert backtrace == [f"    {line}" for line in read_capsule(capsule).failure.backtrace]
    assert verdict == "reproduced: trap"


@pytest.mark.slow
async def test_a_deadline_is_had_again_as_json(tmp_path: Path) -> None:
    capsule = await crashed(tmp_path, b"l")
    ran = run("replay", capsule, "--handler", directory_of(failing(), tmp_path / "guest"), "--json")
    assert ran.returncode == 0, ran.stderr
    replayed = json.loads(ran.stdout)
    assert (replayed["reproduced"], replayed["recorded"], replayed["notes"]) == (True, "deadline", [])
    (frame,) = replayed["frames"]
    assert (frame["seq"], frame["outcome"]) == (1, "deadline")
    assert frame["message"] == "handle took more than 300 ms of the guest's own time"


@pytest.mark.slow
async def test_a_failure_that_needs_the_state_of_then(tmp_path: Path) -> None:
    """It traps on the third frame it counts, and the capsule begins with its second: without state it would not."""
    capsule = await crashed(tmp_path, b"", b"", b"3")
    path = tmp_path / "short.capsule"
    whole = read_capsule(capsule)
    state = {"n": (1).to_bytes(4, "little")}
    short = msgspec.structs.replace(whole, frames=whole.frames[1:], state=state)
    name = Capsules(tmp_path / "other").write(short)
    (tmp_path / "other" / name).rename(path)
    handler = directory_of(failing(), tmp_path / "guest")
    assert run("replay", path, "--handler", handler).returncode == 0
    name = Capsules(tmp_path / "other").write(msgspec.structs.replace(short, state={}))
    ran = run("replay", tmp_path / "other" / name, "--handler", handler)
    assert ran.returncode == 3
    assert ran.stdout.splitlines()[-1] == "not reproduced: it was trap, and is ok"


@pytest.mark.slow
async def test_another_module_is_said_and_tried_only_if_asked_for(tmp_path: Path) -> None:
    capsule = await crashed(tmp_path, b"t")
    mended = directory_of(failing(), tmp_path / "guest", module=NOTHING)
    ran = run("replay", capsule, "--handler", mended)
    assert ran.returncode == 2
    (line,) = ran.stderr.splitlines()
    assert "--any-module" in line
    assert "that of the capsule is " in line
    ran = run("replay", capsule, "--handler", mended, "--any-module")
    assert ran.returncode == 3
    assert ran.stdout.startswith("note: the module of ")
    assert ran.stdout.splitlines()[-1] == "not reproduced: it was trap, and is ok"


@pytest.mark.slow
async def test_settings_are_the_capsules_unless_given(tmp_path: Path) -> None:
    capsule = await crashed(tmp_path, b"t")
    handler = directory_of(failing(), tmp_path / "guest")
    for text in ("threshold=0.9", "guest.threshold=0.9"):
        assert run("replay", capsule, "--handler", handler, "--set", text).returncode == 0
    ran = run("replay", capsule, "--handler", handler, "--set", "colour=red")
    assert ran.returncode == 2
    assert "has no setting 'colour'" in ran.stderr
    assert "KEY=VALUE" in run("replay", capsule, "--handler", handler, "--set", "threshold").stderr


async def test_a_handler_that_cannot_even_be_started(tmp_path: Path) -> None:
    capsule = await crashed(tmp_path, b"t")
    ran = run("replay", capsule, "--handler", directory_of(failing(), tmp_path / "guest", module=b"MZ"), "--any-module")
    assert ran.returncode == 3
    assert "unavailable" in ran.stdout
    assert "does not start like a WebAssembly module" in ran.stdout


async def test_a_forbidden_call_is_recorded_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a worker that is played: no guest that is known gets so far."""
    zygote = FakeZygote()
    monkeypatch.setattr("appliance.sandbox.spawning.Zygote.spawn", lambda _: zygote.spawn())
    async with box(tmp_path) as running:
        seen = asyncio.create_task(running.see(b"x"))
        (await zygote.worker(0)).exit(-signal.SIGSYS)
        await seen
        for worker in zygote.workers:
            worker.exit()
    capsule = running.capsules()[0]
    assert capsule.name.endswith("-guest-forbidden.capsule")
    assert read_capsule(capsule).frames[-1].payload == b"x"
    ran = run("replay", capsule, "--handler", directory_of(failing(), tmp_path / "guest"))
    assert (ran.returncode, ran.stdout.splitlines()[-1]) == (3, "not reproduced: it was forbidden, and is ok")


async def test_a_capsule_does_not_steer_the_terminal(tmp_path: Path) -> None:
    """It comes from somebody else."""
    path = await crashed(tmp_path, b"t")
    path.write_bytes(encode_capsule(msgspec.structs.replace(read_capsule(path), version="1\x1b[2J\nreproduced: trap")))
    ran = run("replay", path, "--handler", directory_of(failing(), tmp_path / "guest"))
    note, *_ = ran.stdout.splitlines()
    assert note == "note: the handler's version is 1.0.0, that of the capsule is 1 [2J reproduced: trap"


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "the capsule cannot be read: No such file"), (b"\xa1aa", "not a crash capsule"), (b"", "not a crash")],
)
def test_what_is_no_capsule_is_one_clear_line(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "odd.capsule"
    if content is not None:
        path.write_bytes(content)
    ran = run("replay", path)
    assert ran.returncode == 2
    (line,) = ran.stderr.splitlines()
    assert message in line
    assert "odd.capsule" in line


async def test_without_a_directory_it_is_looked_for_among_the_examples(tmp_path: Path) -> None:
    ran = run("replay", await crashed(tmp_path, b"t"))
    assert ran.returncode == 1
    assert "handlers/guest/handler.toml" in ran.stderr


def test_release_lists_and_releases(tmp_path: Path) -> None:
    assert run("release", state=tmp_path).stdout == ""
    Quarantines(tmp_path / "quarantine").write(RECORD)
    listed = run("release", state=tmp_path)
    assert listed.stdout == "parts 1.0.0  since 1970-01-01T00:00:00.000000009Z  trap: unreachable\n"
    assert run("release", "parts", "--state", tmp_path).returncode == 0
    again = run("release", "parts", state=tmp_path)
    assert (again.returncode, again.stderr) == (2, "appliance: handler 'parts' is not in quarantine; none is\n")


def test_help_teaches() -> None:
    assert "--any-module && echo still broken" in run("replay", "--help").stdout
    assert "appliance handler release parts" in run("release", "--help").stdout
    assert "replay" in run("--help").stdout
