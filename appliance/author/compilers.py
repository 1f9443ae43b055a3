"""The compilers of handlers: C by ziglang, Rust by rustc, AssemblyScript by asc. Each takes a directory's source.

They are started inside the directory, so that no path of this machine gets into the module.
"""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from appliance.errors import DeviceError, HandlerError

SDK = Path(__file__).with_name("sdk")
"""One directory for each language. A new handler gets a copy of its own, as ``sdk``."""
TIMEOUT_SECONDS = 300

ZIG_VERSION = "0.17.1"
"""Whatever the machine, this one makes the same bytes of the same source."""
DEBIAN_RUSTC = Path("/usr/bin/rustc")
DEBIAN_RUSTC_VERSION = "1.63.0"
"""Debian 12's, with which the modules of the repository are made: another Rust makes other bytes."""
RUST_TARGET = "wasm32-unknown-unknown"
ASC = Path("node_modules", "assemblyscript", "bin", "asc.js")

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
    f"--target={RUST_TARGET}",
    "-Copt-level=s",
    "-Cpanic=abort",
    "-Ccodegen-units=1",
    "-Ctarget-feature=+bulk-memory,+sign-ext,+nontrapping-fptoint,+mutable-globals",
)
_RUST_MEMORY = (f"-Clink-arg=-zstack-size={RUST_STACK_BYTES}", f"-Clink-arg=--max-memory={MEMORY_BYTES}")
RUST_LINK_FLAGS = (
    "--crate-type=cdylib",
    "-Clto=fat",
    "-Cstrip=symbols",
    *_RUST_MEMORY,
)
CARGO_RUST_FLAGS = (RUST_FLAGS[-1], *_RUST_MEMORY)
"""The others are in its Cargo.toml."""
NEWER_RUST_FLAGS = ("-Ctarget-cpu=mvp",)
"""Debian's has this target by default, later ones have features that no module may use here."""
_OWN_WARNING = "unknown feature specified for `-Ctarget-feature`"
_WARNINGS_COUNTED = re.compile(r"(?:warning: \d+ warnings? emitted)?")


class ToolchainMissingError(DeviceError):
    """What must be installed to build this handler."""


class BuildError(HandlerError):
    """The sources do not build; the text is the compiler's."""


def compile_c(directory: Path, module: Path) -> str:
    """Compile handler.c into the file ``module``; the compiler's warnings."""
    try:
        found = importlib.metadata.version("ziglang")
    except importlib.metadata.PackageNotFoundError:
        found = "none"
    if found != ZIG_VERSION:
        raise ToolchainMissingError(
            f"building C needs ziglang {ZIG_VERSION}, found {found}: pip install ziglang=={ZIG_VERSION}"
        )
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": cache, "ZIG_LOCAL_CACHE_DIR": cache}
        command = [sys.executable, "-m", "ziglang", "cc", *C_FLAGS, f"-I{sdk_of(directory, 'c')}"]
        return _run([*command, "-o", str(module), "handler.c"], directory, environment).stderr


def compile_rust(directory: Path, module: Path, rustc: Path | None = None) -> str:
    """Compile handler.rs into the file ``module``, by ``rustc`` or the one that is found; the compiler's warnings.

    Where its Cargo.toml names other crates than the SDK, by cargo.
    """
    if rustc is None and _crates(directory) - {"appliance"}:
        return _compile_by_cargo(directory, module)
    rustc = rustc or find_rustc()
    debian = _version(rustc) == DEBIAN_RUSTC_VERSION
    common = [str(rustc), *RUST_FLAGS, *(() if debian else NEWER_RUST_FLAGS)]
    with tempfile.TemporaryDirectory() as work:
        library = Path(work) / "libappliance.rlib"
        crate = ["--crate-name=appliance", "--crate-type=rlib", "-o", str(library), "src/lib.rs"]
        warnings = _run([*common, *crate], sdk_of(directory, "rust")).stderr
        link = [*RUST_LINK_FLAGS, "--crate-name=handler", f"--extern=appliance={library}"]
        return _heeded(warnings + _run([*common, *link, "-o", str(module), "handler.rs"], directory).stderr)


def _crates(directory: Path) -> set[str]:
    """What Cargo.toml says the handler depends on; BuildError where it is none."""
    path = directory / "Cargo.toml"
    try:
        return set(tomllib.loads(path.read_text("utf-8")).get("dependencies", {}))
    except FileNotFoundError:
        return set()
    except (OSError, ValueError) as error:
        raise BuildError(f"{path}: {error}") from error


def _compile_by_cargo(directory: Path, module: Path) -> str:
    cargo = shutil.which("cargo")
    if cargo is None:
        raise ToolchainMissingError(
            f"{directory / 'Cargo.toml'} names other crates, and building those needs cargo: https://rustup.rs, or "
            "apt-get install cargo"
        )
    command = [cargo, "build", "--release", f"--target={RUST_TARGET}", "--message-format=json-render-diagnostics"]
    done = _run(command, directory, {**os.environ, "RUSTFLAGS": " ".join((*NEWER_RUST_FLAGS, *CARGO_RUST_FLAGS))})
    made = [
        Path(name)
        for line in done.stdout.splitlines()
        if line.startswith("{")
        for name in json.loads(line).get("filenames", ())
        if name.endswith(".wasm")
    ]
    if not made:
        raise BuildError(f"{directory / 'Cargo.toml'}: makes no module; it needs crate-type = ['cdylib'] in [lib]")
    shutil.copyfile(made[-1], module)
    return done.stderr if "warning" in done.stderr else ""


def _heeded(warnings: str) -> str:
    """Without those about our own flags: rustc passes on features that it has no name for, and says so."""
    parts = [part for part in warnings.split("\n\n") if _OWN_WARNING not in part]
    only_counts = all(_WARNINGS_COUNTED.fullmatch(part.strip()) for part in parts)
    return "" if only_counts else "\n\n".join(parts)


def compile_assemblyscript(directory: Path, module: Path) -> str:
    """Compile handler.ts into the file ``module`` as asconfig.json says; the compiler's warnings."""
    node = shutil.which("node")
    if node is None:
        raise ToolchainMissingError("building AssemblyScript needs Node.js 20 or later: https://nodejs.org, or apt-get")
    home = directory.resolve()
    asc = next((place / ASC for place in (home, *home.parents) if (place / ASC).is_file()), None)
    if asc is None:
        raise ToolchainMissingError(f"building AssemblyScript needs its compiler: npm install --prefix {directory}")
    command = [node, str(asc), "handler.ts", "--config", "asconfig.json", "--noColors", "--outFile", str(module)]
    return _run(command, directory).stderr


def sdk_of(directory: Path, language: str) -> Path:
    """The handler's own copy of the SDK, where it has one."""
    own = directory / "sdk"
    return (own if own.is_dir() else SDK / language).resolve()


def find_rustc() -> Path:
    """A Rust compiler that has what WebAssembly needs; ToolchainMissingError says what to install."""
    on_path = shutil.which("rustc")
    for rustc in (Path(on_path or DEBIAN_RUSTC), DEBIAN_RUSTC):
        if rustc.is_file() and _has_target(rustc):
            return rustc
    raise ToolchainMissingError(
        f"building Rust needs rustc with its target {RUST_TARGET}: rustup target add {RUST_TARGET}, "
        "or on Debian 12 apt-get install rustc libstd-rust-dev-wasm32 lld-14"
    )


def debian_rustc() -> Path:
    """The one that makes the repository's bytes; ToolchainMissingError where it is not here."""
    remedy = f"needs rustc {DEBIAN_RUSTC_VERSION}: apt-get install rustc libstd-rust-dev-wasm32 lld-14 (Debian 12)"
    if not DEBIAN_RUSTC.is_file():
        raise ToolchainMissingError(f"{remedy}; {DEBIAN_RUSTC} is not there")
    version = _version(DEBIAN_RUSTC)
    if version != DEBIAN_RUSTC_VERSION:
        raise ToolchainMissingError(f"{remedy}; {DEBIAN_RUSTC} is {version}")
    if not _has_target(DEBIAN_RUSTC) or not Path("/usr/bin/lld-14").exists():
        raise ToolchainMissingError(f"{remedy}; its wasm32 library or its linker is not there")
    return DEBIAN_RUSTC


def _version(rustc: Path) -> str:
    return _run([str(rustc), "--version"], SDK).stdout.split()[1]


def _has_target(rustc: Path) -> bool:
    found = _run([str(rustc), "--print=target-libdir", f"--target={RUST_TARGET}"], SDK).stdout.strip()
    return Path(found).is_dir()


def _run(
    command: list[str], directory: Path, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, cwd=directory, env=environment, capture_output=True, text=True, check=True, timeout=TIMEOUT_SECONDS
        )
    except subprocess.CalledProcessError as error:
        raise BuildError(f"{directory}: {' '.join(command)}\n{error.stdout}{error.stderr}") from error
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"{directory}: the compiler was still running after {TIMEOUT_SECONDS} s") from error
