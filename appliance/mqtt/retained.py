"""Retained states: for each topic the newest counts, and a new connection hears them all again. Pure."""

MAX_TOPICS = 1024
"""That say something; and as many again that are being cleared. More than a box with as many cameras, handlers and
deployments as there may be has, with Home Assistant's documents."""
MAX_STATE_BYTES = 64 << 10


class Retained:
    """What each topic should say, and which of it the broker does not know yet."""

    def __init__(self) -> None:
        self._latest: dict[str, bytes] = {}
        self._clearing: dict[str, None] = {}  # until the broker has acknowledged it
        self._unsent: dict[str, None] = {}  # in the order they changed
        self._under_way: set[str] = set()

    @property
    def pending(self) -> bool:
        """Whether the broker has yet to hear or acknowledge something."""
        return bool(self._unsent or self._under_way)

    def settled(self, topic: str) -> bool:
        """Whether the broker has acknowledged all there is to say on ``topic``."""
        return topic not in self._unsent and topic not in self._under_way

    def set(self, topic: str, payload: bytes, *, again: bool = False) -> None:
        """Say ``payload`` on ``topic``; ValueError where a bound is passed, which is the caller's mistake.

        What the broker has acknowledged is said once more only if ``again``.
        """
        if len(payload) > MAX_STATE_BYTES:
            raise ValueError(f"{topic}: a state of {len(payload)} bytes is over the limit of {MAX_STATE_BYTES}")
        if topic not in self._latest and len(self._latest) >= MAX_TOPICS:
            raise ValueError(f"{topic}: over the limit of {MAX_TOPICS} retained topics")
        if again or self._latest.get(topic) != payload:
            self._clearing.pop(topic, None)
            self._latest[topic] = payload
            self._unsent[topic] = None

    def clear(self, topic: str) -> None:
        """Let ``topic`` say nothing: an empty message, forgotten once it is acknowledged. ValueError for too many."""
        if topic in self._clearing:
            return
        if len(self._clearing) >= MAX_TOPICS:
            raise ValueError(f"{topic}: over the limit of {MAX_TOPICS} topics that are being cleared")
        self._latest.pop(topic, None)
        self._clearing[topic] = None
        self._unsent[topic] = None

    def next(self) -> tuple[str, bytes] | None:
        """The next (topic, payload) to send; one at a time for each topic, so that states do not pile up."""
        for topic in self._unsent:
            if topic not in self._under_way:
                del self._unsent[topic]
                self._under_way.add(topic)
                return topic, self._latest.get(topic, b"")
        return None

    def acknowledged(self, topic: str) -> None:
        self._under_way.discard(topic)
        if topic not in self._unsent:  # else what was acknowledged is older than the wish to clear it
            self._clearing.pop(topic, None)

    def disconnected(self) -> None:
        """The next connection shall hear everything: the broker may be a new one."""
        self._under_way.clear()
        self._unsent = dict.fromkeys([*self._clearing, *self._latest])
