"""The broker is the attacker's. Nothing of what it makes up is stored or run, and the box converges once it behaves."""

import itertools
import random
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fleet_double import Fleet, digest_of, messages
from hostile_scene import CHUNK, TOPICS, HostileScene, flips, manifest, quick, wasm
from memory_broker import Message

from appliance.deploy.bundle import MAX_INDEX_BYTES, Bundle, BundleFile, bundle_target, encode_bundle
from appliance.deploy.desired import Assignment
from appliance.deploy.fleet_topics import MAX_CHUNK_BYTES, MAX_METADATA_BYTES
from appliance.deploy.metadata import MAX_CACHED_BYTES, MAX_METADATA_FILES

FIRST = {"detector": "1.0.0"}
SECOND = {"detector": "1.1.0"}
BIG = random.Random(4).randbytes(3500)
"""A module that says so much comes in four chunks."""
THOUSANDS = 200.0
"""Seconds that thousands of flips may take."""


def _some(choices: list[Any], every: int) -> list[Any]:
    """One of so many is for every day, all are for the slow tests."""
    return [
        pytest.param(each, marks=[pytest.mark.slow] if number % every else []) for number, each in enumerate(choices)
    ]


MEND = ["silently", pytest.param("with a new connection", marks=pytest.mark.slow)]


@pytest.fixture(autouse=True)
def _quick() -> Iterator[None]:
    with quick():
        yield


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[HostileScene]:
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as directory:
        yield HostileScene(Path(directory))


async def converges(scene: HostileScene, mend: str) -> None:
    """What was done did no harm; the broker behaves, and the box follows, and goes on following."""
    scene.check()
    scene.broker.behave()
    if mend != "silently":
        scene.broker.reconnect()
    await scene.until_converged()
    await goes_on(scene)


async def goes_on(scene: HostileScene) -> None:
    scene.check()
    scene.deploy({"detector": "7.7.7"})
    await scene.until_converged()


async def test_an_honest_broker_is_followed(scene: HostileScene) -> None:
    scene.deploy(FIRST)
    async with scene.box():
        await scene.until_converged()
        scene.deploy(SECOND)
        await scene.until_converged()
    assert len(scene.serving.ran) == 2


# Flipped


FILES = ["desired", "index", "handler.toml", "handler.wasm"]
METADATA = ["root", "timestamp", "snapshot", "targets", "acme"]


async def _flipped_file(scene: HostileScene, file: str, step: int) -> None:
    """The broker shows another flip each time that the box asks."""
    scene.deploy(FIRST)
    async with scene.box():
        await scene.until_converged()
        scene.sign(SECOND)
        topic = scene.chunk(file)
        data = scene.fleet.files[scene.digest(file)]
        scene.broker.flips[topic] = flips(data, step)
        scene.send()
        await scene.until(lambda: topic not in scene.broker.flips, THOUSANDS)
        assert scene.broker.asked[topic] >= len(data) // step
        assert len(scene.serving.ran) <= 1 or scene.converged
        await converges(scene, "silently")


@pytest.mark.parametrize("file", FILES)
async def test_a_file_with_a_flipped_bit_is_not_taken(scene: HostileScene, file: str) -> None:
    await _flipped_file(scene, file, 29)


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
async def test_no_byte_of_a_file_can_be_flipped(scene: HostileScene, file: str) -> None:
    await _flipped_file(scene, file, 1)


async def _flipped_metadata(scene: HostileScene, role: str, step: int) -> None:
    """As above. A flip may change nothing that is said (``\\n``): then what was signed is taken, and nothing else."""
    scene.fleet.delegate("acme", ["handlers/acme-*/*"])
    name = "acme-count" if role == "acme" else "detector"
    signer = "acme" if role == "acme" else None
    scene.deploy({name: "1.0.0"}, signer)
    done, more = 0, True
    async with scene.box():
        await scene.until_converged()
        for minor in itertools.count(1):
            if role == "root":
                scene.fleet.rotate("snapshot")
            scene.sign({name: f"1.{minor}.0"}, signer)
            file = "timestamp.json" if role == "timestamp" else f"{_version(scene.fleet, role)}.{role}.json"
            topic = TOPICS.metadata(file)
            left = itertools.islice(flips(scene.fleet.metadata[file], step), done, None)
            shown = itertools.count(done)
            scene.broker.flips[topic] = (flipped for flipped in left if next(shown) >= 0)
            scene.send()
            await scene.until(lambda topic=topic: topic not in scene.broker.flips or scene.converged, THOUSANDS)
            scene.check()
            done, more = next(shown), topic in scene.broker.flips
            scene.broker.flips.clear()
            if not more:
                break
        assert done >= len(scene.fleet.metadata[file]) // step
        await scene.until_converged()


def _version(fleet: Fleet, role: str) -> int:
    document = fleet.delegates[role].signed if role in fleet.delegates else getattr(fleet, role)
    return document.version


@pytest.mark.parametrize("role", METADATA)
async def test_metadata_with_a_flipped_bit_is_not_believed(scene: HostileScene, role: str) -> None:
    await _flipped_metadata(scene, role, 101)


@pytest.mark.slow
@pytest.mark.parametrize("role", METADATA)
async def test_no_byte_of_metadata_can_be_flipped(scene: HostileScene, role: str) -> None:
    await _flipped_metadata(scene, role, 1)


# Pieces of files


def _lies_of_pieces(scene: HostileScene) -> dict[str, dict[str, bytes | None]]:
    pieces = {index: scene.broker.view[scene.chunk("handler.wasm", index)] for index in range(4)}
    other = scene.fleet.files[scene.digest("index")]

    def shown(lies: dict[int, bytes | None]) -> dict[str, bytes | None]:
        return {scene.chunk("handler.wasm", index): payload for index, payload in lies.items()}

    return {
        "truncated": shown({1: pieces[1][:-1]}),
        "extended": shown({1: pieces[1] + b"x"}),
        "last one extended": shown({3: pieces[3] + b"x"}),
        "empty": shown({1: b""}),
        "oversize": shown({1: bytes(MAX_CHUNK_BYTES + 1)}),
        "first one oversize": shown({0: bytes(MAX_CHUNK_BYTES + 1)}),
        "first one short": shown({0: pieces[0][:100]}),
        "first one longer": shown({0: pieces[0] + pieces[1]}),
        "withheld": shown({2: None}),
        "all withheld": shown(dict.fromkeys(range(4))),
        "reordered": shown({1: pieces[2], 2: pieces[1]}),
        "duplicated": shown({1: pieces[0], 2: pieces[0], 3: pieces[0][: len(pieces[3])]}),
        "of another file": shown({1: (other * CHUNK)[:CHUNK]}),
        "forged, and the end withheld": shown({0: bytes(CHUNK), 1: bytes(CHUNK), 3: None}),
        "index of nothing": {scene.chunk("index"): b"{}"},
        "index too long": {scene.chunk("index"): bytes(MAX_INDEX_BYTES + 1)},
        "desired of another": {scene.chunk("desired"): b'{"v":1,"handlers":{}}\n'},
        "far ones": {scene.chunk("handler.wasm", 999_999): bytes(CHUNK), scene.chunk("handler.wasm", 1): None},
    }


PIECES = [
    "truncated", "extended", "last one extended", "empty", "oversize", "first one oversize", "first one short",
    "first one longer", "withheld", "all withheld", "reordered", "duplicated", "of another file",
    "forged, and the end withheld", "index of nothing", "index too long", "desired of another", "far ones",
]  # fmt: skip


@pytest.mark.parametrize("mend", MEND)
@pytest.mark.parametrize("attack", _some(PIECES, 3))
async def test_pieces_that_are_not_right_are_never_a_file(scene: HostileScene, attack: str, mend: str) -> None:
    scene.deploy(FIRST)
    async with scene.box():
        await scene.until_converged()
        scene.sign(SECOND, says=BIG)
        scene.broker.honest |= messages(scene.fleet, TOPICS, CHUNK)
        lies = _lies_of_pieces(scene)
        assert sorted(lies) == sorted(PIECES)
        scene.broker.lies = lies[attack]
        scene.broker.reconnect()
        await scene.until(lambda: max(scene.broker.asked[topic] for topic in lies[attack]) > 2)
        assert scene.running == FIRST
        await converges(scene, mend)


# Replayed, mixed, frozen


async def _two_states(scene: HostileScene) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """The box has seen both; the newer one has another root, with other keys of all roles but the root's."""
    scene.deploy(FIRST)
    old = dict(scene.fleet.metadata)
    async with scene.box():
        await scene.until_converged()
        for role in ("timestamp", "snapshot", "targets"):
            scene.fleet.rotate(role)
        scene.deploy(SECOND)
        await scene.until_converged()
    return old, dict(scene.fleet.metadata)


@pytest.mark.parametrize(
    "lost", [pytest.param(False, id="metadata kept", marks=pytest.mark.slow), pytest.param(True, id="metadata lost")]
)
@pytest.mark.parametrize("replayed", _some(list(itertools.product([False, True], repeat=4)), 5))
async def test_old_files_do_not_bring_the_past_back(
    scene: HostileScene, replayed: tuple[bool, bool, bool, bool], lost: bool
) -> None:
    """Each of timestamp, snapshot, targets and root old or new: under its own name, and under that of the new one."""
    old, new = await _two_states(scene)
    names = (("timestamp.json",) * 2, ("2.snapshot.json", "3.snapshot.json"), ("2.targets.json", "3.targets.json"))
    for (before, after), is_old in zip(names, replayed, strict=False):
        if is_old:
            scene.broker.lies[TOPICS.metadata(after)] = old[before]
    if replayed[3]:
        scene.broker.lies |= {TOPICS.metadata(f"{version}.root.json"): None for version in (2, 3, 4)}
    if lost:
        for file in (scene.path / "trust" / "metadata").rglob("*.json"):
            file.unlink()
    async with scene.box():
        asked = scene.broker.asked[TOPICS.all_metadata]
        await scene.until(lambda: scene.broker.asked[TOPICS.all_metadata] > asked + 3 or scene.converged)
        assert scene.running == SECOND
        await converges(scene, "silently")
    assert new.items() <= scene.fleet.metadata.items() | {("timestamp.json", new["timestamp.json"])}


@pytest.mark.parametrize("mend", MEND)
@pytest.mark.parametrize("subset", _some(list(itertools.product([False, True], repeat=3)), 3))
async def test_states_do_not_mix(scene: HostileScene, subset: tuple[bool, bool, bool], mend: str) -> None:
    """A box that has seen neither: files of one state under the names of the other."""
    scene.deploy(FIRST)
    old = dict(scene.fleet.metadata)
    scene.deploy(SECOND)
    for role, is_old in zip(("timestamp", "snapshot", "targets"), subset, strict=True):
        if role == "timestamp":
            scene.broker.lies |= {TOPICS.metadata("timestamp.json"): old["timestamp.json"]} if is_old else {}
        elif is_old:
            one, other = (TOPICS.metadata(f"{version}.{role}.json") for version in (2, 3))
            scene.broker.lies |= {one: scene.broker.honest[other], other: scene.broker.honest[one]}
    async with scene.box():
        await scene.until(lambda: scene.broker.asked[TOPICS.all_metadata] > 3 or scene.running)
        if subset == (True, False, False):  # the old state, whole: a freeze, which only its expiry ends
            await scene.until(lambda: scene.running == FIRST)
        elif any(subset):
            assert scene.running == {}
        await converges(scene, mend)


@pytest.mark.parametrize("mend", MEND)
async def test_a_frozen_broker_stops_deployments_and_nothing_else(scene: HostileScene, mend: str) -> None:
    scene.deploy(FIRST)
    async with scene.box():
        await scene.until_converged()
        scene.broker.lies = {topic: scene.broker.honest.get(topic) for topic in scene.broker.honest}
        scene.now += timedelta(days=29)
        scene.fleet.now = scene.now
        scene.sign(SECOND)
        for topic in messages(scene.fleet, TOPICS, CHUNK).keys() - scene.broker.lies.keys():
            scene.broker.lies[topic] = None
        scene.send()
        scene.now += timedelta(days=2)
        scene.deployer._news.set()
        await scene.until(lambda: scene.standing == "stale")
        asked = scene.broker.asked[TOPICS.all_metadata]
        await scene.until(lambda: scene.broker.asked[TOPICS.all_metadata] > asked + 3)
        assert scene.running == FIRST
        assert scene.standing == "stale"
        await converges(scene, mend)


async def test_a_root_that_is_withheld_is_waited_for(scene: HostileScene) -> None:
    scene.deploy(FIRST)
    scene.fleet.rotate("timestamp")
    scene.sign(SECOND)
    scene.broker.lies[TOPICS.metadata("2.root.json")] = None
    scene.send()
    async with scene.box():
        await scene.until(lambda: scene.broker.asked[TOPICS.all_metadata] > 3)
        assert scene.running == {}
        await converges(scene, "silently")


# Foreign


@pytest.mark.parametrize("mend", MEND)
@pytest.mark.parametrize("known", [False, True], ids=["new box", "box that knows its fleet"])
async def test_another_fleet_of_the_same_names_is_nobody(scene: HostileScene, known: bool, mend: str) -> None:
    other = HostileScene(scene.path / "other")
    other.deploy({"detector": "6.6.6"})
    for _ in range(3):
        other.deploy({"detector": "6.6.6"}, says=b"evil")
    scene.deploy(FIRST)
    async with scene.box():
        if known:
            await scene.until_converged()
        for topic, payload in other.broker.honest.items():
            scene.broker.lie(topic, payload)
        scene.broker.reconnect()
        asked = scene.broker.asked[TOPICS.all_metadata]
        await scene.until(lambda: scene.broker.asked[TOPICS.all_metadata] > asked + 3)
        assert scene.running == (FIRST if known else {})
        await converges(scene, mend)


@pytest.mark.parametrize("mend", MEND)
@pytest.mark.parametrize("file", ["timestamp.json", "3.snapshot.json", "3.targets.json", "2.root.json", "1.root.json"])
async def test_one_file_of_another_fleet_is_nobodys(scene: HostileScene, file: str, mend: str) -> None:
    other = HostileScene(scene.path / "other")
    other.fleet.rotate("targets")
    for _ in range(2):
        other.deploy({"detector": "6.6.6"})
    scene.deploy(FIRST)
    async with scene.box():
        await scene.until_converged()
        scene.broker.lie(TOPICS.metadata(file), other.fleet.metadata[file])
        scene.deploy(SECOND)
        asked = scene.broker.asked[TOPICS.all_metadata]
        if file != "1.root.json":  # the one that the box was given: nobody asks for it
            await scene.until(lambda: scene.broker.asked[TOPICS.all_metadata] > asked + 3)
            assert scene.running == FIRST
        await converges(scene, mend)


# Too much


@pytest.mark.parametrize("mend", MEND)
@pytest.mark.parametrize("known", [False, True], ids=["new box", "box that knows its fleet"])
async def test_endless_names_bury_nothing_for_good(scene: HostileScene, known: bool, mend: str) -> None:
    scene.deploy(FIRST)
    async with scene.box():
        if known:
            await scene.until_converged()
        for number in range(3 * MAX_METADATA_FILES):
            scene.broker.lie(TOPICS.metadata(f"{number + 1}.junk.json"), b"x")
        scene.broker.reconnect()
        scene.deploy(SECOND)
        await scene.until(lambda: scene.deployer._cache.emptied > 3)
        assert scene.running == (FIRST if known else {})
        await converges(scene, mend)


@pytest.mark.parametrize("mend", MEND)
async def test_metadata_that_grows_is_bounded(scene: HostileScene, mend: str) -> None:
    scene.deploy(FIRST)
    async with scene.box():
        await scene.until_converged()
        for size in range(1000, MAX_METADATA_BYTES + 5000, 5000):
            scene.broker.lie(TOPICS.metadata("timestamp.json"), bytes(size))
        for number in range(2 * MAX_CACHED_BYTES // MAX_METADATA_BYTES):
            scene.broker.lie(TOPICS.metadata(f"{number}0.large.json"), bytes(MAX_METADATA_BYTES))
            scene.check()
        scene.deploy(SECOND)
        await scene.until(lambda: scene.deployer._cache.emptied > 3)
        assert scene.running == FIRST
        await converges(scene, mend)


NONSENSE = {
    "nothing": b"",
    "not JSON": b"\xff\xfe{",
    "deep": b"[" * MAX_METADATA_BYTES,
    "deep, and signed by nobody": b'{"signatures":[],"signed":' + b'{"a":' * 300 + b"1" + b"}" * 301,
    "huge number": b'{"signatures":[],"signed":{"version":1' + b"0" * 5000 + b"}}",
    "lone surrogate": b'{"signatures":[],"signed":{"_type":"\\ud800"}}',
    "infinite": b'{"signatures":[],"signed":{"version":1e999,"x":NaN}}',
    "wrong types": b'{"signatures":{"a":1},"signed":[]}',
}


@pytest.mark.parametrize("mend", MEND)
@pytest.mark.parametrize("nonsense", NONSENSE)
@pytest.mark.parametrize("file", ["timestamp.json", "3.snapshot.json", "3.targets.json", "2.root.json", "2.acme.json"])
async def test_nonsense_is_no_metadata(scene: HostileScene, file: str, nonsense: str, mend: str) -> None:
    """A root that is not there any more, either: the broker says nothing of that when it behaves."""
    scene.fleet.delegate("acme", ["handlers/acme-*/*"])
    scene.deploy(FIRST)
    async with scene.box():
        await scene.until_converged()
        scene.broker.lie(TOPICS.metadata(file), NONSENSE[nonsense])
        scene.deploy({"acme-count": "1.0.0"}, "acme")
        asked = scene.broker.asked[TOPICS.all_metadata]
        if (file, nonsense) != ("2.root.json", "nothing"):
            await scene.until(lambda: scene.broker.asked[TOPICS.all_metadata] > asked + 3)
            assert scene.running in (FIRST, {})
        await converges(scene, mend)


@pytest.mark.parametrize("mend", MEND)
@pytest.mark.parametrize("forged", [b"{}", None])
async def test_a_developers_metadata_that_was_forged_does_not_refuse_him_for_good(
    scene: HostileScene, forged: bytes | None, mend: str
) -> None:
    scene.fleet.delegate("acme", ["handlers/acme-*/*"])
    scene.sign({"acme-count": "1.0.0"}, "acme")
    scene.broker.lies[TOPICS.metadata("1.acme.json")] = forged
    scene.send()
    async with scene.box():
        await scene.until(lambda: "acme-count" in scene.of_handlers)
        await scene.until(lambda: scene.broker.asked[TOPICS.all_metadata] > 3)
        assert scene.running == {}
        await converges(scene, mend)


# Late, twice, in disorder


@pytest.mark.parametrize("seed", range(5))
async def test_a_broker_that_says_everything_twice_and_in_disorder_is_followed(scene: HostileScene, seed: int) -> None:
    scene.broker._random.seed(seed)
    scene.broker.shuffle, scene.broker.times = True, 2
    for minor in range(3):
        scene.deploy({"detector": f"1.{minor}.0"}, says=BIG)
        stale = [Message(topic, payload) for topic, payload in scene.broker.honest.items()]
        if minor == 0:
            scene.broker.more = [each for each in stale if "/chunk/" in each.topic or "targets" in each.topic]
    async with scene.box():
        await scene.until_converged()
        for minor in range(3, 6):
            scene.deploy({"detector": f"1.{minor}.0"}, says=BIG)
            await scene.until_converged()


# A developer, and an operator's mistake


async def test_a_developer_gives_nobody_what_is_not_his(scene: HostileScene) -> None:
    scene.deploy(FIRST)
    scene.fleet.delegate("acme", ["handlers/acme-*/*"])
    evil = Assignment(version="6.6.6", digest=scene.bundle("detector", "6.6.6", "acme", b"evil").digest)
    scene.fleet.add("devices/box.json", b'{"v":1,"handlers":{}}', "acme")
    scene.fleet.add("groups/door.json", b'{"v":1,"handlers":{"acme-x":null}}', "acme")
    async with scene.box():
        scene.deploy(SECOND)
        await scene.until_converged()
        scene.fleet.deploy("box", {"detector": evil})  # even where the operator asks for it
        scene.fleet.publish()
        scene.states.append(dict(scene.fleet.metadata))
        scene.send()
        await scene.until(lambda: (report := scene.of_handlers["detector"]) and report.state == "refused")
        assert "not signed by anybody who may" in scene.of_handlers["detector"].reason
        assert scene.running == SECOND
        await goes_on(scene)


@pytest.mark.parametrize(("name", "version"), [("other", "6.6.6"), ("detector", "6.6.7")])
@pytest.mark.parametrize("where", ["index", "manifest"])
async def test_a_bundle_is_of_one_name_and_version(scene: HostileScene, where: str, name: str, version: str) -> None:
    """The operator has signed that, too; it is not run all the same."""
    toml = manifest(name, version) if where == "manifest" else manifest("detector", "6.6.6")
    files = {"handler.toml": toml, "handler.wasm": wasm("detector", "6.6.6")}
    says = (name, version) if where == "index" else ("detector", "6.6.6")
    entries = {file: BundleFile(digest_of(data), len(data)) for file, data in files.items()}
    scene.deploy(FIRST)
    async with scene.box():
        await scene.until_converged()
        scene.fleet.files |= {digest_of(data): data for data in files.values()}
        index = encode_bundle(Bundle(name=says[0], version=says[1], files=entries))
        digest = scene.fleet.add(bundle_target("detector", "6.6.6"), index)
        scene.fleet.deploy("box", {"detector": Assignment(version="6.6.6", digest=digest)})
        scene.fleet.publish()
        scene.states.append(dict(scene.fleet.metadata))
        scene.send()
        await scene.until(lambda: (report := scene.of_handlers["detector"]) and report.state == "refused")
        assert scene.running == FIRST
        await goes_on(scene)
