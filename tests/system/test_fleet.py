"""An operator, two boxes and a broker, nothing replaced: deployments from the command to the frames."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fleet_scenes import CANARY_FRAMES, LATE, SLOW, TRAPS, Operator, Start, box_config, new_operator, starting
from mosquitto import Mosquitto

from appliance.config import CameraConfig

ALL = ("--to", "all")


@pytest.fixture
def operator(tmp_path: Path, broker: Mosquitto, monkeypatch: pytest.MonkeyPatch) -> Operator:
    monkeypatch.setattr("appliance.fleet.keys.SCRYPT_LOG_N", 4)
    return new_operator(tmp_path, broker.url)


@pytest.fixture
def boxes(tmp_path: Path, broker: Mosquitto) -> Start:
    return starting(tmp_path, broker)


@pytest.mark.slow
async def test_two_boxes_follow_the_operator_and_a_third_catches_up(
    boxes: Start, operator: Operator, broker: Mosquitto
) -> None:
    def config(name: str):
        return box_config(name, broker.url, operator, "motion", groups=("tills",) if name == "till" else ())

    async with boxes(config("gate")) as gate, boxes(config("till")) as till:
        workers = {box.name: box.appliance.processes()["worker/motion"] for box in (gate, till)}
        said = await operator("deploy", operator.bundle("acme", "1.0.0"), *ALL)
        assert "gate" in said
        for box in (gate, till):
            await box.until_runs("acme", "1.0.0")
            await box.until(lambda box=box: box.says("acme") == "1.0.0")
        await operator("deploy", operator.bundle("acme", "1.1.0"), *ALL)
        for box in (gate, till):
            await box.until_runs("acme", "1.1.0")
        assert gate.report("acme")["previous"]["version"] == "1.0.0"
        await gate.until(lambda: gate.says("acme") == "1.1.0")

        assert "--downgrade" in await operator("deploy", "acme@1.0.0", *ALL, code=2)
        await operator("deploy", operator.bundle("acme", "1.2.0"), "--to", "tills")
        await till.until_runs("acme", "1.2.0")
        assert gate.report("acme")["current"]["version"] == "1.1.0"
        await operator("rollback", "acme", "--to", "tills")  # as all others again
        await till.until_runs("acme", "1.1.0")
        await operator("rollback", "acme", *ALL)
        for box in (gate, till):
            await box.until_runs("acme", "1.0.0")
            await box.until(lambda box=box: box.says("acme") == "1.0.0")

        async with boxes(config("late")) as late:  # it was off during all of it
            await late.until_runs("acme", "1.0.0")
        assert "late  silent" in await operator("undeploy", "acme", *ALL, code=4)  # it is off again
        await gate.until(lambda: not gate.report("acme") and "acme" not in gate.appliance.serving.live)
        status = json.loads(await operator("status", "--json"))
        assert {row["device"] for row in status} >= {"gate", "till", "late"}
        for box in (gate, till):
            assert box.appliance.processes()["worker/motion"] == workers[box.name]
            assert box.state("handler/motion")["faults"] == {}
    assert gate.summary.lost == till.summary.lost == 0


async def test_an_upgrade_loses_no_frame_and_doubles_none(boxes: Start, operator: Operator, broker: Mosquitto) -> None:
    camera = CameraConfig(fps=50, lossless=True)
    async with boxes(box_config("gate", broker.url, operator, camera=camera)) as gate:
        await operator("deploy", operator.bundle("acme", "1.0.0"), *ALL)
        await gate.until(lambda: len(gate.of("acme")) > 50)
        await operator("deploy", operator.bundle("acme", "1.1.0"), *ALL)
        await gate.until(lambda: sum(result["version"] == "1.1.0" for result in gate.of("acme")) > 50)
        await operator("rollback", "acme", *ALL)
        await gate.until(lambda: sum(result["version"] == "1.0.0" for result in gate.of("acme")[100:]) > 50)
    numbers = [result["seq"] for result in gate.of("acme")]
    assert sorted(numbers) == list(range(min(numbers), max(numbers) + 1))


@pytest.mark.parametrize(
    ("evil", "state"),
    [
        pytest.param(TRAPS, "refused", marks=pytest.mark.slow),
        pytest.param(SLOW, "refused", marks=pytest.mark.slow),
        pytest.param(LATE, "rolled-back", marks=pytest.mark.slow),
    ],
)
async def test_a_bad_version_does_not_stay_and_nobody_else_notices(
    boxes: Start, operator: Operator, broker: Mosquitto, evil: str, state: str
) -> None:
    async with boxes(box_config("gate", broker.url, operator, "motion")) as gate:
        neighbour = gate.appliance.processes()["worker/motion"]
        await operator("deploy", operator.bundle("acme", "1.0.0"), *ALL)
        said = await operator(
            "deploy", operator.bundle("acme", "1.1.0", evil=evil), *ALL, code=0 if evil is LATE else 1
        )
        await gate.until_state("acme", state, "1.1.0")
        report = gate.report("acme")
        assert report["current"]["version"] == "1.0.0"
        assert "fault" in report["reason"], said
        before = len(gate.of("acme"))
        await gate.until(lambda: len(gate.of("acme")) > before + CANARY_FRAMES)
        assert gate.says("acme") == "1.0.0"
        assert gate.appliance.processes()["worker/motion"] == neighbour
        assert gate.state("handler/motion")["faults"] == {}
        # the digest is in quarantine: the same again is refused at once
        await operator("deploy", "acme@1.0.0", "--downgrade", *ALL)
        await operator("deploy", "acme@1.1.0", *ALL, code=1)
        assert gate.states("acme").count("canary") == 2
    if evil is not LATE:
        assert all(result["version"] == "1.0.0" for result in gate.of("acme"))


@pytest.mark.slow
async def test_a_developer_signs_handlers_of_a_prefix_and_no_others(
    boxes: Start, operator: Operator, broker: Mosquitto, tmp_path: Path
) -> None:
    await operator("key", "new", tmp_path / "acme")
    delegate = ("key", "delegate", "acme", "--prefix", "acme-", "--public", tmp_path / "acme.pub", "--no-send")
    await operator(*delegate)
    signed = ("--as", "acme", "--key", tmp_path / "acme.pem")
    async with boxes(box_config("gate", broker.url, operator)) as gate:
        await operator("deploy", operator.bundle("acme-count", "1.0.0"), *ALL, *signed)
        await gate.until_runs("acme-count", "1.0.0")
        assert "not for acme to sign" in await operator("publish", operator.bundle("count", "1.0.0"), *signed, code=2)


@pytest.mark.slow
async def test_keys_are_rotated_and_boxes_follow(boxes: Start, operator: Operator, broker: Mosquitto) -> None:
    async with boxes(box_config("gate", broker.url, operator)) as gate:
        await operator("deploy", operator.bundle("acme", "1.0.0"), *ALL)
        for role in ("root", "timestamp", "snapshot", "targets"):
            await operator("key", "rotate", role)
        await operator("deploy", operator.bundle("acme", "1.1.0"), *ALL)
        await gate.until_runs("acme", "1.1.0")
        assert gate.report()["metadata"]["root"] == 5
    async with boxes(box_config("late", broker.url, operator)) as late:  # it was given the first root
        await late.until_runs("acme", "1.1.0")


@pytest.mark.slow
async def test_expired_metadata_starts_nothing_new_and_stops_nothing(
    boxes: Start, operator: Operator, broker: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with boxes(box_config("gate", broker.url, operator)) as gate:
        await operator("deploy", operator.bundle("acme", "1.0.0"), *ALL)
        await gate.until(lambda: gate.report().get("state") == "current")
        with monkeypatch.context() as long_ago:
            long_ago.setattr("appliance.cli.fleet_desired.utc_now", lambda: datetime.now(UTC) - timedelta(days=31))
            await operator("deploy", operator.bundle("acme", "1.1.0"), *ALL, "--no-wait")
        await gate.until(lambda: gate.report().get("state") == "stale")
        before = len(gate.of("acme"))
        await gate.until(lambda: len(gate.of("acme")) > before + 30)
        assert gate.says("acme") == "1.0.0"
        assert "stale" in await operator("status")
        await operator("refresh")
        await gate.until_runs("acme", "1.1.0")
        await gate.until(lambda: gate.report().get("state") == "current")
