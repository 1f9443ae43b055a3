"""wasmtime as it is set up for workers: within their address space, and with the limits of wasm3."""

import subprocess
import sys

import pytest
import wasmtime

from appliance.sandbox.lockdown import MARGIN_BYTES
from appliance.sandbox.wasmtime_config import OFF, make_config

PAGE = 1 << 16
GUEST = """(module (memory (export "memory") 1)
  (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0)))
  (func (export "store") (param i32) (i32.store (local.get 0) (i32.const 5)))
  (func (export "divide") (param i32) (result i32) (i32.div_s (i32.const 1) (local.get 0)))
  (func $deep (export "recurse") (param i32) (call $deep (local.get 0)))
  (func (export "loop") (param i32) (loop (br 0))))"""

IN_A_WORKER = f"""
import resource, sys, wasmtime
from pathlib import Path
from appliance.sandbox.lockdown import MARGIN_BYTES
from appliance.sandbox.wasmtime_config import make_config
memory = int(sys.argv[1])
compiled = wasmtime.Module(wasmtime.Engine(make_config(memory)), {GUEST!r}).serialize()
mapped = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
limit = mapped + memory + MARGIN_BYTES
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
engine = wasmtime.Engine(make_config(memory))
module = wasmtime.Module.deserialize(engine, compiled)
for instance in range(5):
    store = wasmtime.Store(engine)
    store.set_fuel(10_000_000)
    exports = wasmtime.Instance(store, module, []).exports(store)
    said = [exports["grow"](store, pages) for pages in (memory // {PAGE} - 1, 1)]
    said.append(exports["store"](store, memory - 4))
    for name, argument in (("store", memory - 3), ("store", -1), ("divide", 0), ("recurse", 0), ("loop", 0)):
        try:
            exports[name](store, argument)
            said.append("went on")
        except (wasmtime.Trap, wasmtime.WasmtimeError) as error:
            said.append(str(error).splitlines()[-1].strip() if "fuel" not in str(error) else "fuel")
    store.close()
print(said)
"""


@pytest.mark.parametrize("memory_mb", [1, 16, 256])
def test_a_guest_has_its_memory_and_its_traps_in_a_workers_address_space(memory_mb: int) -> None:
    command = [sys.executable, "-c", IN_A_WORKER, str(memory_mb << 20)]
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("[1, -1, None, "), result.stdout
    assert "went on" not in result.stdout
    assert "fuel" in result.stdout
    assert MARGIN_BYTES < 256 << 20


@pytest.mark.parametrize(
    "text",
    [
        "(module (func (drop (v128.const i32x4 0 0 0 0))))",
        "(module (memory i64 1))",
        "(module (memory 1 1 shared))",
        "(module (memory 1) (memory 1))",
        "(module (func $f (return_call $f)))",
        "(module (tag))",
        "(module (type (struct)))",
        "(module (table 1 externref))",
        "(module (memory 1 (pagesize 1)))",
    ],
)
def test_it_takes_no_more_of_webassembly_than_it_must(text: str) -> None:
    with pytest.raises(wasmtime.WasmtimeError):
        wasmtime.Module(wasmtime.Engine(make_config(PAGE)), text)
    assert "reference_types" not in OFF, "wasmtime panics without them"


def test_compiled_code_fits_the_same_settings_alone() -> None:
    compiled = wasmtime.Module(wasmtime.Engine(make_config(PAGE)), GUEST).serialize()
    wasmtime.Module.deserialize(wasmtime.Engine(make_config(PAGE)), compiled)
    with pytest.raises(wasmtime.WasmtimeError):
        wasmtime.Module.deserialize(wasmtime.Engine(wasmtime.Config()), compiled)
