import asyncio
import errno
import os
from io import BufferedReader
from pathlib import Path

import pytest

from appliance.config import InferenceConfig
from appliance.deploy.record import Slot
from appliance.errors import ConfigError, DeviceError, HandlerError, ModelError
from appliance.inference.messages import Ready
from appliance.inference.model import ModelSpec
from appliance.rollout.admitting import admit, load_slot
from appliance.sandbox.admission.admit import Admission, RefusedError
from appliance.sandbox.admission.verdict import Admitted, Order
from appliance.sandbox.host import MAX_JUDGINGS

MANIFEST = """
name = "parts"
version = "1.2.3"
observes = [1]
settings = { volume = "3" }
models = [{ name = "m", file = "m.tflite" }, { name = "n", file = "n.tflite" }]
"""
EMPTY_MODULE = b"\0asm\x01\0\0\0"
SLOT = Slot(version="1.2.3", digest="0" * 64)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "handler.toml").write_text(MANIFEST)
    (tmp_path / "handler.wasm").write_bytes(EMPTY_MODULE)
    for name in ("m", "n"):
        (tmp_path / f"{name}.tflite").write_bytes(name.encode())
    return tmp_path


class Models:
    """Counts who holds what; ``broken`` is what a model raises, by file."""

    def __init__(self) -> None:
        self.held: list[str] = []
        self.loaded: list[str] = []
        self.broken: dict[str, Exception] = {}

    def hold(self, model: ModelSpec) -> None:
        self.held.append(model.path.name)

    def release(self, model: ModelSpec) -> None:
        self.held.remove(model.path.name)

    async def ready(self, model: ModelSpec) -> Ready:
        assert model.path.name in self.held
        await asyncio.sleep(0)
        if model.path.name in self.broken:
            raise self.broken[model.path.name]
        self.loaded.append(model.path.name)
        return Ready(None, [], [])


class Judge:
    """Gives these answers, one after another."""

    def __init__(self, *answers: Exception | None) -> None:
        self.answers = list(answers)
        self.orders: list[Order] = []

    async def admit(self, order: Order) -> Admitted:
        self.orders.append(order)
        if error := self.answers.pop(0):
            raise error
        return Admitted("0" * 64, b"", [], {}, [], 0)


def test_a_slot_is_a_handler_with_the_operators_changes(directory: Path) -> None:
    slot = Slot(version="1.2.3", digest="0" * 64, settings={"volume": "11"}, observes=(7,))
    spec = load_slot(directory, "parts", slot, InferenceConfig())
    assert (spec.name, spec.version, spec.observes, spec.settings) == ("parts", "1.2.3", (7,), {"volume": "11"})


@pytest.mark.parametrize(("name", "version"), [("other", "1.2.3"), ("parts", "1.2.4")])
def test_the_manifest_of_another_bundle_is_refused(directory: Path, name: str, version: str) -> None:
    with pytest.raises(HandlerError, match=r"has the manifest of parts 1\.2\.3"):
        load_slot(directory, name, Slot(version=version, digest="0" * 64), InferenceConfig())


def test_a_setting_that_it_does_not_have_is_the_operators_error(directory: Path) -> None:
    slot = Slot(version="1.2.3", digest="0" * 64, settings={"volum": "11"})
    with pytest.raises(ConfigError, match="no setting 'volum'"):
        load_slot(directory, "parts", slot, InferenceConfig())


@pytest.mark.parametrize("name", ["handler.toml", "handler.wasm", "n.tflite"])
def test_a_file_that_this_device_cannot_read_is_not_the_bundles_fault(
    directory: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(path: Path) -> BufferedReader:
        if path.name == name:
            raise OSError(code, os.strerror(code))
        return path.open("rb")

    for module in ("manifest", "sandbox.spec", "inference.model"):
        monkeypatch.setattr(f"appliance.{module}.open_plain", failing)
    code = errno.EIO
    with pytest.raises(DeviceError, match=name):
        load_slot(directory, "parts", SLOT, InferenceConfig())
    code = errno.ENOENT  # the bundle does not have it
    with pytest.raises((HandlerError, ModelError), match=name):
        load_slot(directory, "parts", SLOT, InferenceConfig())


async def test_module_and_models_are_tried(directory: Path) -> None:
    spec = load_slot(directory, "parts", SLOT, InferenceConfig())
    models, judge = Models(), Judge(None)
    await admit(spec, judge, models)
    assert models.loaded == ["m.tflite", "n.tflite"]
    assert models.held == []
    (order,) = judge.orders
    assert order == Order(EMPTY_MODULE, "wasm3", spec.limits.memory_mb << 20, restorable=False)


async def test_a_model_that_does_not_load_is_let_go_of(directory: Path) -> None:
    spec = load_slot(directory, "parts", SLOT, InferenceConfig())
    models = Models()
    models.broken["n.tflite"] = ModelError("damaged")
    with pytest.raises(ModelError, match="damaged"):
        await admit(spec, Judge(None), models)
    assert models.held == []


async def test_a_verdict_is_final_and_no_verdict_is_asked_for_again(directory: Path) -> None:
    spec = load_slot(directory, "parts", SLOT, InferenceConfig())
    for answers, orders in (
        ([RefusedError("imports", "no such import")], 1),
        ([RefusedError("crashed", "died", judged=False)] * MAX_JUDGINGS, MAX_JUDGINGS),
    ):
        judge = Judge(*answers)
        with pytest.raises(RefusedError):
            await admit(spec, judge, Models())
        assert len(judge.orders) == orders
    undecided = Judge(RefusedError("deadline", "slow", judged=False), None)
    await admit(spec, undecided, Models())
    with pytest.raises(DeviceError):
        await admit(spec, Judge(DeviceError("no process")), Models())


async def test_the_real_judge_says_what_is_wrong(directory: Path, tmp_path: Path) -> None:
    (directory / "handler.wasm").write_bytes(b"not wasm")
    spec = load_slot(directory, "parts", SLOT, InferenceConfig())
    with pytest.raises(RefusedError):
        await admit(spec, Admission(tmp_path / "modules"), Models())
