"""An event loop whose time passes at once where nobody has anything to do. Threads and sockets are real."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class _Threads(ThreadPoolExecutor):
    """Counts what is under way: time stands still for it."""

    busy = 0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.busy += 1
        future = super().submit(fn, *args, **kwargs)
        future.add_done_callback(self._done)
        return future

    def _done(self, _future: Future[Any]) -> None:
        self.busy -= 1


class _Selector(selectors.DefaultSelector):
    def __init__(self) -> None:
        super().__init__()
        self.skip: Callable[[float | None], bool] = lambda timeout: False

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0 or self.skip(timeout):
            return ready
        return super().select(0.01 if timeout is None else min(timeout, 0.01))


class SimulatedLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._now = 0.0
        selector = _Selector()
        super().__init__(selector)
        self._threads = _Threads(4)
        self.set_default_executor(self._threads)
        selector.skip = self._skip

    def time(self) -> float:
        return self._now

    def _skip(self, timeout: float | None) -> bool:
        """Let the time pass until the next timer, where no thread works."""
        if timeout is None or self._threads.busy:
            return False
        self._now += timeout
        return True


def simulated(scene: Coroutine[Any, Any, None]) -> None:
    """Run it to its end."""
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        runner.run(scene)
