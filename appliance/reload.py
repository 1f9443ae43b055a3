"""The configuration read again without a restart, whole or not at all; and handlers begun anew.

What can change while frames come is changed; where anything else has changed, or anything is wrong, all stays as it
was. A handler that changes is first started beside the one in service: nothing of it is in force until all run.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from typing import Any, Protocol

from appliance.config import Config, Section, check_config
from appliance.errors import ApplianceError, ConfigError, HandlerError
from appliance.sandbox.spec import HandlerSpec, load_handler

log = logging.getLogger(__name__)

LIVE = frozenset(
    {
        "handlers",
        "log.level",
        "device.capsules",
        "mqtt.commands",
        "mqtt.log_level",
        "homeassistant.discovery",
        "fleet.groups",
    }
)
"""Keys that can change while the appliance runs."""
RUNNING_SECONDS = 60.0
"""For a handler to be admitted, loaded and ready."""
POLL_SECONDS = 0.05


class Condition(Protocol):
    """What is told of a handler: :class:`appliance.deploy.watch.Sample`."""

    @property
    def state(self) -> str: ...
    @property
    def reason(self) -> str: ...


class Live(Protocol):
    @property
    def spec(self) -> HandlerSpec: ...


class Handlers(Protocol):
    """What of :class:`appliance.serving.Serving` is needed."""

    @property
    def live(self) -> Mapping[str, Live]: ...
    @property
    def shadows(self) -> Mapping[str, Live]: ...
    async def stop(self, name: str) -> None: ...
    async def shadow(self, spec: HandlerSpec) -> None: ...
    async def unshadow(self, name: str) -> None: ...
    async def promote(self, name: str) -> None: ...
    def sample(self, name: str, *, shadow: bool = False) -> Condition | None: ...


class Reloading:
    """One change at a time.

    ``config`` and ``specs`` are in force, the latter those of ``config.handlers``; ``reread`` (None: there is no file)
    reads the configuration anew in a thread. ``deployed`` gives the names that the fleet has in hand, which are not
    for the configuration to give. ``apply`` is told the configuration that is in force now, and must not raise.
    """

    def __init__(
        self,
        config: Config,
        specs: Iterable[HandlerSpec],
        handlers: Handlers,
        *,
        reread: Callable[[], Config] | None,
        apply: Callable[[Config], None],
        reserved: Collection[str] = (),
        deployed: Callable[[], Collection[str]] = tuple,
    ) -> None:
        self.config = config
        self._specs = {spec.name: spec for spec in specs}
        self._handlers = handlers
        self._reread = reread
        self._apply = apply
        self._reserved = reserved
        self._deployed = deployed
        self._lock = asyncio.Lock()

    async def reload(self) -> list[str]:
        """What has changed: keys, and ``handlers.NAME``. A deliberate error says why nothing has."""
        async with self._lock:
            try:
                changed = await self._reload()
            except ApplianceError as error:
                log.warning("event=reload_refused error=%s", error)
                raise
            log.info("event=reloaded changed=%s", ",".join(changed) or "nothing")
            return changed

    @property
    def names(self) -> Collection[str]:
        """Of the configuration's handlers."""
        return self._specs.keys()

    async def keep(self, wanted: asyncio.Event) -> None:
        """Reload whenever ``wanted`` is set, until cancelled. What is wrong is in the log."""
        while True:
            await wanted.wait()
            wanted.clear()
            with suppress(ApplianceError):
                await self.reload()

    async def restart(self, name: str) -> None:
        """A new worker and instance take over from those in service, between two frames; its state is kept.

        ConfigError where there is no such handler, HandlerError where it does not come up: the old one goes on then.
        """
        async with self._lock:
            live = self._handlers.live
            if name not in live:
                raise ConfigError(f"there is no handler {name!r}; there are: {', '.join(sorted(live)) or 'none'}")
            await self._replace([live[name].spec])
            log.info("event=handler_restarted handler=%s", name)

    async def _reload(self) -> list[str]:
        if self._reread is None:
            raise ConfigError("started without --config: there is no file to read again")
        new = await asyncio.to_thread(self._reread)
        check_config(new)
        keys = changed_keys(self.config, new)
        fixed = [key for key in keys if key not in LIVE]
        if fixed:
            raise ConfigError(f"{', '.join(fixed)}: changes only with a restart of the appliance; nothing was changed")
        specs = await asyncio.to_thread(load_handlers, new, self._reserved)
        begun = [spec for name, spec in specs.items() if spec != self._specs.get(name)]
        gone = [name for name in self._specs if name not in specs]
        added = [spec.name for spec in begun if spec.name not in self._specs]
        self._check_not_deployed(added)
        await self._replace(begun, check=lambda: self._check_not_deployed(added))
        for name in gone:
            await self._handlers.stop(name)
        self.config, self._specs = new, specs
        self._apply(new)
        names = [*(spec.name for spec in begun), *gone]
        return [*(key for key in keys if key != "handlers"), *(f"handlers.{name}" for name in names)]

    def _check_not_deployed(self, names: Iterable[str]) -> None:
        deployed = self._deployed()
        for name in names:
            if name in deployed:
                raise ConfigError(f"handlers: the fleet deploys a handler {name!r} here; give this another `name`")

    async def _replace(self, specs: list[HandlerSpec], check: Callable[[], None] = lambda: None) -> None:
        """All of them come into service, or none; ``check`` may still refuse them when they run."""
        begun: list[HandlerSpec] = []
        try:
            for spec in specs:
                await self._handlers.shadow(spec)
                begun.append(spec)
            await self._until_running(begun)
            check()  # they took their time
        except BaseException:
            for spec in begun:
                if self._is_ours(spec):
                    await self._handlers.unshadow(spec.name)
            raise
        begun.sort(key=lambda spec: spec.name in self._handlers.live)  # new ones at once: nobody takes their names now
        for spec in begun:
            if self._is_ours(spec):
                await self._handlers.promote(spec.name)

    def _is_ours(self, spec: HandlerSpec) -> bool:
        """Whether the shadow is the one that was begun: a deployment may have put its own in that place."""
        shadow = self._handlers.shadows.get(spec.name)
        return shadow is not None and shadow.spec is spec

    async def _until_running(self, specs: Iterable[HandlerSpec]) -> None:
        waiting = list(specs)
        last: Condition | None = None
        with suppress(TimeoutError):
            async with asyncio.timeout(RUNNING_SECONDS):
                while waiting:
                    ours = self._is_ours(waiting[0])
                    last = self._handlers.sample(waiting[0].name, shadow=True) if ours else None
                    if last is None or last.state in ("failed", "quarantined", "stopped"):
                        break
                    if last.state == "running":
                        waiting.pop(0)
                    else:
                        await asyncio.sleep(POLL_SECONDS)
        if waiting:
            state = f"{last.state}: {last.reason}" if last else "taken away by somebody else"
            raise HandlerError(f"the new {waiting[0].name} does not run ({state}); nothing was changed")


def load_handlers(config: Config, reserved: Collection[str] = ()) -> dict[str, HandlerSpec]:
    """Every handler of the configuration, by name. Reads whole files: call it off the loop."""
    specs: dict[str, HandlerSpec] = {}
    for handler in config.handlers:
        spec = load_handler(handler, config.inference)
        if spec.name in specs or spec.name in reserved:
            raise ConfigError(f"handlers: the name {spec.name!r} is taken; give one of them another `name`")
        specs[spec.name] = spec
    return specs


def changed_keys(old: Config, new: Config) -> list[str]:
    """``section.key`` of every difference; sections that are lists count as one key."""
    changed = []
    for section in Config.__struct_fields__:
        before, after = getattr(old, section), getattr(new, section)
        if isinstance(before, Section):
            changed += [f"{section}.{key}" for key in _fields(before) if getattr(before, key) != getattr(after, key)]
        elif before != after:
            changed.append(section)
    return changed


def _fields(section: Section) -> tuple[Any, ...]:
    return section.__struct_fields__
