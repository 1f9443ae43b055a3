"""A stream function in a process of its own: it observes results, and a handler sees what it emits."""

import asyncio
import os
import sys

import pytest
from mosquitto import Mosquitto
from msgspec.structs import replace
from whole import configuration

from appliance.client import connect

PROGRAM = """
import asyncio
from appliance.client import connect

async def main():
    async with connect("translator", observes=[0x10], emits=[0x12]) as zipper:
        async for frame in zipper:
            objects = [{"label": frame.value["label"], "score": 1.0, "box": [0, 0, 1, 1]}]
            await zipper.emit(frame, 0x12, {"objects": objects})

asyncio.run(main())
"""


@pytest.mark.slow
async def test_a_handler_counts_what_a_remote_function_makes_of_results(start, broker: Mosquitto, tmp_path) -> None:
    async with start(configuration(broker, "parts", "count")) as box:
        await box.more_results(5)
        environment = {**os.environ, "APPLIANCE_STATE": str(tmp_path / "state")}
        program = await asyncio.create_subprocess_exec(sys.executable, "-c", PROGRAM, env=environment)
        try:
            await box.until(lambda: sum(result["handler"] == "count" for result in box.results()) >= 10)
        finally:
            program.kill()
            await program.wait()
        counts = [result for result in box.results() if result["handler"] == "count"]
        verdicts = {result["seq"]: result["value"]["label"] for result in box.results() if result["handler"] == "parts"}
        assert all(list(count["value"]["counts"]) == [verdicts[count["seq"]]] for count in counts)
        assert counts[-1]["source"] == "camera"
        assert list(counts[-1]["timing_us"])[:6] == ["held", "encode", "transfer", "queue", "decode", "inference"]
        await box.until(lambda: "remote/translator" not in box.appliance.zipper.observers)
        await box.more_results(5)
    assert box.summary.lost == 0


@pytest.mark.slow
async def test_what_a_remote_function_emits_may_be_garbage(start, broker: Mosquitto, tmp_path) -> None:
    """It is refused and counted; nothing of the zipper's is held by it."""
    config = configuration(broker, "parts")
    config = replace(config, mqtt=replace(config.mqtt, tags=(0x40,)))
    async with start(config) as box:
        async with connect("vandal", observes=[1], emits=[0x40], state=str(tmp_path / "state")) as zipper:
            frames = aiter(zipper)
            for payload in (b"", b"\xff\xff", b"\x81" * 64):
                await zipper.send((await anext(frames)).frame.derive(0x40, "cbor", payload))
            await box.until(lambda: box.appliance.publisher.stats.refused.get("malformed") == 3)
        await box.until(lambda: box.appliance.zipper.outstanding < 3)
        await box.more_results(5)
    assert box.appliance.zipper.outstanding == 0
