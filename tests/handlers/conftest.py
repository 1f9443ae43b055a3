"""The handlers' build, their modules, and guests made for a test."""

import functools
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from assemblyscript import with_assemblyscript
from guest_host import HANDLERS

GuestModule = Callable[[str], bytes]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``handler``: the directory of each example."""
    if "handler" in metafunc.fixturenames:
        found = sorted(path.parent for path in HANDLERS.glob("*/handler.toml"))
        metafunc.parametrize("handler", found, ids=lambda path: path.name)


@pytest.fixture(scope="session")
def guest_module(build: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> GuestModule:
    """Builds a guest of the directory guests/; skips where its toolchain is missing."""

    def make(name: str) -> bytes:
        source = Path(__file__).parent / "guests" / name
        module = tmp_path_factory.mktemp(name) / "handler.wasm"
        if (source / "handler.ts").is_file():
            source = with_assemblyscript(source, module.parent / "source")
        try:
            build.build(source, module)
        except build.ToolchainMissingError as reason:
            pytest.skip(str(reason))
        return module.read_bytes()

    return functools.cache(make)


@pytest.fixture(scope="session", params=["c", "rust", pytest.param("assemblyscript", marks=pytest.mark.slow)])
def mirror(request: pytest.FixtureRequest, guest_module: GuestModule) -> bytes:
    """A guest that reads its payload with the SDK's CBOR reader and emits it again with the SDK's writer."""
    return guest_module(f"mirror_{request.param}")
