"""Files over MQTT, whatever the broker does: they come whole, or not at all."""

import asyncio
import os
import random
import tempfile
from pathlib import Path

import pytest
from fleet_double import chunks_of, digest_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from retained_double import Message, RetainedDouble

from appliance.deploy import download
from appliance.deploy.chunks import window_of
from appliance.deploy.download import AT_A_TIME, Downloads
from appliance.deploy.fleet_topics import MAX_CHUNK_BYTES, MIN_CHUNK_BYTES, FleetTopics
from appliance.deploy.store import Store
from appliance.errors import DeviceError, PeerError

TOPICS = FleetTopics("fleet", "farm")
SIZE = MIN_CHUNK_BYTES
WINDOW = window_of(SIZE)


class Scene:
    """A broker that holds a file, and a box that downloads it."""

    def __init__(self, path: Path, data: bytes, size: int = SIZE, shuffle: random.Random | None = None) -> None:
        self.path = path
        self.data = data
        self.digest = digest_of(data)
        self.broker = RetainedDouble(chunks_of(TOPICS, data, size), shuffle)
        self.progress: list[int] = []
        self.restart()

    def restart(self) -> None:
        self.store = Store(self.path, 1 << 30)
        self.downloads = Downloads(TOPICS, self.broker, self.store)

    async def fetch(self) -> Path:
        return await self.downloads.fetch(self.digest, len(self.data), self.progress.append)

    def chunk(self, index: int) -> str:
        return TOPICS.chunk(self.digest, index)

    @property
    def kept(self) -> list[str]:
        return [file.name for file in (self.path / "objects").iterdir()]

    @property
    def begun(self) -> list[str]:
        return [file.name for file in (self.path / "incoming").iterdir()]


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path, os.urandom(20 * SIZE + 100))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "STALL_SECONDS", 0.05)


@pytest.mark.parametrize("length", [0, 1, SIZE - 1, SIZE, SIZE + 1, 100 * SIZE])
async def test_a_file_comes_whole(tmp_path: Path, length: int) -> None:
    scene = Scene(tmp_path, os.urandom(length), shuffle=random.Random(1))
    assert (await scene.fetch()).read_bytes() == scene.data
    assert scene.broker.listening == {}
    assert scene.broker.most <= WINDOW
    assert scene.progress == sorted(scene.progress)
    assert scene.progress[-1] == length


async def test_what_is_there_is_not_asked_for(scene: Scene) -> None:
    await scene.fetch()
    scene.broker.asked.clear()
    assert await scene.fetch() == scene.store.object(scene.digest)
    assert scene.broker.asked == []


@pytest.mark.usefixtures("impatient")
async def test_after_a_stall_and_a_restart_it_goes_on_at_the_missing_chunk(scene: Scene) -> None:
    missing = scene.broker.retained.pop(scene.chunk(9))
    with pytest.raises(PeerError, match=f"chunk 9 of {scene.digest} has not come"):
        await scene.fetch()
    assert scene.broker.listening == {}
    scene.broker.retained[scene.chunk(9)] = missing
    scene.broker.asked.clear()
    scene.restart()
    assert (await scene.fetch()).read_bytes() == scene.data
    assert sorted(scene.broker.asked) == sorted(scene.chunk(index) for index in range(9, 21))


async def test_a_chunk_that_is_published_later_is_waited_for(scene: Scene) -> None:
    late = scene.broker.retained.pop(scene.chunk(3))
    async with asyncio.timeout(15), asyncio.TaskGroup() as group:
        fetching = group.create_task(scene.fetch())
        while scene.progress[-1:] != [3 * SIZE]:
            await asyncio.sleep(0)
        scene.broker.publish(scene.chunk(3), late)
    assert fetching.result().read_bytes() == scene.data


@pytest.mark.usefixtures("impatient")
async def test_messages_without_news_are_no_progress(scene: Scene) -> None:
    del scene.broker.retained[scene.chunk(1)]

    async def repeat() -> None:
        while True:
            await asyncio.sleep(0)
            for topic in list(scene.broker.listening):
                scene.broker.listening[topic](Message(scene.chunk(0), scene.data[:SIZE]))

    repeating = asyncio.create_task(repeat())
    with pytest.raises(PeerError, match="has not come"):
        await scene.fetch()
    repeating.cancel()


async def test_foreign_repeated_and_far_chunks_do_no_harm(scene: Scene) -> None:
    scene.broker.extra = [
        Message(scene.chunk(0), scene.data[:SIZE]),
        Message(scene.chunk(20), b""),
        Message(scene.chunk(999_999), bytes(MAX_CHUNK_BYTES)),
        Message(TOPICS.chunk("0" * 64, 1), bytes(SIZE)),
        Message("fleet/other/chunk/x/1", bytes(SIZE)),
        Message(TOPICS.metadata("timestamp.json"), b"{}"),
    ]
    assert (await scene.fetch()).read_bytes() == scene.data


async def test_a_flipped_bit_is_deleted_and_the_next_try_begins_anew(scene: Scene) -> None:
    right = scene.broker.retained[scene.chunk(5)]
    scene.broker.retained[scene.chunk(5)] = bytes([right[0] ^ 1]) + right[1:]
    with pytest.raises(PeerError, match="downloaded anew"):
        await scene.fetch()
    assert (scene.kept, scene.begun) == ([], [])
    scene.broker.retained[scene.chunk(5)] = right
    assert (await scene.fetch()).read_bytes() == scene.data


async def test_every_flipped_bit_of_a_small_file_is_refused(tmp_path: Path) -> None:
    data = os.urandom(200)
    scene = Scene(tmp_path, data)
    for at, byte in enumerate(data):
        scene.broker.retained[scene.chunk(0)] = data[:at] + bytes([byte ^ 1 << at % 8]) + data[at + 1 :]
        with pytest.raises(PeerError, match="downloaded anew"):
            await scene.fetch()
        assert (scene.kept, scene.begun) == ([], [])


@pytest.mark.parametrize(("index", "length"), [(0, 10), (0, MAX_CHUNK_BYTES + 1), (4, SIZE - 1), (20, 101)])
async def test_a_chunk_of_the_wrong_length_ends_it(scene: Scene, index: int, length: int) -> None:
    scene.broker.retained[scene.chunk(index)] = bytes(length)
    with pytest.raises(PeerError, match=f"chunk {index} of"):
        await scene.fetch()
    assert (scene.kept, scene.begun) == ([], [])
    assert scene.broker.listening == {}


async def test_chunks_that_were_cut_anew_meanwhile_are_taken_from_the_beginning(
    tmp_path: Path, impatient: None
) -> None:
    scene = Scene(tmp_path, os.urandom(20 * SIZE))
    del scene.broker.retained[scene.chunk(9)]
    with pytest.raises(PeerError, match="has not come"):
        await scene.fetch()
    scene.broker.retained = chunks_of(TOPICS, scene.data, 2 * SIZE)
    with pytest.raises(PeerError, match="chunk 9"):
        await scene.fetch()
    assert (await scene.fetch()).read_bytes() == scene.data


async def test_a_cancelled_download_listens_no_more_and_goes_on_later(scene: Scene) -> None:
    del scene.broker.retained[scene.chunk(7)]
    fetching = asyncio.create_task(scene.fetch())
    async with asyncio.timeout(15):
        while scene.progress[-1:] != [7 * SIZE]:
            await asyncio.sleep(0)
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    assert scene.broker.listening == {}
    scene.broker.retained |= chunks_of(TOPICS, scene.data, SIZE)
    scene.broker.asked.clear()
    assert (await scene.fetch()).read_bytes() == scene.data
    assert scene.chunk(6) not in scene.broker.asked


async def test_a_cancellation_anywhere_leaves_what_can_be_gone_on_with(tmp_path: Path) -> None:
    for turns in range(0, 60, 3):
        scene = Scene(tmp_path / str(turns), os.urandom(12 * SIZE))
        fetching = asyncio.create_task(scene.fetch())
        for _ in range(turns):
            await asyncio.sleep(0)
        fetching.cancel()
        await asyncio.gather(fetching, return_exceptions=True)
        assert scene.broker.listening == {}
        assert (await scene.fetch()).read_bytes() == scene.data


async def test_two_who_want_the_same_file_download_it_once(scene: Scene) -> None:
    paths = await asyncio.gather(scene.fetch(), scene.fetch(), scene.fetch())
    assert len(set(paths)) == 1
    assert len(scene.broker.asked) == len(set(scene.broker.asked))


async def test_where_the_first_of_two_fails_the_second_tries_itself(scene: Scene) -> None:
    late = scene.broker.retained.pop(scene.chunk(0))
    scene.broker.retained[scene.chunk(0)] = b"short"
    first, second = asyncio.create_task(scene.fetch()), asyncio.create_task(scene.fetch())
    with pytest.raises(PeerError):
        await first
    scene.broker.retained[scene.chunk(0)] = late
    assert (await second).read_bytes() == scene.data


async def test_only_a_few_files_come_at_a_time(tmp_path: Path) -> None:
    contents = [os.urandom(20 * SIZE) for _ in range(3 * AT_A_TIME)]
    scene = Scene(tmp_path, contents[0])
    for data in contents:
        scene.broker.retained |= chunks_of(TOPICS, data, SIZE)
    fetches = (scene.downloads.fetch(digest_of(data), len(data), lambda _: None) for data in contents)
    paths = await asyncio.gather(*fetches)
    assert [path.read_bytes() for path in paths] == contents
    assert scene.broker.most <= AT_A_TIME * WINDOW


async def test_a_disk_that_fails_is_the_devices_fault(scene: Scene) -> None:
    (scene.path / "incoming").rmdir()
    (scene.path / "incoming").write_bytes(b"")
    with pytest.raises(DeviceError, match="--state"):
        await scene.fetch()
    assert scene.broker.listening == {}


MUTATIONS = st.lists(
    st.tuples(st.sampled_from(["drop", "empty", "cut", "long", "flip", "swap"]), st.integers(0, 5), st.integers(0, 5)),
    max_size=3,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(MUTATIONS, st.integers(0, 1 << 32))
@pytest.mark.usefixtures("impatient")
def test_whatever_the_broker_does_the_file_is_right_or_not_there(
    mutations: list[tuple[str, int, int]], seed: int
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(_hostile(Path(directory), mutations, random.Random(seed)))


async def _hostile(path: Path, mutations: list[tuple[str, int, int]], shuffle: random.Random) -> None:
    scene = Scene(path, shuffle.randbytes(5 * SIZE + 7), shuffle=shuffle)
    right = dict(scene.broker.retained)
    for kind, one, other in mutations:
        a, b = scene.chunk(one), scene.chunk(other)
        payload = scene.broker.retained.get(a, b"")
        mutated = {
            "drop": b"",
            "empty": b"",
            "cut": payload[:-1],
            "long": payload + b"x",
            "flip": bytes([payload[0] ^ 1]) + payload[1:] if payload else b"",
            "swap": scene.broker.retained.get(b, b""),
        }[kind]
        if kind == "swap":
            scene.broker.retained[b] = payload
        scene.broker.retained[a] = mutated
        if kind == "drop":
            del scene.broker.retained[a]
    try:
        assert (await scene.fetch()).read_bytes() == scene.data
    except PeerError:
        assert scene.kept == []
    assert scene.broker.listening == {}
    scene.broker.retained = right
    try:
        await scene.fetch()
    except PeerError:  # what the first try left is thrown away by the second
        await scene.fetch()
    assert scene.store.object(scene.digest).read_bytes() == scene.data
