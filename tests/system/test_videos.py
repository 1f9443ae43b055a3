"""Real models on real videos, read from MQTT by mosquitto_sub; with a remote stream function in its own process."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mosquitto import BINARY, Mosquitto

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
COMMAND = [sys.executable, "-m", "appliance"]
MOBILENET = DATA / "models" / "mobilenet_v2_1.0_224_quant.tflite"
SSD = DATA / "models" / "coco_ssd_mobilenet_v1_1.0_quant_2018_06_29.tflite"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.exists(), reason="no ../shared/data: the models and videos are not ours to ship"),
    pytest.mark.skipif(BINARY is None, reason="mosquitto is not installed (apt-get install mosquitto)"),
]


def run(
    tmp_path: Path, broker: Mosquitto, video: str, frames: int, *arguments: str, topic: str = "+"
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Every frame of a video, lossless: (summary, results in the order they came)."""
    subscribe = [
        "mosquitto_sub",
        "-h",
        "127.0.0.1",
        "-p",
        str(broker.port),
        "-q",
        "1",
        "-t",
        f"appliance/+/result/+/{topic}",
    ]
    listener = subprocess.Popen([*subscribe, "-C", str(frames), "-W", "300"], stdout=subprocess.PIPE, text=True)
    ran = subprocess.run(
        [
            *COMMAND,
            "run",
            "--camera",
            str(DATA / "video" / video),
            "--lossless",
            "--broker",
            broker.url,
            "--json",
            *arguments,
        ],
        capture_output=True,
        text=True,
        timeout=400,
        env={**os.environ, "APPLIANCE_STATE": str(tmp_path / "state")},
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    said, _ = listener.communicate(timeout=30)
    return json.loads(ran.stdout), [json.loads(line) for line in said.splitlines()]


def share(results: list[dict[str, Any]], label: str) -> float:
    """Part of the results whose label is (a synonym list beginning with) this one."""
    return sum(result["value"]["label"].split(",")[0] == label for result in results) / len(results)


def test_classify_knows_hot_dogs_from_burgers(tmp_path: Path, broker: Mosquitto) -> None:
    labels = DATA / "labels" / "imagenet_labels.txt"
    chosen = ("--set", f"classify.model={MOBILENET}", "--set", f"classify.labels={labels}")
    summary, results = run(
        tmp_path, broker, "food-pan.mp4", 315, "--handler", str(ROOT / "handlers" / "classify"), *chosen
    )
    assert (summary["captured"], summary["results"], summary["lost"], summary["dropped"]) == (315, 315, 0, {})
    assert [result["seq"] for result in results] == list(range(315))
    truth = json.loads((DATA / "video" / "food-pan.truth.json").read_text())["truth"]
    for label in ("hotdog", "cheeseburger"):
        assert share([result for result in results if truth[result["seq"]] == label], label) >= 0.95
        assert share([result for result in results if truth[result["seq"]] != label], label) <= 0.02


@pytest.mark.parametrize(
    ("video", "frames", "label", "least"),
    [("bottle-detection.mp4", 1189, "bottle", 0.95), ("one-by-one-person-detection.mp4", 1394, "person", 0.70)],
)
def test_detect_finds_and_count_counts(
    tmp_path: Path, broker: Mosquitto, video: str, frames: int, label: str, least: float
) -> None:
    handlers = ("--handler", str(ROOT / "handlers" / "detect"), "--handler", str(ROOT / "handlers" / "count"))
    chosen = ("--set", f"detect.model={SSD}", "--set", f"detect.labels={DATA / 'labels' / 'coco_labelmap.txt'}")
    summary, results = run(tmp_path, broker, video, 2 * frames, *handlers, *chosen)
    assert (summary["captured"], summary["results"], summary["lost"]) == (frames, 2 * frames, 0)
    detections = [result["value"]["objects"] for result in results if result["handler"] == "detect"]
    found = sum(any(item["label"] == label for item in objects) for objects in detections)
    assert found >= least * frames
    counts = [result for result in results if result["handler"] == "count"]
    assert counts[-1]["value"]["frames"] == frames
    assert counts[-1]["value"]["seen"][label] == found
