"""Keeps one camera's source process running, as long as its camera has not ended."""

import asyncio
import logging
import os
import signal
import sys
import time
from dataclasses import dataclass
from enum import Enum

import msgspec

from appliance.backoff import Backoff
from appliance.config import CameraConfig, LogConfig
from appliance.source_settings import SourceSettings
from appliance.transport.peer import Address
from appliance.zipper.server import SourceStatus

log = logging.getLogger(__name__)

STOP_SECONDS = 4.0
"""For an orderly end; a source that takes longer is killed."""
EXIT_OK, EXIT_CONFIG = 0, 2


class SourceEnd(Enum):
    """How a camera's work ended for good."""

    FINISHED = "finished"
    MISCONFIGURED = "misconfigured"


@dataclass(frozen=True, slots=True)
class SourceOrder:
    """What a source process is started for."""

    camera: CameraConfig
    address: Address
    credential: str
    log: LogConfig


class SourceProcess:
    """One camera: :meth:`run` is a task, ``status`` what the zipper knows of the source."""

    def __init__(self, order: SourceOrder, status: SourceStatus) -> None:
        self._order = order
        self._status = status
        self.restarts = 0
        self.pid: int | None = None

    @property
    def name(self) -> str:
        return self._order.camera.name

    async def run(self) -> SourceEnd:
        """Until the camera has ended; a process that dies is started again with growing delays."""
        backoff = Backoff(0.1, limit=30.0, jitter=0.25)
        while True:
            backoff.ok(time.monotonic())
            code = await self._live()
            if code == EXIT_OK:
                return SourceEnd.FINISHED
            if code == EXIT_CONFIG:
                return SourceEnd.MISCONFIGURED
            delay = backoff.failed(time.monotonic())
            log.warning("event=source_died camera=%s status=%d retry_s=%.1f", self._order.camera.name, code, delay)
            await asyncio.sleep(delay)
            self.restarts += 1

    async def _live(self) -> int:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "appliance.source", stdin=asyncio.subprocess.PIPE, start_new_session=True
        )
        self.pid = process.pid
        try:
            await process.communicate(msgspec.json.encode(self._settings()))
            return process.returncode if process.returncode is not None else -signal.SIGKILL
        finally:
            self.pid = None
            await _stop(process)

    def _settings(self) -> SourceSettings:
        """A source that died goes on where it was: neither its numbers nor its limit of frames begin anew."""
        order, status = self._order, self._status
        camera = order.camera
        if camera.frames is not None:
            camera = msgspec.structs.replace(camera, frames=max(1, camera.frames - status.next_seq))
        return SourceSettings(
            camera=camera,
            host=order.address.host,
            port=order.address.port,
            certificate=str(order.address.certificate),
            credential=order.credential,
            log=order.log,
            first_seq=status.next_seq,
            parent=os.getpid(),
        )


async def _stop(process: asyncio.subprocess.Process) -> None:
    """Ask it to end, then make it."""
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
