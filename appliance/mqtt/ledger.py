"""What Home Assistant has been told and what has to be taken back: from what there is to what is to be said. Pure."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from appliance.mqtt.homeassistant import Document

Announced = dict[str, dict[str, str]]
"""Topic of a document -> its components -> the platform of each."""

GONE_LOOKS = 5
"""A document that is unwanted for fewer looks in a row is kept: its handler is being started again, and taking it back
would cost users the names and places they gave its entities."""


@dataclass(frozen=True, slots=True)
class Change:
    """What follows from one look."""

    say: dict[str, Document]
    clear: tuple[str, ...]
    """Topics that shall say nothing any more."""


class Ledger:
    """What this run and earlier ones have announced, and the broker may still have."""

    def __init__(self, earlier: Announced) -> None:
        self._earlier = dict(earlier)
        self._since: Announced = {}
        self._missing: Counter[str] = Counter()

    @property
    def record(self) -> Announced:
        """To be remembered before anything is said.

        What an earlier run announced is left out once this one has named it as removed or announces it itself.
        """
        return {**self._earlier, **self._since}

    def look(self, wanted: Mapping[str, Document], *, patient: bool = True) -> Change:
        """``wanted`` is all there is to announce now; what is missing is taken back at once unless ``patient``."""
        for topic, components in announced(wanted).items():
            self._since[topic] = self._since.get(topic, {}) | components
        missing = self.record.keys() - wanted.keys()
        self._missing = Counter({topic: self._missing[topic] + 1 for topic in missing})
        gone = [topic for topic in sorted(missing) if not patient or self._missing[topic] >= GONE_LOOKS]
        return Change(with_removals(with_removals(wanted, self._earlier), self._since), tuple(gone))

    def cleared(self, topic: str) -> None:
        """The broker has nothing on ``topic`` any more."""
        self._earlier.pop(topic, None)
        self._since.pop(topic, None)


def announced(told: Mapping[str, Document]) -> Announced:
    """What documents announce, as it has to be remembered in order to take it back."""
    return {
        topic: {key: component["platform"] for key, component in document["components"].items()}
        for topic, document in told.items()
    }


def with_removals(told: Mapping[str, Document], earlier: Announced) -> dict[str, Document]:
    """``told``, and what was announced ``earlier`` on the same topics and is no more, named as removed."""
    complete = {}
    for topic, document in told.items():
        present = document["components"]
        gone = {key: {"platform": kind} for key, kind in earlier.get(topic, {}).items() if key not in present}
        complete[topic] = {**document, "components": {**present, **gone}}
    return complete
