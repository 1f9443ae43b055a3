"""The handlers' build, their modules, and guests made for a test."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from guest_host import HANDLERS


def _load_build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("handlers_build", HANDLERS / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def build() -> ModuleType:
    """handlers/build.py."""
    return _load_build()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``handler``: the directory of each example."""
    if "handler" in metafunc.fixturenames:
        found = sorted(path.parent for path in HANDLERS.glob("*/handler.toml"))
        metafunc.parametrize("handler", found, ids=lambda path: path.name)


@pytest.fixture(scope="session", params=["c", "rust"])
def mirror(request: pytest.FixtureRequest, build: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A guest that reads its payload with the SDK's CBOR reader and emits it again with the SDK's writer."""
    module = tmp_path_factory.mktemp("mirror") / "handler.wasm"
    try:
        build.build(Path(__file__).parent / "guests" / f"mirror_{request.param}", module)
    except build.ToolchainMissingError as reason:
        pytest.skip(str(reason))
    return module.read_bytes()
