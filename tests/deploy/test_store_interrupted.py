"""The store ends anywhere, or its disk fails anywhere: what is there afterwards is the old or the new, whole."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from interruptions import failing_disks, interrupted, steps_of
from power_cuts import Cut, cuts, disk, unavailable
from store_scenes import Scene, detector

from appliance.deploy.fleet_topics import MIN_CHUNK_BYTES
from appliance.deploy.partial_file import file_digest
from appliance.deploy.store import INDEX_FILE
from appliance.errors import DeviceError

ONE, TWO = detector("1.0.0"), detector("2.0.0", model=b"another" * 2000)


def _nothing(scene: Scene) -> None:
    pass


def _one_kept(scene: Scene) -> None:
    scene.keep(ONE)
    scene.store.write_record("detector", b"one")


def _two_downloaded(scene: Scene) -> None:
    _one_kept(scene)
    scene.download(TWO)


def _two_staged(scene: Scene) -> None:
    _two_downloaded(scene)
    scene.store.stage(TWO.verified)


def _two_damaged(scene: Scene) -> None:
    _two_downloaded(scene)
    slot = scene.store.keep(TWO.verified)
    (slot / "handler.wasm").unlink()


def _two_in_use(scene: Scene) -> None:
    _two_staged(scene)
    scene.store.keep(TWO.verified)
    scene.begin(b"stray" * 1000, MIN_CHUNK_BYTES)


def _finish(scene: Scene) -> None:
    data = TWO.contents["model.tflite"]
    if not scene.store.has(scene.digest(data)):
        with scene.partial(data) as file:
            file.append(data[file.received :], MIN_CHUNK_BYTES)
            file.finish()


def _install(scene: Scene, done: Callable[[str], object] = lambda _: None) -> None:
    """A whole deployment: download, admit, keep, switch, and forget the old one. ``done`` hears what is promised."""
    scene.download(TWO)
    done("downloaded")
    scene.store.stage(TWO.verified)
    scene.store.keep(TWO.verified)
    done("kept")
    scene.store.write_record("detector", b"two")
    done("switched")
    scene.store.collect(used=[("detector", TWO.digest)])


@dataclass(frozen=True)
class Work:
    before: Callable[[Scene], None]
    work: Callable[[Scene], object]


WORKS = {
    "finish": Work(_nothing, _finish),
    "stage": Work(_two_downloaded, lambda scene: scene.store.stage(TWO.verified)),
    "stage again": Work(_two_staged, lambda scene: scene.store.stage(TWO.verified)),
    "keep": Work(_two_staged, lambda scene: scene.store.keep(TWO.verified)),
    "keep in place of a damaged one": Work(_two_damaged, lambda scene: scene.store.keep(TWO.verified)),
    "write a record": Work(_one_kept, lambda scene: scene.store.write_record("detector", b"two")),
    "remove a record": Work(_one_kept, lambda scene: scene.store.remove_record("detector")),
    "collect": Work(_two_in_use, lambda scene: scene.store.collect(used=[("detector", TWO.digest)])),
}


@pytest.fixture(params=WORKS)
def work(request: pytest.FixtureRequest) -> Work:
    return WORKS[request.param]


STRIDES = [19, pytest.param(1, marks=pytest.mark.slow)]
"""Every day some of the steps, at times all of them."""


class Stage:
    """A store that is put back to what it was before, as often as it is wanted."""

    def __init__(self, directory: Path, before: Callable[[Scene], None]) -> None:
        self._saved, self._path = directory / "saved", directory / "deploy"
        before(Scene(self._saved))
        self.scene = Scene(self._path)

    def reset(self) -> None:
        shutil.rmtree(self._path)
        shutil.copytree(self._saved, self._path)
        self.scene = Scene(self._path)


def check_whole(scene: Scene) -> None:
    """A store that starts again: everything it says is there is whole."""
    scene.restart()
    for file in (scene.path / "objects").iterdir():
        assert file_digest(file) == file.name
    for bundle in (ONE, TWO):
        slot = scene.store.slot("detector", bundle.digest)
        if slot is not None:
            found = {file.name: file.read_bytes() for file in slot.iterdir()}
            assert found == {**bundle.contents, INDEX_FILE: bundle.index}
    assert scene.store.read_record("detector") in {None, b"one", b"two"}


def tree(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def check_finished(scene: Scene, work: Callable[[Scene], object], expected: dict[str, bytes]) -> None:
    """Doing it again comes to the same as if nothing had happened."""
    work(scene)
    left = ("staging/.", "records/.")  # for ``collect``
    assert {name: data for name, data in tree(scene.path).items() if not name.startswith(left)} == expected


def outcome(stage: Stage, work: Callable[[Scene], object]) -> dict[str, bytes]:
    stage.reset()
    work(stage.scene)
    return tree(stage.scene.path)


@pytest.mark.parametrize("stride", STRIDES)
def test_a_process_that_is_killed_at_any_step_leaves_the_old_or_the_new(quick: Path, work: Work, stride: int) -> None:
    stage = Stage(quick, work.before)
    expected = outcome(stage, work.work)
    stage.reset()
    record = stage.scene.store.read_record("detector")
    steps = steps_of(lambda: work.work(stage.scene))
    assert steps > 5
    for step in range(0, steps, stride):
        stage.reset()
        assert interrupted(lambda: work.work(stage.scene), step)
        check_whole(stage.scene)
        assert stage.scene.store.read_record("detector") in {record, expected.get("records/detector.json")}
        check_finished(stage.scene, work.work, expected)


def test_a_disk_that_fails_at_any_call_is_the_devices_fault_and_leaves_the_old_or_the_new(
    quick: Path, work: Work
) -> None:
    stage = Stage(quick, work.before)
    expected = outcome(stage, work.work)
    failures = 0
    for ended in failing_disks(lambda: work.work(stage.scene), stage.reset):
        if ended is not None:
            assert isinstance(ended, DeviceError)
            failures += 1
        check_whole(stage.scene)
        check_finished(stage.scene, work.work, expected)
    assert failures > 1


@pytest.mark.parametrize("stride", STRIDES)
def test_a_used_slot_is_never_harmed(quick: Path, stride: int) -> None:
    stage = Stage(quick, _one_kept)
    stage.reset()
    steps = steps_of(lambda: _install(stage.scene))
    for step in range(0, steps, 3 * stride):
        stage.reset()
        interrupted(lambda: _install(stage.scene), step)
        stage.scene.restart()
        used = {b"one": ONE, b"two": TWO}[stage.scene.store.read_record("detector") or b""]
        assert stage.scene.store.slot("detector", used.digest) is not None


def test_after_a_power_cut_the_old_or_the_new_is_there_and_whole(quick: Path) -> None:
    """On a real ext4 that loses what was not flushed: ``power_cuts``."""
    power_cuts(quick, seed=1, count=25)


@pytest.mark.slow
def test_after_many_power_cuts_the_old_or_the_new_is_there_and_whole(quick: Path) -> None:
    power_cuts(quick, seed=2, count=400)


def power_cuts(directory: Path, seed: int, count: int) -> None:
    if reason := unavailable(directory):
        pytest.skip(reason)
    (directory / "steps").mkdir()
    stage = Stage(directory / "steps", _one_kept)
    stage.reset()
    steps = steps_of(lambda: _install(stage.scene))
    told = directory / "told"
    with disk(directory) as drive:
        for cut in cuts(seed, count):
            scene = Scene(drive.path / "deploy")
            _one_kept(scene)
            told.write_text("")
            install = partial(_install, scene, partial(_tell, told))
            assert interrupted(install, int(cut.share * steps), partial(drive.cut, cut)), cut
            drive.power_up()
            check_whole(scene)
            used = {b"one": ONE, b"two": TWO}[scene.store.read_record("detector") or b""]
            assert scene.store.slot("detector", used.digest) is not None, cut
            check_promises(scene, told.read_text().split(), cut)
            _install(scene)
            assert scene.store.slot("detector", TWO.digest) is not None, cut
            shutil.rmtree(scene.path)


def _tell(file: Path, what: str) -> None:
    with file.open("a") as out:
        out.write(f"{what}\n")


def check_promises(scene: Scene, promised: list[str], cut: Cut) -> None:
    """What had returned before the cut has lasted."""
    if "downloaded" in promised:
        assert all(scene.store.has(digest) for digest in TWO.digests), cut
    if "kept" in promised:
        assert scene.store.slot("detector", TWO.digest) is not None, cut
    if "switched" in promised:
        assert scene.store.read_record("detector") == b"two", cut
