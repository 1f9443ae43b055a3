"""What Home Assistant is told of a box, as its MQTT discovery wants it: documents by topic. Pure.

Device-based discovery (https://www.home-assistant.io/integrations/mqtt/#device-discovery-payload): one retained
document about the box and one about each handler, all of one device. An empty message in place of a document removes
all that it announced; a component that is no more has to be named once more, with nothing but its platform.

Text of strangers is in these documents (titles, units): always a JSON value that Home Assistant takes as text. What it
runs as templates is made of our words, of numbers, and of keys that were checked once more.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from appliance.config import check_prefix
from appliance.manifest import SensorSpec
from appliance.mqtt.retained import MAX_STATE_BYTES
from appliance.mqtt.topics import Topics
from appliance.text import printable

Document = dict[str, Any]

CAMERA_STATES = ("connecting", "opening", "streaming", "stalled", "failed", "ended", "lost")
BUSY_STATES = ("fetching", "admitting", "storing", "canary")
"""A deployment's, in which something is being done about it."""
MAX_STATE_TEXT = 255
"""Characters that Home Assistant takes as a state; longer ones it refuses."""

_KEY = re.compile(r"[A-Za-z0-9_]{1,64}")
_TEXT_CLASSES = ("", "enum", "date", "timestamp")
"""Classes of sensors whose states are no numbers."""

_AVAILABLE = "{{ 'online' if value_json.state in ['ready', 'degraded'] else 'offline' }}"
_STATE = "{{ value_json.state }}"
_PROBLEM = "{{ 'OFF' if value_json.state == 'ready' else 'ON' }}"
_UPDATE = (
    "{% if value_json is defined %}"  # not when the report is taken away
    '{"in_progress": {{ (value_json.state in [' + ", ".join(f"'{state}'" for state in BUSY_STATES) + "]) | tojson }}, "
    "\"update_percentage\": {% if value_json.state == 'fetching' and value_json.progress %}"
    "{{ [100 * value_json.progress.received // [value_json.progress.total, 1] | max, 100] | min }}"
    "{% else %}null{% endif %}"
    '{% if value_json.current %}, "installed_version": {{ value_json.current.version | tojson }}{% endif %}'
    "{% if value_json.desired or value_json.current %}"
    ', "latest_version": {{ (value_json.desired or value_json.current).version | tojson }}{% endif %}'
    f', "release_summary": {{{{ value_json.reason[:{MAX_STATE_TEXT}] | tojson }}}}}}'
    "{% endif %}"
)
"""The report of a deployment as an update entity's state: versions that are not known have to be left out."""


class Handler(Protocol):
    """A handler that runs, as far as it matters here."""

    @property
    def name(self) -> str: ...
    @property
    def observes(self) -> tuple[int, ...]: ...
    @property
    def emits(self) -> Mapping[int, bool]: ...
    @property
    def sensors(self) -> tuple[SensorSpec, ...]: ...


@dataclass(frozen=True, slots=True)
class Box:
    """What never changes while the box runs. ConfigError for a prefix that no topic can be made of."""

    topics: Topics
    prefix: str
    """Home Assistant's discovery prefix."""
    version: str
    """Of the appliance."""
    readable: bool = True
    """Results are JSON; Home Assistant cannot read CBOR, so there are no sensors of handlers then."""
    temperature: bool = False
    """The box can tell its temperature."""

    def __post_init__(self) -> None:
        check_prefix("homeassistant.prefix", self.prefix)

    @property
    def topic(self) -> str:
        """Of the document about the box."""
        return f"{self.prefix}/device/{self.topics.device}/config"

    def handler_topic(self, name: str) -> str:
        """Of the document about a handler."""
        return f"{self.prefix}/device/{self.topics.device}/{name}/config"

    def owns(self, topic: str) -> bool:
        """Whether ``topic`` is one of this box's documents, below the prefix that is in force."""
        return topic.startswith(f"{self.prefix}/device/{self.topics.device}/")

    @property
    def birth_topic(self) -> str:
        """Where Home Assistant says that it has begun."""
        return f"{self.prefix}/status"


def documents(
    box: Box,
    cameras: Mapping[str, int | None],
    handlers: Collection[Handler],
    deployed: Collection[str],
) -> dict[str, Document]:
    """All documents, by topic.

    ``cameras`` has the tag of each one's frames (None: not known); ``deployed`` the handlers that have a report of
    their deployment.
    """
    told = {box.topic: _document(box, _of_box(box, cameras))}
    for name in sorted({handler.name for handler in handlers} | {*deployed}):
        components: Document = {}
        for handler in handlers:
            if handler.name == name and box.readable:
                components |= _of_handler(box, handler, _cameras_of(handler, cameras, handlers))
        if name in deployed:
            components["update"] = _update(box, name)
        if components:
            told[box.handler_topic(name)] = _document(box, components)
    return told


def fitted(document: Document) -> tuple[Document, int]:
    """``document`` without its last components where it would be too large for a retained state; how many that are."""
    left = MAX_STATE_BYTES - len(msgspec.json.encode({**document, "components": {}}))
    components: Document = {}
    for key, component in document["components"].items():
        left -= len(msgspec.json.encode({key: component}))
        if left < 0:
            break
        components[key] = component
    return {**document, "components": components}, len(document["components"]) - len(components)


def _document(box: Box, components: Document) -> Document:
    device = box.topics.device
    return {
        "device": {
            "identifiers": [f"appliance-{device}"],
            "name": device,
            "model": "appliance",
            "sw_version": box.version,
        },
        "origin": {"name": "appliance", "sw_version": box.version},
        "availability": [{"topic": box.topics.status, "value_template": _AVAILABLE}],
        "components": components,
    }


def _of_box(box: Box, cameras: Mapping[str, int | None]) -> Document:
    device, topics = box.topics.device, box.topics
    components: Document = {
        "problem": {
            "platform": "binary_sensor",
            "unique_id": f"appliance.{device}.problem",
            "name": "problem",
            "device_class": "problem",
            "entity_category": "diagnostic",
            "state_topic": topics.status,
            "value_template": _PROBLEM,
            "json_attributes_topic": topics.status,
        }
    }
    if box.temperature:
        components["temperature"] = {
            "platform": "sensor",
            "unique_id": f"appliance.{device}.temperature",
            "name": "temperature",
            "device_class": "temperature",
            "state_class": "measurement",
            "unit_of_measurement": "°C",
            "entity_category": "diagnostic",
            "state_topic": topics.stats,
            "value_template": "{{ value_json.temperature_c }}",
        }
    for camera in sorted(cameras):
        components[f"camera.{camera}"] = {
            "platform": "sensor",
            "unique_id": f"appliance.{device}.camera.{camera}",
            "name": f"{camera} camera",
            "device_class": "enum",
            "options": list(CAMERA_STATES),
            "entity_category": "diagnostic",
            "state_topic": topics.camera(camera),
            "value_template": _STATE,
            "json_attributes_topic": topics.camera(camera),
        }
    return components


def _of_handler(box: Box, handler: Handler, cameras: Iterable[str]) -> Document:
    """A component for each camera and sensor."""
    published = [tag for tag, publish in handler.emits.items() if publish]
    components: Document = {}
    for camera in cameras:
        for sensor in handler.sensors:
            tag = published[0] if sensor.tag is None and published else sensor.tag
            component = {
                "platform": sensor.kind,
                "unique_id": f"appliance.{box.topics.device}.{handler.name}.{camera}.{sensor.name}",
                "name": f"{camera} {handler.name} {printable(sensor.title).strip() or sensor.name}",
                "state_topic": box.topics.result(camera, handler.name),
                "value_template": value_template(sensor, tag if len(published) > 1 else None),
            }
            if sensor.device_class:
                component["device_class"] = sensor.device_class
            if sensor.unit and sensor.kind == "sensor":
                component["unit_of_measurement"] = printable(sensor.unit)
                if not sensor.device_class:
                    component["state_class"] = "measurement"
            # the platform is in the key: one key cannot be removed and announced at once
            components[f"{sensor.kind}.{camera}.{sensor.name}"] = component
    return components


def _update(box: Box, name: str) -> Document:
    return {
        "platform": "update",
        "unique_id": f"appliance.{box.topics.device}.update.{name}",
        "name": name,
        "title": name,
        "state_topic": box.topics.deployed(name),
        "value_template": _UPDATE,
    }


def value_template(sensor: SensorSpec, tag: int | None) -> str:
    """From a result to the sensor's state; ValueError for a path that is none.

    ``tag``: of the results that are meant, where the handler publishes others, too; those change nothing.
    """
    parts = ["{% set v = value_json.value %}"]
    for key in sensor.path.split("."):
        if not _KEY.fullmatch(key):
            raise ValueError(f"sensor {sensor.name!r}: {sensor.path!r} is not a path")
        parts.append(f"{{% set v = v['{key}'] if v is mapping and '{key}' in v else none %}}")
    otherwise = ""
    if sensor.kind == "binary_sensor":
        parts.append("{{ 'ON' if v == true else 'OFF' }}")
    else:
        parts.append("{% if v is sequence and v is not string and v is not mapping %}{{ v | count }}")
        parts.append(f"{{% else %}}{{{{ (v | string)[:{MAX_STATE_TEXT}] }}}}{{% endif %}}")
        if not sensor.unit and sensor.device_class in _TEXT_CLASSES:
            otherwise = "{{ this.state }}"  # an empty state is one, where no number is expected
    text = "".join(parts)
    if tag is None:
        return text
    return f"{{% if value_json.tag == {tag} %}}{text}{{% else %}}{otherwise}{{% endif %}}"


def _cameras_of(handler: Handler, cameras: Mapping[str, int | None], handlers: Collection[Handler]) -> list[str]:
    """The cameras whose frames, or what other handlers make of them, ``handler`` observes."""
    return [
        camera
        for camera, tag in sorted(cameras.items())
        if tag is None or not _reached(tag, handlers).isdisjoint(handler.observes)
    ]


def _reached(tag: int, handlers: Collection[Handler]) -> set[int]:
    """All tags of frames that come of one with ``tag``."""
    reached: set[int] = set()
    ahead = [tag]
    while ahead:
        reached.add(tag := ahead.pop())
        for handler in handlers:
            if tag in handler.observes:
                ahead += [emitted for emitted in handler.emits if emitted not in reached]
    return reached
