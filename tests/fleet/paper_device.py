"""A device's whole way from the broker to what runs: real ears, disk and trust, and handlers that run on paper."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from publishing import quick
from rollout_doubles import GOOD, PaperServing, spec_of

from appliance.config import FleetConfig, MqttConfig
from appliance.control import Control
from appliance.deploy.download import Downloads
from appliance.deploy.fleet_topics import FleetTopics
from appliance.deploy.report import DeviceReport, HandlerReport, encode_report
from appliance.deploy.store import Store
from appliance.deploy.trust import Trust, read_root
from appliance.deploy.watch import Sample
from appliance.deployer import Deployer
from appliance.mqtt.link import Received
from appliance.publisher import Publisher
from appliance.sandbox.spec import HandlerSpec

PATIENCE = 60.0


class Serving(PaperServing):
    """Every version is ``sample``: good, unless somebody says otherwise."""

    verdict: Sample = GOOD

    def sample(self, name: str, *, shadow: bool = False) -> Sample | None:
        return self.verdict if name in (self.shadows if shadow else self.live) else None


@dataclass
class Ears:
    """Control's, with somebody who sees the topic of each message before it is heard."""

    control: Control
    overhear: Callable[[str], None]
    asked: list[str] = field(default_factory=list)
    """Every filter that was listened to, in order."""

    def listen(self, filters: Iterable[str], on_message: Callable[[Received], None]) -> None:
        def heard(message: Received) -> None:
            self.overhear(message.topic)
            on_message(message)

        filters = list(filters)
        self.asked += filters
        self.control.listen(filters, heard)

    def ignore(self, filters: Iterable[str]) -> None:
        self.control.ignore(filters)


@dataclass
class PaperDevice:
    ears: Ears
    publisher: Publisher
    store: Store
    serving: Serving
    admitted: list[str] = field(default_factory=list)
    """Versions, each of which was there whole then."""
    reports: dict[str, HandlerReport] = field(default_factory=dict)
    on_report: Callable[[str], None] = lambda state: None
    """Is told a handler's state before it is said."""
    deployer: Deployer = field(init=False)

    def version(self, name: str) -> str:
        """Of what is in service."""
        return self.serving.live[name].version if name in self.serving.live else ""

    async def until(self, condition: Callable[[], object], patience: float = PATIENCE) -> None:
        async with asyncio.timeout(patience):
            while not condition():
                await asyncio.sleep(0.005)

    async def until_serves(self, name: str, version: str) -> None:
        await self.until(lambda: self.version(name) == version and self.reports[name].state == "active")

    async def admit(self, spec: HandlerSpec) -> None:
        self.admitted.append(spec.version)

    def report(self, handler: str | None, report: HandlerReport | DeviceReport | None) -> None:
        topics = self.publisher.topics
        topic = topics.deployed(handler) if handler else topics.deployment
        if isinstance(report, HandlerReport):
            self.reports[report.handler] = report
            self.on_report(report.state)
        if report is not None:
            self.publisher.set_retained(topic, encode_report(report))
        else:
            self.publisher.clear_retained(topic)


@asynccontextmanager
async def paper_device(
    directory: Path, name: str, url: str, fleet: FleetConfig, overhear: Callable[[str], None] = lambda topic: None
) -> AsyncIterator[PaperDevice]:
    """One that is on. It stays what it is in ``directory``, from one time to the next."""
    mqtt = MqttConfig(url=url)
    topics = FleetTopics(fleet.prefix, fleet.name)
    store = Store(directory / "deploy", fleet.quota_mb << 20)
    trust = Trust(directory / "deploy", read_root(fleet))
    async with (
        Publisher(mqtt, name, directory / "spool.db", drain_seconds=0.5, retry=quick()) as publisher,
        Control(mqtt, name, retry=quick()) as control,
    ):
        device = PaperDevice(Ears(control, overhear), publisher, store, Serving())
        device.deployer = Deployer(
            fleet,
            name,
            topics=topics,
            ears=device.ears,
            trust=trust,
            store=store,
            downloads=Downloads(topics, device.ears, store),
            serving=device.serving,
            load=spec_of,
            admit=device.admit,
            report=device.report,
        )
        async with device.deployer as deployer:
            await deployer.start_active()
            yield device
