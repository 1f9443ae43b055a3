"""Whole installs, killed or cut off the power at any step: the old or the new runs at once, and it is finished."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cut_installs import Course, course, courses, killed_at_each_step, power_cuts
from power_cuts import disk, unavailable
from whole_installs import scenes

SCENES = scenes()
STRIDE = 29
"""Every day some of the steps, at times all of them."""


@pytest.fixture
def quick(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory where there is one."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as directory:
        yield Path(directory)


@pytest.fixture(params=SCENES)
def install(request: pytest.FixtureRequest, quick: Path) -> Course:
    return course(SCENES[request.param], quick / "course")


def test_a_box_that_is_killed_now_and_then_runs_the_old_or_the_new_version(install: Course, quick: Path) -> None:
    seen = list(killed_at_each_step(install, quick, first=len(install.scene.name) % STRIDE, stride=STRIDE))
    assert len(seen) > 1


@pytest.mark.slow
def test_a_box_that_is_killed_at_any_step_runs_the_old_or_the_new_version(install: Course, quick: Path) -> None:
    seen = [*killed_at_each_step(install, quick)]
    kinds = [install.scene.kind(each) for each in seen]
    assert len(seen) > 10
    assert kinds[-1] == "new"


def test_after_a_power_cut_a_box_runs_the_old_or_the_new_version(quick: Path) -> None:
    cut_by_power(quick, seed=11, count=8)


@pytest.mark.slow
def test_after_200_power_cuts_a_box_runs_the_old_or_the_new_version(quick: Path) -> None:
    cut_by_power(quick, seed=12, count=200)


def cut_by_power(directory: Path, seed: int, count: int) -> None:
    if reason := unavailable(directory):
        pytest.skip(reason)
    with disk(directory) as drive:
        tally = power_cuts(courses(directory / "courses"), drive, seed, count)
    print(tally)
    assert tally.old + tally.new == count
    assert tally.old > 0
    assert tally.new > 0
