"""Delegates: a real external delegate library, compiled here, in both runtimes."""

import logging
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import tiny_models
from pictures import samples, write
from tiny_models import Save

from appliance.errors import ModelError
from appliance.inference.broker import Broker
from appliance.inference.delegate import device_name
from appliance.inference.messages import Ready, View
from appliance.inference.model import ModelSpec
from appliance.inference.process import ModelProcess
from appliance.ipc.ring import RingWriter

WHOLE = View()
Log = dict[ModelProcess, bytes]


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    """What processes have said on standard error, by process: no file can be written there."""
    said: Log = {}
    hear = ModelProcess._hear

    def heard(process: ModelProcess) -> None:
        hear(process)
        said[process] = process._last_words

    monkeypatch.setattr(ModelProcess, "_hear", heard)
    return said


@pytest.fixture
async def broker(ring: RingWriter) -> AsyncIterator[Broker]:
    async with Broker(ring.fd) as broker:
        yield broker


def calls(log: Log) -> list[str]:
    return re.findall("counting: (.*)", b"".join(log.values()).decode())


def delegated(save: Save, library: str, runtime: str = "litert", **options: str) -> ModelSpec:
    return save(tiny_models.echo(), runtime=runtime, delegate=library, delegate_options=tuple(options.items()))


def device(ready: Ready) -> str:
    assert ready.run is not None
    return ready.run.device


async def test_a_delegate_that_takes_the_model_is_named_in_the_results(
    broker: Broker, ring: RingWriter, save: Save, library: str, log: Log, runtime: str
) -> None:
    spec = delegated(save, library, runtime, claim="all")
    ready = await broker.ready(spec)
    assert (device(ready), ready.note) == ("counting", "")
    assert calls(log) == ["create", "prepare"]
    inference = await broker.infer(spec, write(ring, samples(8, 8)), WHOLE)
    assert inference.run.device == "counting"
    assert inference.run.runtime.startswith(runtime)


async def test_a_delegate_that_takes_no_part_is_not_named(
    broker: Broker, ring: RingWriter, save: Save, library: str, log: Log, runtime: str
) -> None:
    spec = delegated(save, library, runtime)
    ready = await broker.ready(spec)
    assert calls(log) == ["create", "prepare"]
    assert device(ready) == "cpu"
    assert "the delegate counting is loaded but took no part of the model; name a twin" in ready.note
    assert (await broker.infer(spec, write(ring, samples(8, 8)), WHOLE)).tensors == [samples(8, 8).tobytes()]


async def test_a_delegate_is_taken_down_in_order(
    ring: RingWriter, save: Save, library: str, log: Log, runtime: str
) -> None:
    async with Broker(ring.fd) as broker:
        await broker.ready(delegated(save, library, runtime, claim="all"))
    assert calls(log) == ["create", "prepare", "destroy"]


async def test_without_the_device_the_cpu_runs_the_model_and_says_so(
    broker: Broker,
    ring: RingWriter,
    save: Save,
    library: str,
    runtime: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    spec = delegated(save, library, runtime, fail="create")
    with caplog.at_level(logging.WARNING, "inference"):
        ready = await broker.ready(spec)
    assert device(ready) == "cpu"
    assert ready.note.startswith("model.tflite runs on the CPU: the delegate ")
    assert "no device is plugged in" in ready.note
    assert ready.note.endswith("install it, or empty inference.delegate")
    (record,) = caplog.records
    assert record.getMessage() == f"event=model_note model=model.tflite note={ready.note}"
    assert broker.status()[0].note == ready.note
    assert (await broker.infer(spec, write(ring, samples(8, 8)), WHOLE)).tensors == [samples(8, 8).tobytes()]


async def test_without_libedgetpu_the_remedy_names_it(broker: Broker, save: Save, runtime: str) -> None:
    spec = save(tiny_models.echo(), runtime=runtime, delegate="libedgetpu.so.1")
    ready = await broker.ready(spec)
    assert device(ready) == "cpu"
    assert "install libedgetpu and plug the Edge TPU in, or empty inference.delegate" in ready.note


async def test_a_library_that_is_no_delegate_is_left_out(broker: Broker, save: Save, runtime: str) -> None:
    ready = await broker.ready(save(tiny_models.echo(), runtime=runtime, delegate="libm.so.6"))
    assert device(ready) == "cpu"
    assert "the delegate libm.so.6 cannot be loaded" in ready.note


async def test_a_delegate_that_refuses_the_model_is_left_out(
    broker: Broker, save: Save, library: str, log: Log, runtime: str
) -> None:
    ready = await broker.ready(delegated(save, library, runtime, fail="prepare"))
    assert device(ready) == "cpu"
    assert "runs on the CPU" in ready.note
    assert calls(log)[:2] == ["create", "prepare"]


async def test_a_delegate_that_ends_the_process_is_left_out(
    broker: Broker, ring: RingWriter, save: Save, library: str, log: Log, runtime: str
) -> None:
    spec = delegated(save, library, runtime, fail="abort")
    ready = await broker.ready(spec)
    assert device(ready) == "cpu"
    assert "ended the process (it was ended by SIGABRT); check the device, then restart" in ready.note
    assert calls(log) == ["create"]
    assert (await broker.infer(spec, write(ring, samples(8, 8)), WHOLE)).run.device == "cpu"


# --- twins


async def test_the_twin_runs_on_the_delegate(
    broker: Broker, save: Save, library: str, runtime: str, tmp_path: Path
) -> None:
    twin = tmp_path / "model_twin.tflite"
    twin.write_bytes(tiny_models.echo((1, 16, 12, 1)))
    spec = delegated(save, library, runtime, claim="all")
    spec = ModelSpec(
        spec.path, spec.digest, runtime, delegate=library, delegate_options=spec.delegate_options, twin=twin
    )
    ready = await broker.ready(spec)
    assert ready.run is not None
    assert (ready.run.model, ready.run.device) == ("model_twin.tflite", "counting")
    assert ready.run.digest != spec.digest
    assert ready.inputs[0].shape == (1, 16, 12, 1)


async def test_without_the_delegate_the_cpu_model_runs_instead_of_the_twin(
    broker: Broker, ring: RingWriter, save: Save, tmp_path: Path
) -> None:
    twin = tmp_path / "model_edgetpu.tflite"
    twin.write_bytes(tiny_models.custom("edgetpu-custom-op"))
    spec = save(tiny_models.echo(), delegate="libedgetpu.so.1", twin=twin)
    inference = await broker.infer(spec, write(ring, samples(8, 8)), WHOLE)
    assert (inference.run.model, inference.run.digest, inference.run.device) == ("model.tflite", spec.digest, "cpu")


async def test_a_missing_twin_is_said_to_be_missing(broker: Broker, save: Save, library: str, tmp_path: Path) -> None:
    spec = save(tiny_models.echo(), delegate=library, twin=tmp_path / "none_edgetpu.tflite")
    ready = await broker.ready(spec)
    assert device(ready) == "cpu"
    assert "none_edgetpu.tflite: cannot be read: No such file" in ready.note


async def test_a_model_for_the_edge_tpu_does_not_run_on_the_cpu(broker: Broker, save: Save, runtime: str) -> None:
    content = tiny_models.custom("edgetpu-custom-op")
    with pytest.raises(ModelError, match=r"model\.tflite is compiled for the Edge TPU and cannot run on the CPU: use"):
        await broker.ready(save(content, runtime=runtime))
    with pytest.raises(ModelError, match=r"is compiled for the Edge TPU .*the delegate libedgetpu\.so\.1 cannot be"):
        await broker.ready(save(content, runtime=runtime, delegate="libedgetpu.so.1"))


@pytest.mark.parametrize(
    ("library", "name"),
    [
        ("libedgetpu.so.1", "edgetpu"),
        ("/usr/lib/aarch64-linux-gnu/libedgetpu.so.1.0", "edgetpu"),
        ("libcounting_delegate.so", "counting"),
        ("libarmnnDelegate.so", "armnnDelegate"),
        ("delegate", "delegate"),
    ],
)
def test_devices_are_named_after_their_library(library: str, name: str) -> None:
    assert device_name(library) == name
