"""Every committed module keeps to the ABI of record, docs/handler-abi.md; so do the SDKs and the tests' own host."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import wasmtime
from guest_host import HANDLERS

from appliance.author.compilers import SDK
from appliance.manifest import MAX_MODULE_BYTES, load_manifest
from appliance.sandbox.abi.signatures import SIGNATURES

PAGE_BYTES = 64 << 10
CUSTOM_SECTION = 0
WASM3_LETTERS = {"i32": "i", "i64": "I"}

Signature = tuple[tuple[str, ...], tuple[str, ...]]


def documented() -> dict[str, Signature]:
    """The table of functions in the document: name -> (parameters, results)."""
    text = (HANDLERS.parent / "docs" / "handler-abi.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \| `\(([^)]*)\) -> (\w+)` \|", text, re.MULTILINE)
    return {name: (tuple(filter(None, parameters.split(", "))), (result,)) for name, parameters, result in rows}


@pytest.fixture(scope="module")
def engine() -> wasmtime.Engine:
    """Takes no more of WebAssembly than wasm3 runs (reference types cannot be turned off: wasmtime panics)."""
    config = wasmtime.Config()
    for feature in ("simd", "relaxed_simd", "threads", "tail_call", "memory64", "multi_value", "multi_memory"):
        setattr(config, f"wasm_{feature}", False)
    return wasmtime.Engine(config)


@pytest.fixture
def module(engine: wasmtime.Engine, handler: Path) -> wasmtime.Module:
    code = (handler / "handler.wasm").read_bytes()
    assert len(code) <= MAX_MODULE_BYTES
    wasmtime.Module.validate(engine, code)
    return wasmtime.Module(engine, code)


def signature(function: wasmtime.FuncType) -> Signature:
    return tuple(map(str, function.params)), tuple(map(str, function.results))


def test_imports_are_functions_of_the_abi(module: wasmtime.Module) -> None:
    table = documented()
    assert module.imports
    for item in module.imports:
        assert item.module == "appliance"
        assert isinstance(item.type, wasmtime.FuncType)
        assert signature(item.type) == table[str(item.name)]


def test_exports_are_handle_and_a_bounded_memory(module: wasmtime.Module, handler: Path) -> None:
    exports = {item.name: item.type for item in module.exports}
    for name in {"handle", "init"} & exports.keys() | {"handle"}:
        function = exports[name]
        assert isinstance(function, wasmtime.FuncType)
        assert signature(function) == ((), ("i32",))
    memory = exports["memory"]
    assert isinstance(memory, wasmtime.MemoryType)
    limits = memory.limits
    assert limits.max is not None
    assert limits.max * PAGE_BYTES <= load_manifest(handler).limits.memory_mb << 20
    assert limits.min <= 8


def test_modules_are_stripped(handler: Path) -> None:
    """wasm3 takes the names of a name section for exports; paths and producers are nobody's business."""
    kinds = [kind for kind, _ in sections((handler / "handler.wasm").read_bytes())]
    assert kinds
    assert CUSTOM_SECTION not in kinds


def test_manifests_load(handler: Path) -> None:
    manifest = load_manifest(handler)
    assert manifest.name == handler.name
    assert manifest.emits
    assert manifest.description


def test_settings_of_manifests_are_those_the_code_asks_for(handler: Path) -> None:
    source = "".join(path.read_text("utf-8") for path in handler.glob("handler.[cr]*"))
    asked = set(re.findall(r'appliance_(?:number|setting)\("(\w+)"', source))
    assert asked == load_manifest(handler).settings.keys()


def test_the_c_header_declares_the_documented_functions() -> None:
    header = (SDK / "c" / "appliance.h").read_text("utf-8")
    kinds = {"int32_t": "i32", "int64_t": "i64"}
    found = re.findall(r"APPLIANCE_IMPORT\((\w+)\) (\w+) appliance_(\w+)\(([^)]*)\);", header)
    assert all(imported == declared for imported, _, declared, _ in found)
    parameters = {name: 0 if text == "void" else text.count(",") + 1 for name, _, _, text in found}
    declared = {name: (("i32",) * parameters[name], (kinds[result],)) for name, result, _, _ in found}
    assert declared == documented()


def test_the_rust_crate_declares_the_documented_functions() -> None:
    source = (SDK / "rust" / "src" / "abi.rs").read_text("utf-8")
    found = re.findall(r"pub fn (\w+)\(([^)]*)\) -> (\w+);", source)
    declared = {name: (("i32",) * text.count(":"), (result,)) for name, text, result in found}
    assert declared == documented()


def test_the_assemblyscript_sdk_declares_the_documented_functions() -> None:
    source = (SDK / "assemblyscript" / "abi.ts").read_text("utf-8")
    found = re.findall(r'@external\("appliance", "(\w+)"\)\nexport declare function (\w+)\(([^)]*)\): (\w+);', source)
    assert all(imported == declared for imported, declared, _, _ in found)
    declared = {name: (("i32",) * text.count(":"), (result,)) for _, name, text, result in found}
    assert declared == documented()


def test_the_host_provides_the_documented_functions() -> None:
    assert SIGNATURES["appliance"] == {
        name: f"{WASM3_LETTERS[results[0]]}({''.join(WASM3_LETTERS[kind] for kind in parameters)})"
        for name, (parameters, results) in documented().items()
    }


def sections(code: bytes) -> Iterator[tuple[int, bytes]]:
    """(kind, content) of each section."""
    at = 8
    while at < len(code):
        kind, at, shift, size = code[at], at + 1, 0, 0
        while True:
            byte = code[at]
            size |= (byte & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if byte < 0x80:
                break
        yield kind, code[at : at + size]
        at += size
