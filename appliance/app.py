"""The composition root: builds every part, joins them, and takes them down again in order."""

import asyncio
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

import appliance
from appliance.camera.camera import kind_of
from appliance.config import Config, PeerConfig, check_config, device_name
from appliance.control import Control
from appliance.deploy.report import DeviceReport, HandlerReport, encode_report
from appliance.device.log_levels import LogLevels
from appliance.device.memory import proportional_kb
from appliance.device.state import StateDirectory, read_secret
from appliance.device.thermal import cpu_temperature
from appliance.discovery import Discovery, View, cameras_of
from appliance.errors import ConfigError
from appliance.faults import FaultKeeper
from appliance.frame import Frame
from appliance.inference.broker import Broker
from appliance.ipc.ring import RingWriter
from appliance.log_feed import LogFeed
from appliance.mqtt.homeassistant import Box
from appliance.mqtt.private_broker import PrivateBroker
from appliance.publisher import Publisher
from appliance.reload import Reloading, load_handlers
from appliance.remote import Remote
from appliance.sandbox.admission.admit import Admission
from appliance.sandbox.guest_models import GuestModelStore
from appliance.sandbox.spawning import Zygote
from appliance.sandbox.spec import HandlerSpec
from appliance.serving import Serving
from appliance.snapshot import Snapshots
from appliance.source_process import SourceEnd, SourceOrder, SourceProcess
from appliance.summary import Summary, Verdicts, captured_by, dropped_by_cause, summarise
from appliance.telling import Telling
from appliance.transport.identity import ensure_certificate
from appliance.transport.link import is_loopback
from appliance.transport.peer import Address
from appliance.zipper.access import Access
from appliance.zipper.core import Ticket, Zipper
from appliance.zipper.server import Door, SourceStatus, zipper_server

if TYPE_CHECKING:
    from appliance.deployer import Deployer

log = logging.getLogger(__name__)

HANDLERS_READY_SECONDS = 20.0
"""Cameras start when the handlers are up, or after this long without them."""
STATUS_SECONDS = 0.5
MEMORY_SECONDS = 2.0
POLL_SECONDS = 0.02
SETTLE_SECONDS = 15.0
"""What frames under way may take when the cameras have ended."""
AWAY_SECONDS = 2.0
"""What a broker that is not connected may still take to come: the spool keeps what it does not get."""
PUBLISHER = "mqtt"
PUBLISHER_CAPACITY = 4096
"""Results offered and not yet accepted: the spool takes a batch every tenth of a second."""


class Appliance:
    """One box: zipper, handlers, models and publisher, and the cameras unless ``cameras`` is False."""

    def __init__(
        self,
        config: Config,
        state: StateDirectory,
        *,
        cameras: bool = True,
        reread: Callable[[], Config] | None = None,
    ) -> None:
        """``reread`` gives the configuration as it is now; None: there is no file to read it from again."""
        check_config(config)
        self._config = config
        self._state = state
        self._with_cameras = cameras
        self.device = device_name(config)
        self.started = time.monotonic()
        self.broker_url = config.mqtt.url
        self.port = 0
        self.last: dict[str, Frame] = {}
        """The newest result of each who emits, for people who watch."""
        self.verdicts = Verdicts()
        self.memory_kb: dict[str, int] = {}
        self.temperature: float | None = None
        self.up = asyncio.Event()
        """Everything is built and the cameras have been started."""
        self.reload_wanted = asyncio.Event()
        """Set it to have the configuration read again."""
        self._reread = reread
        self._deployer: Deployer | None = None
        self._sources: list[SourceProcess] = []
        self._withheld: set[tuple[str, str, int]] = set()
        self.deployed: set[str] = set()
        """Handlers that the fleet has in hand."""

    # --- life ------------------------------------------------------------------------------------------------

    async def run(self, stop: asyncio.Event) -> Summary:
        """Until every camera has ended or ``stop`` is set; then take everything down, and tell how it went."""
        for camera in self._config.cameras if self._with_cameras else ():
            kind_of(camera)  # what can never work is said before anything is started
        specs = list((await asyncio.to_thread(load_handlers, self._config, (PUBLISHER,))).values())
        async with AsyncExitStack() as stack:
            stack.enter_context(self._state.locked())
            await self._build(stack, specs)
            async with asyncio.TaskGroup() as tasks:
                upkeep = [
                    tasks.create_task(self._keep_status(), name="status"),
                    tasks.create_task(self._keep_faults(), name="faults"),
                    tasks.create_task(self._keep_measuring(), name="memory"),
                    tasks.create_task(self._reloading.keep(self.reload_wanted), name="reload"),
                ]
                working = tasks.create_task(self._work(), name="cameras")
                stopping = tasks.create_task(stop.wait(), name="stop")
                await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
                await self._measure()
                await _cancelled(working, stopping)
                await self._settle()
                await _cancelled(*upkeep)
            await self._faults.keep()
            self._say()
            connected = self.publisher.stats.connection.connected
            await self.publisher.drained(SETTLE_SECONDS if connected else AWAY_SECONDS)
            captured, dropped = self.captured, self.dropped()
            handlers = {name: handler.status.state for name, handler in self.serving.live.items()}
        return summarise(  # now that the publisher has stored what the broker did not take
            captured=captured,
            dropped=dropped,
            stats=self.publisher.stats,
            latency=self.publisher.latency,
            memory_kb=self.memory_kb,
            verdicts=self.verdicts,
            handlers=handlers,
            seconds=time.monotonic() - self.started,
        )

    async def _build(self, stack: AsyncExitStack, specs: list[HandlerSpec]) -> None:
        """Bottom up; what is entered last is left first."""
        config = self._config
        certificate = ensure_certificate(self._state.path)
        access = Access(_with_secrets(config), self._state.local_credential())
        if not self.broker_url:
            self._broker_process = await stack.enter_async_context(PrivateBroker(self._state.broker))
            self.broker_url = self._broker_process.url
        mqtt = msgspec.structs.replace(config.mqtt, url=self.broker_url)
        self.control = Control(mqtt, self.device)
        also = (config.homeassistant.prefix,)
        self.publisher = Publisher(mqtt, self.device, self._state.spool, also=also, extra=self._counters)
        await stack.enter_async_context(self.publisher)
        await stack.enter_async_context(self.control)
        self._log_feed = stack.enter_context(LogFeed(self.control, self.publisher.topics, mqtt.log_level))
        self._telling = Telling(self.publisher.topics, self.publisher.set_retained, self.publisher.clear_retained)
        ring = stack.enter_context(RingWriter(config.zipper.ring_mb << 20))
        self.inference = Broker(ring.fd, config.inference.timeout_seconds)
        self.zipper = Zipper(ring, self.inference.forget)
        self._zygote = await stack.enter_async_context(Zygote(ring.fd))
        await stack.enter_async_context(self.inference)
        self.zipper.attach(PUBLISHER, config.mqtt.tags, PUBLISHER_CAPACITY, self._publish)
        self._faults = await stack.enter_async_context(FaultKeeper(self._state.capsules, self._state.quarantine))
        self._admission = Admission(self._state.modules)
        self.serving = Serving(
            self.zipper,
            self._zygote,
            self.inference,
            admission=self._admission,
            guest_models=GuestModelStore(self._state.guest_models, config.inference),
            faults=self._faults,
            capsules=config.device.capsules,
            on_change=self._follow_handlers,
        )
        await stack.enter_async_context(self.serving)
        for spec in specs:
            await self.serving.start(spec)
        await self._build_deployer(stack, {spec.name for spec in specs})
        self.door = Door(self.zipper, access, self.device)
        server = zipper_server(
            self.door, config.zipper.host, config.zipper.port, certificate, config.zipper.max_connections
        )
        _, self.port = await stack.enter_async_context(server)
        host = config.zipper.host if is_loopback(config.zipper.host) else "127.0.0.1"
        self._address = Address(host, self.port, certificate[0])
        stack.enter_context(self._state.announced(host, self.port))
        await self._build_remote(stack, specs)
        await self._build_discovery(stack)

    async def _build_deployer(self, stack: AsyncExitStack, taken: Collection[str]) -> None:
        """Handlers from the fleet, where there is one; those that were active are started."""
        if not self._config.fleet.name:
            return
        from appliance.membership import membership  # noqa: PLC0415 - a box without a fleet saves the memory

        member = membership(
            self._config,
            self.device,
            self._state.deploy,
            control=self.control,
            serving=self.serving,
            admission=self._admission,
            inference=self.inference,
            report=self._report,
            taken={*taken, PUBLISHER},
        )
        self._deployer = await stack.enter_async_context(member)

    def _report(self, handler: str | None, report: HandlerReport | DeviceReport | None) -> None:
        topics = self.publisher.topics
        topic = topics.deployed(handler) if handler else topics.deployment
        if report is None:
            self.deployed.discard(handler or "")
            self.publisher.clear_retained(topic)
        else:
            self.deployed.update([handler] if handler else [])
            self.publisher.set_retained(topic, encode_report(report))

    async def _build_discovery(self, stack: AsyncExitStack) -> None:
        """Also where it is off: what an earlier run has announced is taken back then."""
        config = self._config
        self.temperature = await asyncio.to_thread(cpu_temperature)
        box = Box(
            self.publisher.topics,
            config.homeassistant.prefix,
            appliance.__version__,
            readable=config.mqtt.format == "json",
            temperature=self.temperature is not None,
        )
        view = View(
            handlers=lambda: [handler.spec for handler in self.serving.live.values()],
            cameras=lambda: cameras_of(self._config),
            deployed=lambda: self.deployed,
            ready=self.up.is_set,
        )
        memory = self._state.path / "homeassistant.json"
        on = config.homeassistant.discovery
        self._discovery = Discovery(box, view, self.publisher, memory, on=on, ears=self.control)
        await stack.enter_async_context(self._discovery)

    async def _build_remote(self, stack: AsyncExitStack, specs: list[HandlerSpec]) -> None:
        """What may be asked of this box from elsewhere."""
        config = self._config
        emitting = (peer.emits for peer in config.zipper.peers if "source" in peer.roles)
        tags = {camera.tag for camera in config.cameras}.union(*emitting)
        self._levels = LogLevels(config.log.level)
        self._reloading = Reloading(
            config,
            specs,
            self.serving,
            reread=self._reread,
            apply=self._reloaded,
            reserved=(PUBLISHER,),
            deployed=lambda: self.deployed,
        )
        self._remote = Remote(
            self.control,
            self.publisher.topics,
            config.mqtt.commands,
            changes=self._reloading,
            pictures=Snapshots(self.zipper, self.inference, lambda: self.door.sources, lambda: tags),
            levels=self._levels,
        )
        await stack.enter_async_context(self._remote)

    def _reloaded(self, config: Config) -> None:
        """Another configuration is in force: what of it can change while the box runs is :data:`LIVE`."""
        self._config = config
        self._levels.set_base(config.log.level)
        self._log_feed.set_level(config.mqtt.log_level)
        self._remote.allow(config.mqtt.commands)
        self._discovery.on = config.homeassistant.discovery
        self.serving.capsules = config.device.capsules
        if self._deployer is not None:
            self._deployer.configure(config.fleet, {*self._reloading.names, PUBLISHER})

    # --- cameras ---------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        await self._handlers_ready()
        if not self._with_cameras:
            self.up.set()
            await asyncio.Event().wait()
        credential = self._state.local_credential()
        for camera in self._config.cameras:
            status = self.door.sources.setdefault(camera.name, SourceStatus(camera.name))
            order = SourceOrder(camera, self._address, credential, self._config.log)
            self._sources.append(SourceProcess(order, status))
        async with asyncio.TaskGroup() as tasks:
            ends = [tasks.create_task(source.run()) for source in self._sources]
            self.up.set()
        if SourceEnd.MISCONFIGURED in [end.result() for end in ends]:
            raise ConfigError("a camera cannot work as it is configured; its line in the log says why")

    async def _handlers_ready(self) -> None:
        """A frame that comes before its handler is up would be dropped for nothing."""
        deadline = time.monotonic() + HANDLERS_READY_SECONDS
        while any(handler.status.state == "starting" for handler in self.serving.live.values()):
            if time.monotonic() > deadline:
                log.warning("event=handlers_not_ready after_s=%.0f", HANDLERS_READY_SECONDS)
                return
            await asyncio.sleep(POLL_SECONDS)

    async def _settle(self) -> None:
        """Frames under way come to their end."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while self.zipper.outstanding and time.monotonic() < deadline:  # noqa: ASYNC110 - the zipper knows no asyncio
            await asyncio.sleep(POLL_SECONDS)

    # --- publisher as an observer ----------------------------------------------------------------------------

    def _follow_handlers(self) -> None:
        """What is published is what those emit that are served now."""
        emits = [(spec, tag, publish) for spec in self.serving.specs for tag, publish in spec.emits.items()]
        self._withheld = {(spec.name, spec.version, tag) for spec, tag, publish in emits if not publish}
        emitted = {tag for _, tag, publish in emits if publish}
        self.zipper.observe(PUBLISHER, emitted | {*self._config.mqtt.tags})

    def _publish(self, ticket: Ticket) -> None:
        frame = ticket.frame
        handler, version = (frame.producer.handler, frame.producer.version) if frame.producer else ("", "")
        if (handler, version, frame.tag) in self._withheld:
            self.zipper.finished(PUBLISHER, ticket)
            return
        self.last[handler] = frame
        self.verdicts.see(frame)
        self.publisher.offer(frame, lambda _accepted: self.zipper.finished(PUBLISHER, ticket))

    # --- what is told ----------------------------------------------------------------------------------------

    async def _keep_status(self) -> None:
        while True:
            self._say()
            await asyncio.sleep(STATUS_SECONDS)

    async def _keep_faults(self) -> None:
        """Beside the status: a disk that hangs does not hold it up."""
        while True:
            await self._faults.keep()
            await asyncio.sleep(STATUS_SECONDS)

    def _say(self) -> None:
        handlers = {name: (handler.spec.version, handler.status) for name, handler in self.serving.live.items()}
        self._telling.say(self.door.sources, handlers, self.inference.status())

    async def _keep_measuring(self) -> None:
        while True:
            await self._measure()
            self._forget_gone()
            await asyncio.sleep(MEMORY_SECONDS)

    def _forget_gone(self) -> None:
        """Names come and go for as long as a box lives: handlers, and stream functions from elsewhere."""
        here = {"", *self.serving.live, *(name for _, name in self.door.sessions)}
        self.last = {name: frame for name, frame in self.last.items() if name in here}

    async def _measure(self) -> None:
        """How warm the box is, and the proportional set size of every process, KiB: of one that has ended, the last.

        Of a part that is gone nothing is kept: handlers come and go for as long as a box lives.
        """
        self.temperature = await asyncio.to_thread(cpu_temperature)
        for name, pid in self.processes().items():
            size = await asyncio.to_thread(proportional_kb, pid)
            if size:
                self.memory_kb[name] = size
        for source in self._sources:  # one that has ended said its own last figure
            report = self.door.sources[source.name].report
            if source.pid is None and report is not None and report.memory_kb:
                self.memory_kb[f"source/{source.name}"] = report.memory_kb
        parts = self._parts()
        self.memory_kb = {name: size for name, size in self.memory_kb.items() if name in parts}

    def processes(self) -> dict[str, int]:
        """Pid by name of every process of ours that runs now."""
        return {name: pid for name, pid in self._parts().items() if pid is not None}

    def _parts(self) -> dict[str, int | None]:
        """As :meth:`processes`, and those that have no process now."""
        found: dict[str, int | None] = {"zipper": os.getpid(), "zygote": self._zygote.pid}
        if not self._config.mqtt.url:
            found["broker"] = self._broker_process.pid
        found |= {f"worker/{name}": handler.status.pid for name, handler in self.serving.live.items()}
        found |= {f"shadow/{name}": handler.status.pid for name, handler in self.serving.shadows.items()}
        found |= {f"model/{status.name}": status.pid for status in self.inference.status()}
        found |= {f"source/{source.name}": source.pid for source in self._sources}
        return found

    def dropped(self) -> Counter[str]:
        """Frames that did not get where they should, by cause."""
        failed = {name: handler.failed.total() for name, handler in self.serving.live.items()}
        return dropped_by_cause(self.door.sources, self.zipper.observers, self.zipper.totals, failed)

    @property
    def captured(self) -> int:
        """Pictures that the cameras gave, as far as is known."""
        return captured_by(self.door.sources)

    def _counters(self) -> Mapping[str, Any]:
        """For the stats message."""
        temperature = {} if self.temperature is None else {"temperature_c": round(self.temperature, 1)}
        return {
            **temperature,
            "captured": self.captured,
            "received": self.zipper.totals.received,
            "dropped": self.dropped(),
            "memory_kb": self.memory_kb,
            "control": self.control.document,
        }


def _with_secrets(config: Config) -> tuple[PeerConfig, ...]:
    """Peers with their credentials read; refuses to be reachable from elsewhere without any."""
    peers = []
    for peer in config.zipper.peers:
        credential = peer.credential
        if credential.startswith("file:"):
            credential = read_secret(Path(credential[5:]))
        peers.append(msgspec.structs.replace(peer, credential=credential))
    if not peers and not is_loopback(config.zipper.host):
        raise ConfigError(
            f"zipper.host {config.zipper.host!r} can be reached from other machines, but zipper.peers is empty: "
            f"nobody could connect. Add the peers with their credentials, or listen on 127.0.0.1"
        )
    return tuple(peers)


async def _cancelled(*tasks: "asyncio.Task[Any]") -> None:
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
            raise result
