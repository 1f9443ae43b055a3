"""The committed modules are what the sources make, wherever they are built."""

import configparser
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from guest_host import HANDLERS

from appliance.author import compilers


def compile_in(build: ModuleType, directory: Path, module: Path) -> bytes:
    try:
        build.build(directory, module)
    except build.ToolchainMissingError as reason:
        pytest.skip(str(reason))
    return module.read_bytes()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(HANDLERS / "build.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture
def copied(tmp_path: Path, build: ModuleType) -> Path:
    """A copy of the motion handler in another directory, where its toolchain is there."""
    compile_in(build, HANDLERS / "motion", tmp_path / "probe.wasm")
    return Path(shutil.copytree(HANDLERS / "motion", tmp_path / "elsewhere"))


@pytest.mark.slow
def test_the_committed_module_is_what_the_source_makes(build: ModuleType, handler: Path, tmp_path: Path) -> None:
    """Built from a copy, so that a path of this machine in the module would show."""
    copy = shutil.copytree(handler, tmp_path / "copy")
    made = compile_in(build, copy, tmp_path / "made.wasm")
    assert made == (handler / "handler.wasm").read_bytes(), "run `python handlers/build.py` and commit the module"


def test_the_toolchain_is_the_one_that_is_installed_for_authors_and_development() -> None:
    setup = configparser.ConfigParser()
    setup.read(HANDLERS.parent / "setup.cfg")
    for extra in ("author", "dev"):
        assert f"ziglang =={compilers.ZIG_VERSION}" in setup["options.extras_require"][extra].splitlines()


def test_check_tells_a_module_that_differs_and_leaves_it(copied: Path) -> None:
    module = copied / "handler.wasm"
    module.write_bytes(module.read_bytes() + b"\0")
    altered = module.read_bytes()
    done = run("--check", str(copied))
    assert (done.returncode, module.read_bytes()) == (1, altered)
    assert "differs" in done.stdout


def test_build_writes_the_module(copied: Path) -> None:
    module = copied / "handler.wasm"
    committed = module.read_bytes()
    module.unlink()
    assert run(str(copied)).returncode == 0
    assert module.read_bytes() == committed
    assert run("--check", str(copied)).returncode == 0


def test_a_source_that_does_not_compile_says_why_and_keeps_the_module(copied: Path) -> None:
    committed = (copied / "handler.wasm").read_bytes()
    (copied / "handler.c").write_text('#include "appliance.h"\nint32_t handle(void) { return nothing; }\n')
    done = run(str(copied))
    assert done.returncode == 1
    assert "nothing" in done.stderr
    assert (copied / "handler.wasm").read_bytes() == committed


def test_a_warning_is_an_error_here(copied: Path) -> None:
    with (copied / "handler.c").open("a") as source:
        source.write("static int never_used;\n")
    done = run(str(copied))
    assert done.returncode == 1
    assert "builds with warnings" in done.stderr
    assert "never_used" in done.stderr


def test_an_unknown_handler_is_named(build: ModuleType) -> None:
    done = run("no-such-handler")
    assert done.returncode == 2
    assert "no-such-handler" in done.stderr


def test_a_handler_without_a_source_is_an_error(build: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(build.BuildError, match=r"none of handler\.c, handler\.rs, handler\.ts is there"):
        build.build(tmp_path, tmp_path / "made.wasm")


def test_a_missing_toolchain_names_what_to_install(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(compilers, "ZIG_VERSION", "0.0.0")
    monkeypatch.setattr(compilers, "DEBIAN_RUSTC", tmp_path / "rustc")
    with pytest.raises(build.ToolchainMissingError, match=r"pip install ziglang==0\.0\.0"):
        build.build(HANDLERS / "parts", tmp_path / "made.wasm")
    with pytest.raises(build.ToolchainMissingError, match="apt-get install rustc"):
        build.build(HANDLERS / "count", tmp_path / "made.wasm")
