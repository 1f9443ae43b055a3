import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import DeviceError
from appliance.mqtt.outbox import READ_BYTES, READ_ROWS, Read, Row, Store
from appliance.mqtt.spool import DAMAGED_SUFFIX, ROW_OVERHEAD, Spool

CAP = 1 << 20


def row(id: int, payload: bytes = b"payload") -> Row:
    return Row(id, "topic", payload, captured_ns=id * 10, offered_ns=id * 20)


def store(*rows: Row, delete_through: int = 0, protect: int = 0) -> Store:
    return Store(rows, delete_through, protect)


def read_all(spool: Spool) -> list[Row]:
    rows: list[Row] = []
    while True:
        page = spool.read(Read(rows[-1].id if rows else 0, through=0, epoch=0))
        rows += page.rows
        if page.complete:
            return rows


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "spool.db"


def test_rows_come_back_whole_and_in_order_after_a_restart(path: Path) -> None:
    spool = Spool(path, CAP)
    assert spool.open().rows == 0
    rows = [row(id, os.urandom(id)) for id in range(1, 200)]
    assert spool.store(store(*rows[:100])).rows == 100
    state = spool.store(store(*rows[100:]))
    assert (state.rows, state.newest, state.dropped) == (199, 199, 0)
    spool.close()
    spool.close()
    again = Spool(path, CAP)
    state = again.open()
    assert (state.rows, state.newest) == (199, 199)
    assert read_all(again) == rows
    assert again.store(store(delete_through=150)).rows == 49
    assert read_all(again) == rows[150:]
    again.close()


def test_pages_are_bounded_by_rows_and_bytes(path: Path) -> None:
    spool = Spool(path, 100 << 20)
    spool.open()
    spool.store(store(*(row(id) for id in range(1, READ_ROWS + 2))))
    page = spool.read(Read(0, 0, 0))
    assert (len(page.rows), page.complete) == (READ_ROWS, False)
    page = spool.read(Read(page.rows[-1].id, 0, 0))
    assert (len(page.rows), page.complete) == (1, True)
    large = READ_BYTES // 2 + 1
    spool.store(store(row(1000, bytes(large)), row(1001, bytes(large)), row(1002, bytes(3 * large))))
    assert [found.id for found in spool.read(Read(999, 0, 0)).rows] == [1000]
    assert [found.id for found in spool.read(Read(1001, 0, 0)).rows] == [1002], "one row always comes"
    spool.close()


operations = st.lists(
    st.tuples(
        st.lists(st.integers(0, 400), max_size=5),  # sizes of new rows
        st.integers(0, 3),  # how many more to delete
        st.integers(0, 6),  # how many beyond those to protect
    ),
    max_size=20,
)


@settings(max_examples=40, deadline=None)
@given(operations, st.integers(0, 1500))
def test_the_file_does_what_a_list_would_do(work: list[tuple[list[int], int, int]], cap: int) -> None:
    model: list[Row] = []
    next_id = 1
    with tempfile.TemporaryDirectory() as directory:
        spool = Spool(Path(directory, "spool.db"), cap)
        spool.open()
        for sizes, deleted, protected in work:
            delete_through = model[: deleted + 1][-1].id if model and deleted else 0
            protect = max([found.id for found in model[: deleted + protected]], default=0)
            new = [row(next_id + number, bytes(size)) for number, size in enumerate(sizes)]
            next_id += len(new)
            state = spool.store(Store(tuple(new), delete_through, protect))
            model = [found for found in model if found.id > delete_through] + new
            dropped = 0
            while sum(found.size + ROW_OVERHEAD for found in model) > cap:
                oldest = next((found for found in model if found.id > protect), None)
                if oldest is None:
                    break
                model.remove(oldest)
                dropped += 1
            assert (state.rows, state.dropped) == (len(model), dropped)
            assert read_all(spool) == model
        spool.close()


def test_a_killed_process_loses_nothing_it_had_stored(path: Path) -> None:
    program = """
        import sys
        from pathlib import Path
        from appliance.mqtt.outbox import Row, Store
        from appliance.mqtt.spool import Spool
        spool = Spool(Path(sys.argv[1]), 1 << 20)
        spool.open()
        for id in range(1, 100_000):
            spool.store(Store((Row(id, "topic", b"payload", id * 10, id * 20),), 0, 0))
            print(id, flush=True)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        told = [int(process.stdout.readline()) for _ in range(50)]
        process.send_signal(signal.SIGKILL)
        told += [int(line) for line in process.stdout]
    spool = Spool(path, CAP)
    spool.open()
    found = read_all(spool)
    assert found[: len(told)] == [row(id) for id in told]
    assert len(found) <= len(told) + 1
    spool.close()


@pytest.mark.parametrize("damage", ["garbage", "torn"])
def test_a_damaged_file_is_set_aside_and_a_new_one_begun(
    path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool(path, CAP)
    spool.open()
    spool.store(store(*(row(id, os.urandom(3000)) for id in range(1, 50))))
    spool.close()
    if damage == "garbage":
        path.write_bytes(b"this is not a database" * 100)
    else:
        content = bytearray(path.read_bytes())
        content[4096 : len(content) // 2] = bytes(len(content) // 2 - 4096)
        path.write_bytes(content)
    again = Spool(path, CAP)
    assert again.open().rows == 0
    assert "event=spool_damaged" in caplog.text
    assert path.with_name(path.name + DAMAGED_SUFFIX).exists()
    assert again.store(store(row(1))).rows == 1
    assert read_all(again) == [row(1)]
    again.close()


def test_a_sync_moves_the_log_into_the_file(path: Path) -> None:
    spool = Spool(path, CAP)
    spool.open()
    rows = [row(id, os.urandom(3000)) for id in range(1, 50)]
    spool.store(store(*rows))
    before = path.stat().st_size
    spool.store(Store((), 0, 0, sync=True))
    assert path.stat().st_size > before + 49 * 3000
    spool.close()


def damage_under(spool: Spool, path: Path) -> None:
    """Overwrite all pages of an open file but the first; the checkpoint has emptied the log before."""
    assert spool._db is not None
    spool._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    spool._db.execute("PRAGMA cache_size = 0")
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(size - 4096))


def test_damage_while_running_costs_what_was_stored_and_no_more(path: Path) -> None:
    spool = Spool(path, CAP)
    spool.open()
    spool.store(store(*(row(id, os.urandom(3000)) for id in range(1, 50))))
    damage_under(spool, path)
    state = spool.store(store(row(50), delete_through=10))
    assert (state.rows, state.dropped) == (1, 49)
    assert read_all(spool) == [row(50)]
    spool.close()


def test_damage_found_in_reading(path: Path) -> None:
    spool = Spool(path, CAP)
    spool.open()
    spool.store(store(*(row(id, os.urandom(3000)) for id in range(1, 50))))
    damage_under(spool, path)
    page = spool.read(Read(0, 49, 0))
    assert (page.rows, page.complete, page.dropped) == ((), True, 49)
    assert spool.store(store(row(50))).rows == 1
    spool.close()


def test_two_appliances_cannot_share_a_spool(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.mqtt.spool.LOCK_SECONDS", 0.0)
    first = Spool(path, CAP)
    first.open()
    second = Spool(path, CAP)
    with pytest.raises(DeviceError, match="another appliance uses it"):
        second.open()
    first.close()
    assert second.open().rows == 0
    second.close()


def test_a_directory_that_cannot_be_made_is_the_devices_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DeviceError, match="check the disk"):
        Spool(tmp_path / "file" / "spool.db", CAP).open()


def test_a_full_disk_changes_nothing_and_passes(path: Path) -> None:
    spool = Spool(path, 100 << 20)
    spool.open()
    spool.store(store(row(1)))
    assert spool._db is not None
    spool._db.execute("PRAGMA max_page_count = 10")
    with pytest.raises(DeviceError, match="full"):
        spool.store(store(row(2), row(3, bytes(1 << 20)), delete_through=1))
    assert read_all(spool) == [row(1)]
    spool._db.execute("PRAGMA max_page_count = 1000000")
    state = spool.store(store(row(2), row(3), delete_through=1))
    assert (state.rows, read_all(spool)) == (2, [row(2), row(3)])
    spool.close()


def test_a_file_of_another_program_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE results (something TEXT)")
    other.close()
    with pytest.raises(DeviceError, match="no such column"):
        Spool(path, CAP).open()
