import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from discovery_schema import UPDATE_SCHEMA, check_discovery
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.camera.watch import StateName
from appliance.deploy.report import HandlerReport, HandlerState, Progress, SlotReport, encode_report
from appliance.errors import ConfigError
from appliance.frame import NAME_PATTERN
from appliance.manifest import SensorSpec, load_manifest
from appliance.mqtt.homeassistant import (
    BUSY_STATES,
    CAMERA_STATES,
    Box,
    documents,
    fitted,
    value_template,
)
from appliance.mqtt.retained import MAX_STATE_BYTES
from appliance.mqtt.topics import Topics

HANDLERS = Path(__file__).parents[2] / "handlers"
BOX = Box(Topics("appliance", "box-7"), "homeassistant", "0.2.0", temperature=True)
BOX_TOPIC = "homeassistant/device/box-7/config"
PARTS_TOPIC = "homeassistant/device/box-7/parts/config"

names = st.from_regex(NAME_PATTERN, fullmatch=True)


@dataclass(frozen=True)
class Running:
    name: str = "parts"
    observes: tuple[int, ...] = (1,)
    emits: Mapping[int, bool] = field(default_factory=lambda: {16: True})
    sensors: tuple[SensorSpec, ...] = (SensorSpec(name="label", path="label"),)


def told(
    cameras: Mapping[str, int | None], *handlers: Running, deployed: tuple[str, ...] = (), **box: Any
) -> dict[str, Any]:
    made = documents(replace(BOX, **box), cameras, handlers, deployed)
    for topic, document in made.items():
        check_discovery(topic, json.loads(msgspec.json.encode(document)))
    return made


def test_a_box_with_a_camera_and_a_handler() -> None:
    made = told({"camera": 1}, Running(), deployed=("parts",))
    assert set(made) == {BOX_TOPIC, PARTS_TOPIC}
    box, parts = made[BOX_TOPIC], made[PARTS_TOPIC]
    assert (
        box["device"]
        == parts["device"]
        == {
            "identifiers": ["appliance-box-7"],
            "name": "box-7",
            "model": "appliance",
            "sw_version": "0.2.0",
        }
    )
    assert box["availability"][0]["topic"] == "appliance/box-7/status"
    assert set(box["components"]) == {"problem", "temperature", "camera.camera"}
    assert box["components"]["camera.camera"]["state_topic"] == "appliance/box-7/camera/camera"
    assert box["components"]["temperature"]["state_topic"] == "appliance/box-7/stats"
    assert set(parts["components"]) == {"sensor.camera.label", "update"}
    label = parts["components"]["sensor.camera.label"]
    assert label["unique_id"] == "appliance.box-7.parts.camera.label"
    assert label["state_topic"] == "appliance/box-7/result/camera/parts"
    assert parts["components"]["update"]["state_topic"] == "appliance/box-7/deployment/parts"


@pytest.mark.parametrize("prefix", ["", "#", "a/+", "/a", "a//b", "a\n", "a" * 200])
def test_a_prefix_that_is_none_is_the_configurations_mistake(prefix: str) -> None:
    with pytest.raises(ConfigError, match=r"homeassistant\.prefix"):
        replace(BOX, prefix=prefix)


def test_a_box_that_does_not_know_its_temperature_announces_none() -> None:
    made = told({}, temperature=False)
    assert set(made[BOX_TOPIC]["components"]) == {"problem"}


def test_a_handler_without_sensors_and_deployment_has_no_document() -> None:
    assert set(told({"camera": 1}, Running(sensors=()))) == {BOX_TOPIC}
    assert set(told({"camera": 1}, Running(sensors=()), deployed=("parts",))) == {BOX_TOPIC, PARTS_TOPIC}


def test_results_that_are_not_json_have_no_sensors() -> None:
    made = told({"camera": 1}, Running(), deployed=("parts",), readable=False)
    assert set(made[PARTS_TOPIC]["components"]) == {"update"}


def test_sensors_are_of_the_cameras_that_reach_the_handler() -> None:
    detect = Running("detect", (1,), {18: False}, ())
    count = Running("count", (18,), {20: True, 18: False})
    made = told({"front": 1, "back": 2, "elsewhere": None}, detect, count)
    components = made["homeassistant/device/box-7/count/config"]["components"]
    assert set(components) == {"sensor.front.label", "sensor.elsewhere.label"}


@pytest.mark.parametrize("name", [path.parent.name for path in sorted(HANDLERS.glob("*/handler.toml"))])
def test_the_handlers_that_come_with_the_appliance_have_sensors(name: str) -> None:
    manifest = load_manifest(HANDLERS / name)
    handler = Running(name, manifest.observes, {emit.tag: emit.publish for emit in manifest.emits}, manifest.sensors)
    made = told({"camera": manifest.observes[0]}, handler)
    assert len(made[f"homeassistant/device/box-7/{name}/config"]["components"]) == len(manifest.sensors) > 0


@settings(deadline=None)
@given(
    title=st.text(max_size=64) | st.sampled_from(["{{ 7 * 7 }}", '", "state_topic": "other', "{% raw %}"]),
    unit=st.text(max_size=16) | st.sampled_from(["{{ states }}", '"}']),
    kind=st.sampled_from(["sensor", "binary_sensor"]),
)
def test_text_of_strangers_stays_text(title: str, unit: str, kind: Any) -> None:
    sensor = SensorSpec(name="label", path="label", title=title, unit=unit, kind=kind)
    made = told({"camera": 1}, Running(sensors=(sensor,)))
    (component,) = made[PARTS_TOPIC]["components"].values()
    plain = SensorSpec(name="label", path="label", unit="x" if unit else "", kind=kind)
    assert component["value_template"] == value_template(plain, None)
    assert component["state_topic"] == "appliance/box-7/result/camera/parts"
    assert component["name"].isprintable()


@pytest.mark.parametrize("path", ["a'b", "a}}", "a b", "", "a..b", "a\n", "é", "a" * 65, "a[0]", "{{x}}"])
def test_what_is_no_path_gets_into_no_template(path: str) -> None:
    with pytest.raises(ValueError, match="is not a path"):
        value_template(SensorSpec(name="label", path=path), None)


@settings(deadline=None)
@given(st.data())
def test_every_entity_has_an_identifier_of_its_own(data: st.DataObject) -> None:
    cameras = data.draw(st.lists(names, max_size=3, unique=True))
    running = [
        Running(name, sensors=tuple(SensorSpec(name=sensor, path="x") for sensor in sensors))
        for name, sensors in data.draw(
            st.dictionaries(names, st.lists(names, max_size=3, unique=True), max_size=3)
        ).items()
    ]
    deployed = tuple(data.draw(st.lists(names, max_size=2, unique=True)))
    made = told(dict.fromkeys(cameras, 1), *running, deployed=deployed)
    identifiers = [
        component["unique_id"] for document in made.values() for component in document["components"].values()
    ]
    wanted = 2 + len(cameras) + len(deployed) + len(cameras) * sum(len(handler.sensors) for handler in running)
    assert len(identifiers) == len(set(identifiers)) == wanted


def test_a_document_fits_a_retained_state() -> None:
    sensors = tuple(SensorSpec(name=f"s{number}", path=".".join(["k" * 64] * 8)) for number in range(16))
    (document,) = [told({f"camera-{n}": 1 for n in range(9)}, Running(sensors=sensors))[PARTS_TOPIC]]
    assert len(msgspec.json.encode(document)) > MAX_STATE_BYTES
    smaller, left_out = fitted(document)
    assert len(msgspec.json.encode(smaller)) <= MAX_STATE_BYTES
    assert len(smaller["components"]) == 9 * 16 - left_out > 0
    check_discovery(PARTS_TOPIC, smaller)
    assert fitted(smaller) == (smaller, 0)


def test_states_that_are_announced_are_those_there_are() -> None:
    assert set(CAMERA_STATES) == {*StateName.__args__, "connecting", "lost"}  # type: ignore[attr-defined]
    assert set(BUSY_STATES) < set(HandlerState.__args__)  # type: ignore[attr-defined]


# --- templates, as Home Assistant's engine runs them ------------------------------------------------------------


def rendered(template: str, payload: object, **more: object) -> str:
    sandbox = pytest.importorskip("jinja2.sandbox", reason="no jinja2 here: pip install jinja2")
    strict = pytest.importorskip("jinja2").StrictUndefined  # Home Assistant logs what is undefined
    engine = sandbox.ImmutableSandboxedEnvironment(undefined=strict)
    given = {} if payload is None else {"value_json": payload}
    return str(engine.from_string(template).render(**given, **more)).strip()


@pytest.mark.parametrize("tag", [None, 16])
@pytest.mark.parametrize(
    ("path", "value", "state"),
    [
        ("label", {"label": "ok"}, "ok"),
        ("label", {"label": "{{ 7 * 7 }}"}, "{{ 7 * 7 }}"),
        ("label", {"label": None}, "None"),
        ("label", {"label": "x" * 300}, "x" * 255),
        ("score", {"score": 0.9844}, "0.9844"),
        ("counts.cat", {"counts": {"cat": 2}}, "2"),
        ("counts.cat", {"counts": {"dog": 1}}, "None"),
        ("counts.cat", {"counts": "none"}, "None"),
        ("counts.values", {"counts": {}}, "None"),
        ("__class__.__mro__", {"label": "ok"}, "None"),
        ("objects", {"objects": [{"label": "a"}, {"label": "b"}]}, "2"),
        ("objects", {"objects": []}, "0"),
        ("label", "a text", "None"),
        ("label", None, "None"),
    ],
)
def test_a_sensors_state(tag: int | None, path: str, value: object, state: str) -> None:
    template = value_template(SensorSpec(name="x", path=path), tag)
    assert rendered(template, {"tag": 16, "value": value}) == state


@pytest.mark.parametrize(("value", "state"), [(True, "ON"), (False, "OFF"), (None, "OFF"), ("true", "OFF")])
def test_a_binary_sensors_state(value: object, state: str) -> None:
    template = value_template(SensorSpec(name="x", path="moving", kind="binary_sensor"), None)
    assert rendered(template, {"tag": 16, "value": {"moving": value}}) == state


def test_results_of_other_tags_change_nothing() -> None:
    other = {"tag": 17, "value": {"x": "new"}}
    this = {"state": "old"}
    assert rendered(value_template(SensorSpec(name="x", path="x"), 16), other, this=this) == "old"
    assert rendered(value_template(SensorSpec(name="x", path="x", unit="%"), 16), other, this=this) == ""
    assert rendered(value_template(SensorSpec(name="x", path="x", kind="binary_sensor"), 16), other, this=this) == ""


OLD, NEW = SlotReport("1.0.0", "a" * 64), SlotReport("1.1.0", "b" * 64)


@pytest.mark.parametrize(
    ("report", "state"),
    [
        (
            {"state": "active", "desired": NEW, "current": NEW},
            {"installed_version": "1.1.0", "latest_version": "1.1.0", "in_progress": False},
        ),
        (
            {"state": "fetching", "desired": NEW, "current": OLD, "progress": Progress(33, 100)},
            {"installed_version": "1.0.0", "latest_version": "1.1.0", "in_progress": True, "update_percentage": 33},
        ),
        (
            {"state": "fetching", "desired": NEW, "progress": Progress(5, 0)},
            {"latest_version": "1.1.0", "in_progress": True, "update_percentage": 100},
        ),
        (
            {"state": "canary", "current": OLD},
            {"installed_version": "1.0.0", "latest_version": "1.0.0", "in_progress": True},
        ),
        ({"state": "waiting"}, {"in_progress": False}),
        (
            {"state": "refused", "desired": NEW, "current": OLD, "reason": '"}, {{ x }} ' * 40},
            {"installed_version": "1.0.0", "latest_version": "1.1.0", "in_progress": False},
        ),
    ],
)
def test_an_update_entitys_state(report: dict[str, Any], state: dict[str, Any]) -> None:
    told_ = HandlerReport(handler="parts", since="2026-11-24T00:00:00Z", **report)
    template = told({}, deployed=("parts",))[PARTS_TOPIC]["components"]["update"]["value_template"]
    shown = json.loads(rendered(template, json.loads(encode_report(told_))))
    jsonschema.validate(shown, UPDATE_SCHEMA)
    assert shown == {"update_percentage": None, "release_summary": report.get("reason", "")[:255], **state}


def test_a_report_that_is_taken_away_changes_nothing() -> None:
    template = told({}, deployed=("parts",))[PARTS_TOPIC]["components"]["update"]["value_template"]
    assert rendered(template, None) == ""


@pytest.mark.parametrize(
    ("state", "available", "problem"),
    [
        ("ready", "online", "OFF"),
        ("degraded", "online", "ON"),
        ("init", "offline", "ON"),
        ("lost", "offline", "ON"),
        ("disconnected", "offline", "ON"),
    ],
)
def test_availability_and_health(state: str, available: str, problem: str) -> None:
    box = told({})[BOX_TOPIC]
    assert rendered(box["availability"][0]["value_template"], {"state": state}) == available
    assert rendered(box["components"]["problem"]["value_template"], {"state": state}) == problem


def test_templates_are_balanced() -> None:
    """What can be said of their form without the engine."""
    made = told({"camera": 1}, Running(emits={16: True, 17: True}), deployed=("parts",))
    templates = [
        component["value_template"] for document in made.values() for component in document["components"].values()
    ]
    assert len(templates) == 5
    for template in templates:
        assert template.count("{{") == template.count("}}")
        assert template.count("{%") == template.count("%}")
        assert template.count("{% if ") == template.count("{% endif %}")
