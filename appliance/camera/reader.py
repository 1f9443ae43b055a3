"""The thread that drives one camera: its calls block, and a blocked call cannot be interrupted."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from appliance.camera.camera import Camera, Picture
from appliance.camera.pacing import Pacer
from appliance.config import CameraConfig

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended."""

    error: BaseException | None
    """None: a finite camera came to its end, or the attempt was stopped."""
    opened: bool
    live: bool


class Reader:
    """One attempt: opens a camera, reads it, closes it.

    Pictures are handed over one at a time: newest wins, unless the configuration asks for ``lossless``, then
    the thread waits until the picture is taken. ``notify`` is called in the thread whenever there is
    something new; never after :meth:`stop`.
    """

    def __init__(
        self,
        config: CameraConfig,
        open_camera: Callable[[CameraConfig], Camera],
        clock: Callable[[], float],
        notify: Callable[[], None],
    ) -> None:
        self._config = config
        self._open = open_camera
        self._clock = clock
        self._notify = notify
        self._changed = threading.Condition()
        self._stopped = False
        self._picture: Picture | None = None
        self._camera: Camera | None = None
        self.busy_since: float | None = clock()
        """When the camera call that is under way began; None between calls."""
        self.outcome: Outcome | None = None
        self.captured = 0
        """Pictures read, whatever became of them."""
        self._replaced = 0
        self._lost = 0
        # a daemon, so that a driver that hangs cannot keep the process from ending
        self._thread = threading.Thread(target=self._run, name=f"camera-{config.name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def description(self) -> str:
        """Of the camera, once it is open."""
        return self._camera.description if self._camera is not None else ""

    @property
    def overrun(self) -> int:
        """Pictures that were not taken in time: replaced here by a newer one, or lost by the camera itself."""
        return self._replaced + self._lost

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def take(self) -> Picture | None:
        """The picture that waits, if any."""
        with self._changed:
            picture, self._picture = self._picture, None
            self._changed.notify_all()
            return picture

    def stop(self) -> None:
        """Close the camera as soon as the call that is under way returns; does not wait for it."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def join(self, seconds: float) -> bool:
        """Wait for the thread; False where it still hangs."""
        self._thread.join(seconds)
        return not self.alive

    # --- in the thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            self._camera = self._timed(lambda: self._open(self._config))
            with self._camera:
                self._pump(self._camera)
        except BaseException as caught:  # noqa: BLE001 - whoever reads `outcome` retries or raises it
            error = caught
        self.busy_since = None
        camera = self._camera
        self.outcome = Outcome(error, camera is not None, camera is not None and camera.live)
        self._tell()

    def _pump(self, camera: Camera) -> None:
        pacer = None if camera.live or self._config.lossless else Pacer()
        while not self._stopped:
            picture = self._timed(camera.read)
            if picture is None:
                return
            if pacer is not None and picture.pts is not None:
                self._wait(pacer.delay(picture.pts, self._clock()))
                picture = replace(picture, captured_ns=time.time_ns())  # it is "now" that a camera would see it
            self._hand_over(picture, camera.lost)

    def _timed(self, call: Callable[[], Result]) -> Result:
        self.busy_since = self._clock()
        try:
            return call()
        finally:
            self.busy_since = None

    def _wait(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._stopped, seconds)

    def _hand_over(self, picture: Picture, lost: int) -> None:
        with self._changed:
            if self._config.lossless:
                self._changed.wait_for(lambda: self._stopped or self._picture is None)
            if self._stopped:
                return
            self._replaced += self._picture is not None
            self._lost = lost
            self.captured += 1
            self._picture = picture
        self._tell()

    def _tell(self) -> None:
        with self._changed:
            if not self._stopped:
                self._notify()
