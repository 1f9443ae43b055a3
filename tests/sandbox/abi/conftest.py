"""Guests of the ABIs, compiled with a model of their own."""

import functools
import math
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import sandbox_bench
from nn_bench import MakeGuest

from appliance.inference.runtime import Runtime

GUESTS = Path(__file__).with_name("guests")

HEADER = """
enum {{ SIDE = {side}, CLASSES = {classes}, ZERO_POINT = {zero} }};
#define SCALE {scale}f
#define INPUT_NAME "{input}"
#define OUTPUT_NAME "{output}"
#pragma clang diagnostic ignored "-Wc23-extensions"
__attribute__((unused)) static const uint8_t MODEL[] = {{
#embed "model.tflite"
}};
"""


ENGINES = ["wasm3", pytest.param("wasmtime", marks=pytest.mark.slow)]
RUN_GUESTS = {"test_command", "test_bindgen", "test_yomo", "test_guests_with_models"}
"""Tests with real guests: each of them is to go in the same way on both engines."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.module.__name__ in RUN_GUESTS:
        metafunc.fixturenames.append("on_engine")
        metafunc.parametrize("on_engine", ENGINES, indirect=True)


@pytest.fixture
def on_engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine of guests that say nothing of it."""
    monkeypatch.setattr(sandbox_bench, "ENGINE", request.param)


@pytest.fixture(scope="session")
def make_guest(build: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> MakeGuest:
    """Compiles one of guests/ with an image classifier in it; skips where its toolchain is missing."""

    def make(name: str, model: Path) -> bytes:
        sources = tmp_path_factory.mktemp("guest") / name
        shutil.copytree(GUESTS / name, sources)
        shutil.copyfile(model, sources / "model.tflite")
        loaded = Runtime("litert").load(model.read_bytes())
        (input,), (output,) = loaded.inputs, loaded.outputs
        loaded.close()
        side, classes = input.shape[1], math.prod(output.shape)
        names = {"input": input.name, "output": output.name}
        header = HEADER.format(side=side, classes=classes, zero=input.zero_point, scale=input.scale, **names)
        (sources / "model.h").write_text(header)
        (sources / "model.rs").write_text(f"const SIDE: usize = {side};\nconst CLASSES: usize = {classes};\n")
        try:
            build.build(sources, sources / "handler.wasm")
        except build.ToolchainMissingError as reason:
            pytest.skip(str(reason))
        return (sources / "handler.wasm").read_bytes()

    return functools.cache(make)
