"""A camera as the event loop sees it: pictures to iterate over, opened again whenever it fails or freezes."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from appliance.backoff import Backoff
from appliance.camera.camera import Camera, Picture, open_camera, printable
from appliance.camera.reader import Outcome, Reader
from appliance.camera.watch import Action, CameraWatch, FeedState
from appliance.config import CameraConfig
from appliance.errors import ConfigError, DeviceError

OPEN_SECONDS = 30.0
"""What opening a camera, and its first picture, may take each."""
FIRST_RETRY_SECONDS = 1.0
LAST_RETRY_SECONDS = 30.0
SETTLE_SECONDS = 30.0
"""A camera that streamed for so long is tried again at once (after FIRST_RETRY_SECONDS) when it fails."""
CLOSE_SECONDS = 2.0
"""For the camera to be closed at the end; after that its thread is left to itself."""
MAX_HUNG = 3
"""Threads that may hang in a driver before only a new process can help."""

log = logging.getLogger(__name__)


class CameraFeed:
    """Pictures of one camera: ``async with CameraFeed(config) as feed: async for picture in feed: …``.

    Ends with a finite camera. Raises ConfigError for what can never work, and DeviceError where a finite
    camera (a file) broke down or the driver hangs for good; a live camera that fails is tried again for ever.
    Without ``patient`` that is so only after its first picture: a first attempt that fails is a ConfigError.
    ``on_state`` is called on the event loop at every change of :attr:`state`.
    """

    def __init__(
        self,
        config: CameraConfig,
        *,
        patient: bool = True,
        open_camera: Callable[[CameraConfig], Camera] = open_camera,
        on_state: Callable[[FeedState], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        backoff: Backoff | None = None,
    ) -> None:
        self._config = config
        self._patient = patient
        self._open = open_camera
        self._on_state = on_state
        self._clock = clock
        # a low cap on the rate makes the camera's own pace look like a stall
        patience = max(config.stall_seconds, 3 / config.fps if config.fps else 0.0)
        backoff = backoff or Backoff(FIRST_RETRY_SECONDS, limit=LAST_RETRY_SECONDS, jitter=0.25, settle=SETTLE_SECONDS)
        self._watch = CameraWatch(patience, OPEN_SECONDS, backoff)
        self._reported: FeedState | None = None
        self._wake = asyncio.Event()
        self._reader: Reader | None = None
        self._hung: list[Reader] = []
        self._past: Counter[str] = Counter()
        self._error: BaseException | None = None

    @property
    def state(self) -> FeedState:
        """``opening``, ``streaming``, ``stalled``, ``failed`` (both with a reason) or ``ended``."""
        return self._watch.state

    @property
    def counters(self) -> Mapping[str, int]:
        """``captured``; ``dropped_camera_overrun``: not taken in time; ``reopened``: attempts after the first."""
        total = Counter(captured=0, dropped_camera_overrun=0, reopened=0)
        total.update(self._past)
        if self._reader is not None:
            total.update(_counts(self._reader))
        return total

    @property
    def description(self) -> str:
        """What was opened, e.g. ``synthetic conveyor, seed 0, 320x240, 30 fps``; empty while it is not open."""
        return self._reader.description if self._reader is not None else ""

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        reader = self._retire()
        if reader is not None and not await asyncio.to_thread(reader.join, CLOSE_SECONDS):
            log.warning("event=camera_not_closed camera=%s", self._config.name)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Picture:
        while True:
            self._wake.clear()
            picture = self._next()
            if picture is not None:
                return picture
            if self._error is not None:
                raise self._error
            if self.state.name == "ended":
                raise StopAsyncIteration
            await self._woken()

    def _next(self) -> Picture | None:
        """Take the picture that waits, if any, and do what is due."""
        now = self._clock()
        picture = None
        if self._reader is not None:
            outcome = self._reader.outcome  # read first: a picture handed over before the end is not lost
            picture = self._reader.take()
            if picture is not None:
                self._watch.got_picture(now)
            elif outcome is not None:
                self._conclude(outcome, now)
        if self._error is None:
            self._act(self._watch.poll(now, self._reader.busy_since if self._reader is not None else None))
        self._report()
        return picture

    def _conclude(self, outcome: Outcome, now: float) -> None:
        """The attempt is over and all its pictures are taken."""
        self._retire()
        error = outcome.error
        if error is None:
            self._watch.ended()
            return
        self._watch.failed(str(error), now)
        worth_another_try = isinstance(error, DeviceError) and (outcome.live or not outcome.opened)
        self._error = self._given_up(str(error)) if worth_another_try else error

    def _given_up(self, why: str) -> ConfigError | None:
        """The error where a failed attempt was the last."""
        if self._patient or self.counters["captured"]:
            return None
        return ConfigError(f"{why}; it has to be a camera that is there now, a video, a picture or a directory of them")

    def _act(self, action: Action | None) -> None:
        if action is Action.GIVE_UP:
            reader = self._retire()
            if reader is not None:
                self._hung.append(reader)
            where = f"camera {self._config.name}: {printable(self._config.url)}"
            self._error = self._given_up(f"{where}: {self.state.reason}")
        elif action is Action.OPEN:
            self._hung = [reader for reader in self._hung if reader.alive]
            if len(self._hung) >= MAX_HUNG:
                self._error = DeviceError(
                    f"camera {self._config.name}: its driver hangs in {MAX_HUNG} calls; only a new process frees them"
                )
                return
            self._past["reopened"] += self._reported is not None
            self._reader = Reader(self._config, self._open, self._clock, self._notify)
            self._reader.start()

    def _retire(self) -> Reader | None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.stop()
            self._past.update(_counts(reader))
        return reader

    def _report(self) -> None:
        state = self.state
        if state == self._reported:
            return
        self._reported = state
        level = logging.WARNING if state.reason else logging.INFO
        if state.name == "opening" and self._past["reopened"]:
            level = logging.DEBUG  # the failure before it was logged; it may go on for days
        more = f" error={state.reason}" if state.reason else f" input={self.description}" if self.description else ""
        log.log(level, "event=camera_%s camera=%s%s", state.name, self._config.name, more)
        if self._on_state is not None:
            self._on_state(state)

    def _notify(self) -> None:
        """Called in the reader's thread."""
        self._loop.call_soon_threadsafe(self._wake.set)

    async def _woken(self) -> None:
        """Until the reader has something new or something is due."""
        now = self._clock()
        due = self._watch.wake_at(now, self._reader.busy_since if self._reader is not None else None)
        try:
            async with asyncio.timeout(None if due is None else max(0.0, due - now)):
                await self._wake.wait()
        except TimeoutError:
            return


def _counts(reader: Reader) -> dict[str, int]:
    return {"captured": reader.captured, "dropped_camera_overrun": reader.overrun}
