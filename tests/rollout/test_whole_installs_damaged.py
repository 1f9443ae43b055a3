"""Somebody, or a bad card, has been at what a box keeps: it starts, says so, and comes back to what is wanted."""

import asyncio
import logging
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cut_installs import Course, course
from kills import in_child
from whole_installs import NAME, NEIGHBOUR, NEIGHBOURS, SCENES, TWO, running, tree

UPGRADE = SCENES["upgrade"]
SEED = 7


@pytest.fixture(scope="module")
def upgraded(tmp_path_factory: pytest.TempPathFactory) -> Course:
    """``before``: 2.0.0 runs, 1.0.0 is the previous version, and nothing is left to do."""
    directory = tmp_path_factory.mktemp("upgraded")
    made = course(UPGRADE, directory / "course")
    state = made.lay(directory / "state")

    async def upgrade() -> None:
        async with running(UPGRADE, state) as box:
            box.ears.publish(UPGRADE.after)
            await box.until_settled(UPGRADE.after, TWO)

    in_child(lambda: asyncio.run(upgrade()))
    return Course(UPGRADE, state, made.after, 0)


# --- what is done to it -------------------------------------------------------------------------------------------


def flipped(path: Path) -> None:
    """One bit of a file, wherever it has a name."""
    data = bytearray(path.read_bytes())
    data[random.Random(SEED).randrange(len(data))] ^= 4
    mode = path.stat().st_mode
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.write(data)
    path.chmod(mode)


def all_in(directory: str, do: Callable[[Path], object]) -> Callable[[Path], None]:
    def damage(state: Path) -> None:
        found = [path for path in (state / directory).rglob("*") if path.is_file() and not path.is_symlink()]
        assert found
        for inode in {path.stat().st_ino: path for path in found}.values():
            do(inode)

    return damage


def record_of(handler: str, content: bytes) -> Callable[[Path], None]:
    def damage(state: Path) -> None:
        (state / "records" / f"{handler}.json").write_bytes(content)

    return damage


def a_directory(name: str) -> Callable[[Path], None]:
    def damage(state: Path) -> None:
        (state / name).unlink(missing_ok=True)
        (state / name / "with").mkdir(parents=True)
        (state / name / "with" / "something").write_bytes(b"in it")

    return damage


def a_file(name: str) -> Callable[[Path], None]:
    def damage(state: Path) -> None:
        if (state / name).is_dir():
            shutil.rmtree(state / name)
        (state / name).write_bytes(b"a file")

    return damage


def rubbish(state: Path) -> None:
    """Everywhere."""
    for parent, _, _ in list(os.walk(state)):
        if Path(parent) not in (state, state / "records") and "slots/" not in parent:
            Path(parent, "rubbish").write_bytes(os.urandom(1000))
            Path(parent, "more").mkdir()
            Path(parent, "more", "rubbish").write_bytes(os.urandom(1000))
            Path(parent, "link").symlink_to("/nowhere")
    for number in range(100):
        (state / "metadata" / f"tmp{number}").write_bytes(os.urandom(100))
    (state / ".floor.json.x").write_bytes(b"half")
    (state / "records" / ".parts.json.x").write_bytes(b"half")


def truncated(path: Path) -> None:
    path.chmod(0o600)
    os.truncate(path, path.stat().st_size // 2)


DAMAGES = {
    "a record of another handler": record_of(NAME, b'{"handler":"door","state":"gone"}'),
    "a record that is garbage": record_of(NAME, b"\0\xffgarbage"),
    "a record that is empty": record_of(NAME, b""),
    "a record that makes no sense": record_of(NAME, b'{"handler":"parts","state":"canary"}'),
    "a record with a time that there is not": record_of(
        NAME, b'{"handler":"parts","state":"waiting","since_ns":99999999999999999999}'
    ),
    "a record that is a directory": a_directory(f"records/{NAME}.json"),
    "bits of what runs": all_in(f"slots/{NAME}", flipped),
    "bits of everything": all_in("", flipped),
    "half of every object": all_in("objects", truncated),
    "half of every file": all_in("", truncated),
    "objects that are gone": all_in("objects", Path.unlink),
    "slots that are gone": lambda state: shutil.rmtree(state / "slots"),
    "a floor that is cut": lambda state: truncated(state / "floor.json"),
    "a floor that is a directory": a_directory("floor.json"),
    "metadata that is a file": a_file("metadata"),
    "metadata that is cut": all_in("metadata", truncated),
    "objects that are a file": a_file("objects"),
    "records that are a file": a_file("records"),
    "all of it is a file": a_file("."),
    "rubbish everywhere": rubbish,
    "everything is gone": shutil.rmtree,
}
UNSAID = {"metadata that is cut", "objects that are gone", "slots that are gone", "everything is gone"}
"""The client asks for metadata again without a word, and nobody knows of what is not there that it was."""


@pytest.mark.parametrize(
    "damage",
    [pytest.param(each, marks=[pytest.mark.slow] if number % 3 else []) for number, each in enumerate(DAMAGES)],
)
def test_a_damaged_box_starts_and_comes_back_to_what_is_wanted(upgraded: Course, tmp_path: Path, damage: str) -> None:
    state = upgraded.lay(tmp_path / "deploy")
    DAMAGES[damage](state)

    async def recover() -> list[str]:
        said = _Said()
        logging.getLogger("appliance").addHandler(said)
        async with running(UPGRADE, state) as box:
            at_once = {box.serving.runs(NAME), box.serving.runs(NEIGHBOUR)}
            assert at_once <= {*UPGRADE.may_run, NEIGHBOURS, None}
            box.ears.publish(UPGRADE.after)

            await box.until_settled(UPGRADE.after, TWO)
            assert box.serving.runs(NEIGHBOUR) == NEIGHBOURS
            left = tree(state).keys() - upgraded.after.keys()
            assert not left, f"{left} is too much"
        return said.lines

    said = in_child(lambda: asyncio.run(recover())).value
    assert said or damage in UNSAID


class _Said(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
