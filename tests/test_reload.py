"""The configuration read again: whole or not at all."""

import asyncio
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

import appliance.reload
from appliance.config import Config, MqttConfig, load_config
from appliance.errors import ApplianceError, ConfigError, DeviceError, HandlerError
from appliance.reload import LIVE, Handlers, Reloading, changed_keys, load_handlers
from appliance.sandbox.spec import HandlerSpec

EXAMPLES = Path(__file__).parent.parent / "handlers"


@dataclass(frozen=True)
class Condition:
    state: str = "running"
    reason: str = ""


@dataclass
class Live:
    spec: HandlerSpec


class Serving:
    """The set of handlers without handlers; ``fate`` is what becomes of those that are new."""

    def __init__(self, specs: list[HandlerSpec]) -> None:
        self.live = {spec.name: Live(spec) for spec in specs}
        self.shadows: dict[str, Live] = {}
        self.fate: dict[str, Condition] = {}
        self.calls: list[str] = []

    async def stop(self, name: str) -> None:
        self.calls.append(f"stop {name}")
        del self.live[name]

    async def shadow(self, spec: HandlerSpec) -> None:
        if spec.name in self.shadows:
            raise DeviceError(f"handlers: the name {spec.name!r} has a shadow already")
        self.calls.append(f"shadow {spec.name}")
        self.shadows[spec.name] = Live(spec)

    async def unshadow(self, name: str) -> None:
        self.calls.append(f"unshadow {name}")
        del self.shadows[name]

    async def promote(self, name: str) -> None:
        self.calls.append(f"promote {name}")
        self.live[name] = self.shadows.pop(name)

    def sample(self, name: str, *, shadow: bool = False) -> Condition | None:
        assert shadow
        return self.fate.get(name, Condition()) if name in self.shadows else None


def check_protocol(serving: Serving) -> Handlers:
    return serving


class Box:
    """A configuration in a file, with the handlers parts and count, and what became of it."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "appliance.toml"
        for name in ("parts", "count"):
            shutil.copytree(EXAMPLES / name, directory / name, ignore=shutil.ignore_patterns("train", "*.rs"))
        self.applied: list[Config] = []
        self.deployed: tuple[str, ...] = ()
        self.write('handlers = [{ path = "parts" }, { path = "count" }]')
        config = load_config(self.file)
        specs = load_handlers(config)
        self.serving = Serving(list(specs.values()))
        self.reloading = Reloading(
            config,
            specs.values(),
            check_protocol(self.serving),
            reread=lambda: load_config(self.file),
            apply=self.applied.append,
            reserved=("mqtt",),
            deployed=lambda: self.deployed,
        )

    def write(self, text: str) -> None:
        self.file.write_text(text)

    async def refused(self) -> ApplianceError:
        """Reload, which is refused: nothing has changed."""
        before = self.reloading.config, dict(self.serving.live)
        with pytest.raises(ApplianceError) as raised:
            await self.reloading.reload()
        assert (self.reloading.config, self.serving.live) == before
        assert self.serving.shadows == {}
        assert self.applied == []
        return raised.value


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


TWO = 'handlers = [{ path = "parts" }, { path = "count" }]'


async def test_nothing_new_changes_nothing(box: Box) -> None:
    assert await box.reloading.reload() == []
    assert box.serving.calls == []


async def test_settings_of_a_handler_change_beside_it(box: Box) -> None:
    box.write('handlers = [{ path = "parts", observes = [7] }, { path = "count" }]')
    assert await box.reloading.reload() == ["handlers.parts"]
    assert box.serving.calls == ["shadow parts", "promote parts"]
    assert box.serving.live["parts"].spec.observes == (7,)
    assert box.applied == [box.reloading.config] == [load_config(box.file)]


async def test_handlers_come_and_go(box: Box) -> None:
    box.write('handlers = [{ path = "parts" }, { path = "parts", name = "parts2" }]')
    assert await box.reloading.reload() == ["handlers.parts2", "handlers.count"]
    assert box.serving.calls == ["shadow parts2", "promote parts2", "stop count"]


async def test_a_file_of_a_handler_that_has_changed_counts_too(box: Box) -> None:
    manifest = box.file.parent / "count" / "handler.toml"
    manifest.write_text(manifest.read_text().replace("1.0.0", "1.0.1"))
    assert await box.reloading.reload() == ["handlers.count"]
    assert box.serving.live["count"].spec.version == "1.0.1"
    assert await box.reloading.reload() == []


async def test_keys_that_can_change_do(box: Box, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    box.write(
        f"""{TWO}
        [log]
        level = "debug"
        [mqtt]
        commands = ["reload"]
        log_level = "warning"
        [device]
        capsules = false
        [homeassistant]
        discovery = true
        [fleet]
        groups = ["a"]"""
    )
    assert set(await box.reloading.reload()) == LIVE - {"handlers"}
    (applied,) = box.applied
    assert applied.mqtt.commands == ("reload",)
    assert any("event=reloaded" in record.message for record in caplog.records)


async def test_what_needs_a_restart_is_named_and_refuses_the_whole(box: Box, caplog: pytest.LogCaptureFixture) -> None:
    box.write('handlers = []\n[mqtt]\nprefix = "x"\ncommands = ["log"]\n[[cameras]]\nurl = "synthetic:"\nfps = 3.0')
    error = await box.refused()
    assert "cameras, mqtt.prefix: " in str(error)
    assert "commands" not in str(error)
    assert any("event=reload_refused" in record.message for record in caplog.records)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("handlers = [", "not valid TOML"),
        ('handlers = [{ path = "nowhere" }]', "nowhere"),
        ('handlers = [{ path = "parts" }, { path = "parts" }]', "taken"),
        ('handlers = [{ path = "parts", name = "mqtt" }]', "taken"),
        ('handlers = [{ path = "parts", settings = { "no.such" = "x" } }]', "no.such"),
        ('[mqtt]\ncommands = ["shutdown"]', "commands"),
        ("[mqtt]\nnothing = 1", "nothing"),
    ],
)
async def test_anything_wrong_refuses_the_whole(box: Box, text: str, words: str) -> None:
    box.write(text)
    assert words in str(await box.refused())
    assert box.serving.calls == []


async def test_one_handler_that_does_not_run_refuses_all(box: Box) -> None:
    box.serving.fate["other"] = Condition("failed", "refused: too large")
    box.write('handlers = [{ path = "parts", observes = [7] }, { path = "count", name = "other" }]')
    error = await box.refused()
    assert isinstance(error, HandlerError)
    assert "other does not run (failed: refused: too large)" in str(error)
    assert box.serving.calls == ["shadow parts", "shadow other", "unshadow parts", "unshadow other"]


async def test_a_handler_that_does_not_come_up_is_not_waited_for_forever(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(appliance.reload, "RUNNING_SECONDS", 0.05)
    monkeypatch.setattr(appliance.reload, "POLL_SECONDS", 0.01)
    box.serving.fate["parts"] = Condition("backoff", "crash: signal 11")
    box.write('handlers = [{ path = "parts", observes = [7] }, { path = "count" }]')
    assert "backoff: crash" in str(await box.refused())


async def test_a_canary_under_way_refuses_the_change(box: Box) -> None:
    box.serving.shadows["parts"] = canary = Live(box.serving.live["parts"].spec)
    box.write('handlers = [{ path = "count", observes = [9] }, { path = "parts", observes = [7] }]')
    with pytest.raises(DeviceError, match="has a shadow"):
        await box.reloading.reload()
    assert box.serving.shadows == {"parts": canary}
    assert box.serving.calls == ["shadow count", "unshadow count"]


async def test_what_the_fleet_has_in_hand_is_not_for_the_configuration(box: Box) -> None:
    box.deployed = ("parts", "other")
    box.write('handlers = [{ path = "parts" }, { path = "count", name = "other" }]')
    assert "the fleet deploys a handler 'other'" in str(await box.refused())
    box.write('handlers = [{ path = "parts", observes = [7] }]')  # its own already
    assert await box.reloading.reload() == ["handlers.parts", "handlers.count"]
    assert set(box.reloading.names) == {"parts"}


async def test_what_the_fleet_took_in_hand_meanwhile_is_not_for_the_configuration(box: Box) -> None:
    box.serving.fate["other"] = Condition("starting")
    box.write('handlers = [{ path = "parts", observes = [7] }, { path = "count", name = "other" }]')
    refused = asyncio.create_task(box.refused())
    while len(box.serving.shadows) < 2:
        await asyncio.sleep(0)
    box.deployed = ("other",)
    box.serving.fate["other"] = Condition("running")
    assert "the fleet deploys a handler 'other'" in str(await refused)
    assert box.serving.calls == ["shadow parts", "shadow other", "unshadow parts", "unshadow other"]


async def test_new_handlers_come_into_service_before_any_other_ends(box: Box) -> None:
    """That may take seconds, in which the fleet could take the name."""
    shutil.copytree(box.file.parent / "parts", box.file.parent / "sort")
    changed = '{ path = "count", observes = [7] }'
    box.write(f'handlers = [{{ path = "parts" }}, {changed}, {{ path = "sort", name = "sort" }}]')
    await box.reloading.reload()
    assert box.serving.calls == ["shadow count", "shadow sort", "promote sort", "promote count"]


async def test_whoever_wants_a_reload_sets_an_event(box: Box) -> None:
    wanted = asyncio.Event()
    keeping = asyncio.create_task(box.reloading.keep(wanted))
    box.write("handlers = [")
    wanted.set()
    while wanted.is_set():
        await asyncio.sleep(0)
    box.write('handlers = [{ path = "count" }]')
    wanted.set()
    async with asyncio.timeout(15):
        while not box.applied:
            await asyncio.sleep(0.01)
    keeping.cancel()
    await asyncio.wait([keeping])
    assert keeping.cancelled()


async def test_without_a_file_there_is_nothing_to_read(box: Box) -> None:
    reloading = Reloading(Config(), (), box.serving, reread=None, apply=box.applied.append)
    with pytest.raises(ConfigError, match="--config"):
        await reloading.reload()


async def test_a_restart_replaces_one_handler(box: Box) -> None:
    await box.reloading.restart("parts")
    assert box.serving.calls == ["shadow parts", "promote parts"]
    with pytest.raises(ConfigError, match="there are: count, parts"):
        await box.reloading.restart("nothing")
    box.serving.fate["count"] = Condition("quarantined", "trap: unreachable")
    with pytest.raises(HandlerError, match="quarantined: trap"):
        await box.reloading.restart("count")
    assert set(box.serving.live) == {"parts", "count"}


async def test_what_another_has_put_in_its_place_is_not_promoted(box: Box) -> None:
    box.serving.fate["parts"] = Condition("starting")
    task = asyncio.create_task(box.reloading.restart("parts"))
    while not box.serving.shadows:
        await asyncio.sleep(0)
    box.serving.shadows["parts"] = canary = Live(replace(box.serving.live["parts"].spec, version="2.0.0"))
    box.serving.fate["parts"] = Condition("running")
    with pytest.raises(HandlerError, match="taken away"):
        await task
    assert box.serving.shadows == {"parts": canary}
    assert box.serving.calls == ["shadow parts"]


async def test_a_cancelled_change_leaves_no_shadow(box: Box) -> None:
    box.serving.fate["parts"] = Condition("starting")
    task = asyncio.create_task(box.reloading.restart("parts"))
    while not box.serving.shadows:
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert box.serving.shadows == {}


async def test_changes_take_turns(box: Box) -> None:
    await asyncio.gather(*(box.reloading.restart(name) for name in ("parts", "count", "parts")))
    assert box.serving.calls == [
        f"{what} {name}" for name in ("parts", "count", "parts") for what in ("shadow", "promote")
    ]


def test_every_difference_has_a_key() -> None:
    old = Config()
    change: Callable[..., Any] = msgspec.structs.replace
    new = change(old, mqtt=MqttConfig(prefix="x", commands=("log",)), cameras=())
    assert sorted(changed_keys(old, new)) == ["cameras", "mqtt.commands", "mqtt.prefix"]
    assert changed_keys(old, old) == []


def test_keys_that_change_live_exist() -> None:
    for key in LIVE:
        section, _, name = key.partition(".")
        value = getattr(Config(), section)
        assert not name or hasattr(value, name)


def test_a_spec_that_differs_in_anything_is_another(box: Box) -> None:
    spec = box.serving.live["parts"].spec
    assert replace(spec, settings={"a": "b"}) != spec
