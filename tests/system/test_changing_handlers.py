"""Handlers that come and go while the box runs, as they look on MQTT."""

import pytest
from mosquitto import Mosquitto
from sandbox_bench import TAG, guest, spec
from whole import configuration

ECHO = guest(f"(call $emit (i32.const {TAG}) (i32.const 6) (i32.const 0) (i32.const 0))")


@pytest.mark.slow
async def test_a_handler_that_is_started_later_is_published_until_it_is_stopped(start, broker: Mosquitto) -> None:
    async with start(configuration(broker)) as box:
        serving = box.appliance.serving

        def of_guest(version: str) -> int:
            return [(result["handler"], result["version"]) for result in box.results()].count(("guest", version))

        await serving.start(spec(ECHO, models=0))
        await box.until(lambda: of_guest("1.0.0") > 3)
        await box.until(lambda: box.state("box/status").get("handlers") == {"parts": "running", "guest": "running"})
        await serving.shadow(spec(ECHO, models=0, version="2.0.0", emits={TAG: True, TAG + 1: False}))
        await serving.promote("guest")
        await box.until(lambda: of_guest("2.0.0") > 3)
        await box.until(lambda: box.state("handler/guest")["version"] == "2.0.0")
        assert "worker/guest" in box.appliance.processes()
        await box.until(lambda: "worker/guest" in box.appliance.memory_kb)
        await serving.stop("guest")
        assert "worker/guest" not in box.appliance.processes()
        await box.until(lambda: "worker/guest" not in box.appliance.memory_kb)
        await box.until(lambda: box.state("box/status").get("handlers") == {"parts": "running"})
        offered = box.appliance.publisher.stats.results
        await box.until(lambda: len(box.results()) >= offered)  # they come in order
        count = of_guest("2.0.0")
        await box.more_results()
        assert of_guest("2.0.0") == count
    assert box.summary is not None
    assert box.summary.handlers == {"parts": "running"}
    assert box.summary.lost == 0
    assert {"zipper", "worker/parts"} < box.summary.memory_mb.keys()
