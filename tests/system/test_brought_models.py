"""A guest that brings its model, in the whole appliance."""

import hashlib
import struct
from pathlib import Path

import pytest
import tiny_models
from mosquitto import Mosquitto
from sandbox_bench import TAG, assemble, data
from whole import configuration

MANIFEST = f"""
name = "bringer"
version = "1.0.0"
observes = [1]
emits = [{{ tag = {TAG} }}]
guest_models = 1
"""
MODEL = tiny_models.echo((1, 2, 2, 3))
AT, BUILDER, GRAPH, CONTEXT, SIDES, TENSOR, PICTURE = 0x1000, 0x100, 0x200, 0x204, 0x300, 0x310, 0x400


def guest() -> bytes:
    """Loads its model for every frame, runs it, and emits what it answers."""
    steps = (
        f"(call $load (i32.const {BUILDER}) (i32.const 1) (i32.const 5) (i32.const 0) (i32.const {GRAPH}))",
        f"(call $open (i32.load (i32.const {GRAPH})) (i32.const {CONTEXT}))",
        f"(call $set (i32.load (i32.const {CONTEXT})) (i32.const 0) (i32.const {TENSOR}))",
        f"(call $compute (i32.load (i32.const {CONTEXT})))",
        f"(call $emit (i32.const {TAG}) (i32.const 6) (i32.const {PICTURE}) (i32.const 12))",
    )
    checked = "".join(f"(if {step} (then (return (i32.const {number}))))" for number, step in enumerate(steps, 1))
    return assemble(
        f"""(module
        (import "wasi_ephemeral_nn" "load" (func $load (param i32 i32 i32 i32 i32) (result i32)))
        (import "wasi_ephemeral_nn" "init_execution_context" (func $open (param i32 i32) (result i32)))
        (import "wasi_ephemeral_nn" "set_input" (func $set (param i32 i32 i32) (result i32)))
        (import "wasi_ephemeral_nn" "compute" (func $compute (param i32) (result i32)))
        (import "appliance" "emit" (func $emit (param i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 1) {data(AT, MODEL)} {data(BUILDER, struct.pack("<II", AT, len(MODEL)))}
        {data(SIDES, struct.pack("<I", 12))} {data(TENSOR, struct.pack("<IIIII", SIDES, 1, 2, PICTURE, 12))}
        (func (export "handle") (result i32) {checked} i32.const 0))"""
    )


@pytest.mark.slow
async def test_its_model_is_kept_in_the_state_directory_and_named_in_the_results(
    tmp_path: Path, broker: Mosquitto, start
) -> None:
    handler = tmp_path / "bringer"
    handler.mkdir()
    (handler / "handler.toml").write_text(MANIFEST)
    (handler / "handler.wasm").write_bytes(guest())
    digest = hashlib.sha256(MODEL).hexdigest()
    async with start(configuration(broker, str(handler))) as box:
        await box.more_results(5)
        (model,) = box.results()[-1]["models"]
    assert model["digest"] == digest
    assert (tmp_path / "state" / "guest-models" / f"{digest}.tflite").read_bytes() == MODEL
