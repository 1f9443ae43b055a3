"""Guests of the directory guests/, compiled as their authors would, and kept until source or compiler change."""

import functools
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

GUESTS = Path(__file__).parent / "guests"
CACHE = Path(__file__).parents[3] / ".pytest_cache" / "guests"
TIMEOUT = 300.0
"""Seconds: the first guest in C waits for the C library to be built."""

RUSTC = Path("/usr/bin/rustc")
RUSTC_VERSION = "1.63."
"""Debian 12's: what later ones make by default is too new for wasm3."""
FEATURES = "-mcpu=mvp+bulk_memory+sign_ext+nontrapping_fptoint+mutable_globals"
MAX_MEMORY = "--max-memory=16777216"
C_LINK_FLAGS = ("-Wl,--strip-all", "-Wl,-z,stack-size=65536", f"-Wl,{MAX_MEMORY}")
"""Zig's own choice is a stack of 16 MiB."""


@functools.cache
def c_program(name: str) -> bytes:
    """A program with wasi-libc."""
    return _zig(name, ("-target", "wasm32-wasi", "-Os"))


@functools.cache
def c_library(name: str, *, libc: bool) -> bytes:
    """A module that is called; with a C library it exports ``_initialize``."""
    target = ("-target", "wasm32-wasi", "-mexec-model=reactor") if libc else ("-target", "wasm32-freestanding")
    more = () if libc else ("-nostdlib", "-fno-builtin", "-Wl,--no-entry")
    return _zig(name, (*target, "-Os", *more))


@functools.cache
def rust_program(name: str) -> bytes:
    return _rust(name, "wasm32-wasi", ())


@functools.cache
def rust_library(name: str) -> bytes:
    return _rust(name, "wasm32-unknown-unknown", ("--crate-type=cdylib", "-Clink-arg=-zstack-size=65536"))


@functools.cache
def go_program(name: str) -> bytes:
    go = shutil.which("go")
    if go is None or "wasip1/wasm" not in _output([go, "tool", "dist", "list"]):
        pytest.skip("needs Go 1.21: https://go.dev/dl")
    version = _output([go, "version"])
    environment = {"GOOS": "wasip1", "GOARCH": "wasm", "GOFLAGS": "-mod=mod", "GOCACHE": str(CACHE / "go")}
    return _built(f"{name}.go", version, [go, "build", "-trimpath", "-ldflags=-s -w"], environment)


def _zig(name: str, flags: Sequence[str]) -> bytes:
    try:
        version = importlib.metadata.version("ziglang")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("needs a C compiler: pip install ziglang")
    command = [sys.executable, "-m", "ziglang", "cc", FEATURES, *flags, *C_LINK_FLAGS]
    cache = str(CACHE / "zig")
    return _built(f"{name}.c", version, command, {"ZIG_GLOBAL_CACHE_DIR": cache, "ZIG_LOCAL_CACHE_DIR": cache})


def _rust(name: str, target: str, flags: Sequence[str]) -> bytes:
    remedy = f"needs rustc {RUSTC_VERSION}* with {target}: apt-get install rustc libstd-rust-dev-wasm32 (Debian 12)"
    if not RUSTC.is_file() or f" {RUSTC_VERSION}" not in _output([str(RUSTC), "--version"]):
        pytest.skip(remedy)
    if not Path(_output([str(RUSTC), "--print=target-libdir", f"--target={target}"])).is_dir():
        pytest.skip(remedy)
    common = ["--edition=2021", f"--target={target}", "-Copt-level=s", "-Cpanic=abort", "-Cstrip=symbols"]
    command = [str(RUSTC), *common, f"-Clink-arg={MAX_MEMORY}", *flags]
    return _built(f"{name}.rs", _output([str(RUSTC), "--version"]), command, {})


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT).stdout.strip()


def _built(source: str, version: str, command: list[str], environment: dict[str, str]) -> bytes:
    text = (GUESTS / source).read_bytes()
    words = [version, source, *command[1:]]
    module = CACHE / f"{hashlib.sha256(repr(words).encode() + text).hexdigest()}.wasm"
    if not module.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        fresh = module.with_suffix(f".{os.getpid()}")
        done = subprocess.run(
            [*command, "-o", str(fresh), source],
            cwd=GUESTS, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=TIMEOUT,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        fresh.replace(module)
    return module.read_bytes()
