"""The commands as a user gives them."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mosquitto import BINARY, Mosquitto

COMMAND = [sys.executable, "-m", "appliance"]
pytestmark = pytest.mark.skipif(BINARY is None, reason="mosquitto is not installed (apt-get install mosquitto)")


def run(tmp_path: Path, *arguments: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "APPLIANCE_STATE": str(tmp_path / "state")}
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=seconds, env=environment, check=False
    )


def test_the_main_job(tmp_path: Path) -> None:
    """Synthetic camera, QUIC, worker, model, MQTT: every stage is there, and the verdicts are right."""
    ran = run(tmp_path, "run", "--frames", "90", "--json")
    assert ran.returncode == 0, ran.stderr
    summary = json.loads(ran.stdout)
    assert summary["captured"] == 90
    assert summary["results"] == summary["published"]
    assert summary["results"] + sum(summary["dropped"].values()) >= 90
    assert summary["lost"] == 0
    assert summary["truth"]["matched"] >= 0.95 * summary["truth"]["checked"] > 0
    assert summary["truth"]["checked"] == summary["results"]
    stages = {"held", "encode", "transfer", "queue", "decode", "inference", "handler", "publish", "total"}
    assert set(summary["latency_ms"]) == stages
    names = {"zipper", "zygote", "broker", "worker/parts", "model/parts.tflite", "source/camera", "total"}
    assert set(summary["memory_mb"]) == names
    assert all(size > 0 for size in summary["memory_mb"].values())


@pytest.mark.slow
def test_lossless_delivers_every_frame_in_order(tmp_path: Path, broker: Mosquitto) -> None:
    listener = subprocess.Popen(
        [
            "mosquitto_sub",
            "-h",
            "127.0.0.1",
            "-p",
            str(broker.port),
            "-t",
            "+/+/result/#",
            "-q",
            "1",
            "-C",
            "120",
            "-W",
            "60",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    ran = run(tmp_path, "run", "--frames", "120", "--lossless", "--broker", broker.url, "--json")
    said, _ = listener.communicate(timeout=60)
    assert ran.returncode == 0, ran.stderr
    summary = json.loads(ran.stdout)
    assert (summary["captured"], summary["results"], summary["dropped"]) == (120, 120, {})
    results = [json.loads(line) for line in said.splitlines()]
    assert [result["seq"] for result in results] == list(range(120))
    assert {result["handler"] for result in results} == {"parts"}
    assert {model["device"] for result in results for model in result["models"]} == {"cpu"}


def test_ctrl_c_loses_nothing_and_tells_how_it_went(tmp_path: Path) -> None:
    environment = {**os.environ, "APPLIANCE_STATE": str(tmp_path / "state")}
    process = subprocess.Popen([*COMMAND, "run"], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(2)]
    assert lines[0].startswith("results: mosquitto_sub -h 127.0.0.1 -p ")
    while "published=0" in lines[-1]:
        lines.append(process.stdout.readline())
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "captured " in rest
    assert "lost 0" in rest
    assert "memory " in rest


@pytest.mark.slow
def test_a_second_appliance_on_the_same_state_is_refused(tmp_path: Path) -> None:
    environment = {**os.environ, "APPLIANCE_STATE": str(tmp_path / "state")}
    first = subprocess.Popen([*COMMAND, "run"], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert first.stdout is not None
        first.stdout.readline()
        second = run(tmp_path, "run", "--frames", "1")
        assert second.returncode == 2
        assert "is in use by another running appliance" in second.stderr
    finally:
        first.send_signal(signal.SIGTERM)
        first.communicate(timeout=30)


@pytest.mark.slow
def test_the_source_may_start_before_the_zipper(tmp_path: Path, broker: Mosquitto) -> None:
    """`appliance source` and `appliance zipper` as separate services, the source first."""
    config = tmp_path / "appliance.toml"
    config.write_text(
        f'[device]\nname = "box"\n[[cameras]]\nname = "belt"\nframes = 60\nlossless = true\n'
        f'[mqtt]\nurl = "{broker.url}"\n'
    )
    environment = {**os.environ, "APPLIANCE_STATE": str(tmp_path / "state")}
    arguments = ["--config", str(config)]
    listener = subprocess.Popen(
        [*broker.subscribe, "-t", "appliance/box/result/belt/parts", "-C", "60", "-W", "60"],
        stdout=subprocess.PIPE,
        text=True,
    )
    source = subprocess.Popen([*COMMAND, "source", *arguments], stderr=subprocess.PIPE, text=True, env=environment)
    assert source.stderr is not None
    while "event=not_connected" not in (line := source.stderr.readline()):
        assert line, "the source ended"
    zipper = subprocess.Popen([*COMMAND, "zipper", *arguments], env=environment)
    try:
        said, _ = listener.communicate(timeout=90)
        assert [json.loads(line)["seq"] for line in said.splitlines()] == list(range(60))
        source.communicate(timeout=30)
        assert source.returncode == 0
    finally:
        zipper.send_signal(signal.SIGTERM)
        assert zipper.wait(timeout=30) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--camera", "nowhere.mp4"], "'nowhere.mp4': No such file"),
        (["run", "--handler", "nowhere"], "a handler is a directory with a handler.toml"),
        (["run", "--set", "parts"], "HANDLER.KEY=VALUE"),
        (["run", "--set", "other.key=1"], "no handler of that name"),
        (["run", "--set", "parts.colour=red"], "has no setting 'colour'; known:"),
        (["run", "--config", "missing.toml"], "missing.toml: the configuration cannot be read"),
        (["run", "--broker", "http://x"], "mqtt.url"),
        (["source", "--camera", "other"], "choose a camera with --camera: camera"),
    ],
)
def test_a_mistake_is_one_clear_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    ran = run(tmp_path, *arguments)
    assert ran.returncode in (1, 2)
    assert message in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


def test_a_classifier_without_a_model_says_how_to_give_one(tmp_path: Path) -> None:
    handlers = Path(__file__).parents[2] / "handlers"
    ran = run(tmp_path, "run", "--handler", str(handlers / "classify"))
    assert ran.returncode == 2
    assert "--set classify.model=PATH" in ran.stderr


@pytest.mark.slow
def test_a_handler_that_cannot_be_started_is_a_failure(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "handler.toml").write_text('name = "broken"\nversion = "1.0.0"\nobserves = [1]\n')
    (broken / "handler.wasm").write_bytes(b"\0asm\x01\0\0\0garbage")
    ran = run(tmp_path, "run", "--frames", "10", "--handler", str(broken), "--json")
    assert ran.returncode == 1
    summary = json.loads(ran.stdout)
    assert summary["handlers"] == {"broken": "failed"}
    assert summary["results"] == 0
    assert summary["dropped"]["failed_broken"] > 0
    assert "broken could not be started" in ran.stderr.splitlines()[-1]


def test_a_spool_that_cannot_be_opened_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "state" / "spool.sqlite").mkdir(parents=True)
    ran = run(tmp_path, "run", "--frames", "20")
    assert ran.returncode == 1
    (line,) = ran.stderr.splitlines()
    assert "spool.sqlite fails" in line


def test_doctor_and_config(tmp_path: Path) -> None:
    examined = run(tmp_path, "doctor")
    assert examined.returncode == 0, examined.stdout
    for subject in (
        "python",
        "litert",
        "edge tpu",
        "camera camera",
        "handler parts",
        "workers",
        "models",
        "broker",
        "state",
        "clock",
        "leds",
    ):
        assert subject in examined.stdout
    config = tmp_path / "appliance.toml"
    config.write_text('[mqtt]\nurl = "mqtt://127.0.0.1:1"\npassword = "hush-hush"\n[[cameras]]\nurl = "/dev/video77"\n')
    examined = run(tmp_path, "doctor", "--config", str(config))
    assert examined.returncode == 1
    assert "FAIL broker" in examined.stdout.replace("FAIL  ", "FAIL ").replace("FAIL  ", "FAIL ")
    assert "/dev/video77" in examined.stdout
    shown = run(tmp_path, "config", "--config", str(config))
    assert shown.returncode == 0
    assert "hush-hush" not in shown.stdout
    assert 'url = "mqtt://127.0.0.1:1"' in shown.stdout


def test_help_teaches(tmp_path: Path) -> None:
    assert "appliance run --frames 300" in run(tmp_path, "--help").stdout
    assert "--set classify.model=" in run(tmp_path, "run", "--help").stdout


@pytest.mark.slow
def test_whoever_reads_may_go(tmp_path: Path) -> None:
    """``appliance run | head -1``: the run ends as by Ctrl-C, without a word."""
    environment = {**os.environ, "APPLIANCE_STATE": str(tmp_path / "state")}
    with subprocess.Popen(
        [*COMMAND, "run"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert "mosquitto_sub" in process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 0


def test_a_terminal_that_is_closed_ends_the_run(tmp_path: Path) -> None:
    environment = {**os.environ, "APPLIANCE_STATE": str(tmp_path / "state")}
    with subprocess.Popen([*COMMAND, "run"], stdout=subprocess.PIPE, text=True, env=environment) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGHUP)
        assert "results" in process.communicate(timeout=60)[0]
        assert process.returncode == 0
    assert not (tmp_path / "state" / "zipper.address").exists()


@pytest.mark.slow
def test_a_broker_that_is_away_is_named_in_full_and_not_waited_for(tmp_path: Path) -> None:
    ran = run(tmp_path, "run", "--frames", "3", "--broker", "mqtt://broker.invalid", seconds=14)
    assert ran.returncode == 0
    assert "mosquitto_sub -h broker.invalid -p 1883 " in ran.stdout
    assert "3 wait on disk" in ran.stdout
    assert "source/camera" in ran.stdout
