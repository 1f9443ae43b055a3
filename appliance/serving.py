"""The set of handlers that run: it changes while frames come, and none is lost by that.

Each handler lives in a task of its own, so whoever starts, stops or replaces one may be cancelled at any point: what
was begun is carried out all the same. Every change of who gets which frame happens between two frames.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from types import MappingProxyType, TracebackType
from typing import Self

from appliance.deploy.watch import Sample, since
from appliance.errors import DeviceError
from appliance.faults import FaultKeeper
from appliance.inference.broker import Broker
from appliance.sandbox.capsule import Crash
from appliance.sandbox.failure import FAULTS
from appliance.sandbox.guest_models import GuestModelStore
from appliance.sandbox.host import Admits
from appliance.sandbox.spawning import Zygote
from appliance.sandbox.spec import HandlerSpec
from appliance.zipper.core import Zipper
from appliance.zipper.handlers import LocalHandler

FAILINGS = FAULTS | {"init"}
"""What speaks against a version: what an honest handler does not do, and that it cannot begin."""


class Serving:
    """``async with Serving(…)``: handlers may be started; on leaving, they end, the newest first.

    A defect of ours in one of them ends the ``async with`` body. ``on_change`` is called when :attr:`live` or
    :attr:`specs` are others; it must not raise. Without ``capsules``, what guests fail on is not kept.
    """

    def __init__(
        self,
        zipper: Zipper,
        zygote: Zygote,
        inference: Broker,
        *,
        admission: Admits,
        guest_models: GuestModelStore,
        faults: FaultKeeper,
        capsules: bool = True,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._zipper = zipper
        self._zygote = zygote
        self._inference = inference
        self._admission = admission
        self._guest_models = guest_models
        self._faults = faults
        self.capsules = capsules
        """Whether what guests fail on is kept; may be set at any time."""
        self._on_change = on_change
        self._live: dict[str, LocalHandler] = {}
        self._shadows: dict[str, LocalHandler] = {}
        self._tasks: dict[LocalHandler, asyncio.Task[None]] = {}
        """Of all there are, those that drain included, in the order in which they were started."""
        self._begun: dict[LocalHandler, Sample] = {}
        """Of those that were shadows: what was true when they went into service."""
        self.live: Mapping[str, LocalHandler] = MappingProxyType(self._live)
        """In service, by name."""
        self.shadows: Mapping[str, LocalHandler] = MappingProxyType(self._shadows)
        """Beside them, by the names that they are to have."""

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            self._group = await stack.enter_async_context(asyncio.TaskGroup())
            stack.push_async_callback(self._end_all)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        theirs = isinstance(error, asyncio.CancelledError)  # an error of the body's own passes as it is
        await self._stack.__aexit__(*((kind, error, trace) if theirs else (None, None, None)))

    @property
    def specs(self) -> Iterator[HandlerSpec]:
        """Of all whose frames are still to come: in service, or to be answered by one that leaves."""
        shadows = set(self._shadows.values())
        return (handler.spec for handler in self._tasks if handler not in shadows)

    async def start(self, spec: HandlerSpec) -> None:
        """A handler goes into service; DeviceError where its name is taken."""
        await self._begin(spec, shadow=False)

    async def stop(self, name: str) -> None:
        """A handler gets no further frames and is gone; this waits until it has answered what it had."""
        if (handler := self._live.pop(name, None)) is not None:
            await self._end(handler)

    async def shadow(self, spec: HandlerSpec) -> None:
        """A handler gets frames beside the one of its name, if there is any, and nobody hears of what it emits.

        It begins with that one's state. DeviceError where its name is taken, or has a shadow already.
        """
        await self._begin(spec, shadow=True)

    async def unshadow(self, name: str) -> None:
        """A shadow ends."""
        if (handler := self._shadows.pop(name, None)) is not None:
            await self._end(handler)

    async def promote(self, name: str) -> None:
        """The shadow goes into service. This waits until the one it replaces, if any, has answered what it had.

        ValueError where there is no shadow.
        """
        if name not in self._shadows:
            raise ValueError(f"there is no shadow of {name!r}")
        handler, before = self._shadows.pop(name), self._live.get(name)
        handler.go_live(before)
        self._live[name] = handler
        self._begun[handler] = _sample(handler)
        self._on_change()
        if before is not None:
            await self._end(before)

    def sample(self, name: str, *, shadow: bool = False) -> Sample | None:
        """How a handler does since it went into service, or a shadow since it began; None where there is none."""
        handler = (self._shadows if shadow else self._live).get(name)
        if handler is None:
            return None
        now, begun = _sample(handler), self._begun.get(handler)
        return now if begun is None else since(now, begun)

    def _crashed(self, crash: Crash) -> None:
        if self.capsules:
            self._faults.crashed(crash)

    # --- one handler's life ----------------------------------------------------------------------------------

    async def _begin(self, spec: HandlerSpec, *, shadow: bool) -> None:
        quarantined = await self._faults.quarantined(spec)
        # From here on nothing waits: either all of it is done, or nothing.
        self._check_free(spec.name, shadow=shadow)
        beside = self._live.get(spec.name) if shadow else None
        handler = LocalHandler(
            spec,
            self._zipper,
            self._zygote,
            self._inference,
            admission=self._admission,
            guest_models=self._guest_models,
            quarantined=quarantined,
            on_crash=self._crashed,
            state=dict(beside.guest_state) if beside is not None else None,
            shadow=shadow,
        )
        handler.attach()
        self._faults.watch(handler, recorded=quarantined is not None)
        (self._shadows if shadow else self._live)[spec.name] = handler
        task = self._tasks[handler] = self._group.create_task(_serve(handler), name=f"serving {spec.name}")
        task.add_done_callback(lambda _: self._gone(handler))
        self._on_change()

    def _check_free(self, name: str, *, shadow: bool) -> None:
        """Who is in the way is a matter of this device: no handler and no configuration is wrong for it alone."""
        taken = name in self._zipper.observers
        if shadow and name in self._shadows:
            raise DeviceError(f"handlers: {name!r} has a shadow already; end that one first")
        if taken and not (shadow and name in self._live):
            raise DeviceError(f"handlers: the name {name!r} is taken; give one of them another `name`")

    async def _end(self, handler: LocalHandler) -> None:
        """A handler leaves its name at once, and itself when it is done."""
        self._faults.unwatch(handler)
        self._begun.pop(handler, None)
        handler.leave()
        self._on_change()
        if handler in self._tasks:  # else it has ended by itself: a defect, of which the group hears
            await asyncio.wait([self._tasks[handler]])

    def _gone(self, handler: LocalHandler) -> None:
        handler.detach()  # where it was cancelled before it began
        del self._tasks[handler]
        self._on_change()

    async def _end_all(self) -> None:
        for task in reversed(self._tasks.copy().values()):
            task.cancel()
            await asyncio.wait([task])


async def _serve(handler: LocalHandler) -> None:
    async with handler:
        await handler.drain()


def _sample(handler: LocalHandler) -> Sample:
    """Since the handler began; what it was offered by its name, or as a shadow."""
    status, counters, last = handler.status, handler.counters, handler.status.last_failure
    return Sample(
        state=status.state,
        handled=status.handled,
        faults=sum(count for kind, count in status.faults.items() if kind in FAILINGS),
        deadlines=status.faults.get("deadline", 0),
        in_a_row=status.in_a_row,
        offered=counters.offered,
        dropped=counters.dropped,
        reason=f"{last.kind}: {last.message}" if last is not None else "",
        hindered=last is not None and last.kind == "device",
    )
