"""How wasmtime is set up: for admission, which validates and compiles, and for workers, which run what it compiled.

Compiled code fits only an engine with the very same settings, so there is this one place for them.

Memory is reserved as it may be used: a worker's address space is limited to a little more than that, so wasmtime's
usual 4 GiB and guard pages are out of reach. Every access is checked instead.
"""

import wasmtime
from wasmtime import _ffi as ffi

OFF = (
    *("simd", "relaxed_simd", "threads", "tail_call", "memory64", "multi_memory", "exceptions", "gc"),
    *("function_references", "wide_arithmetic", "custom_page_sizes", "stack_switching", "component_model"),
)
"""Features of WebAssembly that wasm3 does not run, and so neither engine does. Reference types are missing here because
wasmtime panics without them; without support of a garbage collector it accepts references of functions alone."""
MAX_WASM_STACK = 512 << 10
"""Bytes of stack a guest may use: what it recurses before it traps."""


def make_config(memory_bytes: int) -> wasmtime.Config:
    """For guests with up to ``memory_bytes`` of memory."""
    config = wasmtime.Config()
    for feature in OFF:
        setattr(config, f"wasm_{feature}", False)
    config.gc_support = False
    config.consume_fuel = True
    config.parallel_compilation = False  # neither threads nor the files that count the cores
    config.max_wasm_stack = MAX_WASM_STACK
    for name, value in (
        ("memory_reservation", memory_bytes),
        ("memory_reservation_for_growth", 0),
        ("memory_guard_size", 0),
        ("memory_may_move", False),
        ("memory_init_cow", False),  # it would need memfd_create in the worker
        ("signals_based_traps", False),  # ours is not the only library in the process
    ):
        getattr(ffi, f"wasmtime_config_{name}_set")(config.ptr(), value)
    return config
