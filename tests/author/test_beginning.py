"""A new handler's directory, and that it builds at once and works, in every language."""

import asyncio
import errno
import json
import re
from pathlib import Path

import pytest
from assemblyscript import with_compiler
from pictures_to_try import gray_pictures

from appliance.author.beginning import TEMPLATES, Language, begin, next_steps
from appliance.author.building import build, source_of
from appliance.author.compilers import SDK, ToolchainMissingError
from appliance.author.inputs import cameras
from appliance.author.inspection import judge
from appliance.author.outcome import Tried
from appliance.author.trial import try_out
from appliance.config import HandlerConfig, InferenceConfig
from appliance.errors import ConfigError, HandlerError
from appliance.frame import Frame
from appliance.manifest import load_manifest
from appliance.sandbox.spec import load_handler

LANGUAGES: tuple[Language, ...] = ("c", "rust", "assemblyscript")


@pytest.fixture(params=LANGUAGES)
def built(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A new handler, built."""
    directory = tmp_path / "brightness"
    begin("brightness", request.param, directory)
    if request.param == "assemblyscript":
        with_compiler(directory)
    try:
        built = build(directory, load_manifest(directory).module)
    except ToolchainMissingError as reason:
        pytest.skip(str(reason))
    assert built.changed
    assert built.warnings == ""
    return directory


async def results(directory: Path, pictures: Path, settings: dict[str, str]) -> list[Tried]:
    spec = load_handler(HandlerConfig(path=str(directory), settings=settings), InferenceConfig())
    seen: list[Tried] = []

    async def on_tried(tried: Tried, _: Frame) -> None:
        seen.append(tried)

    await try_out(spec, InferenceConfig(), cameras([str(pictures)]), on_tried)
    return seen


def test_a_new_handler_builds_is_admitted_and_gives_results(built: Path, tmp_path: Path) -> None:
    module = asyncio.run(judge(built, load_manifest(built)))
    assert module.admitted, module.refused
    assert module.imports.keys() == {"appliance"}
    assert {"handle", "init"} <= set(module.exports)
    pictures = gray_pictures(tmp_path / "pictures", 0, 102, 255)
    seen = asyncio.run(results(built, pictures, {"dark": "0.5"}))
    assert [tried.outcome for tried in seen] == ["ok"] * 3
    assert [tried.results[0].value for tried in seen] == [
        {"brightness": 0, "dark": True},
        {"brightness": pytest.approx(0.4, abs=0.02), "dark": True},
        {"brightness": 1, "dark": False},
    ]
    assert seen[0].results[0].tag == load_manifest(built).emits[0].tag
    with pytest.raises(HandlerError, match=r"cannot be started: init returned -1 \(EINVAL\)"):
        asyncio.run(results(built, pictures, {"dark": "very"}))


@pytest.mark.parametrize("language", LANGUAGES)
def test_nothing_of_the_templates_is_left_to_fill_in(language: Language, tmp_path: Path) -> None:
    written = begin("my-handler", language, tmp_path)
    assert set(written) == {path for path in tmp_path.rglob("*") if path.is_file()}
    manifest = load_manifest(tmp_path)
    assert (manifest.name, manifest.version) == ("my-handler", "0.1.0")
    assert {sensor.name for sensor in manifest.sensors} == {"brightness", "dark"}
    source = source_of(tmp_path)
    assert source is not None
    assert f"`{source}`" in (tmp_path / "README.md").read_text("utf-8")
    for path in written:
        assert not re.search(r"\{\{\w+\}\}", path.read_text("utf-8")), path
    for path in (SDK / language).rglob("*"):
        assert not path.is_file() or (tmp_path / "sdk" / path.relative_to(SDK / language)).is_file()


def test_npm_is_told_one_exact_version_of_the_compiler() -> None:
    package = json.loads((TEMPLATES / "assemblyscript" / "package.json").read_text("utf-8"))
    assert re.fullmatch(r"\d+\.\d+\.\d+", package["devDependencies"]["assemblyscript"])


def test_what_there_is_already_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(ConfigError, match="not empty; choose another with --dir"):
        begin("brightness", "c", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]
    with pytest.raises(ConfigError, match="not empty"):
        begin("brightness", "c", tmp_path / "notes")


@pytest.mark.parametrize("name", ["Bright", "a/b", "", "-x", "x" * 65, "../up"])
def test_a_name_that_is_none_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no name for a handler"):
        begin(name, "c", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written: Not a directory"):
        begin("brightness", "c", tmp_path / "file" / "new")


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("place", ["empty", "above/new"])
def test_what_is_not_finished_is_not_left(
    place: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text = Path.write_text

    def half(path: Path, text: str, encoding: str) -> None:
        write_text(path, text[: len(text) // 2], encoding)
        if path.parent.name == "sdk":  # the directory that is made last
            raise error

    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises((ConfigError, KeyboardInterrupt)):
        begin("brightness", "c", tmp_path / place)
    assert list(tmp_path.rglob("*")) == [tmp_path / "empty"]
    monkeypatch.undo()
    assert begin("brightness", "c", tmp_path / place), "nothing is in the way of the next try"


def test_the_compiler_of_assemblyscript_is_the_first_of_the_next_steps() -> None:
    assert next_steps("assemblyscript", Path("x"))[0] == "npm install --prefix x"
    assert next_steps("c", Path("x"))[0] == "appliance handler build x"
