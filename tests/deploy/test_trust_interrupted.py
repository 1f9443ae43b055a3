"""Verification that ends anywhere: what it has stored stops nothing afterwards, and opens no way back."""

import shutil
from functools import partial
from pathlib import Path

import pytest
from fleet_double import START, Fleet
from interruptions import interrupted, steps_of
from power_cuts import cuts, disk, unavailable

from appliance.deploy.trust import Trust, TrustError

STRIDE = 11


class Story:
    """A box that has verified one state of its fleet, and verifies the next."""

    def __init__(self) -> None:
        self.fleet = Fleet()
        self.fleet.deploy("box", {})
        self.fleet.publish()
        self.old = dict(self.fleet.metadata)
        self.fleet.rotate("root")
        self.fleet.publish()

    def trust(self, directory: Path) -> Trust:
        return Trust(directory, self.fleet.first_root, wall=lambda: START.timestamp() + 60)

    def begin(self, directory: Path) -> None:
        shutil.rmtree(directory, ignore_errors=True)
        self.trust(directory).refresh(self.old)

    def go_on(self, directory: Path, told: Path | None = None) -> None:
        self.trust(directory).refresh(self.fleet.metadata)
        if told is not None:
            told.touch()

    def check(self, directory: Path, *, promised: bool) -> None:
        """The old state is good until the new one has been promised. The new one is, always."""
        try:
            versions = self.trust(directory).refresh(self.old).versions
        except TrustError:
            pass
        else:
            assert versions["timestamp"] == 2
            assert not promised
        assert self.trust(directory).refresh(self.fleet.metadata).versions["timestamp"] == 3
        with pytest.raises(TrustError):
            self.trust(directory).refresh(self.old)


@pytest.mark.slow
def test_a_process_that_is_killed_at_any_step_converges(quick: Path) -> None:
    story, directory = Story(), quick / "trust"
    story.begin(directory)
    steps = steps_of(lambda: story.go_on(directory))
    assert steps > 50
    for step in range(0, steps, STRIDE):
        story.begin(directory)
        assert interrupted(lambda: story.go_on(directory), step)
        story.check(directory, promised=False)


@pytest.mark.slow
def test_after_a_power_cut_it_converges_and_remembers(quick: Path) -> None:
    if reason := unavailable(quick):
        pytest.skip(reason)
    story = Story()
    story.begin(quick / "trust")
    steps = steps_of(lambda: story.go_on(quick / "trust"))
    told = quick / "told"
    with disk(quick) as drive:
        directory = drive.path / "trust"
        for cut in cuts(seed=3, count=25):
            told.unlink(missing_ok=True)
            story.begin(directory)
            # one in three cuts comes when all is done, and is promised
            step = int(cut.share * 1.5 * steps)
            if not interrupted(partial(story.go_on, directory, told), step, partial(drive.cut, cut)):
                drive.cut(cut)
            drive.power_up()
            story.check(directory, promised=told.exists())
