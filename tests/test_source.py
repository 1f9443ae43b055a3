"""The source against a real zipper on loopback."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from zipper_on_loopback import CREDENTIAL, Running

from appliance.camera.camera import Picture
from appliance.config import CameraConfig
from appliance.errors import ConfigError
from appliance.source import Source, Waiting, encode_jpeg
from appliance.transport.peer import Address
from appliance.zipper.conversation import SOURCE_CREDITS
from appliance.zipper.server import PeerSession, SourceStatus


@asynccontextmanager
async def streaming(running: Running, camera: CameraConfig, credential: str = CREDENTIAL) -> AsyncIterator[Source]:
    source = Source(camera, lambda: running.address, credential)
    task = asyncio.create_task(source.run())
    try:
        yield source
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_finite_camera_is_delivered_whole_and_ends(running: Running) -> None:
    async with running.observer(window=4) as sink:
        source = Source(CameraConfig(frames=20, lossless=True), lambda: running.address, CREDENTIAL)
        task = asyncio.create_task(source.run())
        for seq in range(20):
            async with asyncio.timeout(20):
                frame = await sink.receive()
            sink.done()
            assert (frame.seq, frame.format, frame.width, frame.height) == (seq, "jpeg", 320, 240)
            assert simplejpeg.decode_jpeg_header(bytes(frame.payload))[:2] == (240, 320)
            assert list(frame.spent) == ["held", "encode", "transfer"]
            assert frame.meta["truth"]
        async with asyncio.timeout(20):
            await task
        report = running.door.sources["camera"].report
        assert report is not None
        assert (report.final, report.counters["captured"], report.counters["sent"]) == (True, 20, 20)


async def test_live_pictures_without_credit_are_replaced_by_newer_ones(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A zipper that gives no credit back: the newest picture is what goes when credit comes."""
    grant = PeerSession._grant
    monkeypatch.setattr(PeerSession, "_grant", lambda _session: None)
    async with running.observer(window=8) as sink, streaming(running, CameraConfig(fps=100)) as source:
        await until(lambda: source.counters["dropped_credit"] >= 10)
        assert source.counters["sent"] == SOURCE_CREDITS
        for _ in range(SOURCE_CREDITS):
            await sink.receive()
            sink.done()
        grant(running.door.sessions[True, "camera"])
        async with asyncio.timeout(20):
            newest = await sink.receive()
        assert newest.seq >= SOURCE_CREDITS + 10
        assert source.counters["captured"] >= source.counters["sent"] + source.counters["dropped_credit"]


async def test_a_lossless_source_makes_the_camera_wait(running: Running) -> None:
    async with running.observer(window=1) as sink, streaming(running, CameraConfig(lossless=True)) as source:
        await until(lambda: source.counters["sent"] == SOURCE_CREDITS)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await until(lambda: source.counters["captured"] > SOURCE_CREDITS + 3)
        seen = []
        for _ in range(30):
            async with asyncio.timeout(20):
                seen.append((await sink.receive()).seq)
            sink.done()
        assert seen == list(range(30))


async def test_it_reconnects_and_goes_on(running: Running) -> None:
    async with running.observer(window=8) as sink, streaming(running, CameraConfig(fps=60)) as source:
        async with asyncio.timeout(20):
            before = (await sink.receive()).seq
        sink.done()
        running.door.sessions[True, "camera"].dismiss("shutdown", "restarting")
        await until(lambda: source.counters["dropped_offline"] > 0)
        while True:
            async with asyncio.timeout(20):
                frame = await sink.receive()
            sink.done()
            if frame.seq > before + 10:
                break


@pytest.mark.slow
async def test_a_zipper_that_starts_later_is_found(running: Running, tmp_path: Path) -> None:
    addresses = [Address("127.0.0.1", 9, running.address.certificate)]
    source = Source(CameraConfig(fps=60), lambda: addresses[-1], CREDENTIAL)
    task = asyncio.create_task(source.run())
    await until(lambda: source.counters["dropped_offline"] > 3)
    addresses.append(running.address)
    await until(lambda: source.counters["sent"] > 3)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_refused_source_keeps_asking_slowly(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    async with streaming(running, CameraConfig(fps=60), "a-wrong-credential"):
        await until(lambda: "retry_s=10.0 error=the zipper refused camera: unknown name" in caplog.text)
    assert "a-wrong-credential" not in caplog.text


async def test_a_camera_that_can_never_work_ends_the_source(running: Running, tmp_path: Path) -> None:
    source = Source(CameraConfig(url=str(tmp_path / "missing.mp4")), lambda: running.address, CREDENTIAL)
    with pytest.raises(ExceptionGroup) as raised:
        await source.run()
    assert raised.group_contains(ConfigError, match="missing.mp4")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    directory = tmp_path / "pictures"
    directory.mkdir()
    picture = Picture(16, 16, 0, pixels=np.zeros((16, 16, 3), "uint8"))
    for number in range(3):
        (directory / f"{number}.jpg").write_bytes(encode_jpeg(picture, 90))
    return directory


async def test_the_process_reads_its_settings_from_standard_input(running: Running, images: Path) -> None:
    settings = {
        "camera": {"name": "stills", "url": str(images), "lossless": True},
        "host": "127.0.0.1",
        "port": running.address.port,
        "certificate": str(running.address.certificate),
        "credential": CREDENTIAL,
        "first_seq": 100,
        "parent": os.getpid(),
    }
    async with running.observer(window=4) as sink:
        process = await asyncio.create_subprocess_exec(sys.executable, "-m", "appliance.source", stdin=subprocess.PIPE)
        sending = asyncio.create_task(process.communicate(json.dumps(settings).encode()))
        seen = []
        for _ in range(3):
            async with asyncio.timeout(20):
                seen.append((await sink.receive()).seq)
            sink.done()
        async with asyncio.timeout(20):
            await sending
        assert process.returncode == 0
        assert seen == [100, 101, 102]
        assert running.door.sources["stills"] == SourceStatus(
            "stills",
            False,
            running.door.sources["stills"].address,
            3,
            103,
            running.door.sources["stills"].report,
            "finished",
        )


async def test_waiting_is_newest_wins_or_blocks() -> None:
    picture = Picture(1, 1, 0, jpeg=b"")
    live = Waiting(lossless=False)
    assert [await live.put(0, picture), await live.put(1, picture)] == [False, True]
    assert await live.take() == (1, picture)
    assert await live.take() is None
    await live.end()
    assert not await live.some()
    lossless = Waiting(lossless=True)
    await lossless.put(0, picture)
    second = asyncio.create_task(lossless.put(1, picture))
    await asyncio.sleep(0)
    assert not second.done()
    assert await lossless.take() == (0, picture)
    assert not await second


def test_a_picture_without_pixels_is_not_encoded() -> None:
    with pytest.raises(ValueError, match="without pixels"):
        encode_jpeg(Picture(1, 1, 0), 85)
