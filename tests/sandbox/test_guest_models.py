"""Where the models that guests bring are kept, and how many a handler may bring."""

import asyncio
import hashlib
import os
from pathlib import Path

import pytest
from sandbox_bench import FakeInference

from appliance.config import InferenceConfig
from appliance.errors import DeviceError, HandlerError, ModelError
from appliance.sandbox import guest_models
from appliance.sandbox.guest_models import MAX_STORED, BroughtModels, GuestModelStore
from appliance.sandbox.messages import MAX_GUEST_MODEL_BYTES


def model(number: int = 0) -> bytes:
    return b"\x1c\0\0\0TFL3" + number.to_bytes(4, "little")


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir()) if directory.exists() else []


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "models"


def open_store(directory: Path, **inference: object) -> GuestModelStore:
    return GuestModelStore(directory, InferenceConfig(**inference))  # type: ignore[arg-type]


async def keep(store: GuestModelStore, data: bytes) -> Path:
    return (await store.keep(data, digest(data))).path


async def test_a_model_is_kept_as_the_configuration_runs_it(directory: Path) -> None:
    inference = {
        "runtime": "tflite", "threads": 2, "delegate": "libedgetpu.so.1",
        "delegate_options": {"device": "usb", "a": "b"}, "twins": {digest(model()): "~/m_edgetpu.tflite"},
    }  # fmt: skip
    spec = await open_store(directory, **inference).keep(model(), digest(model()))
    assert spec.path == directory / f"{digest(model())}.tflite"
    assert spec.path.read_bytes() == model()
    assert (spec.digest, spec.runtime, spec.threads) == (digest(model()), "tflite", 2)
    assert (spec.delegate, spec.delegate_options) == ("libedgetpu.so.1", (("a", "b"), ("device", "usb")))
    assert spec.twin == Path.home() / "m_edgetpu.tflite"
    assert (await open_store(directory, **inference).keep(model(1), digest(model(1)))).twin is None


@pytest.mark.parametrize("damage", [b"", b"\x1c\0\0\0TFL3", bytes(12)], ids=["empty", "cut", "other"])
async def test_what_a_power_cut_damaged_is_written_anew(directory: Path, damage: bytes) -> None:
    path = await keep(open_store(directory), model())
    path.write_bytes(damage)
    half = directory / f".{path.name}.abc123"
    half.write_bytes(b"half")
    await keep(open_store(directory), model())
    assert path.read_bytes() == model()
    assert names(directory) == [path.name]


async def test_a_whole_file_is_not_written_again(directory: Path) -> None:
    inode = (await keep(open_store(directory), model())).stat().st_ino
    assert (await keep(open_store(directory), model())).stat().st_ino == inode


async def test_the_oldest_that_nobody_uses_make_room(directory: Path) -> None:
    before = open_store(directory)
    paths = []
    for number in range(MAX_STORED + 2):
        path = await keep(before, model(number))
        os.utime(path, (number, number))
        paths.append(path)
    assert all(path.exists() for path in paths), "they are in use"
    after = open_store(directory)
    fresh = await keep(after, model(0))
    assert fresh == paths[0]
    assert not paths[1].exists(), "the oldest but the one that was brought again"
    assert all(path.exists() for path in paths[2:])


async def test_many_at_once_are_all_kept(directory: Path) -> None:
    store = open_store(directory)
    paths = await asyncio.gather(*(keep(store, model(number % 4)) for number in range(16)))
    assert {path.read_bytes() for path in paths} == {model(number) for number in range(4)}


async def test_a_directory_that_cannot_be_written_is_the_devices_fault(tmp_path: Path) -> None:
    directory = tmp_path / "there is no such" / "models"
    with pytest.raises(DeviceError, match="cannot be kept"):
        await keep(open_store(directory), model())


async def test_a_handler_brings_as_many_as_its_manifest_says(directory: Path) -> None:
    brought = BroughtModels(2, open_store(directory), FakeInference())
    for number in (0, 1, 0, 1):
        assert (await brought.load(model(number)))[0].digest == digest(model(number))
    with pytest.raises(HandlerError, match=r"2 models already \(guest_models"):
        await brought.load(model(2))
    assert (await brought.load(model(0)))[0].digest == digest(model(0))
    assert len(names(directory)) == 2


async def test_by_default_a_handler_brings_none(directory: Path) -> None:
    for brought in (
        BroughtModels(0, open_store(directory), FakeInference()),
        BroughtModels(8, None, FakeInference()),
    ):
        with pytest.raises(HandlerError, match="raise guest_models in its manifest"):
            await brought.load(model())
    assert names(directory) == []


async def test_what_is_no_model_is_not_kept(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    brought = BroughtModels(1, open_store(directory), FakeInference())
    for data in (b"", b"TFL3", b"\0asm\1\0\0\0"):
        with pytest.raises(ModelError, match="not a TFLite model"):
            await brought.load(data)
    monkeypatch.setattr(guest_models, "MAX_GUEST_MODEL_BYTES", 11)
    with pytest.raises(HandlerError, match="over the limit of 11"):
        await brought.load(model())
    assert names(directory) == []
    assert MAX_GUEST_MODEL_BYTES == 16 << 20


async def test_a_model_that_cannot_be_loaded_is_let_go_and_not_tried_again_for_a_while(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inference = FakeInference(not_ready=[ModelError("it is damaged")])
    brought = BroughtModels(2, open_store(directory), inference)
    for _ in range(3):
        with pytest.raises(ModelError, match="it is damaged"):
            await brought.load(model(0))
    assert +inference.held == {}
    assert (await brought.load(model(1)))[0].digest == digest(model(1))
    monkeypatch.setattr(guest_models, "RETRY_SECONDS", 0.0)
    brought = BroughtModels(2, open_store(directory), inference)
    inference.not_ready.append(ModelError("still"))
    with pytest.raises(ModelError, match="still"):
        await brought.load(model(0))
    await brought.load(model(0))
    assert inference.held[digest(model(0))] == 1


async def test_models_of_a_handler_that_is_gone_are_let_go(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_models, "MAX_STORED", 0)
    inference, store = FakeInference(), open_store(directory)
    here, gone = (BroughtModels(2, store, inference) for _ in range(2))
    for number in (0, 0, 1):
        await gone.load(model(number))
    await here.load(model(0))
    gone.close()
    assert +inference.held == {digest(model(0)): 1}
    await here.load(model(2))
    assert names(directory) == sorted(f"{digest(model(number))}.tflite" for number in (0, 2))
