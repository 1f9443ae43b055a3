"""Whole installs, killed or cut off the power at any step: the old or the new runs at once, and it is finished."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cut_installs import DISK_MEGABYTES, Course, courses, killed_at_each_step, power_cuts
from power_cuts import disk, unavailable
from whole_installs import SCENES

STRIDE = 43
"""Every day some of the steps, at times all of them."""


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory in memory where there is one."""
    memory = Path("/dev/shm")
    place = memory if memory.is_dir() else tmp_path_factory.mktemp("installs")
    with tempfile.TemporaryDirectory(dir=place) as directory:
        yield Path(directory)


@pytest.fixture(scope="module")
def installs(memory: Path) -> dict[str, Course]:
    return {course.scene.name: course for course in courses(memory / "courses")}


@pytest.mark.parametrize("scene", ["upgrade"])
def test_a_box_that_is_killed_now_and_then_runs_the_old_or_the_new_version(
    installs: dict[str, Course], memory: Path, scene: str
) -> None:
    assert list(killed_at_each_step(installs[scene], memory / "killed", first=len(scene), stride=STRIDE))


@pytest.mark.slow
@pytest.mark.parametrize("scene", SCENES)
def test_a_box_that_is_killed_at_any_step_runs_the_old_or_the_new_version(
    installs: dict[str, Course], memory: Path, scene: str
) -> None:
    install = installs[scene]
    kinds = [install.scene.kind(each) for each in killed_at_each_step(install, memory / "killed")]
    assert len(kinds) > 40
    assert kinds[-1] == "new"


def test_after_a_power_cut_a_box_runs_the_old_or_the_new_version(installs: dict[str, Course], memory: Path) -> None:
    cut_by_power(installs, memory, seed=11, count=8)


@pytest.mark.slow
def test_after_200_power_cuts_a_box_runs_the_old_or_the_new_version(installs: dict[str, Course], memory: Path) -> None:
    cut_by_power(installs, memory, seed=12, count=200)


def cut_by_power(installs: dict[str, Course], memory: Path, seed: int, count: int) -> None:
    if reason := unavailable(memory):
        pytest.skip(reason)
    with disk(memory, DISK_MEGABYTES) as drive:
        tally = power_cuts(list(installs.values()), drive, seed, count)
    assert tally.old + tally.new == count
    assert tally.old > 0
    assert tally.new > 0
