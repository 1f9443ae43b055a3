"""The first handler of docs/handlers.md: its code is that of a new one, and its commands do what the page shows."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from assemblyscript import with_compiler
from guest_host import HANDLERS, Guest, Picture
from pictures_to_try import gray_jpeg

from appliance.author.beginning import Language, begin
from appliance.manifest import load_manifest
from appliance.sandbox.messages import Errno

DOCUMENT = (HANDLERS.parent / "docs" / "handlers.md").read_text("utf-8")
LANGUAGES: dict[Language, tuple[str, str]] = {
    "c": ("c", "handler.c"),
    "rust": ("rust", "handler.rs"),
    "assemblyscript": ("ts", "handler.ts"),
}
"""Language -> that of its block on the page, and its file."""
MEASURED = re.compile(r"^times |^handler, ms|^waiting, ms|^deadline_ms = ")
"""Lines that differ from run to run."""


def block(language: str) -> str:
    found = re.findall(rf"```{language}\n(.*?)```", DOCUMENT, re.DOTALL)
    assert len(found) == 1, language
    return str(found[0])


@pytest.fixture(params=["c", "rust", pytest.param("assemblyscript", marks=pytest.mark.slow)])
def brightness(request: pytest.FixtureRequest, build: ModuleType, tmp_path: Path) -> Path:
    """A new handler with the code of the page."""
    begin("brightness", request.param, tmp_path)
    language, name = LANGUAGES[request.param]
    (tmp_path / "handler.toml").write_text(block("toml"))
    (tmp_path / name).write_text(block(language))
    if request.param == "assemblyscript":
        with_compiler(tmp_path)
    try:
        build.build(tmp_path, tmp_path / "handler.wasm")
    except build.ToolchainMissingError as reason:
        pytest.skip(str(reason))
    return tmp_path


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_page_shows_what_a_new_handler_is(language: Language, tmp_path: Path) -> None:
    begin("brightness", language, tmp_path)
    shown, name = LANGUAGES[language]
    assert (tmp_path / name).read_text("utf-8") == block(shown)
    assert (tmp_path / "handler.toml").read_text("utf-8") == block("toml")


def test_the_first_handler(brightness: Path) -> None:
    manifest = load_manifest(brightness)
    module = (brightness / manifest.module).read_bytes()
    guest = Guest(module, settings=manifest.settings)
    assert guest.init() == 0
    picture = Picture(pixels=lambda _, width, height: bytes([51, 0]) * (width * height // 2))
    assert guest.result(picture) == {"brightness": 0.1, "dark": True}
    assert guest.emits[0].tag == manifest.emits[0].tag
    assert guest.handle(Picture()) == Errno.EFRAME
    wrong = Guest(module, settings={"dark": "very"})
    assert wrong.init() == Errno.EINVAL
    assert "`dark`" in wrong.lines[0][1]


def test_the_commands_do_what_the_page_shows(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "day.jpg").write_bytes(gray_jpeg(150))
    (tmp_path / "pictures" / "night.jpg").write_bytes(gray_jpeg(20))
    section = DOCUMENT.partition("## Your first handler")[2].partition("\n## ")[0]
    tried = re.findall(r"```\n\$ appliance ([^\n]*)\n(.*?)```", section, re.DOTALL)
    assert [shlex.split(command)[1] for command, _ in tried] == ["new", "build", "test", "bench", "inspect"]
    environment = {**os.environ, "PYTHONPATH": str(HANDLERS.parent)}
    for command, shown in tried:
        arguments = [sys.executable, "-m", "appliance", *shlex.split(command)]
        ran = subprocess.run(
            arguments, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120, check=False
        )
        assert ran.returncode == 0, ran.stderr
        same = [[line for line in text.splitlines() if not MEASURED.match(line)] for text in (ran.stdout, shown)]
        assert same[0] == same[1], command
