"""An event loop whose time passes at once where nobody has anything to do. Threads and disks are real."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any


class _Selector(selectors.DefaultSelector):
    skip: Callable[[float], None]
    busy: Callable[[], bool]

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or self.busy():
            return super().select(timeout if timeout is not None and timeout <= 0 else None)
        ready = super().select(0)
        if not ready:
            self.skip(timeout)
        return ready


class SimulatedLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._now = 0.0
        self._working = 0
        selector = _Selector()
        selector.skip = self._skip
        selector.busy = lambda: self._working > 0
        super().__init__(selector)

    def time(self) -> float:
        return self._now

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """Time stands still while a thread works."""
        self._working += 1
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(self._worked)
        return future

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """However long it takes: a time limit would pass at once."""
        await super().shutdown_default_executor()

    def _worked(self, _future: object) -> None:
        self._working -= 1

    def _skip(self, seconds: float) -> None:
        self._now += max(0.0, seconds)


def simulated(scene: Coroutine[Any, Any, None]) -> None:
    """Run it to its end."""
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        runner.run(scene)
