"""Whole installs that are cut, by SIGKILL or by the power, and what the box makes of it when it starts again."""

import asyncio
import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from kills import Steps, in_child
from power_cuts import Cut, Drive, cuts
from whole_installs import SCENES, Scene, difference, running, tree

DISK_MEGABYTES = 160
"""Beside what a device keeps free whatever is deployed."""
TWICE = 0.25
"""Of the cuts are followed by another one, while the box recovers."""


@dataclass(frozen=True)
class Course:
    """An install as it goes when nothing happens, and what the disk is like before and after it."""

    scene: Scene
    before: Path
    after: dict[str, str]
    steps: int

    def lay(self, directory: Path) -> Path:
        """The disk of a box to which it is going to happen."""
        return shutil.copytree(self.before, directory, symlinks=True)


@dataclass
class Tally:
    """What was in service when the box had started again."""

    old: int = 0
    new: int = 0
    twice: int = 0
    by_scene: Counter[str] = field(default_factory=Counter)

    def add(self, scene: Scene, at_once: str | None) -> None:
        self.by_scene[scene.name] += 1
        if scene.kind(at_once) == "new":
            self.new += 1
        else:
            self.old += 1

    def __str__(self) -> str:
        return f"{self.old + self.new} cuts: {self.old} old, {self.new} new, none broken; {self.twice} cut again"


def courses(directory: Path) -> list[Course]:
    """Of all scenes, each carried out once."""
    return [course(scene, directory / str(number)) for number, scene in enumerate(SCENES.values())]


def course(scene: Scene, directory: Path) -> Course:
    before, work = directory / "before", directory / "work"
    in_child(lambda: asyncio.run(_prepare(scene, before)))
    shutil.copytree(before, work, symlinks=True)

    def whole() -> int:
        steps = Steps(work)
        steps.watch()
        asyncio.run(_whole(scene, work))
        return steps.count

    steps = in_child(whole).value
    after = tree(work)
    shutil.rmtree(work)
    return Course(scene, before, after, steps)


async def _prepare(scene: Scene, directory: Path) -> None:
    async with running(scene, directory, healthy=True) as box:
        for retained, runs in scene.before:
            box.ears.publish(retained)
            await box.until_settled(retained, runs)


async def _whole(scene: Scene, directory: Path) -> None:
    async with running(scene, directory) as box:
        box.ears.publish(scene.after)
        await box.until_settled(scene.after, scene.ends_with)
        box.check()


# --- cut and recover ----------------------------------------------------------------------------------------------


def cut_short(course: Course, directory: Path, step: int, before_kill: Callable[[], None] = lambda: None) -> bool:
    """A box that installs, and ends at a step. False where it was done before."""

    def work() -> None:
        Steps(directory, step, before_kill).watch()
        asyncio.run(_install(course, directory))

    return in_child(work).killed


def recover(course: Course, directory: Path) -> str | None:
    """A box that starts again: what it has in service at once, before it has heard anything. Then it finishes."""
    value: str | None = in_child(lambda: asyncio.run(_install(course, directory))).value
    return value


async def _install(course: Course, directory: Path) -> str | None:
    """The deployment, to its end; what was in service when the box had started."""
    scene = course.scene
    async with running(scene, directory) as box:
        at_once = box.check()
        box.ears.publish(scene.after)

        def done() -> bool:
            return box.check() == scene.ends_with and tree(directory) == course.after

        await box.until(done, lambda: f"not as it should be: {difference(tree(directory), course.after)}")
        return at_once


def killed_at_each_step(course: Course, directory: Path, first: int = 0, stride: int = 1) -> Iterator[str | None]:
    """At each step (or each ``stride``-th), until the install is over before it comes: what was in service then."""
    step, killed = first, True
    while killed:
        state = course.lay(directory)
        killed = cut_short(course, state, step)
        try:
            yield recover(course, state)
        except AssertionError as error:
            error.add_note(f"{course.scene.name}, killed at step {step} of about {course.steps}")
            raise
        finally:
            shutil.rmtree(state)
        step += stride


def power_cuts(courses: list[Course], drive: Drive, seed: int, count: int) -> Tally:
    """Each at a random step of one of the courses, in turn; some are cut again while the box recovers."""
    tally = Tally()
    chance = random.Random(seed)
    for cut in cuts(seed, count):
        course = courses[cut.number % len(courses)]
        state = course.lay(drive.path / "deploy")
        subprocess.run(["sync", "-f", state], check=True, timeout=60)  # it was there long before
        try:
            _cut(course, state, drive, cut)
            if chance.random() < TWICE:
                _cut(course, state, drive, Cut(cut.number, chance.random(), journal=chance.random() < 0.3))
                tally.twice += 1
            tally.add(course.scene, recover(course, state))
        except AssertionError as error:
            error.add_note(f"{course.scene.name}, {cut} of seed {seed}, {course.steps} steps")
            raise
        shutil.rmtree(state)
    return tally


def _cut(course: Course, state: Path, drive: Drive, cut: Cut) -> None:
    cut_short(course, state, int(cut.share * course.steps), partial(drive.cut, cut))
    drive.power_up()
