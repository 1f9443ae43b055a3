import hashlib
import os
from pathlib import Path

import pytest

from appliance.config import HandlerConfig, InferenceConfig
from appliance.errors import ApplianceError, ConfigError, HandlerError, ModelError
from appliance.manifest import MAX_LABELS_BYTES, MAX_MODULE_BYTES, SensorSpec
from appliance.sandbox.messages import CommandSpec
from appliance.sandbox.spec import HandlerSpec, load_handler

MANIFEST = """
name = "sorter"
version = "1.2.3"
observes = [1]
emits = [{ tag = 16 }, { tag = 17, publish = false }]
models = [{ name = "food", file = "food.tflite", labels = "labels.txt", fit = "letterbox", ahead = false }]
sensors = [{ name = "label", path = "best.label" }]
settings = { threshold = "0.5" }
limits = { deadline_ms = 50, memory_mb = 4 }
"""


@pytest.fixture
def handler(tmp_path: Path) -> Path:
    directory = tmp_path / "sorter"
    directory.mkdir()
    (directory / "handler.toml").write_text(MANIFEST)
    (directory / "handler.wasm").write_bytes(b"\0asm")
    (directory / "food.tflite").write_bytes(b"model")
    (directory / "labels.txt").write_text("cat\n dog \n\nmüsli\n")
    return directory


def load(directory: Path, **settings: str) -> HandlerSpec:
    changes = {key.replace("__", "."): value for key, value in settings.items()}
    return load_handler(HandlerConfig(path=str(directory), settings=changes), InferenceConfig())


def test_what_the_manifest_says(handler: Path) -> None:
    spec = load(handler)
    assert (spec.name, spec.version, spec.abi, spec.module) == ("sorter", "1.2.3", "native", b"\0asm")
    assert (spec.observes, dict(spec.emits)) == ((1,), {16: True, 17: False})
    assert (spec.limits.deadline_ms, spec.limits.memory_mb) == (50, 4)
    assert spec.settings == {"threshold": "0.5"}
    assert spec.sensors == (SensorSpec(name="label", path="best.label"),)
    (food,) = spec.models
    assert (food.name, food.fit, food.ahead) == ("food", "letterbox", False)
    assert food.labels == ("cat", "dog", "", "müsli")  # the line is the class: empty ones count
    assert food.model.path == handler / "food.tflite"
    assert food.model.digest == hashlib.sha256(b"model").hexdigest()
    assert not food.model.unit_range


@pytest.mark.parametrize("name", ["handler.wasm", "food.tflite", "labels.txt", "words.txt"])
@pytest.mark.parametrize("target", ["../secret", "words.txt"])
def test_links_do_not_lead_out_of_the_directory(handler: Path, name: str, target: str) -> None:
    """The handler could publish what it reads: any file of the box."""
    if name == target:
        pytest.skip("a link to itself")
    (handler.parent / "secret").write_text("the key")
    (handler / "words.txt").write_text("a word")
    (handler / name).unlink()
    (handler / name).symlink_to(target)
    manifest = handler / "handler.toml"
    manifest.write_text('abi = "command"\nfiles = ["words.txt"]\n' + manifest.read_text())
    if target == "words.txt":
        load(handler)
    else:
        with pytest.raises(HandlerError, match=rf"{name}: is a link out of the handler's directory"):
            load(handler)


@pytest.mark.parametrize("name", ["handler.toml", "handler.wasm", "food.tflite", "labels.txt"])
def test_what_is_no_file_is_not_waited_for(handler: Path, name: str) -> None:
    """To open a pipe is to wait for whoever writes into it."""
    (handler / name).unlink()
    os.mkfifo(handler / name)
    with pytest.raises(ApplianceError, match="cannot be read: it is not a regular file"):
        load(handler)


def test_a_link_in_a_circle_is_a_file_that_cannot_be_read(handler: Path) -> None:
    (handler / "handler.wasm").unlink()
    (handler / "handler.wasm").symlink_to("handler.wasm")
    with pytest.raises(HandlerError, match="cannot be read"):
        load(handler)


def test_the_range_that_a_model_was_trained_on(handler: Path) -> None:
    manifest = handler / "handler.toml"
    manifest.write_text(manifest.read_text().replace("ahead = false", "unit_range = true"))
    (food,) = load(handler).models
    assert (food.model.unit_range, food.ahead) == (True, True)


def test_what_the_operator_changes(handler: Path, tmp_path: Path) -> None:
    (tmp_path / "other.tflite").write_bytes(b"other")
    (tmp_path / "other.txt").write_text("a\nb")
    config = HandlerConfig(
        path=str(handler),
        name="second",
        observes=(5,),
        settings={"threshold": "0.9", "model": str(tmp_path / "other.tflite"), "labels": str(tmp_path / "other.txt")},
    )
    inference = InferenceConfig(
        runtime="tflite",
        delegate="libedgetpu.so.1",
        delegate_options={"b": "2", "a": "1"},
        twins={hashlib.sha256(b"other").hexdigest(): str(tmp_path / "twin.tflite")},
        threads=2,
    )
    spec = load_handler(config, inference)
    assert (spec.name, spec.observes, spec.settings) == ("second", (5,), {"threshold": "0.9"})
    model = spec.models[0].model
    assert (model.path, model.runtime, model.threads) == (tmp_path / "other.tflite", "tflite", 2)
    assert (model.delegate, model.delegate_options) == ("libedgetpu.so.1", (("a", "1"), ("b", "2")))
    assert model.twin == tmp_path / "twin.tflite"
    assert spec.models[0].labels == ("a", "b")


def test_with_several_models_each_is_named(handler: Path) -> None:
    manifest = MANIFEST.replace("models = [", 'models = [{ name = "faces" }, ')
    (handler / "handler.toml").write_text(manifest)
    spec = load(handler, faces__model=str(handler / "food.tflite"))
    assert [(model.name, len(model.labels)) for model in spec.models] == [("faces", 0), ("food", 4)]
    with pytest.raises(
        ConfigError, match=r"no setting 'model'; known: faces.labels, faces.model, food.labels, food.mod"
    ):
        load(handler, model="x")


@pytest.mark.parametrize(
    ("settings", "kind", "reason"),
    [
        (
            {"treshold": "1"},
            ConfigError,
            r"'sorter' has no setting 'treshold'; known: food.labels, food.model, labels, ",
        ),
        ({"threshold": "x" * 4097}, ConfigError, "setting 'threshold' of handler 'sorter' is longer than 4096 bytes"),
        ({"model": "/nowhere/m.tflite"}, ModelError, "/nowhere/m.tflite: cannot be read"),
        ({"labels": "/nowhere/l.txt"}, HandlerError, "/nowhere/l.txt: cannot be read"),
    ],
)
def test_what_the_operator_gets_wrong(
    handler: Path, settings: dict[str, str], kind: type[ApplianceError], reason: str
) -> None:
    with pytest.raises(kind, match=reason):
        load(handler, **settings)


def test_a_model_without_a_file_asks_for_one(handler: Path) -> None:
    manifest = MANIFEST.replace('file = "food.tflite", ', "")
    (handler / "handler.toml").write_text(manifest)
    with pytest.raises(ConfigError, match=r"name one with --set sorter\.model=PATH$"):
        load(handler)
    (handler / "handler.toml").write_text(manifest.replace("models = [", 'models = [{ name = "faces" }, '))
    with pytest.raises(ConfigError, match=r"name one with --set sorter\.faces\.model=PATH$"):
        load(handler)


def test_files_are_bounded(handler: Path) -> None:
    for name, limit in (("handler.wasm", MAX_MODULE_BYTES), ("labels.txt", MAX_LABELS_BYTES)):
        with (handler / name).open("r+b") as file:
            file.truncate(limit + 1)
        with pytest.raises(HandlerError, match=f"{name}: larger than {limit} bytes"):
            load(handler)
        with (handler / name).open("r+b") as file:
            file.truncate(0)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("handler.wasm", None, "handler.wasm: cannot be read: .*; `appliance handler build` makes it"),
        ("labels.txt", b"\xff", "labels.txt: is not UTF-8"),
        ("labels.txt", b"\n" * 40_000, "40000 labels are over the limit"),
        (
            "handler.toml",
            MANIFEST.replace('"0.5"', "0.5").encode(),
            r"handler.toml: .* at `\$.settings.threshold`; put its value in quotes",
        ),
        ("handler.toml", MANIFEST.replace('"1.2.3"', '"1.2"').encode(), "three numbers, like 1.0.0 - at `.*version`"),
        ("handler.toml", MANIFEST.replace('"sorter"', '"Sorter"').encode(), "lower-case letters, .* at `.*name`"),
        ("handler.toml", b"\xff", "handler.toml: not valid TOML: "),
        (
            "handler.toml",
            MANIFEST.replace("models = [", "models = [" + '{ name = "m" },' * 16).encode(),
            "than 16 models",
        ),
        (
            "handler.toml",
            MANIFEST.replace("settings = { ", "settings = { " + "".join(f's{n} = "", ' for n in range(64))).encode(),
            "more than 64 settings",
        ),
    ],
)
def test_what_the_author_gets_wrong(handler: Path, name: str, content: bytes | None, reason: str) -> None:
    if content is None:
        (handler / name).unlink()
    else:
        (handler / name).write_bytes(content)
    with pytest.raises(HandlerError, match=reason):
        load(handler)


PROGRAM = """
name = "describe"
version = "1.0.0"
abi = "command"
observes = [1]
emits = [{ tag = 16 }]
files = ["labels.txt"]
"""


def test_a_program_is_called_with_its_frame(handler: Path) -> None:
    (handler / "handler.toml").write_text(PROGRAM)
    spec = load(handler)
    assert spec.command == CommandSpec(["handler", "{frame}"], "frame.jpg")
    assert spec.files == {"labels.txt": (handler / "labels.txt").read_bytes()}
    (handler / "handler.toml").write_text(PROGRAM + 'command = { arguments = ["x"], frame = "a.bmp" }')
    assert load(handler).command == CommandSpec(["x"], "a.bmp")


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        (PROGRAM.replace('"command"', '"native"'), '`files` is for programs; it needs abi = "command"'),
        (PROGRAM.replace("files", "# ").replace('"command"', '"yomo"') + "command = {}", "`command` is for programs"),
        (PROGRAM + 'command = { frame = "labels.txt" }', "`command.frame` and `files` both name labels.txt"),
        (PROGRAM + "command = { arguments = [] }", r"command\.arguments"),
        (PROGRAM + 'command = { frame = "../frame.jpg" }', r"command\.frame"),
        (PROGRAM.replace('"command"', '"comand"'), "'comand' - at `\\$.abi`; known: native, yomo, bindgen, command"),
        (PROGRAM + 'engine = "v8"', "'v8' - at `\\$.engine`; known: wasm3, wasmtime"),
    ],
)
def test_what_the_author_of_a_program_gets_wrong(handler: Path, manifest: str, reason: str) -> None:
    (handler / "handler.toml").write_text(manifest)
    with pytest.raises(HandlerError, match=reason):
        load(handler)
