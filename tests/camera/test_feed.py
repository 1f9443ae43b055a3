import asyncio
import threading
import time
from collections.abc import Callable

import pytest
from scripted_camera import HANG, Lose, Script, Step, Wait, picture

from appliance.backoff import Backoff
from appliance.camera import feed as feed_module
from appliance.camera import reader as reader_module
from appliance.camera.camera import Picture
from appliance.camera.feed import CameraFeed
from appliance.camera.pacing import Pacer
from appliance.camera.watch import FeedState
from appliance.config import CameraConfig
from appliance.errors import ConfigError, DeviceError

Register = Callable[[Script], str]
PATIENCE = 20
"""Seconds a test waits for what must happen."""


class Watched:
    """A feed of a scripted camera, the states it went through, and a clock that can leap."""

    def __init__(self, url: str, *, patient: bool = True, **keys: object) -> None:
        self.states: list[FeedState] = []
        self._leapt = 0.0
        config = CameraConfig(name="gate", url=url, stall_seconds=60, **keys)  # type: ignore[arg-type]
        backoff = Backoff(0.001, limit=0.01)
        self.feed = CameraFeed(config, patient=patient, on_state=self.states.append, clock=self._now, backoff=backoff)

    def _now(self) -> float:
        return time.monotonic() + self._leapt

    def leap(self, seconds: float) -> None:
        """Let so much time pass at once."""
        self._leapt += seconds
        self.feed._wake.set()

    @property
    def names(self) -> list[str]:
        return [state.name for state in self.states]

    async def numbers(self) -> list[int]:
        """Numbers of all pictures until the end."""
        async with asyncio.timeout(PATIENCE), self.feed:
            return [number_of(found) async for found in self.feed]


def number_of(found: Picture) -> int:
    assert found.jpeg is not None
    return found.jpeg[0]


async def happened(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, PATIENCE)


async def closed(script: Script, times: int = 1) -> None:
    for _ in range(times):
        assert await asyncio.to_thread(script.closed.acquire, timeout=PATIENCE)


async def test_lossless_loses_nothing(scripted: Register) -> None:
    script = Script([*(picture(n) for n in range(200)), None], live=False)
    watched = Watched(scripted(script), lossless=True)
    assert await watched.numbers() == list(range(200))
    assert watched.names == ["opening", "streaming", "ended"]
    assert watched.feed.counters == {"captured": 200, "dropped_camera_overrun": 0, "reopened": 0}
    await closed(script)


async def test_lossless_waits_for_its_reader(scripted: Register) -> None:
    reads = [threading.Event() for _ in range(4)]
    script = Script([reads[0], picture(0), reads[1], picture(1), reads[2], picture(2), reads[3], None])
    watched = Watched(scripted(script), lossless=True)
    async with watched.feed as feed:
        assert number_of(await anext(feed)) == 0
        await happened(reads[2])
        assert not reads[3].is_set()  # one picture waits to be taken, and one to be handed over
        assert [number_of(found) async for found in feed] == [1, 2]


async def test_live_the_newest_picture_wins(scripted: Register) -> None:
    taken, all_read = threading.Event(), threading.Event()
    script = Script([picture(0), Wait(taken), *(picture(n) for n in range(1, 10)), all_read, HANG])
    watched = Watched(scripted(script))
    async with watched.feed as feed:
        assert number_of(await anext(feed)) == 0
        taken.set()
        await happened(all_read)
        assert number_of(await anext(feed)) == 9
        assert feed.counters == {"captured": 10, "dropped_camera_overrun": 8, "reopened": 0}
        script.let_go.set()


async def test_pictures_the_camera_itself_lost_are_counted(scripted: Register) -> None:
    unplugged = DeviceError("unplugged")
    script = Script([picture(0), Lose(3), picture(1), unplugged], [Lose(2), picture(2), Lose(1), picture(3), None])
    watched = Watched(scripted(script), lossless=True)
    assert await watched.numbers() == [0, 1, 2, 3]
    assert watched.feed.counters == {"captured": 4, "dropped_camera_overrun": 6, "reopened": 1}


async def test_a_camera_that_fails_is_opened_again(scripted: Register) -> None:
    unplugged = DeviceError("unplugged")
    script = Script([picture(0), unplugged], [unplugged], [picture(1), None])
    watched = Watched(scripted(script), lossless=True)
    assert await watched.numbers() == [0, 1]
    assert watched.names == ["opening", "streaming", "failed", "opening", "failed", "opening", "streaming", "ended"]
    assert watched.states[2].reason == "unplugged"
    assert watched.feed.counters["reopened"] == 2
    await closed(script, 2)


async def test_a_camera_that_never_gave_a_picture_is_not_waited_for_without_patience(scripted: Register) -> None:
    unplugged = DeviceError("unplugged")
    at_once, when_read = [unplugged], [threading.Event(), unplugged]
    for script in (Script(at_once, [picture(0), None]), Script(when_read, [picture(0), None])):
        watched = Watched(scripted(script), patient=False)
        with pytest.raises(ConfigError, match=r"^unplugged; it has to be a camera that is there now, a video,"):
            await watched.numbers()
        assert watched.names == ["opening", "failed"]
    script = Script([picture(0), unplugged], [unplugged], [picture(1), None])  # later ones are, even so
    assert await Watched(scripted(script), patient=False, lossless=True).numbers() == [0, 1]


async def test_a_camera_that_hangs_at_first_is_not_waited_for_without_patience(scripted: Register) -> None:
    script = Script([HANG], [picture(0), None])
    watched = Watched(scripted(script), patient=False)
    reading = asyncio.create_task(watched.numbers())
    await happened(script.opening)
    watched.leap(61)
    with pytest.raises(ConfigError, match=r"^camera gate: scripted:0: did not open for 60 s; it has to be"):
        await reading
    script.let_go.set()


async def test_a_camera_that_freezes_is_left_and_opened_again(scripted: Register) -> None:
    frozen = threading.Event()
    script = Script([picture(0), frozen, HANG], [picture(1), None])
    watched = Watched(scripted(script), lossless=True)
    reading = asyncio.create_task(watched.numbers())
    await happened(frozen)
    watched.leap(61)
    assert await reading == [0, 1]
    assert watched.names == ["opening", "streaming", "stalled", "opening", "streaming", "ended"]
    assert watched.states[2].reason == "gave no picture for 60 s"
    await closed(script)
    script.let_go.set()  # the frozen call returns at last: its camera is closed, its pictures are not wanted
    await closed(script)


async def test_a_camera_that_hangs_while_opening_is_left(scripted: Register) -> None:
    script = Script([HANG], [picture(0), None])
    watched = Watched(scripted(script))
    reading = asyncio.create_task(watched.numbers())
    await happened(script.opening)
    watched.leap(61)
    assert await reading == [0]
    assert watched.names == ["opening", "stalled", "opening", "streaming", "ended"]


async def test_threads_that_hang_are_bounded(scripted: Register) -> None:
    frozen = [threading.Event() for _ in range(feed_module.MAX_HUNG)]
    attempts: list[list[Step]] = [[picture(0), event, HANG] for event in frozen]
    script = Script(*attempts)
    watched = Watched(scripted(script))
    reading = asyncio.create_task(watched.numbers())
    for event in frozen:
        await happened(event)
        watched.leap(61)
    with pytest.raises(DeviceError, match="only a new process"):
        await reading
    with pytest.raises(DeviceError, match="only a new process"):  # and it stays so
        await anext(watched.feed)
    assert len(script.opened) == feed_module.MAX_HUNG


@pytest.mark.parametrize("error", [ConfigError("no such thing"), ZeroDivisionError("a defect")])
async def test_what_cannot_get_better_is_raised(scripted: Register, error: Exception) -> None:
    watched = Watched(scripted(Script([error])))
    with pytest.raises(type(error), match=str(error)):
        await watched.numbers()
    assert watched.names == ["opening", "failed"]


async def test_a_file_that_breaks_off_is_not_played_again(scripted: Register) -> None:
    script = Script([picture(0), DeviceError("damaged")], [picture(0), None], live=False)
    watched = Watched(scripted(script), lossless=True)
    async with asyncio.timeout(PATIENCE), watched.feed as feed:
        assert number_of(await anext(feed)) == 0
        with pytest.raises(DeviceError, match="damaged"):
            await anext(feed)
    assert watched.feed.counters["reopened"] == 0


async def test_pictures_are_paced_by_their_timestamps(scripted: Register, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = threading.Event()

    class NoticedPacer(Pacer):
        def delay(self, pts: float, now: float) -> float:
            delay = super().delay(pts, now)
            if delay > 1000:
                waiting.set()
            return delay

    monkeypatch.setattr(reader_module, "Pacer", NoticedPacer)
    steps: list[Step] = [picture(0, pts=0), picture(1, pts=0.01), picture(2, pts=10_000), None]
    paced = Watched(scripted(Script(steps, live=False)), lossless=False)
    async with asyncio.timeout(PATIENCE), paced.feed as feed:
        last = await anext(feed)
        while number_of(last) < 1:
            last = await anext(feed)
        await happened(waiting)
        paced.leap(100)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await anext(feed)  # it is due in three hours
        assert feed.state.name == "streaming"  # waiting for that is not a stall

    at_once = Watched(scripted(Script(steps, live=False)), lossless=True)
    assert await at_once.numbers() == [0, 1, 2]


async def test_a_paced_picture_carries_the_time_it_is_shown(scripted: Register) -> None:
    steps: list[Step] = [picture(0, pts=0), picture(1, pts=0.05), None]
    made = [step.captured_ns for step in steps if isinstance(step, Picture)]
    paced = Watched(scripted(Script(steps, live=False)))
    async with asyncio.timeout(PATIENCE), paced.feed as feed:
        shown = [found.captured_ns async for found in feed]
    assert shown[-1] >= made[-1] + 40_000_000


async def test_a_slow_rate_is_no_stall(scripted: Register) -> None:
    watched = Watched(scripted(Script([None])), fps=0.01)
    assert watched.feed._watch._stall_seconds == 300


async def test_leaving_closes_the_camera(scripted: Register) -> None:
    script = Script([picture(n) for n in range(100)])
    watched = Watched(scripted(script), lossless=True)
    async with asyncio.timeout(PATIENCE):
        async with watched.feed as feed:
            await anext(feed)
        await closed(script)
    assert watched.feed.counters["captured"] <= 3


async def test_leaving_does_not_wait_for_a_camera_that_hangs(
    scripted: Register, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(feed_module, "CLOSE_SECONDS", 0.02)
    hanging = threading.Event()
    script = Script([picture(0), hanging, HANG])
    async with asyncio.timeout(PATIENCE), Watched(scripted(script)).feed as feed:
        await anext(feed)
        await happened(hanging)
    assert "event=camera_not_closed camera=" in caplog.text
    script.let_go.set()
    await closed(script)


async def test_cancelling_the_reader_closes_the_camera(scripted: Register) -> None:
    reading = threading.Event()
    script = Script([picture(0, pts=0), reading, picture(1, pts=10_000)], live=False)
    watched = Watched(scripted(script))
    task = asyncio.create_task(watched.numbers())
    await happened(reading)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await closed(script)


async def test_what_is_open_is_described() -> None:
    async with CameraFeed(CameraConfig(url="synthetic:?seed=7")) as feed:
        assert feed.description == ""
        found = await anext(feed)
        assert feed.description == "synthetic conveyor, seed 7, 320x240, 30 fps"
        assert found.meta["truth"]
    assert feed.description == ""
