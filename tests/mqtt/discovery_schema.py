"""The rules of Home Assistant's MQTT discovery that our documents have to keep, as its documentation has them.

https://www.home-assistant.io/integrations/mqtt/#device-discovery-payload, and of the platforms
https://www.home-assistant.io/integrations/sensor.mqtt/, https://www.home-assistant.io/integrations/binary_sensor.mqtt/
and https://www.home-assistant.io/integrations/update.mqtt/, as of 2026. What is not known there is refused here, though
Home Assistant overlooks it: it would be a mistake of ours.
"""

import re
from typing import Any

import jsonschema

DISCOVERY_TOPIC = re.compile(r"[^/]+(?:/[^/]+)*?/device/(?:[a-zA-Z0-9_-]+/)?[a-zA-Z0-9_-]+/config")
"""``<discovery_prefix>/<component>/[<node_id>/]<object_id>/config``."""

_TEXT = {"type": "string", "minLength": 1}
_TOPIC = {"type": "string", "pattern": r"^[^+#\x00]+\Z", "maxLength": 65535}
_ENTITY = {
    "platform": True,
    "unique_id": _TEXT,
    "name": _TEXT,
    "state_topic": _TOPIC,
    "value_template": _TEXT,
    "device_class": {"type": "string", "pattern": r"^[a-z0-9_]+\Z"},
    "entity_category": {"enum": ["config", "diagnostic"]},
    "json_attributes_topic": _TOPIC,
}


def _platform(name: str, **more: Any) -> dict[str, Any]:
    return {
        "if": {"properties": {"platform": {"const": name}}, "minProperties": 2},
        "then": {
            "required": ["unique_id", "state_topic"],
            "properties": {**_ENTITY, **more},
            "additionalProperties": False,
        },
    }


SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["device", "origin", "components"],
    "additionalProperties": False,
    "properties": {
        "device": {
            "type": "object",
            "required": ["identifiers"],
            "additionalProperties": False,
            "properties": {
                "identifiers": {"type": "array", "items": _TEXT, "minItems": 1},
                **dict.fromkeys(("name", "manufacturer", "model", "sw_version", "hw_version"), _TEXT),
            },
        },
        "origin": {
            "type": "object",
            "required": ["name"],
            "additionalProperties": False,
            "properties": {"name": _TEXT, "sw_version": _TEXT, "support_url": _TEXT},
        },
        "availability": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["topic"],
                "additionalProperties": False,
                "properties": {"topic": _TOPIC, "value_template": _TEXT},
            },
        },
        "components": {
            "type": "object",
            # they become parts of an identifier that is taken apart at spaces
            "propertyNames": {"pattern": r"^[a-zA-Z0-9_.-]+\Z"},
            "additionalProperties": {
                "type": "object",
                "required": ["platform"],
                "properties": {"platform": {"enum": ["sensor", "binary_sensor", "update"]}},
                "allOf": [
                    _platform(
                        "sensor",
                        unit_of_measurement=_TEXT,
                        state_class={"enum": ["measurement", "total", "total_increasing"]},
                        options={"type": "array", "items": _TEXT, "minItems": 1},
                    ),
                    _platform("binary_sensor"),
                    _platform("update", title=_TEXT),
                    {
                        "if": {"required": ["options"]},
                        "then": {
                            "properties": {
                                "device_class": {"const": "enum"},
                                "state_class": False,
                                "unit_of_measurement": False,
                            }
                        },
                    },
                ],
            },
        },
    },
}

UPDATE_SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        **{key: {"type": "string"} for key in ("installed_version", "latest_version", "title", "release_url")},
        "release_summary": {"type": "string", "maxLength": 255},
        "in_progress": {"type": "boolean"},
        "update_percentage": {"anyOf": [{"type": "number", "minimum": 0, "maximum": 100}, {"type": "null"}]},
    },
}
"""What an update entity takes as a JSON state; a message that is not like that it drops whole."""


_VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def check_discovery(topic: str, document: object) -> None:
    """AssertionError or ValidationError where Home Assistant would not take it."""
    assert DISCOVERY_TOPIC.fullmatch(topic)
    _VALIDATOR.validate(document)
