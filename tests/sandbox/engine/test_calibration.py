"""Gas from milliseconds."""

import pytest
from sandbox_bench import admit, assemble

from appliance.sandbox.admission.layout import read
from appliance.sandbox.engine.calibration import _LOOP, FUEL_PER_MS, LEAST_SECONDS, ROOM, Allowance, gas_per_ms


def test_the_loop_is_what_it_is_said_to_be() -> None:
    assert assemble('(module (func (export "loop") (loop (br 0))))') == _LOOP
    assert read(_LOOP).exported_functions() == {"loop": "v()"}
    assert admit(_LOOP).memory_pages == 0


def test_it_is_measured_once_and_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    gas_per_ms.cache_clear()
    measured = gas_per_ms("wasm3")
    assert measured > 10_000  # a loop in 3 µs: slower than any machine this is for
    assert gas_per_ms("wasm3") == measured
    assert capfd.readouterr().err == ""
    assert gas_per_ms("wasmtime") == FUEL_PER_MS


def test_a_limit_of_the_manifest_is_what_a_guest_gets() -> None:
    allowance = Allowance(5_000_000, 1000, 4e6)
    allowance.learn(5_000_000, 0.001)
    assert allowance.gas == 5_000_000
    assert allowance.explain() == "it ran more than 5,000,000 instructions about one frame: limits.gas in its manifest"


def test_without_one_the_deadline_is_made_gas() -> None:
    allowance = Allowance(None, 300, 4e6)
    assert allowance.gas == 1_200_000_000
    assert "1,200,000,000 instructions" in allowance.explain()
    assert "limits.deadline_ms of 300; limits.gas in its manifest allows more" in allowance.explain()


def test_a_guest_that_burns_faster_gets_more_the_next_time() -> None:
    allowance = Allowance(None, 300, 4e6)
    allowance.learn(4_000_000, 0.001)
    assert allowance.gas == 300 * 4e6 * ROOM
    allowance.learn(1_200_000_000, 0.012)  # used up long before the deadline
    assert allowance.gas == 300 * 100e6 * ROOM
    allowance.learn(10, 5.0)
    assert allowance.gas == 300 * 100e6 * ROOM


def test_the_shortest_frames_teach_nothing() -> None:
    allowance = Allowance(None, 300, 4e6)
    allowance.learn(10**9, LEAST_SECONDS / 2)
    assert allowance.gas == 1_200_000_000
