"""docs/programs.md: its manifests load, its program compiles and runs, its figures are the code's."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from guest_builds import CACHE, c_program
from local_host import LocalHost

from appliance.manifest import Manifest, load_manifest
from appliance.sandbox.abi import ABIS
from appliance.sandbox.abi.bindgen import MAX_RESULTS, WORN
from appliance.sandbox.abi.signatures import WASI
from appliance.sandbox.abi.wasi_files import MAX_DESCRIPTORS, MAX_PATH_BYTES
from appliance.sandbox.abi.wasi_snapshot_preview1 import MAX_IOVECS, MAX_SUBSCRIPTIONS, MAX_TRANSFER_BYTES
from appliance.sandbox.messages import MAX_EMIT_BYTES, CommandSpec

PAGE = (Path(__file__).parents[3] / "docs" / "programs.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    return [text for name, text in BLOCKS if name == language]


def manifests(directory: Path) -> dict[str, Manifest]:
    found = {}
    for text in blocks("toml"):
        (directory / "handler.toml").write_text(text)
        manifest = load_manifest(directory)
        found[manifest.abi] = manifest
    return found


def test_every_abi_has_a_row_and_the_foreign_ones_a_manifest(tmp_path: Path) -> None:
    assert set(re.findall(r"^\| `(\w+)` \| ", PAGE, re.MULTILINE)) >= set(ABIS)
    assert manifests(tmp_path).keys() == ABIS.keys() - {"native"}


def test_the_program_compiles_and_says_what_it_sees(tmp_path: Path) -> None:
    c_program("empty")  # skips without a compiler, and builds the C library
    (source,), (line,) = blocks("c"), blocks("sh")
    python, *words = shlex.split(line)
    assert python == "python"
    (tmp_path / "size.c").write_text(source)
    cache = str(CACHE / "zig")
    environment = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": cache, "ZIG_LOCAL_CACHE_DIR": cache}
    subprocess.run([sys.executable, *words], cwd=tmp_path, env=environment, check=True, timeout=300)
    use = manifests(tmp_path)["command"].command
    assert use is not None
    host = LocalHost((tmp_path / "handler.wasm").read_bytes(), command=CommandSpec(list(use.arguments), use.frame))
    host.pixels = bytes(12)
    host.abi.start()
    (emit,) = host.handle(b"a jpeg", width=2, height=2)
    assert emit.payload == b'{"camera": "door", "bytes": 70}'


@pytest.mark.parametrize(
    "figure",
    [
        f"at most {MAX_RESULTS} of them",
        f"up to {MAX_TRANSFER_BYTES >> 20} MiB a call",
        f"more than {MAX_EMIT_BYTES >> 20} MiB of it",
        f"at most {MAX_DESCRIPTORS} descriptors",
        f"{MAX_IOVECS} buffers a call",
        f"{MAX_PATH_BYTES} bytes of a path",
        f"up to {MAX_SUBSCRIPTIONS} subscriptions",
    ],
)
def test_the_figures_are_the_codes(figure: str) -> None:
    assert figure in PAGE.replace("\n", " ")


def test_half_of_the_memory_is_half() -> None:
    assert WORN == 0.5


def test_the_functions_on_the_page_exist() -> None:
    named = re.findall(r"`((?:fd|path|clock|poll|random|args|environ|sched|proc|sock)_[a-z_]*\*?)`", PAGE)
    assert named
    for name in named:
        assert any(each == name or (name.endswith("*") and each.startswith(name[:-1])) for each in WASI), name
