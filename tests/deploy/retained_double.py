"""A broker's retained messages in memory, as ``Ears`` hears them: later, and in the order the test wants."""

import asyncio
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Message:
    topic: str
    payload: bytes


class RetainedDouble:
    """Holds ``retained`` (topic -> payload). ``shuffle`` delivers in any order; ``extra`` comes with each message."""

    def __init__(self, retained: dict[str, bytes], shuffle: random.Random | None = None) -> None:
        self.retained = retained
        self.extra: list[Message] = []
        self.listening: dict[str, Callable[[Message], None]] = {}
        self.asked: list[str] = []
        """Every filter that was ever listened to, in order."""
        self.most = 0
        """Filters that were listened to at one time."""
        self._shuffle = shuffle
        self._ways: list[tuple[str, Callable[[Message], None]]] = []

    def listen(self, filters: Iterable[str], on_message: Callable[[Message], None]) -> None:
        for topic in filters:
            assert topic not in self.listening, "asked for twice"
            self.listening[topic] = on_message
            self.asked.append(topic)
            self._ways.append((topic, on_message))
        self.most = max(self.most, len(self.listening))
        asyncio.get_running_loop().call_soon(self._deliver)

    def ignore(self, filters: Iterable[str]) -> None:
        for topic in filters:
            del self.listening[topic]

    def publish(self, topic: str, payload: bytes) -> None:
        self.retained[topic] = payload
        if topic in self.listening:
            self.listening[topic](Message(topic, payload))

    def _deliver(self) -> None:
        ways, self._ways = self._ways, []
        if self._shuffle is not None:
            self._shuffle.shuffle(ways)
        for topic, on_message in ways:
            for message in self.extra:
                on_message(message)
            if topic in self.retained:
                on_message(Message(topic, self.retained[topic]))
