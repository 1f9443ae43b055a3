"""What dies comes back by itself, nothing else stops, no accepted result is lost, and the status says so."""

import os
import signal
from collections import Counter

import msgspec
import pytest
from mosquitto import Gate, Mosquitto
from whole import configuration

from appliance.config import CameraConfig


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def sequence_numbers(box) -> list[int]:
    return [result["seq"] for result in box.results()]


async def test_a_killed_worker_is_replaced_and_its_neighbour_loses_nothing(start, broker: Mosquitto) -> None:
    async with start(configuration(broker, "parts", "motion")) as box:
        await box.more_results()
        appliance = box.appliance
        dead = appliance.processes()["worker/parts"]
        neighbour = appliance.processes()["worker/motion"]
        before = appliance.zipper.observers["motion"].counters.dropped
        kill(dead)
        await box.until(lambda: box.state("handler/parts").get("restarts") == 1)
        await box.until(lambda: box.state("handler/parts")["state"] == "running")
        await box.more_results()
        assert appliance.processes()["worker/motion"] == neighbour
        assert appliance.processes()["worker/parts"] != dead
        assert appliance.zipper.observers["motion"].counters.dropped == before
        assert box.state("handler/motion")["faults"] == {}
        assert box.state("handler/parts")["last_failure"]["kind"] == "crash"
    assert box.summary.lost == 0


@pytest.mark.slow
async def test_a_killed_model_process_is_replaced_and_handlers_without_it_go_on(start, broker: Mosquitto) -> None:
    async with start(configuration(broker, "parts", "motion")) as box:
        await box.more_results()
        workers = {name: pid for name, pid in box.appliance.processes().items() if name.startswith("worker/")}
        kill(box.appliance.processes()["model/parts.tflite"])
        await box.until(lambda: any(m["restarts"] for m in box.state("box/status").get("models", {}).values()))
        await box.until(lambda: box.state("box/status")["state"] == "ready")
        await box.more_results()
        after = Counter(result["handler"] for result in box.results()[-20:])
        assert set(after) == {"parts", "motion"}
        assert {name: pid for name, pid in box.appliance.processes().items() if name in workers} == workers
    assert box.summary.lost == 0


@pytest.mark.slow
async def test_a_killed_source_comes_back_and_goes_on_counting(start, broker: Mosquitto) -> None:
    async with start(configuration(broker)) as box:
        await box.more_results()
        seen = max(sequence_numbers(box))
        kill(box.appliance.processes()["source/camera"])
        await box.until(lambda: max(sequence_numbers(box)) > seen + 20)
        numbers = sequence_numbers(box)
        assert len(numbers) == len(set(numbers))
        assert numbers == sorted(numbers)
        await box.until(lambda: box.state("camera/camera")["state"] == "streaming")
    assert box.summary.lost == 0


@pytest.mark.slow
async def test_a_killed_zygote_comes_back_with_all_workers(start, broker: Mosquitto) -> None:
    async with start(configuration(broker, "parts", "motion")) as box:
        await box.more_results()
        kill(box.appliance.processes()["zygote"])
        await box.until(
            lambda: box.state("handler/parts").get("restarts") and box.state("handler/motion").get("restarts")
        )
        await box.more_results()
        assert {result["handler"] for result in box.results()[-20:]} == {"parts", "motion"}


@pytest.mark.parametrize("seconds", [pytest.param(1.0), pytest.param(30.0, marks=pytest.mark.slow)])
async def test_no_result_is_lost_while_the_broker_is_dead(start, broker: Mosquitto, seconds: float) -> None:
    """The broker forgets all it had; whoever has subscribed again before the box is back sees every result."""
    config = configuration(broker)
    async with Gate(broker.port) as gate:
        config = msgspec.structs.replace(config, mqtt=msgspec.structs.replace(config.mqtt, url=gate.url))
        async with start(config) as box:
            await box.more_results()
            broker.kill()
            await box.subscriber.subscribed(False)
            await gate.shut()
            await box.until(lambda: not box.appliance.publisher.stats.connection.connected)
            begun = box.appliance.publisher.stats.results
            wanted = begun + int(seconds * 20)
            await box.until(lambda: box.appliance.publisher.stats.results >= wanted)
            stats = box.appliance.publisher.stats
            assert stats.backlog > 0
            assert stats.published < stats.results
            broker.start()
            await box.subscriber.subscribed()
            await gate.open()
            await box.until(lambda: box.appliance.publisher.stats.backlog < 5)
            await box.more_results()
            await box.until(lambda: box.state("box/status").get("state") == "ready")
    assert box.summary.lost == 0
    assert box.summary.published == box.summary.results
    numbers = list(dict.fromkeys(sequence_numbers(box)))
    assert len(numbers) >= box.summary.results - 5  # the last may come after the subscriber was left
    assert numbers == sorted(numbers)


@pytest.mark.slow
async def test_the_last_will_says_lost_and_an_orderly_end_says_disconnected(start, broker: Mosquitto) -> None:
    async with start(configuration(broker)) as box:
        await box.until(lambda: box.state("box/status").get("state") == "ready")
        subscriber = box.subscriber
        box.stop.set()
        await box.until(lambda: subscriber.states("box/status")[-1] == b'{"state":"disconnected"}')


@pytest.mark.slow
async def test_a_camera_that_is_not_there_is_reported_and_costs_the_other_nothing(start, broker: Mosquitto) -> None:
    cameras = (CameraConfig(name="good", fps=30), CameraConfig(name="gone", url="/dev/video77"))
    async with start(configuration(broker, cameras=cameras)) as box:
        await box.more_results()
        await box.until(lambda: box.state("camera/gone").get("state") == "failed")
        assert "/dev/video77" in box.state("camera/gone")["reason"]
        await box.until(lambda: box.state("camera/good")["state"] == "streaming")
        assert box.state("box/status")["state"] == "degraded"
        await box.more_results()
    assert box.summary.lost == 0
