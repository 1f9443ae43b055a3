"""What is made of what wasm3 prints; the names in it are a module's, so they are anything at all."""

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.sandbox.engine.backtrace import frame_line, parse_backtrace
from appliance.sandbox.messages import MAX_BACKTRACE, MAX_BACKTRACE_LINE

HEADER = b"==== wasm backtrace:\n"


def printed(*names: bytes) -> bytes:
    """As wasm3 prints it."""
    return HEADER + b"".join(b"  %d: 0x%06x - .unnamed!%s\n" % (n, 0xA2 + n, name) for n, name in enumerate(names))


def test_functions_innermost_first() -> None:
    assert parse_backtrace(printed(b"deep", b"mid", b"handle")) == (
        "0: 0x0000a2 deep",
        "1: 0x0000a3 mid",
        "2: 0x0000a4 handle",
    )


def test_numbers_that_a_rewritten_module_puts_before_its_names_are_left_out() -> None:
    assert parse_backtrace(printed(b"12:deep", b"3:a:b", b"7:"))[:3] == (
        "0: 0x0000a2 deep",
        "1: 0x0000a3 a:b",
        "2: 0x0000a4 7:",
    )


def test_a_function_without_a_name() -> None:
    assert parse_backtrace(printed(b"")) == ("0: 0x0000a2 ?",)


def test_a_place_that_is_in_no_function_is_left_out() -> None:
    assert parse_backtrace(printed(b"<unnamed>", b"deep")) == ("1: 0x0000a3 deep",)


def test_an_overrun_stack_is_cut_short() -> None:
    assert len(parse_backtrace(printed(*[b"deep"] * 2048))) == MAX_BACKTRACE


@pytest.mark.parametrize("data", [b"", b"==== wasm", HEADER, b"  0: 0x0000a2 - .unnamed!deep\n", HEADER + b"\xff\0"])
def test_where_there_is_no_backtrace_there_is_none(data: bytes) -> None:
    assert parse_backtrace(data) == ()


def check(lines: tuple[str, ...]) -> None:
    assert len(lines) <= MAX_BACKTRACE
    for line in lines:
        assert len(line) <= MAX_BACKTRACE_LINE
        assert line.isprintable()


@given(st.binary(max_size=300))
def test_whatever_is_printed(data: bytes) -> None:
    check(parse_backtrace(data))
    check(parse_backtrace(HEADER + data))


@given(st.lists(st.one_of(st.binary(max_size=300), st.text(max_size=200).map(lambda t: t.encode("utf-8", "replace")))))
def test_whatever_the_functions_are_called(names: list[bytes]) -> None:
    check(parse_backtrace(printed(*names)))


@given(st.integers(0, 2048), st.integers(0, 1 << 64), st.text())
def test_a_line_of_any_engine(depth: int, offset: int, name: str) -> None:
    check((frame_line(depth, offset, name),))


READER = """
import os
from appliance.sandbox.engine.backtrace import PrintedBacktrace
printed = PrintedBacktrace()
print(printed.take())
os.write(2, b"==== wasm backtrace:\\n  0: 0x0000a2 - .unnamed!deep\\n")
print(printed.take())
print(printed.take())
try:
    while True:
        os.write(2, b"x" * 4096)
except BlockingIOError:
    print("full")
printed.take()
os.write(2, b"==== wasm backtrace:\\n  0: 0x0000a3 - .unnamed!next\\n")
print(printed.take())
"""


def test_a_process_reads_its_own_standard_error_and_never_waits_for_itself() -> None:
    """In a process of its own: it takes the standard error away."""
    ran = subprocess.run(
        [sys.executable, "-c", READER], capture_output=True, text=True, timeout=60, check=True, env=dict(os.environ)
    )
    assert ran.stderr == ""
    assert ran.stdout.splitlines() == ["()", "('0: 0x0000a2 deep',)", "()", "full", "('0: 0x0000a3 next',)"]
