"""Who gets which frame. Pure: no clock, no I/O; the zipper acts on what is returned.

Each observer has a number of frames it takes at once (``capacity``) and behind that one waiting place for each
(source, tag): a newer frame takes the place of an older one, which is dropped and counted. So a slow observer
costs nobody but itself, and one busy camera cannot push out another's frames. Lossless frames queue instead;
their number is bounded by the credits that their sources were granted.

A *shadow* only tries what another does: to it lossless frames are as any others, and nobody waits for it. It may take
over a name, from one frame to the next: what was routed before is the old observer's, what comes after it is its own.
"""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from itertools import count
from typing import Generic, Protocol, TypeVar

MARK = "#"
"""In the name of an observer that is not in service: no handler's or peer's name has one."""


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
    """Frames of one name since it was attached: offered = dropped + finished + waiting + in flight."""

    offered: int = 0
    dropped: int = 0
    finished: int = 0


@dataclass(eq=False, slots=True)
class Observer(Generic[Item]):
    name: str
    """Unique now. It changes when the observer leaves and when it goes into service."""
    tags: frozenset[int]
    capacity: int
    shadow: bool = False
    counters: Counters = field(default_factory=Counters)
    taken: set[Item] = field(default_factory=set)
    """Frames it has in hand."""
    shadowed: set[Item] = field(default_factory=set)
    """Those it has in hand that it took as a shadow: another answers them."""
    _waiting: dict[Hashable, Item] = field(default_factory=dict)

    @property
    def in_flight(self) -> int:
        return len(self.taken) + len(self.shadowed)

    @property
    def busy(self) -> bool:
        """Something that others wait for is in hand, or waits."""
        return bool(self.taken) or (bool(self._waiting) and not self.shadow)

    def offer(self, item: Item) -> Item | None:
        """Queue a frame; returns the frame it pushed out, if any."""
        self.counters.offered += 1
        # A lossless frame gets a place of its own; dicts keep the order of places, so lanes take turns.
        key: Hashable = (item.lane, id(item)) if item.lossless and not self.shadow else item.lane
        pushed_out = self._waiting.get(key)
        self._waiting[key] = item
        if pushed_out is not None:
            self.counters.dropped += 1
        return pushed_out

    def take(self) -> Item | None:
        """The next frame to deliver; None while there is none or the observer is busy."""
        if self.in_flight >= self.capacity or not self._waiting:
            return None
        item = self._waiting.pop(next(iter(self._waiting)))
        (self.shadowed if self.shadow else self.taken).add(item)
        return item

    def finish(self, item: Item) -> None:
        """The observer is done with a frame it took; ValueError where it has no such frame."""
        if item in self.taken:
            self.taken.remove(item)
            self.counters.finished += 1
        elif item in self.shadowed:
            self.shadowed.remove(item)
            self.counters.finished += self.shadow  # else the counters are those of the name it has taken over
        else:
            raise ValueError(f"{self.name} finished a frame it was never given")

    def clear(self) -> list[Item]:
        """Frames that waited, and will never be delivered."""
        left = list(self._waiting.values())
        self._waiting.clear()
        self.counters.dropped += len(left)
        return left


def shadow_of(name: str) -> str:
    """The name by which a shadow of ``name`` is attached."""
    return f"{name}{MARK}shadow"


class Router(Generic[Item]):
    """All observers by name, and by tag."""

    def __init__(self) -> None:
        self.observers: dict[str, Observer[Item]] = {}
        self._by_tag: dict[int, list[Observer[Item]]] = {}
        self._left = count(1)

    def attach(self, name: str, tags: Iterable[int], capacity: int, *, shadow: bool = False) -> Observer[Item]:
        if name in self.observers:
            raise ValueError(f"there is an observer {name!r} already")
        observer = self.observers[name] = Observer[Item](name, frozenset(), capacity, shadow)
        self.observe(name, tags)
        return observer

    def detach(self, name: str) -> list[Item]:
        """Remove an observer; returns the frames that waited for it."""
        self.observe(name, ())
        return self.observers.pop(name).clear()

    def observe(self, name: str, tags: Iterable[int]) -> None:
        """From now on an observer gets the frames of these tags, and no others. It keeps what it has."""
        observer = self.observers[name]
        before, observer.tags = observer.tags, frozenset(tags)
        for tag in before - observer.tags:
            self._by_tag[tag].remove(observer)
            if not self._by_tag[tag]:
                del self._by_tag[tag]
        for tag in observer.tags - before:
            self._by_tag.setdefault(tag, []).append(observer)

    def leave(self, name: str) -> Observer[Item]:
        """No further frames for an observer. It keeps what it has, until it is detached, and gives up its name."""
        self.observe(name, ())
        observer = self.observers.pop(name)
        observer.name = f"{name.partition(MARK)[0]}{MARK}{next(self._left)}"
        self.observers[observer.name] = observer
        return observer

    def take_over(self, shadow: str, name: str, capacity: int) -> list[Item]:
        """A shadow goes into service as ``name``; who had that name leaves. Returns what waited for the shadow.

        What the shadow has in hand stays the other's to answer. The counters of the name go on.
        """
        if not self.observers[shadow].shadow:
            raise ValueError(f"{shadow!r} is in service already")
        left = self.observers[shadow].clear()
        counters = self.leave(name).counters if name in self.observers else Counters()
        observer = self.observers[name] = self.observers.pop(shadow)
        observer.name, observer.shadow, observer.capacity, observer.counters = name, False, capacity, counters
        return left

    def observing(self, tag: int) -> tuple[Observer[Item], ...]:
        return tuple(self._by_tag.get(tag, ()))
