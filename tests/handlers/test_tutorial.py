"""The first handler of docs/handlers.md builds and runs as it stands there, in both languages."""

import re
from pathlib import Path
from types import ModuleType

import pytest
from guest_host import HANDLERS, Guest, Picture

from appliance.manifest import load_manifest
from appliance.sandbox.messages import Errno

DOCUMENT = HANDLERS.parent / "docs" / "handlers.md"


def block(language: str) -> str:
    found = re.findall(rf"```{language}\n(.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL)
    assert len(found) == 1, language
    return str(found[0])


@pytest.fixture(params=[("c", "handler.c"), ("rust", "handler.rs")], ids=["c", "rust"])
def brightness(request: pytest.FixtureRequest, build: ModuleType, tmp_path: Path) -> Path:
    language, name = request.param
    (tmp_path / "handler.toml").write_text(block("toml"))
    (tmp_path / name).write_text(block(language))
    try:
        build.build(tmp_path, tmp_path / "handler.wasm")
    except build.ToolchainMissingError as reason:
        pytest.skip(str(reason))
    return tmp_path


def test_the_first_handler(brightness: Path) -> None:
    manifest = load_manifest(brightness)
    guest = Guest((brightness / manifest.module).read_bytes(), settings=manifest.settings)
    assert guest.init() == 0
    picture = Picture(pixels=lambda _, width, height: bytes([51, 0]) * (width * height // 2))
    assert guest.result(picture) == {"brightness": 0.1, "dark": True}
    assert guest.emits[0].tag == manifest.emits[0].tag
    assert guest.handle(Picture()) == Errno.EFRAME


def test_its_setting_is_checked(brightness: Path) -> None:
    guest = Guest((brightness / "handler.wasm").read_bytes(), settings={"dark": "very"})
    picture = Picture(pixels=lambda _, width, height: bytes(width * height))
    assert Errno.EINVAL in (guest.init(), guest.handle(picture))
    assert "`dark`" in guest.lines[0][1]
