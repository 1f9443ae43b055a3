"""Who gets which frame. Pure: no clock, no I/O; the zipper acts on what is returned.

Each observer has a number of frames it takes at once (``capacity``) and behind that one waiting place for each
(source, tag): a newer frame takes the place of an older one, which is dropped and counted. So a slow observer
costs nobody but itself, and one busy camera cannot push out another's frames. Lossless frames queue instead;
their number is bounded by the credits that their sources were granted.
"""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar


class Routable(Protocol):
    """What the router needs to know of a frame on its way."""

    @property
    def lane(self) -> tuple[str, int]:
        """(source, tag): frames of one lane replace each other."""

    @property
    def lossless(self) -> bool: ...


Item = TypeVar("Item", bound=Routable)


@dataclass(slots=True)
class Counters:
    """Frames of one observer since it was attached: offered = dropped + finished + waiting + in flight."""

    offered: int = 0
    dropped: int = 0
    finished: int = 0


@dataclass(slots=True)
class Observer(Generic[Item]):
    name: str
    tags: frozenset[int]
    capacity: int
    in_flight: int = 0
    counters: Counters = field(default_factory=Counters)
    _waiting: dict[Hashable, Item] = field(default_factory=dict)

    def offer(self, item: Item) -> Item | None:
        """Queue a frame; returns the frame it pushed out, if any."""
        self.counters.offered += 1
        # A lossless frame gets a place of its own; dicts keep the order of places, so lanes take turns.
        key: Hashable = (item.lane, id(item)) if item.lossless else item.lane
        pushed_out = self._waiting.get(key)
        self._waiting[key] = item
        if pushed_out is not None:
            self.counters.dropped += 1
        return pushed_out

    def take(self) -> Item | None:
        """The next frame to deliver; None while there is none or the observer is busy."""
        if self.in_flight >= self.capacity or not self._waiting:
            return None
        self.in_flight += 1
        return self._waiting.pop(next(iter(self._waiting)))

    def finish(self) -> None:
        """The observer is done with one delivered frame."""
        if not self.in_flight:
            raise ValueError(f"{self.name} finished a frame it was never given")
        self.in_flight -= 1
        self.counters.finished += 1

    def clear(self) -> list[Item]:
        """Frames that will never be delivered: the observer is gone."""
        left = list(self._waiting.values())
        self._waiting.clear()
        self.counters.dropped += len(left)
        return left


class Router(Generic[Item]):
    """All observers by name, and by tag."""

    def __init__(self) -> None:
        self.observers: dict[str, Observer[Item]] = {}
        self._by_tag: dict[int, list[Observer[Item]]] = {}

    def attach(self, name: str, tags: Iterable[int], capacity: int) -> Observer[Item]:
        if name in self.observers:
            raise ValueError(f"there is an observer {name!r} already")
        observer = self.observers[name] = Observer[Item](name, frozenset(tags), capacity)
        for tag in observer.tags:
            self._by_tag.setdefault(tag, []).append(observer)
        return observer

    def detach(self, name: str) -> list[Item]:
        """Remove an observer; returns the frames that waited for it."""
        observer = self.observers.pop(name)
        for tag in observer.tags:
            self._by_tag[tag].remove(observer)
            if not self._by_tag[tag]:
                del self._by_tag[tag]
        return observer.clear()

    def observing(self, tag: int) -> tuple[Observer[Item], ...]:
        return tuple(self._by_tag.get(tag, ()))
