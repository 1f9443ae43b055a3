"""Imports only point down, and each process imports only what it needs."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "appliance"
MAX_LINES = 450
MAX_MAIN_LINES = 5

LAYERS = (
    {"__main__"},
    {"cli"},
    {"console", "doctor"},
    {"app"},
    {"membership"},
    {"deployer", "discovery", "telling", "remote"},
    {
        "rollout",
        "reload",
        "snapshot",
        "log_feed",
        "health",
        "summary",
        "source_process",
        "serving",
        "replay",
        "standing",
        "author",
    },
    {"faults"},
    {"zipper", "client", "source", "publisher", "control", "fleet", "offline"},
    {"camera", "transport", "sandbox", "inference", "mqtt", "deploy"},
    {"manifest", "source_settings"},
    {"config", "wire", "ipc", "device"},
    {"cbor", "frame", "errors", "backoff", "stats", "text", "threads"},
)
"""Top to bottom. A unit (a module or a package beside this file's ``PACKAGE``) imports from lower layers only."""

BESIDE = {"sandbox": {"appliance.inference.messages", "appliance.inference.model"}}
"""What a unit may import of its own layer: the sandbox knows how inference is asked, not how it works."""

ON_SCREEN = {"click": {"cli"}, "rich": {"console"}}
"""Libraries that draw -> the only units that may import them."""

# fmt: off
NO_IO = [
    "cbor", "frame", "errors", "backoff", "stats", "text", "wire", "manifest", "health", "telling",
    "zipper.router", "zipper.core", "zipper.conversation", "zipper.access", "transport.flow",
    "mqtt.outbox", "mqtt.retained", "mqtt.topics", "mqtt.result", "mqtt.statistics", "mqtt.requests",
    "mqtt.homeassistant", "mqtt.ledger",
    "camera.watch", "camera.pacing",
    "sandbox.session", "sandbox.restarts", "sandbox.emits", "sandbox.budget", "sandbox.quarantine",
    "sandbox.failure", "sandbox.capsule",
    "sandbox.abi.wasi_types", "sandbox.abi.wasi_files", "sandbox.abi.wasi_poll", "sandbox.abi.pictures",
    "sandbox.abi.signatures", "sandbox.abi.tensors", "sandbox.abi.wasi_ephemeral_nn", "sandbox.abi.wasi_nn",
    "sandbox.abi.wasmedge_image", "sandbox.abi.wasmedge_tensorflow", "sandbox.abi.wasmedge_tensorflowlite",
    "sandbox.admission.binary", "sandbox.admission.bodies", "sandbox.admission.code", "sandbox.admission.growing",
    "sandbox.admission.layout", "sandbox.admission.limits", "sandbox.admission.metering", "sandbox.admission.rewrite",
    "sandbox.admission.rules", "sandbox.admission.verdict",
    "deploy.asking", "deploy.bundle", "deploy.chunks", "deploy.desired", "deploy.events", "deploy.fleet_topics",
    "deploy.floor", "deploy.machine", "deploy.metadata", "deploy.record", "deploy.report", "deploy.resent",
    "deploy.versions", "deploy.watch",
    "fleet.assignments", "fleet.history", "fleet.log_lines", "fleet.publication", "fleet.watching",
    "author.outcome", "author.tally", "author.telling", "author.drawing",
    "inference.memo", "inference.messages", "inference.first_model",
    "ipc.report", "ipc.calls",
]
# fmt: on
"""Modules of pure logic: bytes, events and times in, values out."""
IO = {"asyncio", "socket", "threading", "subprocess", "sqlite3", "select", "signal", "selectors", "ssl"}


@dataclass(frozen=True)
class Import:
    target: str
    """A module of ours in full, or another top-level package."""
    at_import_time: bool
    """Not within a function, nor for types alone."""


def name_of(path: Path) -> str:
    parts = ("appliance", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in PACKAGE.rglob("*.py")}


def unit_of(module: str) -> str:
    """``appliance.zipper.core`` -> ``zipper``."""
    return module.split(".")[1] if "." in module else "appliance"


def imports_of(path: Path) -> set[Import]:
    return set(_imports(ast.parse(path.read_text("utf-8")), at_import_time=True))


def _imports(node: ast.AST, *, at_import_time: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(_target(alias.name), at_import_time)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            for alias in child.names:
                full = f"{child.module}.{alias.name}"
                yield Import(_target(full if full in MODULES else str(child.module)), at_import_time)
        later = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or _for_types_alone(child)
        yield from _imports(child, at_import_time=at_import_time and not later)


def _for_types_alone(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _target(name: str) -> str:
    package, _, _ = name.partition(".")
    return name if package == "appliance" else package


IMPORTS = {module: imports_of(path) for module, path in MODULES.items()}


def ours(module: str) -> set[str]:
    return {item.target for item in IMPORTS[module] if item.target.startswith("appliance.")}


def test_every_form_of_import_is_seen() -> None:
    text = """
import asyncio, appliance.zipper.core
from appliance import wire
from appliance.frame import Frame
if TYPE_CHECKING:
    import numpy.typing
async def later():
    from rich.table import Table
"""
    assert set(_imports(ast.parse(text), at_import_time=True)) == {
        Import("asyncio", at_import_time=True),
        Import("appliance.zipper.core", at_import_time=True),
        Import("appliance.wire", at_import_time=True),
        Import("appliance.frame", at_import_time=True),
        Import("numpy", at_import_time=False),
        Import("rich", at_import_time=False),
    }


def test_every_unit_has_one_layer() -> None:
    units = {unit_of(module) for module in MODULES} - {"appliance"}
    listed = [unit for layer in LAYERS for unit in layer]
    assert sorted(units) == sorted(listed)


def test_the_page_shows_the_same_layers() -> None:
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text("utf-8")
    table = page.partition("## Layers")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (?!layer)\w+ \| (.*?) \|$", table, re.MULTILINE)
    shown = [set(re.findall(r"`(\w+)/?`", part)) for row in rows for part in row.partition(":")[0].split(", then ")]
    assert shown == list(LAYERS)


def rank(unit: str) -> int:
    return next(number for number, layer in enumerate(LAYERS) if unit in layer)


@pytest.mark.parametrize("module", sorted(MODULES.keys() - {"appliance"}))
def test_imports_point_down(module: str) -> None:
    unit = unit_of(module)
    wrong = {
        target
        for target in ours(module)
        if unit_of(target) != unit and rank(unit_of(target)) <= rank(unit) and target not in BESIDE.get(unit, ())
    }
    assert not wrong


def test_what_a_layer_may_import_beside_it_is_used() -> None:
    for unit, allowed in BESIDE.items():
        used = {target for module in MODULES if unit_of(module) == unit for target in ours(module)}
        assert allowed <= used, "the exception is not needed any more"


def test_there_are_no_import_cycles() -> None:
    graph = {
        module: {item.target for item in items if item.at_import_time and item.target in MODULES} - {module}
        for module, items in IMPORTS.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


def test_only_what_draws_imports_what_draws() -> None:
    for library, units in ON_SCREEN.items():
        users = {unit_of(module) for module in MODULES if any(item.target == library for item in IMPORTS[module])}
        assert users == units


@pytest.mark.parametrize("module", NO_IO)
def test_pure_logic_does_no_io(module: str) -> None:
    assert not {item.target for item in IMPORTS[f"appliance.{module}"]} & IO


HEAVY = {"numpy", "av", "PIL", "simplejpeg", "ai_edge_litert", "tflite_runtime", "picamera2"}


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("appliance.cli.commands", HEAVY | {"rich", "aioquic", "aiomqtt", "sqlite3"}),
        ("appliance.app", HEAVY | {"tuf", "securesystemslib", "wasm3", "wasmtime", "click", "rich"}),
        ("appliance.client", HEAVY | {"wasm3", "wasmtime", "aiomqtt", "sqlite3", "click", "rich"}),
        ("appliance.sandbox.admission.admit", HEAVY | {"wasm3", "wasmtime", "click", "rich"}),
        ("appliance.sandbox.admission.child", HEAVY | {"asyncio", "aioquic", "aiomqtt", "sqlite3", "click", "rich"}),
        ("appliance.sandbox.zygote", HEAVY | {"asyncio", "ssl", "aioquic", "aiomqtt", "sqlite3", "cryptography"}),
        ("appliance.inference.service", {"asyncio", "aioquic", "aiomqtt", "wasm3", "ai_edge_litert", "tflite_runtime"}),
    ],
)
def test_a_process_imports_only_what_it_needs(module: str, absent: set[str]) -> None:
    """As it really is, imports of imports included: this is the memory and the attack surface of each process."""
    script = f"import {module}, sys; print(*sys.modules)"
    plain = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}  # it imports, too
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60, env=plain)
    loaded = {name.split(".")[0] for name in result.stdout.split()}
    assert "appliance" in loaded
    assert loaded & absent == set()


def test_modules_are_short() -> None:
    lengths = {name: len(path.read_text("utf-8").splitlines()) for name, path in MODULES.items()}
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}
    assert lengths["appliance.__main__"] <= MAX_MAIN_LINES
