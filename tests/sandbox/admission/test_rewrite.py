import re

import pytest
import wasmtime
from admission_bench import LIMIT, admitted, run
from hypothesis import given, settings
from hypothesis import strategies as st
from sandbox_bench import NOTHING, assemble, guest

from appliance.sandbox.admission.binary import (
    CUSTOM,
    PAGE_BYTES,
    BrokenRuleError,
    encode_name,
    encode_section,
    encode_sized,
    encode_u32,
    encode_vector,
)
from appliance.sandbox.admission.layout import Layout, read
from appliance.sandbox.admission.rewrite import limited
from appliance.sandbox.admission.verdict import GAS_NAME, MEMORY_NAME, START_NAME, EngineName

PAGES = LIMIT // PAGE_BYTES


def layout_of(code: bytes) -> Layout:
    return read(code)


def name_section(names: dict[int, bytes]) -> bytes:
    entries = encode_vector([encode_u32(index) + encode_sized(name) for index, name in names.items()])
    return encode_section(CUSTOM, encode_name("name") + b"\1" + encode_sized(entries))


# --- custom sections and names ------------------------------------------------------------------------------


def test_custom_sections_are_dropped_wherever_they_stand() -> None:
    custom = encode_section(CUSTOM, encode_name(".debug_info") + b"whatever")
    padded = NOTHING[:8] + custom + NOTHING[8:] + custom
    assert b"whatever" in padded
    assert admitted(padded).code == admitted(NOTHING).code
    assert b"whatever" not in admitted(padded, "wasmtime").code


def test_functions_are_named_by_their_index_in_the_original() -> None:
    text = """(module (import "appliance" "now_ns" (func $now (result i64)))
      (func $first (export "handle") (result i32) (i32.const 0)) (func) (func $third))"""
    layout = read(admitted(text).code)
    assert layout.names == {2: "1:first", 3: "2:", 4: "3:third"}
    assert read(limited(read(assemble(text)), PAGES)).names == {1: "1:first", 2: "2:", 3: "3:third"}


def test_names_are_cut_and_made_printable() -> None:
    module = assemble("(module (func) (func) (func))")
    module += name_section({0: b"x" * 5000, 1: "a\nb\x7f\u00e9".encode(), 2: b"\xff\xfe"})
    code = admitted(module).code
    assert b"0:" + b"x" * 64 + b"\2" in code
    assert list(read(code).names.values())[1:] == ["1:a?b??", "2:??"]


def test_no_name_of_a_function_can_be_that_of_an_entry_point() -> None:
    """wasm3 looks functions up by both, and takes the first it finds."""
    module = assemble('(module (func (result i32) (i32.const 1)) (func (export "handle") (result i32) (i32.const 2)))')
    module += name_section({0: b"handle", 1: b"init"})
    tried = run(module)
    assert tried.call("handle") == 2
    assert "lookup failed" in tried.call("init")
    assert tried.call("0:handle") == 1, "what it is really called"
    assert all(re.match(r"\d+:", name) for name in read(admitted(module).code).names.values())


def test_only_the_first_name_section_counts_and_damage_is_forgotten() -> None:
    module = assemble("(module (func))")
    first, second = name_section({0: b"first"}), name_section({0: b"second"})
    assert read(module + first + second).names == {0: "first"}
    assert read(module + first.replace(b"\5first", b"\x7ffirst")).names == {}


# --- memory -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restorable", [False, True])
@pytest.mark.parametrize(("declared", "most"), [("1", 16), ("1 4", 4), ("1 1000", 16), ("16", 16), ("0 0", 1)])
def test_memory_cannot_grow_over_the_limit(declared: str, most: int, restorable: bool) -> None:
    module = assemble(f'(module (memory (export "memory") {declared}))')
    for code in (admitted(module, restorable=restorable).code, limited(read(module), PAGES)):
        memory = read(code).memory
        assert memory is not None
        assert (memory.pages, memory.most) == (int(declared.split(maxsplit=1)[0]), most)


def test_memory_that_starts_over_the_limit() -> None:
    with pytest.raises(BrokenRuleError, match="1114112 bytes of memory, over its limit of 1048576") as failure:
        limited(read(assemble("(module (memory 17))")), PAGES)
    assert failure.value.rule == "memory"


@pytest.mark.parametrize("restorable", [False, True])
@pytest.mark.parametrize(("declared", "most"), [("1", 16), ("1 4", 4), ("1 1000", 16), ("0 0", 0), ("0", 16)])
def test_a_guest_gets_its_memory_and_no_more(declared: str, most: int, restorable: bool) -> None:
    text = f"""(module (memory {declared}) (func (export "f") (result i32)
      (loop (br_if 0 (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))) (memory.size)))"""
    assert run(text, restorable=restorable).call("f") == most


# --- the rest -----------------------------------------------------------------------------------------------


def test_a_data_count_is_dropped() -> None:
    module = assemble('(module (memory 1) (data (i32.const 0) "abc"))')
    assert 12 not in layout_of(module).sections
    at = module.index(encode_section(11, b"\1\0\x41\0\x0b\3abc"))
    with_count = module[:at] + encode_section(12, b"\1") + module[at:]
    assert 12 in layout_of(with_count).sections
    assert admitted(with_count).code == admitted(module).code


def test_the_index_of_a_table_may_be_long_for_relocation() -> None:
    """wasm3 reads one byte."""
    module = assemble(
        "(module (table 1 funcref) (elem (i32.const 0) $g) (func $g (result i32) (i32.const 3))"
        '(func (export "f") (result i32) (call_indirect (result i32) (i32.const 0))))'
    )
    short = bytes.fromhex("0700 4100 1100 00 0b")
    assert module.count(short) == 1
    content = module[: module.index(short)]
    code = content.rindex(b"\x0a", 0, content.rindex(b"\4\0\x41\3\x0b"))
    long = bytes.fromhex("0b00 4100 1100 8080808000 0b")
    bodies = b"\2" + b"\4\0\x41\3\x0b" + long
    rebuilt = module[:code] + encode_section(10, bodies)
    wasmtime.Module.validate(wasmtime.Engine(), rebuilt)
    assert run(rebuilt).call("f") == 3


def test_a_rewritten_module_is_valid_everywhere() -> None:
    module = guest("i32.const 0", memory="1 9999", data='(data (i32.const 3) "abc")')
    for restorable in (False, True):
        wasmtime.Module.validate(wasmtime.Engine(), admitted(module, restorable=restorable).code)


@settings(deadline=None)
@given(st.data())
def test_any_bytes_are_a_module_or_refused(data: st.DataObject) -> None:
    """Only a broken rule ever comes out of reading, and limiting is done once for all."""
    mutant = bytearray(data.draw(st.sampled_from([NOTHING, NOTHING[:8] + data.draw(st.binary(max_size=64))])))
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, len(mutant) - 1), st.integers(0, 255)), max_size=4)):
        mutant[at] = value
    try:
        code = limited(read(bytes(mutant)), PAGES)
    except BrokenRuleError:
        return
    again = read(code)
    assert again.sections.keys() == read(bytes(mutant)).sections.keys() - {12}
    assert read(limited(again, PAGES)).memory == again.memory


# --- exports of ours ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["wasm3", "wasmtime"])
def test_the_start_function_is_an_export_that_nothing_calls(engine: EngineName) -> None:
    """So the engine chooses when it runs: with gas, and again after a reset."""
    text = '(module (import "appliance" "now_ns" (func (result i64))) (func) (func $s) (start $s))'
    assert admitted(text, engine).functions == {START_NAME: "v()"}
    code = admitted(text).code if engine == "wasm3" else limited(read(assemble(text)), PAGES)
    layout = read(code)
    assert layout.start is None
    (export,) = [export for export in layout.exports if export.name != GAS_NAME]
    assert layout.names[export.index].endswith(":s")


def test_wasmtime_is_given_the_memory_by_a_name_of_ours() -> None:
    """wasm3 finds it whether the module exports it or not."""
    for text in ("(module (memory 1))", '(module (memory (export "other") 1) (func (export "f")))'):
        exports = read(limited(read(assemble(text)), PAGES)).exports
        assert [export.index for export in exports if export.name == MEMORY_NAME] == [0]
    assert not read(limited(read(assemble("(module)")), PAGES)).exports
