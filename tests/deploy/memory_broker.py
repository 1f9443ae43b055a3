"""A broker's retained messages, and the ears of a device that hears them."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from appliance.deploy.download import Incoming


@dataclass(frozen=True)
class Message:
    topic: str
    payload: bytes


class MemoryBroker:
    """Retains what is published and tells whoever listens. ``heard`` are the topics that were delivered."""

    def __init__(self) -> None:
        self.retained: dict[str, bytes] = {}
        self.heard: list[str] = []
        self._listening: dict[str, Callable[[Incoming], None]] = {}

    def publish(self, messages: Mapping[str, bytes]) -> None:
        """An empty payload clears."""
        for topic, payload in messages.items():
            if self.retained.get(topic, b"") == payload:
                continue
            self.retained[topic] = payload
            if not payload:
                del self.retained[topic]
            for filter_ in self._listening:
                self._tell(filter_, topic, payload)

    def listen(self, filters: Iterable[str], on_message: Callable[[Incoming], None]) -> None:
        for filter_ in filters:
            self._listening[filter_] = on_message
            for topic, payload in self.retained.items():
                self._tell(filter_, topic, payload)

    def ignore(self, filters: Iterable[str]) -> None:
        for filter_ in filters:
            self._listening.pop(filter_, None)

    def _tell(self, filter_: str, topic: str, payload: bytes) -> None:
        if topic == filter_ or (filter_.endswith("/+") and topic.rpartition("/")[0] == filter_[:-2]):
            asyncio.get_running_loop().call_soon(self._deliver, filter_, Message(topic, payload))

    def _deliver(self, filter_: str, message: Message) -> None:
        if filter_ in self._listening:
            self.heard.append(message.topic)
            self._listening[filter_](message)
