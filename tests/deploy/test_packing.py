"""A bundle has what the manifest names, and nothing else."""

import hashlib
from pathlib import Path

import pytest

from appliance.deploy import packing
from appliance.deploy.bundle import decode_bundle
from appliance.deploy.packing import pack
from appliance.errors import HandlerError

MANIFEST = """\
name = "sorter"
version = "1.2.0"
abi = "command"
module = "sorter.wasm"
observes = [0x01]
emits = [{ tag = 0x20 }]
models = [{ name = "model", file = "model.tflite", labels = "labels.txt" }]
files = ["table.csv", "labels.txt"]
"""
FILES = {
    "handler.toml": MANIFEST.encode(),
    "sorter.wasm": b"\0asm",
    "model.tflite": b"model",
    "labels.txt": b"good\nbad\n",
    "table.csv": b"1,2\n",
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for name, data in FILES.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def test_a_bundle_has_the_files_that_the_manifest_names_and_no_other(directory: Path) -> None:
    (directory / "handler.c").write_text("int main;")
    packed = pack(directory)
    assert packed.bundle == decode_bundle(packed.index)
    assert (packed.bundle.name, packed.bundle.version) == ("sorter", "1.2.0")
    assert {name: path.read_bytes() for name, path in packed.files.items()} == FILES
    assert {name: (file.sha256, file.length) for name, file in packed.bundle.files.items()} == {
        name: (hashlib.sha256(data).hexdigest(), len(data)) for name, data in FILES.items()
    }
    assert packed.digest == hashlib.sha256(packed.index).hexdigest()


def test_the_same_files_are_the_same_bundle_and_others_another(directory: Path) -> None:
    first = pack(directory)
    assert pack(directory) == first
    (directory / "labels.txt").write_bytes(b"good\nworse\n")
    assert pack(directory).digest != first.digest


def test_a_model_without_a_file_is_refused_with_the_remedy(directory: Path) -> None:
    manifest = MANIFEST.replace('file = "model.tflite", ', "")
    (directory / "handler.toml").write_text(manifest)
    with pytest.raises(HandlerError, match=r"model 'model' has no `file`.*copy the model into"):
        pack(directory)


@pytest.mark.parametrize("name", sorted(FILES.keys() - {"handler.toml"}))
def test_a_missing_file_is_named(directory: Path, name: str) -> None:
    (directory / name).unlink()
    with pytest.raises(HandlerError, match=rf"{name}: cannot be read: No such file"):
        pack(directory)


def test_a_link_out_of_the_directory_is_refused(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "secret"
    elsewhere.write_text("secret")
    (directory / "table.csv").unlink()
    (directory / "table.csv").symlink_to(elsewhere)
    with pytest.raises(HandlerError, match=r"table\.csv: is a link out"):
        pack(directory)


def test_a_file_over_the_strictest_of_its_limits_is_refused(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``labels.txt`` is named twice: as labels and as a file."""
    monkeypatch.setattr(packing, "MAX_LABELS_BYTES", 5)
    with pytest.raises(HandlerError, match=r"labels\.txt: 9 bytes are over the limit of 5"):
        pack(directory)


def test_an_index_over_its_limit_is_refused(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "MAX_BUNDLE_FILES", 4)
    with pytest.raises(HandlerError, match="names 5 files; a bundle has 4"):
        pack(directory)
    monkeypatch.undo()
    monkeypatch.setattr(packing, "MAX_INDEX_BYTES", 100)
    with pytest.raises(HandlerError, match="over the limit of 100 bytes"):
        pack(directory)
