"""A fleet's directory without signatures, and somebody who watches what the tools do."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from appliance.deploy.desired import Desired
from appliance.fleet.log_lines import LogLine
from appliance.fleet.settings import FleetMqtt, FleetSettings
from appliance.fleet.watching import Arrival


def settings(url: str, chunk_kb: int = 32, **mqtt: str) -> FleetSettings:
    return FleetSettings(name="plant", chunk_kb=chunk_kb, mqtt=FleetMqtt(url=url, **mqtt))


@dataclass
class SomeFleet:
    """What is in it can be changed at any time."""

    directory: Path
    settings: FleetSettings
    metadata: dict[str, bytes] = field(default_factory=dict)
    needed: dict[str, int] = field(default_factory=dict)
    documents: dict[str, Desired] = field(default_factory=dict)

    def add(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        (self.directory / digest).write_bytes(data)
        self.needed[digest] = len(data)
        return digest

    def sign(self, version: int) -> None:
        """Metadata of another version."""
        names = ["1.root", *(f"{version}.{role}" for role in ("targets", "acme", "snapshot"))]
        self.metadata = {f"{name}.json": name.encode() for name in names}
        self.metadata["timestamp.json"] = f"timestamp {version}".encode()

    def metadata_files(self) -> Mapping[str, bytes]:
        return self.metadata

    def needed_content(self) -> Mapping[str, int]:
        return self.needed

    def content(self, digest: str) -> Path:
        return self.directory / digest

    def targets(self) -> Sequence[str]:
        return tuple(self.documents)

    def desired(self, target: str) -> Desired:
        return self.documents[target]

    def retained(self) -> dict[str, bytes]:
        """What a broker that has been sent all of it holds."""
        topics, cut = self.settings.topics, self.settings.chunk_bytes
        held = {topics.metadata(file): payload for file, payload in self.metadata.items()}
        for digest in self.needed:
            data = self.content(digest).read_bytes()
            for index, start in enumerate(range(0, len(data), cut)):
                held[topics.chunk(digest, index)] = data[start : start + cut]
        return held


@dataclass
class Watcher:
    """A display that remembers; ``on_sending`` and ``on_devices`` may do something at a certain point."""

    said: list[str] = field(default_factory=list)
    sent: list[tuple[int, int]] = field(default_factory=list)
    arrivals: list[tuple[Arrival, ...]] = field(default_factory=list)
    lines: list[LogLine] = field(default_factory=list)
    on_sending: Callable[[int], None] = lambda sent: None
    on_devices: Callable[[Sequence[Arrival]], None] = lambda arrivals: None
    on_line: Callable[[LogLine], None] = lambda line: None

    def say(self, text: str) -> None:
        self.said.append(text)

    def sending(self, sent: int, total: int) -> None:
        self.sent.append((sent, total))
        self.on_sending(sent)

    def devices(self, arrivals: Sequence[Arrival]) -> None:
        self.arrivals.append(tuple(arrivals))
        self.on_devices(arrivals)

    def log_line(self, line: LogLine) -> None:
        self.lines.append(line)
        self.on_line(line)
