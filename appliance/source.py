"""The source: takes pictures from one camera and streams them to a zipper.

Live, the newest picture wins: one that waits for credit or for the connection is replaced by the next, and
counted. Lossless, the camera waits instead. Runs as a process of its own (``python -m appliance.source``, its
settings as JSON on standard input) or by ``appliance source``.
"""

import asyncio
import logging
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import simplejpeg

from appliance.backoff import Backoff
from appliance.camera.camera import Picture
from appliance.camera.feed import CameraFeed
from appliance.config import CameraConfig
from appliance.device.journal import configure_logging
from appliance.device.memory import proportional_kb
from appliance.errors import ApplianceError, ConfigError, PeerError, deliberate
from appliance.frame import MAX_META_TEXT, Frame
from appliance.ipc.child import die_with_parent
from appliance.source_settings import SourceSettings
from appliance.transport.peer import Address, Peer, RejectedError, join
from appliance.wire import PROTOCOL_VERSION, Hello, Report

log = logging.getLogger(__name__)

REPORT_SECONDS = 2.0
FIRST_RETRY_SECONDS = 0.2
LAST_RETRY_SECONDS = 10.0
REJECTED_SECONDS = 10.0
"""A zipper that refuses us is asked again, but not soon: somebody has to change something first."""
FINISH_SECONDS = 30.0
"""What the last frames may take to be dealt with, when the camera has ended."""

DROPPED_CREDIT = "dropped_credit"
"""The zipper or the network had not taken the frames before it."""
DROPPED_OFFLINE = "dropped_offline"
"""No connection to the zipper."""
DROPPED_CONNECTION = "dropped_connection"
"""Sent, but the connection ended before the zipper was done with it."""


class Waiting:
    """The one place where a picture waits to be sent; newest wins, unless the source is lossless."""

    def __init__(self, *, lossless: bool) -> None:
        self._lossless = lossless
        self._entry: tuple[int, Picture] | None = None
        self._changed = asyncio.Condition()
        self.ended = False

    async def put(self, seq: int, picture: Picture) -> bool:
        """Leave a picture; True where it pushed out an older one."""
        async with self._changed:
            while self._lossless and self._entry is not None:
                await self._changed.wait()
            pushed_out = self._entry is not None
            self._entry = (seq, picture)
            self._changed.notify_all()
            return pushed_out

    async def some(self) -> bool:
        """Wait for a picture; False where none will come any more."""
        async with self._changed:
            while self._entry is None and not self.ended:
                await self._changed.wait()
            return self._entry is not None

    async def take(self) -> tuple[int, Picture] | None:
        """The picture that waits, if any: the newest there is at the moment of sending."""
        async with self._changed:
            entry, self._entry = self._entry, None
            self._changed.notify_all()
            return entry

    async def end(self) -> None:
        async with self._changed:
            self.ended = True
            self._changed.notify_all()


class Source:
    """One camera to one zipper, until the camera ends or the task is cancelled."""

    def __init__(
        self,
        camera: CameraConfig,
        address: Callable[[], Address],
        credential: str,
        first_seq: int = 0,
    ) -> None:
        self._camera = camera
        self._address = address
        self._credential = credential
        self._next_seq = first_seq
        self._feed = CameraFeed(camera, on_state=lambda _state: self._report())
        self._waiting = Waiting(lossless=camera.lossless)
        self._peer: Peer | None = None
        self.counters: Counter[str] = Counter(captured=0, sent=0)

    async def run(self) -> None:
        """Capture and send; returns when a finite camera has ended and everything sent is dealt with."""
        async with self._feed, asyncio.TaskGroup() as tasks:
            tasks.create_task(self._capture(), name="capture")
            await self._stay_connected()

    # --- camera ----------------------------------------------------------------------------------------------

    async def _capture(self) -> None:
        limit = self._camera.frames
        async for picture in self._feed:
            self.counters["captured"] += 1
            if await self._waiting.put(self._next_seq, picture):
                self.counters[DROPPED_CREDIT if self._peer is not None else DROPPED_OFFLINE] += 1
            self._next_seq += 1
            if limit is not None and self.counters["captured"] >= limit:
                break
        await self._waiting.end()

    # --- zipper ----------------------------------------------------------------------------------------------

    async def _stay_connected(self) -> None:
        backoff = Backoff(FIRST_RETRY_SECONDS, limit=LAST_RETRY_SECONDS, jitter=0.5)
        while True:
            try:
                async with join(self._address(), self._hello()) as self._peer:
                    log.info("event=connected camera=%s", self._camera.name)
                    backoff.ok(time.monotonic())
                    if await self._serve(self._peer):
                        return
            except PeerError as error:
                self._peer = None
                delay = REJECTED_SECONDS if isinstance(error, RejectedError) else backoff.failed(time.monotonic())
                log.warning("event=not_connected camera=%s retry_s=%.1f error=%s", self._camera.name, delay, error)
                await asyncio.sleep(delay)

    def _hello(self) -> Hello:
        camera = self._camera
        return Hello(
            PROTOCOL_VERSION, "source", camera.name, self._credential, emits=(camera.tag,), lossless=camera.lossless
        )

    async def _serve(self, peer: Peer) -> bool:
        """Send until the camera ends (True); PeerError where the connection ends first."""
        granted = peer.credits
        reports = asyncio.create_task(self._keep_reporting(), name="reports")
        try:
            while await self._waiting.some():
                await peer.credit()
                entry = await self._waiting.take()
                if entry is not None:
                    peer.send_now(await self._encode(*entry))
                    self.counters["sent"] += 1
            async with asyncio.timeout(FINISH_SECONDS):
                await peer.settled(granted)
            self._report(final=True)
        except TimeoutError:
            log.warning("event=unsettled camera=%s frames=%d", self._camera.name, granted - peer.credits)
            return True
        except PeerError:
            self.counters[DROPPED_CONNECTION] += granted - peer.credits if self._camera.lossless else 0
            raise
        finally:
            reports.cancel()
        return True

    async def _encode(self, seq: int, picture: Picture) -> Frame:
        camera = self._camera
        started = time.time_ns()
        payload = picture.jpeg
        if payload is None:
            payload = await asyncio.to_thread(encode_jpeg, picture, camera.quality)
        frame = Frame(
            tag=camera.tag,
            source=camera.name,
            seq=seq,
            captured_ns=picture.captured_ns,
            format="jpeg",
            payload=payload,
            width=picture.width,
            height=picture.height,
            meta=picture.meta,
        )
        return frame.after("held", started).after("encode", time.time_ns())

    # --- reports ---------------------------------------------------------------------------------------------

    async def _keep_reporting(self) -> None:
        while True:
            self._report()
            await asyncio.sleep(REPORT_SECONDS)

    def _report(self, *, final: bool = False) -> None:
        """Tell the zipper how the camera is, now and whenever that changes; nothing while there is no zipper."""
        state = self._feed.state
        counters = {**self._feed.counters, **self.counters}
        report = Report(state.name, counters, state.reason[:MAX_META_TEXT], proportional_kb(os.getpid()), final)
        if self._peer is not None:
            with suppress(PeerError):  # it has just gone: whoever sends a frame finds out and reconnects
                self._peer.report(report)


def encode_jpeg(picture: Picture, quality: int) -> bytes:
    """JPEG of a picture's RGB pixels (uint8, [height, width, 3]), 4:2:0."""
    if picture.pixels is None:
        raise ValueError("a picture without pixels")
    encoded: bytes = simplejpeg.encode_jpeg(
        picture.pixels, quality=quality, colorspace="RGB", colorsubsampling="420", fastdct=True
    )
    return encoded


async def run_until_signalled(make: Callable[[], Source]) -> None:
    """Run, and stop in good order at SIGTERM or SIGINT."""
    source = make()
    task = asyncio.ensure_future(source.run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        log.info("event=stopped counters=%s", dict(source.counters))


def main() -> int:
    """A source process: settings on standard input, exit code 0 when the camera has ended or SIGTERM came."""
    settings = msgspec.json.decode(sys.stdin.buffer.read(), type=SourceSettings)
    configure_logging(f"source-{settings.camera.name}", settings.log.level, settings.log.format)
    if settings.parent:
        die_with_parent(settings.parent, signal.SIGTERM)
    address = Address(settings.host, settings.port, Path(settings.certificate))

    def make() -> Source:
        return Source(settings.camera, lambda: address, settings.credential, settings.first_seq)

    try:
        asyncio.run(run_until_signalled(make))
    except (ApplianceError, BaseExceptionGroup) as raised:
        error = deliberate(raised)
        if error is None:
            raise
        log.error("event=failed error=%s", error)  # noqa: TRY400 - the text says it all
        return 2 if isinstance(error, ConfigError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
