"""What is said on MQTT of the box and its parts: retained states, each only when it has changed (docs/mqtt.md)."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import appliance
from appliance.health import camera_document, handler_document, model_document, overall
from appliance.inference.host import ModelStatus
from appliance.mqtt.topics import Topics
from appliance.sandbox.host import HandlerStatus
from appliance.zipper.server import SourceStatus

Document = Mapping[str, Any]


class Telling:
    """``set_retained`` and ``clear_retained`` are the publisher's."""

    def __init__(
        self, topics: Topics, set_retained: Callable[[str, Document], None], clear_retained: Callable[[str], None]
    ) -> None:
        self._topics = topics
        self._set_retained = set_retained
        self._clear_retained = clear_retained
        self._said: dict[str, Document] = {}
        self._handlers: set[str] = set()

    def say(
        self,
        sources: Mapping[str, SourceStatus],
        handlers: Mapping[str, tuple[str, HandlerStatus]],
        models: Iterable[ModelStatus],
    ) -> None:
        """How all of them are now; ``handlers`` are version and status by name. Of those not there any more the
        topic is cleared."""
        cameras = {name: camera_document(status) for name, status in sources.items()}
        documents = {name: handler_document(version, status) for name, (version, status) in handlers.items()}
        of_models = {status.name.replace(".", "-"): model_document(status) for status in models}
        for name, document in cameras.items():
            self._say(self._topics.camera(name), document)
        for name in self._handlers - documents.keys():
            self._clear(self._topics.handler(name))
        self._handlers = set(documents)
        for name, document in documents.items():
            self._say(self._topics.handler(name), document)
        self._say(
            self._topics.status,
            {
                "state": overall(cameras.values(), documents.values(), of_models.values()),
                "version": appliance.__version__,
                "cameras": {name: document["state"] for name, document in cameras.items()},
                "handlers": {name: document["state"] for name, document in documents.items()},
                "models": of_models,
            },
        )

    def _say(self, topic: str, document: Document) -> None:
        if self._said.get(topic) != document:
            self._said[topic] = document
            self._set_retained(topic, document)

    def _clear(self, topic: str) -> None:
        del self._said[topic]
        self._clear_retained(topic)
