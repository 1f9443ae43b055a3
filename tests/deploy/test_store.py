"""The store: what is kept is whole, what is damaged is not used, what nobody needs goes."""

import errno
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest
from store_scenes import Scene, detector

from appliance.deploy import store as store_module
from appliance.deploy.fleet_topics import MIN_CHUNK_BYTES
from appliance.deploy.store import INDEX_FILE, MAX_RECORD_BYTES, Store
from appliance.errors import DeviceError, PeerError

MEGABYTE = 1 << 20


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path / "deploy")


# Slots


def test_a_bundle_is_staged_kept_and_found_after_a_restart(scene: Scene) -> None:
    one = detector("1.0.0")
    scene.download(one)
    staged = scene.store.stage(one.verified)
    assert {file.name: file.read_bytes() for file in staged.iterdir()} == one.contents
    slot = scene.store.keep(one.verified)
    scene.restart()
    assert scene.store.slot("detector", one.digest) == slot
    assert {file.name: file.read_bytes() for file in slot.iterdir()} == {**one.contents, INDEX_FILE: one.index}
    assert scene.store.slot("detector", detector("2.0.0").digest) is None
    assert scene.store.keep(one.verified) == slot, "keeping it again changes nothing"


def test_the_same_file_is_on_the_disk_once(scene: Scene) -> None:
    one, two = detector("1.0.0"), detector("2.0.0")
    slots = [scene.keep(bundle) for bundle in (one, two)]
    inodes = {(slot / "model.tflite").stat().st_ino for slot in slots}
    assert inodes == {scene.store.object(one.verified.bundle.files["model.tflite"].sha256).stat().st_ino}


def test_without_hard_links_files_are_copied(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "not on this file system")

    monkeypatch.setattr(os, "link", no_links)
    one = detector("1.0.0")
    slot = scene.keep(one)
    assert scene.store.slot("detector", one.digest) == slot
    assert (slot / "model.tflite").stat().st_nlink == 1


@pytest.mark.parametrize("damage", ["a bit", "cut", "gone", "one more", "the index", "another name", "no directory"])
def test_a_damaged_slot_is_not_used_and_kept_anew(scene: Scene, damage: str) -> None:
    one = detector("1.0.0")
    slot = scene.keep(one)
    name = "detector"
    damaged = slot / "handler.wasm"
    content = damaged.read_bytes()
    damaged.unlink()
    match damage:
        case "a bit":
            damaged.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        case "cut":
            damaged.write_bytes(content[:-1])
        case "one more":
            damaged.write_bytes(content)
            (slot / "surplus").write_bytes(b"")
        case "the index":
            damaged.write_bytes(content)
            (slot / INDEX_FILE).unlink()
            (slot / INDEX_FILE).write_bytes(b"{}")
        case "another name":
            damaged.write_bytes(content)
            slot.parent.rename(slot.parent.with_name("other"))
            name = "other"
        case "no directory":
            shutil.rmtree(slot)
            slot.write_bytes(b"")
    assert scene.store.slot(name, one.digest) is None
    slot = scene.store.keep(one.verified)
    assert scene.store.slot("detector", one.digest) == slot


def test_a_damaged_file_is_found_when_it_is_used_and_downloaded_again(scene: Scene) -> None:
    one = detector("1.0.0")
    scene.download(one)
    model = scene.store.object(one.verified.bundle.files["model.tflite"].sha256)
    model.chmod(0o644)
    model.write_bytes(b"rotten")
    with pytest.raises(DeviceError, match=r"model\.tflite .* is damaged on disk"):
        scene.store.stage(one.verified)
    assert not scene.store.has(model.name)
    with pytest.raises(DeviceError, match=r"model\.tflite .* is not here"):
        scene.store.keep(one.verified)
    scene.download(one)
    assert scene.store.keep(one.verified)


@pytest.mark.parametrize("name", ["", "..", "a/b", "A", ".hidden"])
def test_nothing_outside_can_be_named(scene: Scene, name: str) -> None:
    for attempt in (
        lambda: scene.store.slot(name, "0" * 64),
        lambda: scene.store.object(name),
        lambda: scene.store.slot("detector", name),
        lambda: scene.store.read_record(name),
        lambda: scene.store.write_record(name, b""),
    ):
        with pytest.raises(ValueError, match="is no"):
            attempt()


def test_a_disk_that_fails_at_a_look_is_the_devices_trouble(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    one = detector("1.0.0")
    scene.keep(one)

    def failing(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "the disk fails")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", failing)
        assert scene.store.slot("detector", one.digest) is None, "as one that cannot be read"
        with pytest.raises(DeviceError, match="the disk fails"):
            scene.store.has(one.digest)
    assert scene.store.slot("detector", one.digest) is not None


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_slot_is_not_damaged_because_something_else_ran_short(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    one = detector("1.0.0")
    slot = scene.keep(one)

    def failing(*_: object, **__: object) -> None:
        raise OSError(number, "no more")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", failing)
        with pytest.raises(DeviceError, match="cannot be read now"):
            scene.store.slot("detector", one.digest)
    assert scene.store.slot("detector", one.digest) == slot


# Downloads


def test_a_download_goes_on_where_it_was(scene: Scene) -> None:
    data = os.urandom(3 * MIN_CHUNK_BYTES + 5)
    scene.begin(data, 2 * MIN_CHUNK_BYTES)
    scene.restart()
    with scene.partial(data) as file:
        assert (file.received, file.chunk_bytes) == (2 * MIN_CHUNK_BYTES, MIN_CHUNK_BYTES)
        file.append(data[file.received :], MIN_CHUNK_BYTES)
        path = file.finish()
    assert path.read_bytes() == data
    assert list((scene.path / "incoming").iterdir()) == []


def test_a_download_that_was_complete_only_needs_to_be_finished(scene: Scene) -> None:
    data = os.urandom(MIN_CHUNK_BYTES + 5)
    scene.begin(data, len(data))
    with scene.partial(data) as file:
        assert file.received == len(data)
        assert file.finish().read_bytes() == data


def test_half_a_chunk_is_written_again(scene: Scene) -> None:
    data = os.urandom(3 * MIN_CHUNK_BYTES)
    path = scene.begin(data, MIN_CHUNK_BYTES)
    with path.open("ab") as file:
        file.write(b"junk")
    with scene.partial(data) as partial:
        assert partial.received == MIN_CHUNK_BYTES
        partial.append(data[MIN_CHUNK_BYTES : 2 * MIN_CHUNK_BYTES], MIN_CHUNK_BYTES)
        partial.append(data[2 * MIN_CHUNK_BYTES :], MIN_CHUNK_BYTES)
        assert partial.finish().read_bytes() == data


@pytest.mark.parametrize("suffix", ["", "x", "0", "99999999999999999999", "²"])
def test_what_no_download_wrote_is_thrown_away(scene: Scene, suffix: str) -> None:
    data = os.urandom(2 * MIN_CHUNK_BYTES)
    path = scene.begin(data, MIN_CHUNK_BYTES)
    stray = path.with_name(f"{path.name.partition('.')[0]}.{suffix}")
    stray.write_bytes(bytes(2 * MIN_CHUNK_BYTES))
    with scene.partial(data) as partial:
        assert partial.received == MIN_CHUNK_BYTES
    assert not stray.exists()


def test_one_that_is_longer_than_the_file_is_thrown_away(scene: Scene) -> None:
    data = os.urandom(MIN_CHUNK_BYTES)
    path = scene.begin(data, MIN_CHUNK_BYTES)
    path.write_bytes(bytes(MIN_CHUNK_BYTES + 1))
    with scene.partial(data) as partial:
        assert (partial.received, partial.chunk_bytes) == (0, None)


def test_another_content_is_deleted_and_says_so(scene: Scene) -> None:
    data = os.urandom(MIN_CHUNK_BYTES)
    with scene.partial(data) as file:
        file.append(bytes(MIN_CHUNK_BYTES), MIN_CHUNK_BYTES)
        with pytest.raises(PeerError, match="deleted, and to be downloaded anew"):
            file.finish()
        assert (file.received, file.chunk_bytes) == (0, None)
    assert list((scene.path / "incoming").iterdir()) == []


def test_an_empty_file_is_one(scene: Scene) -> None:
    with scene.partial(b"") as file:
        assert file.finish().read_bytes() == b""


# Room


def test_what_does_not_fit_is_told_with_the_key(scene: Scene) -> None:
    scene.restart(quota=MEGABYTE)
    scene.store.check_room(detector("1.0.0", model=bytes(MEGABYTE // 2)).verified)
    with pytest.raises(DeviceError, match=r"detector 2\.0\.0 \(0\.6 MB\) does not fit: .*fleet\.quota_mb = 1\.0"):
        scene.store.check_room(detector("2.0.0", model=b"x" * (MEGABYTE * 6 // 10)).verified)


def test_files_that_are_here_or_on_their_way_count_once(scene: Scene) -> None:
    scene.restart(quota=MEGABYTE)
    model = bytes(MEGABYTE * 6 // 10)
    scene.store.check_room(detector("1.0.0", model=model).verified)
    scene.store.check_room(detector("2.0.0", model=model).verified)
    scene.keep(detector("1.0.0", model=model))
    scene.begin(model, MIN_CHUNK_BYTES)
    scene.store.check_room(detector("2.0.0", model=model).verified)
    scene.store.check_room(detector("3.0.0", model=model).verified)


def test_what_has_begun_to_come_is_not_counted_twice(scene: Scene) -> None:
    scene.restart(quota=MEGABYTE)
    model = bytes(MEGABYTE * 9 // 10)
    scene.begin(model, 600 * MIN_CHUNK_BYTES)
    scene.store.check_room(detector("1.0.0", model=model).verified)


def test_one_that_is_given_up_makes_room(scene: Scene) -> None:
    scene.restart(quota=MEGABYTE)
    scene.store.check_room(detector("1.0.0", model=bytes(MEGABYTE * 9 // 10)).verified)
    other = detector("2.0.0", model=b"x" * (MEGABYTE * 9 // 10)).verified
    with pytest.raises(DeviceError):
        scene.store.check_room(other)
    scene.store.collect(used=())
    scene.store.check_room(other)


def test_without_hard_links_a_slot_needs_its_room_too(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.restart(quota=MEGABYTE)
    scene.store._links = False
    with pytest.raises(DeviceError, match="does not fit"):
        scene.store.check_room(detector("1.0.0", model=bytes(MEGABYTE * 6 // 10)).verified)


def test_the_disk_is_not_filled_up(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    free = SimpleNamespace(free=store_module.FREE_BYTES + 100)
    monkeypatch.setattr(store_module.shutil, "disk_usage", lambda _: free)
    with pytest.raises(DeviceError, match=r"the disk of .* has 64\.0 MB left"):
        scene.store.check_room(detector("1.0.0").verified)
    scene.keep(detector("1.0.0"))
    scene.store.check_room(detector("1.0.0").verified)


# Collecting


def test_what_no_slot_needs_and_nobody_wants_goes(scene: Scene) -> None:
    one, two, three = (detector(f"{number}.0.0") for number in (1, 2, 3))
    for bundle in (one, two):
        scene.keep(bundle)
    scene.download(three)
    scene.store.stage(three.verified)
    coming, stray = os.urandom(2 * MIN_CHUNK_BYTES), os.urandom(2 * MIN_CHUNK_BYTES)
    scene.begin(coming, MIN_CHUNK_BYTES)
    scene.begin(stray, MIN_CHUNK_BYTES)
    (scene.path / "staging" / ".left").mkdir()
    scene.store.write_record("detector", b"kept")
    scene.store.collect(used=[("detector", two.digest)], wanted=[three.digest, scene.digest(coming)])
    assert scene.store.slot("detector", one.digest) is None
    assert scene.store.slot("detector", two.digest) is not None
    assert {file.name for file in (scene.path / "objects").iterdir()} == two.digests | three.digests
    assert [file.name.partition(".")[0] for file in (scene.path / "incoming").iterdir()] == [scene.digest(coming)]
    assert [path.name for path in (scene.path / "staging").iterdir()] == [three.digest]
    scene.store.collect(used=())
    assert {path.name for path in scene.path.rglob("*")} == {
        "objects", "incoming", "staging", "slots", "records", "detector.json",
    }  # fmt: skip


def test_a_document_stays_and_what_it_names_goes(scene: Scene) -> None:
    """The index of a bundle that is refused is asked for again and again; its files are not."""
    refused = detector("1.0.0")
    scene.download(refused)
    scene.store.check_room(refused.verified)
    scene.store.stage(refused.verified)
    scene.store.collect(used=(), documents={refused.digest})
    assert [file.name for file in (scene.path / "objects").iterdir()] == [refused.digest]
    assert list((scene.path / "staging").iterdir()) == []
    assert scene.store._under_way == {}


def test_a_file_that_is_being_downloaded_is_not_collected(scene: Scene) -> None:
    data = os.urandom(2 * MIN_CHUNK_BYTES)
    with scene.partial(data) as file:
        file.append(data[:MIN_CHUNK_BYTES], MIN_CHUNK_BYTES)
        scene.store.collect(used=())
        file.append(data[MIN_CHUNK_BYTES:], MIN_CHUNK_BYTES)
        assert file.finish().read_bytes() == data


# Damage


def test_a_damaged_file_is_none_and_goes(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    bundle = detector("1.0.0")
    scene.download(bundle)
    file = scene.store.object(bundle.digest)
    assert scene.store.sound(bundle.digest)
    file.chmod(0o644)
    file.write_bytes(b"other" + bundle.index[5:])
    assert not scene.store.sound(bundle.digest)
    assert not file.exists()
    assert "is damaged: removed" in caplog.text
    assert not scene.store.sound(bundle.digest)


@pytest.mark.parametrize("name", ["objects", "incoming", "staging", "slots", "records", "."])
def test_what_is_in_the_way_of_a_directory_is_removed(
    scene: Scene, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(scene.path / name)
    (scene.path / name).write_bytes(b"")
    scene.restart()
    scene.keep(detector("1.0.0"))
    assert "is no directory: removed" in caplog.text


@pytest.mark.parametrize("name", ["objects/a", "incoming/a", "records/detector.json"])
def test_a_directory_in_place_of_a_file_is_removed(scene: Scene, name: str) -> None:
    (scene.path / name / "within").mkdir(parents=True)
    scene.restart()
    assert not (scene.path / name).exists()


# Records


def test_records_are_written_read_listed_and_removed(scene: Scene) -> None:
    assert scene.store.read_record("detector") is None
    scene.store.write_record("detector", b"1")
    scene.store.write_record("detector", b"2")
    scene.store.write_record("acme-counter", b"3")
    scene.restart()
    assert scene.store.read_record("detector") == b"2"
    assert scene.store.records() == ["acme-counter", "detector"]
    scene.store.remove_record("detector")
    scene.store.remove_record("detector")
    assert scene.store.records() == ["acme-counter"]


def test_records_that_cannot_be_read_are_not_taken_for_none(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.store.write_record("detector", b"1")

    def refuse(*_args: object, **_options: object) -> NoReturn:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    for way in ("os.scandir", "os.listdir", "io.open"):
        monkeypatch.setattr(way, refuse)
    with pytest.raises(DeviceError, match="records cannot be read: Permission denied"):
        scene.store.records()
    with pytest.raises(DeviceError, match=r"detector\.json: Permission denied; who removes it"):
        scene.store.read_record("detector")


def test_what_a_power_cut_left_of_a_record_goes_at_the_next_start(scene: Scene) -> None:
    scene.store.write_record("detector", b"1")
    (scene.path / "records" / ".detector.json.x").write_bytes(b"")
    scene.restart()
    assert [path.name for path in (scene.path / "records").iterdir()] == ["detector.json"]


def test_records_are_written_while_others_change_the_store(scene: Scene) -> None:
    one = detector("1.0.0")
    scene.download(one)
    with ThreadPoolExecutor(3) as threads:
        works = [threads.submit(scene.store.write_record, "detector", str(number).encode()) for number in range(50)]
        works += [threads.submit(scene.store.collect, (), [one.digest]) for _ in range(20)]
        works += [threads.submit(scene.store.stage, one.verified) for _ in range(20)]
    for work in works:
        work.result()
    assert scene.store.read_record("detector") is not None


def test_a_record_has_a_bound(scene: Scene) -> None:
    with pytest.raises(ValueError, match="over the limit"):
        scene.store.write_record("detector", bytes(MAX_RECORD_BYTES + 1))


def test_a_disk_that_fails_is_the_devices_fault(tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(b"")
    with pytest.raises(DeviceError, match="--state"):
        Store(tmp_path / "state" / "deploy", 1)
    scene = Scene(tmp_path / "other")
    shutil.rmtree(scene.path)
    with pytest.raises(DeviceError, match="--state"):
        scene.store.write_record("detector", b"")
    with pytest.raises(DeviceError, match="--state"):
        scene.store.collect(used=())
