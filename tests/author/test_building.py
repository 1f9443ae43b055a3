"""Compilers that are not there, sources that do not build, and modules that came ready made."""

import importlib.metadata
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from appliance.author import compilers
from appliance.author.beginning import begin
from appliance.author.building import build, compile_handler, source_of
from appliance.author.compilers import BuildError, ToolchainMissingError, compile_rust, find_rustc, sdk_of


@pytest.fixture
def handler(tmp_path: Path) -> Path:
    begin("brightness", "c", tmp_path / "new")
    return tmp_path / "new"


def test_a_source_that_does_not_compile_says_why_and_keeps_the_module(handler: Path) -> None:
    (handler / "handler.wasm").write_bytes(b"before")
    (handler / "handler.c").write_text("int nothing(void) { return missing; }\n")
    with pytest.raises(BuildError, match="missing"):
        build(handler, "handler.wasm")
    assert (handler / "handler.wasm").read_bytes() == b"before"
    assert not (handler / "handler.new").exists()


def test_warnings_are_told_and_no_error(handler: Path) -> None:
    with (handler / "handler.c").open("a") as source:
        source.write("static int never_used;\n")
    assert "never_used" in build(handler, "handler.wasm").warnings


def test_the_same_source_again_changes_nothing(handler: Path) -> None:
    first = build(handler, "other.wasm")
    again = build(handler, "other.wasm")
    assert (first.changed, again.changed) == (True, False)
    assert first.size == again.size == (handler / "other.wasm").stat().st_size


def test_the_handlers_own_copy_of_the_sdk_is_what_is_compiled(handler: Path) -> None:
    assert sdk_of(handler, "c") == handler / "sdk"
    (handler / "sdk" / "appliance.h").write_text("#error mine\n")
    with pytest.raises(BuildError, match="mine"):
        build(handler, "handler.wasm")
    assert sdk_of(handler.parent, "c") == compilers.SDK / "c"


def test_a_module_that_came_ready_made_has_no_source(tmp_path: Path) -> None:
    (tmp_path / "handler.wasm").write_bytes(b"\0asm")
    assert source_of(tmp_path) is None
    with pytest.raises(BuildError, match=r"none of handler\.c, handler\.rs, handler\.ts is there"):
        compile_handler(tmp_path, tmp_path / "made.wasm")


def test_without_ziglang_the_extra_is_named(handler: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(ToolchainMissingError, match=r"found none: pip install ziglang=="):
        build(handler, "handler.wasm")


def test_without_rust_what_to_install_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilers, "DEBIAN_RUSTC", tmp_path / "rustc")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        ToolchainMissingError, match=r"rustup target add wasm32-unknown-unknown, or on Debian 12 .* lld-14$"
    ):
        compile_rust(tmp_path, tmp_path / "made.wasm")


def test_a_rustc_without_the_target_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rustc(directory: Path, libraries: Path) -> Path:
        directory.mkdir()
        (directory / "rustc").write_text(f"#!/bin/sh\necho {libraries}\n")
        (directory / "rustc").chmod(0o755)
        return directory / "rustc"

    on_path = rustc(tmp_path / "path", tmp_path / "absent")
    debian = rustc(tmp_path / "debian", tmp_path)
    monkeypatch.setattr(compilers, "DEBIAN_RUSTC", debian)
    monkeypatch.setenv("PATH", str(on_path.parent))
    assert find_rustc() == debian
    on_path.write_text(f"#!/bin/sh\necho {tmp_path}\n")
    assert find_rustc() == on_path


def with_another_crate(directory: Path) -> Path:
    """A new handler in Rust that needs a crate beside the SDK."""
    begin("brightness", "rust", directory)
    (directory / "half" / "src").mkdir(parents=True)
    (directory / "half" / "Cargo.toml").write_text('[package]\nname = "half"\nversion = "1.0.0"\nedition = "2021"\n')
    (directory / "half" / "src" / "lib.rs").write_text(
        "#![no_std]\npub fn of(value: f64) -> f64 {\n    value / 2.0\n}\n"
    )
    manifest = directory / "Cargo.toml"
    manifest.write_text(
        manifest.read_text("utf-8").replace("[dependencies]\n", '[dependencies]\nhalf = { path = "half" }\n')
    )
    source = directory / "handler.rs"
    source.write_text(source.read_text("utf-8").replace("brightness < dark()?", "half::of(brightness) < dark()?"))
    return directory


def test_other_crates_are_built_by_cargo(tmp_path: Path) -> None:
    directory = with_another_crate(tmp_path / "new")
    cargo = shutil.which("cargo")
    if cargo is None:
        pytest.skip("needs cargo")
    rustc = subprocess.run(
        [cargo, "rustc", "-q", "--target=wasm32-unknown-unknown", "--", "--print=target-libdir"],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )
    if rustc.returncode or not Path(rustc.stdout.strip()).is_dir():
        pytest.skip("needs cargo with the target wasm32-unknown-unknown")
    assert build(directory, "handler.wasm").size > 1000


def test_a_module_is_where_cargo_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a cargo that is played."""
    directory = with_another_crate(tmp_path / "new")
    (tmp_path / "made.wasm").write_bytes(b"\0asm made")
    (tmp_path / "bin").mkdir()
    cargo = tmp_path / "bin" / "cargo"
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(ToolchainMissingError, match="apt-get install cargo"):
        build(directory, "handler.wasm")
    said = json.dumps({"reason": "compiler-artifact", "filenames": [str(tmp_path / "made.wasm")]})
    cargo.write_text(f"#!/bin/sh\necho '{said}'\necho warning: mind >&2\n")
    cargo.chmod(0o755)
    assert build(directory, "handler.wasm").warnings == "warning: mind"
    assert (directory / "handler.wasm").read_bytes() == b"\0asm made"
    cargo.write_text("#!/bin/sh\necho '{}'\n")
    with pytest.raises(BuildError, match="makes no module"):
        build(directory, "handler.wasm")
    (directory / "Cargo.toml").write_text("[")
    with pytest.raises(BuildError, match=r"Cargo\.toml: "):
        build(directory, "handler.wasm")


def test_without_node_or_its_compiler_what_to_install_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin("brightness", "assemblyscript", tmp_path / "new")
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(ToolchainMissingError, match=r"needs Node\.js"):
        build(tmp_path / "new", "handler.wasm")
    (tmp_path / "bin" / "node").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "node").chmod(0o755)
    with pytest.raises(ToolchainMissingError, match=r"npm install --prefix .*new"):
        build(tmp_path / "new", "handler.wasm")


def test_a_compiler_that_never_ends_is_stopped(handler: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilers, "TIMEOUT_SECONDS", 0.001)
    with pytest.raises(BuildError, match="still running after"):
        build(handler, "handler.wasm")
