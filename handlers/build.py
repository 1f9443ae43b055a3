"""Build the handlers' WebAssembly modules: `python handlers/build.py [--check] [NAME or DIRECTORY ...]`.

The committed modules are exactly what these toolchains make of the sources on any machine; `--check` builds
into a temporary directory and compares the bytes. A toolchain that is not installed is a skip with a reason.
"""

import argparse
import importlib.metadata
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HANDLERS = Path(__file__).resolve().parent
MODULE = "handler.wasm"
TIMEOUT_SECONDS = 300

ZIG_VERSION = "0.17.1"
RUSTC = Path("/usr/bin/rustc")
"""Debian's, by path: a rustup toolchain that comes first on PATH makes other bytes."""
RUSTC_VERSION = "1.63.0"

C_STACK_BYTES = 16 << 10
RUST_STACK_BYTES = 128 << 10
"""Without a heap, Rust keeps its buffers there."""
MEMORY_BYTES = 16 << 20
"""The memory's declared maximum; the host lowers it to the manifest's."""

C_FLAGS = (
    "-target",
    "wasm32-freestanding",
    # what wasm3 runs, and nothing newer
    "-mcpu=mvp+bulk_memory+sign_ext+nontrapping_fptoint+mutable_globals",
    "-std=c11",
    "-Os",
    "-Wall",
    "-Wextra",
    "-Werror",
    # there is no libc: no loop may turn into a call of strlen
    "-fno-builtin",
    "-nostdlib",
    "-Wl,--no-entry",
    "-Wl,--strip-all",
    f"-Wl,-z,stack-size={C_STACK_BYTES}",
    f"-Wl,--max-memory={MEMORY_BYTES}",
)
RUST_FLAGS = (
    "--edition=2021",
    "--target=wasm32-unknown-unknown",
    "-Copt-level=s",
    "-Cpanic=abort",
    "-Ccodegen-units=1",
    "-Ctarget-feature=+bulk-memory,+sign-ext,+nontrapping-fptoint,+mutable-globals",
    "-Dwarnings",
)
RUST_LINK_FLAGS = (
    "--crate-type=cdylib",
    "-Clto=fat",
    "-Cstrip=symbols",
    f"-Clink-arg=-zstack-size={RUST_STACK_BYTES}",
    f"-Clink-arg=--max-memory={MEMORY_BYTES}",
)


class ToolchainMissingError(Exception):
    """What must be installed to build this handler."""


class BuildError(Exception):
    """The sources do not build; the text is the compiler's."""


def directories() -> list[Path]:
    """The handlers of this repository."""
    return sorted(path.parent for path in HANDLERS.glob("*/handler.toml"))


def build(directory: Path, module: Path) -> None:
    """Compile the handler in ``directory`` (its handler.c or handler.rs) into the file ``module``.

    Raises ToolchainMissingError or BuildError.
    """
    if (directory / "handler.c").is_file():
        _build_c(directory, module)
    elif (directory / "handler.rs").is_file():
        _build_rust(directory, module)
    else:
        raise BuildError(f"{directory}: neither handler.c nor handler.rs is there")


def _build_c(directory: Path, module: Path) -> None:
    try:
        found = importlib.metadata.version("ziglang")
    except importlib.metadata.PackageNotFoundError:
        found = "none"
    if found != ZIG_VERSION:
        raise ToolchainMissingError(f"needs ziglang {ZIG_VERSION}, found {found}: pip install ziglang=={ZIG_VERSION}")
    include = f"-I{HANDLERS / 'sdk' / 'c'}"
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": cache, "ZIG_LOCAL_CACHE_DIR": cache}
        command = [sys.executable, "-m", "ziglang", "cc", *C_FLAGS, include, "-o", str(module), "handler.c"]
        _run(command, directory, environment)


def _build_rust(directory: Path, module: Path) -> None:
    _require_rust()
    sdk = HANDLERS / "sdk" / "rust"
    # compiled from inside their directories, so that no path of this machine gets into the module
    with tempfile.TemporaryDirectory() as work:
        library = Path(work) / "libappliance.rlib"
        common = [str(RUSTC), *RUST_FLAGS]
        _run([*common, "--crate-name=appliance", "--crate-type=rlib", "-o", str(library), "src/lib.rs"], sdk)
        link = [*RUST_LINK_FLAGS, "--crate-name=handler", f"--extern=appliance={library}"]
        _run([*common, *link, "-o", str(module), "handler.rs"], directory)


def _require_rust() -> None:
    remedy = f"needs rustc {RUSTC_VERSION}: apt-get install rustc libstd-rust-dev-wasm32 lld-14 (Debian 12)"
    if not RUSTC.is_file():
        raise ToolchainMissingError(f"{remedy}; {RUSTC} is not there")
    version = _run([str(RUSTC), "--version"], HANDLERS).split()[1]
    if version != RUSTC_VERSION:
        raise ToolchainMissingError(f"{remedy}; {RUSTC} is {version}")
    target = _run([str(RUSTC), "--print=target-libdir", RUST_FLAGS[1]], HANDLERS).strip()
    if not Path(target).is_dir() or not Path("/usr/bin/lld-14").exists():
        raise ToolchainMissingError(f"{remedy}; its wasm32 library or its linker is not there")


def _run(command: list[str], directory: Path, environment: dict[str, str] | None = None) -> str:
    try:
        done = subprocess.run(
            command, cwd=directory, env=environment, capture_output=True, text=True, check=True, timeout=TIMEOUT_SECONDS
        )
    except subprocess.CalledProcessError as error:
        raise BuildError(f"{directory}: {' '.join(command)}\n{error.stdout}{error.stderr}") from error
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"{directory}: the compiler was still running after {TIMEOUT_SECONDS} s") from error
    return done.stdout


def _update(directory: Path, *, check: bool) -> bool:
    """Build one handler and say what came of it; False where it failed or differs."""
    with tempfile.TemporaryDirectory() as work:
        fresh = Path(work) / MODULE
        try:
            build(directory, fresh)
        except ToolchainMissingError as reason:
            print(f"{directory.name}: skipped: {reason}")
            return True
        except BuildError as error:
            print(f"{directory.name}: failed\n{error}", file=sys.stderr)
            return False
        made = fresh.read_bytes()
    module = directory / MODULE
    same = module.is_file() and module.read_bytes() == made
    if check:
        print(f"{directory.name}: {'same' if same else f'differs from {MODULE}; run handlers/build.py'}")
        return same
    if not same:
        _replace(module, made)
    print(f"{directory.name}: {len(made)} bytes{', unchanged' if same else ''}")
    return True


def _replace(path: Path, data: bytes) -> None:
    """Write by rename, so that a running appliance never reads half a module."""
    fresh = path.with_suffix(".new")
    fresh.write_bytes(data)
    fresh.replace(path)


def _directory(name: str) -> Path:
    path = Path(name)
    return path.resolve() if (path / "handler.toml").is_file() else HANDLERS / name


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="Build the handlers' WebAssembly modules.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a committed module differs")
    parser.add_argument("handler", nargs="*", help="name of a handler here, or a directory; all when left out")
    arguments = parser.parse_args()
    chosen = [_directory(name) for name in arguments.handler] or directories()
    unknown = [path for path in chosen if not (path / "handler.toml").is_file()]
    if unknown:
        parser.error(f"no handler.toml in {', '.join(map(str, unknown))}")
    results = [_update(path, check=arguments.check) for path in chosen]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
