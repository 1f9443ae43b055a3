"""The commands of who writes a handler, as they are typed: processes, exit codes, what is printed."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import msgspec
import pytest
from pictures_to_try import gray_pictures
from PIL import Image

from appliance.author.outcome import Tried, TriedResult
from appliance.deploy.packing import pack
from appliance.manifest import load_manifest

HANDLERS = Path(__file__).parents[2] / "handlers"
COMMAND = [sys.executable, "-m", "appliance", "handler"]
TRAPS_ON_DARK = """
#include "appliance.h"
static uint8_t samples[16];
APPLIANCE_EXPORT(handle) int32_t handle(void) {
  int32_t length = appliance_frame_pixels(NULL, APPLIANCE_GRAY, 4, 4, samples, sizeof samples);
  if (length < 0) return length;
  if (samples[0] == 0) __builtin_trap();
  return appliance_emit(0x20, APPLIANCE_BYTES, samples, sizeof samples);
}
"""
LONG_INIT = """
#include "appliance.h"
static volatile uint32_t n;
APPLIANCE_EXPORT(init) int32_t init(void) { for (int i = 0; i < 500000; i++) n++; return 0; }
APPLIANCE_EXPORT(handle) int32_t handle(void) { return 0; }
"""


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "APPLIANCE_STATE": "/nonexistent"}
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=120, env=environment, check=False
    )


@pytest.fixture(scope="module")
def handler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Begun and built by the commands."""
    directory = tmp_path_factory.mktemp("handlers") / "brightness"
    begun = run("new", "brightness", "--dir", directory)
    assert begun.returncode == 0, begun.stderr
    assert f"  appliance handler build {directory}" in begun.stdout.splitlines()
    built = run("build", directory)
    assert built.returncode == 0, built.stderr
    assert built.stdout.startswith("built      handler.c -> handler.wasm\n")
    assert re.search(
        r"^module     handler\.wasm, \d+ bytes, sha256 [0-9a-f]{64}\nadmission  admitted$", built.stdout, re.MULTILINE
    )
    return directory


@pytest.fixture(scope="module")
def trapping(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("handlers") / "trapping"
    assert run("new", "trapping", "--dir", directory).returncode == 0
    (directory / "handler.c").write_text(TRAPS_ON_DARK)
    assert run("build", directory).returncode == 0
    return directory


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gray_pictures(tmp_path_factory.mktemp("pictures"), 0, 255)


def test_a_line_for_each_result_and_a_summary(handler: Path, pictures: Path, tmp_path: Path) -> None:
    drawn = tmp_path / "a" / "drawn"
    tried = run("test", handler, pictures, pictures / "001-gray.jpg", "--annotate", drawn)
    assert tried.returncode == 0, tried.stderr
    assert tried.stdout.splitlines()[:5] == [
        '000-gray.jpg  0x20  {"brightness":0.0,"dark":true}',
        '001-gray.jpg  0x20  {"brightness":1.0,"dark":false}',
        '001-gray.jpg  0x20  {"brightness":1.0,"dark":false}',
        "frames     3, failed 0",
        "results    3",
    ]
    assert tried.stderr == ""
    written = sorted(drawn.iterdir())
    assert [path.name for path in written] == ["000001-000-gray.jpg", "000002-001-gray.jpg", "000003-001-gray.jpg"]
    with Image.open(written[0]) as image:
        assert max(image.convert("L").tobytes()) > 200  # text on what was black


@pytest.mark.slow
def test_a_place_for_drawings_that_cannot_be_written_is_named(handler: Path, pictures: Path) -> None:
    tried = run("test", handler, pictures, "--annotate", pictures / "000-gray.jpg" / "drawn")
    assert tried.returncode == 2
    assert "000-gray.jpg/drawn: cannot be written: Not a directory" in tried.stderr.splitlines()[-1]


@pytest.mark.slow
def test_a_failed_frame_is_told_with_its_place_and_makes_the_exit_code(trapping: Path, pictures: Path) -> None:
    tried = run("test", trapping, pictures)
    assert tried.returncode == 1
    failed, place, emitted, *summary = tried.stdout.splitlines()
    assert failed == "000-gray.jpg  failed: trap: unreachable executed"
    assert re.fullmatch(r"    0: 0x[0-9a-f]{6} .+", place)
    assert emitted == "001-gray.jpg  0x20  16 bytes of bytes"
    assert summary[0] == "frames     2, failed 1 (trap 1)"


def test_json_is_an_object_a_line(trapping: Path, pictures: Path) -> None:
    tried = run("test", trapping, pictures, "--json")
    failed, good, last = map(json.loads, tried.stdout.splitlines())
    assert (failed["frame"], failed["outcome"], failed["results"]) == ("000-gray.jpg", "trap", [])
    assert good["results"] == [{"tag": 0x20, "format": "bytes", "bytes": 16, "value": None, "refused": ""}]
    assert (last["summary"]["frames"], last["summary"]["faults"]) == (2, {"trap": 1})


def test_a_handler_that_fails_on_every_frame_is_given_up(trapping: Path, pictures: Path) -> None:
    tried = run("test", trapping, *[pictures / "000-gray.jpg"] * 40)
    assert tried.returncode == 1
    assert "frames     33, failed 33 (trap 32, unavailable 1)" in tried.stdout
    assert tried.stderr.splitlines()[-1].startswith("appliance: trapping: the handler is not running; last failure: ")


@pytest.mark.slow
def test_what_one_handler_found_is_the_input_of_another(tmp_path: Path) -> None:
    found = [{"objects": [{"label": "cat"}, {"label": "cat"}]}, {"objects": [{"label": "dog"}]}]
    lines = [_found(f"street.mp4#{number}", 0x12, value) for number, value in enumerate(found)]
    record = tmp_path / "found.jsonl"
    record.write_text("\n".join([*lines, _found("other", 0x13, {}), '{"summary":{}}']) + "\n")
    tried = run("test", HANDLERS / "count", record, "--annotate", tmp_path / "drawn", "--json")
    assert tried.returncode == 0, tried.stderr
    first, second, _ = map(json.loads, tried.stdout.splitlines())
    assert (first["frame"], first["results"][0]["value"]["counts"]) == ("street.mp4#0", {"cat": 2})
    assert second["results"][0]["value"]["frames"] == 2
    record.write_text(lines[0] + "\nnothing\n")
    tried = run("test", HANDLERS / "count", record)
    assert tried.returncode == 2
    assert "line 2 is none of `appliance handler test --json`" in tried.stderr


def _found(frame: str, tag: int, value: object) -> str:
    """A line of what the trial of a handler printed."""
    result = TriedResult(tag, "cbor", 0, value)
    tried = Tried(frame, "ok", "", [], [result], guest_us=0, decode_us=0, invoke_us=0, wait_us=0, gas=0, memory_bytes=0)
    return msgspec.json.encode(tried).decode()


@pytest.mark.slow
def test_frames_bounds_an_endless_input(handler: Path) -> None:
    tried = run("test", handler, "synthetic:", "--frames", "3")
    assert tried.returncode == 0, tried.stderr
    assert "frames     3, failed 0" in tried.stdout


def test_an_interrupt_ends_it_with_the_summary_of_what_was_done(handler: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "test", str(handler), "synthetic:"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    frames = re.search(r"^frames     (\d+), failed 0$", rest, re.MULTILINE)
    assert frames is not None
    assert int(frames[1]) == (first + rest).count("  0x20  ")


@pytest.mark.slow
def test_a_camera_that_breaks_down_leaves_the_summary_of_what_was_done(handler: Path, pictures: Path) -> None:
    (pictures.parent / "empty.jpg").write_bytes(b"")
    tried = run("test", handler, pictures / "001-gray.jpg", pictures.parent / "empty.jpg")
    assert tried.returncode == 1
    assert "frames     1, failed 0" in tried.stdout
    assert "none of the 1 pictures" in tried.stderr.splitlines()[-1]


def test_a_handler_that_cannot_be_started_is_told_at_once(handler: Path, pictures: Path) -> None:
    tried = run("test", handler, pictures, "--set", "dark=very")
    assert tried.returncode == 1
    assert tried.stdout == ""
    assert "brightness cannot be started: init returned -1 (EINVAL)" in tried.stderr
    tried = run("test", handler, pictures, "--set", "colour=red")
    assert (tried.returncode, tried.stdout) == (2, "")
    assert "has no setting 'colour'" in tried.stderr


def test_a_picture_that_is_not_there_is_told_before_anything_runs(handler: Path, pictures: Path) -> None:
    tried = run("test", handler, pictures, "nowhere.jpg")
    assert (tried.returncode, tried.stdout) == (2, "")
    (line,) = tried.stderr.splitlines()
    assert "'nowhere.jpg'" in line


@pytest.mark.slow
@pytest.mark.parametrize("command", ["test", "bench"])
def test_an_input_that_cannot_be_opened_is_not_waited_for(command: str, handler: Path) -> None:
    tried = run(command, handler, "/dev/null")
    assert (tried.returncode, tried.stdout) == (2, "")
    assert re.search(
        r"^appliance: .* /dev/null: .*; it has to be a camera that is there now, a video", tried.stderr, re.MULTILINE
    )


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["wasm3", "wasmtime"])
def test_bench_suggests_limits_under_which_it_runs(handler: Path, pictures: Path, tmp_path: Path, engine: str) -> None:
    measured = tmp_path / "measured"
    measured.mkdir()
    for name in ("handler.toml", "handler.wasm"):
        (measured / name).write_bytes((handler / name).read_bytes())
    manifest = (measured / "handler.toml").read_text("utf-8").partition("[limits]")[0]
    (measured / "handler.toml").write_text(f'engine = "{engine}"\n{manifest}')
    ran = run("bench", measured, pictures, "--frames", "20", "--json")
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert (told["frames"], told["failed"]) == (20, 0)
    assert told["needs"]["gas"]["max"] > 256
    assert told["needs"]["memory_bytes"]["max"] == 65_536
    ran = run("bench", measured, pictures / "001-gray.jpg", "--frames", "5")
    assert ran.stdout.startswith("5 frames\n")
    _, toml, limits = ran.stdout.partition("[limits]")
    assert tomllib.loads(toml + limits)["limits"]["memory_mb"] == 1
    (measured / "handler.toml").write_text(f'engine = "{engine}"\n{manifest}{toml}{limits}')
    assert run("test", measured, pictures).returncode == 0


@pytest.mark.slow
def test_limits_leave_room_for_what_is_done_before_the_first_frame(tmp_path: Path, pictures: Path) -> None:
    directory = tmp_path / "tables"
    assert run("new", "tables", "--dir", directory).returncode == 0
    (directory / "handler.c").write_text(LONG_INIT)
    manifest = directory / "handler.toml"
    manifest.write_text(manifest.read_text("utf-8").replace("deadline_ms = 200", "deadline_ms = 5000"))
    assert run("build", directory).returncode == 0
    ran = run("bench", directory, pictures, "--frames", "2", "--json")
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert told["needs"]["gas"]["max"] < 1_000_000
    assert 10 < told["limits"]["gas"] < 1000
    assert ran.stderr == ""


@pytest.mark.slow
def test_bench_says_where_no_frame_went_well(trapping: Path, pictures: Path) -> None:
    ran = run("bench", trapping, pictures / "000-gray.jpg", "--frames", "2")
    assert ran.returncode == 1
    assert "no frame went well (trap: unreachable executed)" in ran.stderr
    ran = run("bench", trapping, pictures, "--frames", "4")
    assert ran.returncode == 1
    assert ran.stdout.startswith("4 frames, 2 of them failed")


def test_inspect_shows_what_a_handler_is(handler: Path) -> None:
    shown = run("inspect", handler)
    assert shown.returncode == 0, shown.stderr
    assert "handler    brightness 0.1.0: How bright the picture is" in shown.stdout
    assert "imports    appliance: emit, frame_pixels, log, setting" in shown.stdout
    view = json.loads(run("inspect", handler, "--json").stdout)
    packed = pack(handler)
    assert view["bundle"]["digest"] == packed.digest
    assert view["bundle"]["bundle"]["files"].keys() == {"handler.toml", "handler.wasm"}
    assert (view["module"]["admitted"], view["module"]["memory_bytes"]) == (True, 65_536)
    assert view["manifest"]["settings"] == {"dark": "0.2"}


@pytest.mark.slow
def test_inspect_shows_models_with_their_tensors() -> None:
    shown = run("inspect", HANDLERS / "parts")
    assert shown.returncode == 0, shown.stderr
    digest = hashlib.sha256((HANDLERS / "parts" / "parts.tflite").read_bytes()).hexdigest()
    assert f"4 labels, sha256 {digest}" in shown.stdout
    assert re.search(r"^ +input  \S+: uint8 1x96x96x3", shown.stdout, re.MULTILINE)
    assert "parts.tflite" in shown.stdout.partition("bundle ")[2]
    shown = run("inspect", HANDLERS / "detect")
    assert "model      model: the operator names it" in shown.stdout
    assert "bundle     none: " in shown.stdout


def test_inspect_takes_a_module_or_an_index(handler: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.wasm").write_bytes(b"MZ")
    shown = run("inspect", tmp_path / "bad.wasm")
    assert shown.returncode == 1
    assert "refused (not-a-module)" in shown.stdout
    assert "admission  admitted" in run("inspect", handler / "handler.wasm").stdout
    packed = pack(handler)
    (tmp_path / "0.1.0.json").write_bytes(packed.index)
    assert packed.digest in run("inspect", tmp_path / "0.1.0.json").stdout
    (tmp_path / "0.1.0.json").write_bytes(b"{}")
    shown = run("inspect", tmp_path / "0.1.0.json")
    assert shown.returncode == 1
    assert "0.1.0.json: not the index of a bundle" in shown.stderr


def test_a_damaged_model_is_said_and_the_rest_is_shown(tmp_path: Path) -> None:
    for name in ("handler.toml", "handler.wasm", "labels.txt"):
        (tmp_path / name).write_bytes((HANDLERS / "parts" / name).read_bytes())
    (tmp_path / "parts.tflite").write_bytes(b"no model")
    shown = run("inspect", tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert re.search(r"^model      parts: .*is not a TFLite model", shown.stdout, re.MULTILINE)


def test_a_refused_module_makes_the_build_fail(handler: Path, tmp_path: Path) -> None:
    (tmp_path / "handler.toml").write_bytes((handler / "handler.toml").read_bytes())
    built = run("build", tmp_path)
    assert built.returncode == 1
    assert "handler.wasm: is not there; `appliance handler build" in built.stderr
    (tmp_path / "handler.wasm").write_bytes(b"\0asm\1\0\0")
    built = run("build", tmp_path)
    assert built.returncode == 1
    assert "no source; the module handler.wasm is used as it is" in built.stdout
    assert "admission  the module is refused (" in built.stdout


def test_the_name_in_the_manifest_is_the_one_given(handler: Path) -> None:
    assert load_manifest(handler).name == "brightness"
    again = run("new", "brightness", "--dir", handler)
    assert again.returncode == 2
    assert "choose another with --dir" in again.stderr
