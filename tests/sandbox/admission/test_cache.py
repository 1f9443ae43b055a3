import hashlib
import os
from pathlib import Path

import pytest

from appliance.sandbox.admission import cache
from appliance.sandbox.admission.cache import VerdictCache, key_of
from appliance.sandbox.admission.verdict import Admitted, Order, Rejected

ADMITTED = Admitted("0" * 64, b"code", [("env", "yomo_write", "i(iii)")], {"handle": "i()"}, ["appliance:pages"], 3)
REJECTED = Rejected("import", "it imports env.launch, which no ABI has", 12)
KEY = "a" * 64


def file_of(directory: Path, key: str = KEY) -> Path:
    return directory / f"{key}.verdict"


@pytest.mark.parametrize("verdict", [ADMITTED, REJECTED])
def test_what_is_stored_is_loaded(tmp_path: Path, verdict: Admitted | Rejected) -> None:
    VerdictCache(tmp_path / "new" / "directory").store(KEY, verdict)
    assert VerdictCache(tmp_path / "new" / "directory").load(KEY) == verdict
    assert VerdictCache(tmp_path / "new" / "directory").load("b" * 64) is None


def test_where_there_is_no_directory_nothing_is_known(tmp_path: Path) -> None:
    assert VerdictCache(tmp_path / "none").load(KEY) is None


def test_a_torn_file_counts_as_none(tmp_path: Path) -> None:
    verdicts = VerdictCache(tmp_path)
    verdicts.store(KEY, ADMITTED)
    whole = file_of(tmp_path).read_bytes()
    for length in range(len(whole)):
        file_of(tmp_path).write_bytes(whole[:length])
        assert verdicts.load(KEY) is None
    verdicts.store(KEY, ADMITTED)
    assert verdicts.load(KEY) == ADMITTED


def test_a_damaged_file_counts_as_none(tmp_path: Path) -> None:
    verdicts = VerdictCache(tmp_path)
    verdicts.store(KEY, ADMITTED)
    whole = file_of(tmp_path).read_bytes()
    for at in range(len(whole)):
        file_of(tmp_path).write_bytes(whole[:at] + bytes((whole[at] ^ 1,)) + whole[at + 1 :])
        assert verdicts.load(KEY) is None


def test_a_file_of_other_code_counts_as_none(tmp_path: Path) -> None:
    """Whole by its digest, but no verdict."""
    content = b"\x93\x01\x02\x03"
    file_of(tmp_path).write_bytes(hashlib.sha256(content).digest() + content)
    assert VerdictCache(tmp_path).load(KEY) is None


def test_what_a_power_cut_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / f".{KEY}.verdict.k3j2h1"
    left.write_bytes(b"half")
    other = tmp_path / "notes.txt"
    other.write_bytes(b"not ours")
    VerdictCache(tmp_path).store(KEY, ADMITTED)
    assert sorted(path.name for path in tmp_path.iterdir()) == [file_of(tmp_path).name, "notes.txt"]


def stored(tmp_path: Path, *ages: int) -> list[bool]:
    """Store one after another; whether each is still there."""
    verdicts = VerdictCache(tmp_path)
    keys = [f"{age:064x}" for age in ages]
    for key, age in zip(keys, ages, strict=True):
        verdicts.store(key, ADMITTED)
        os.utime(file_of(tmp_path, key), ns=(age, age))
    verdicts.store(KEY, ADMITTED)
    return [verdicts.load(key) is not None for key in keys]


def test_the_oldest_files_go_when_there_are_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "MAX_FILES", 3)
    assert stored(tmp_path, 10, 20, 30) == [False, True, True]
    assert sum(1 for _ in tmp_path.iterdir()) == 3


def test_the_oldest_files_go_when_they_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    VerdictCache(tmp_path).store(KEY, ADMITTED)
    monkeypatch.setattr(cache, "MAX_BYTES", 2 * file_of(tmp_path).stat().st_size + 10)
    assert stored(tmp_path, 10, 20) == [False, True]


def test_a_verdict_that_is_too_large_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "MAX_FILE_BYTES", 100)
    VerdictCache(tmp_path).store(KEY, ADMITTED)
    assert list(tmp_path.iterdir()) == []


def test_the_key_is_that_of_all_that_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    orders = [
        Order(module, engine, memory, restorable)
        for module in (b"a", b"b")
        for engine in ("wasm3", "wasmtime")
        for memory in (1, 2)
        for restorable in (False, True)
    ]
    keys = {key_of(order) for order in orders}
    assert len(keys) == len(orders)
    assert keys == {key_of(order) for order in orders}
    monkeypatch.setattr(cache, "ADMISSION_VERSION", 2)
    assert not keys & {key_of(order) for order in orders}
    monkeypatch.undo()
    monkeypatch.setattr(cache, "version", lambda _: "next")
    assert not keys & {key_of(order) for order in orders}
    monkeypatch.undo()
    monkeypatch.setattr(cache, "_processor", lambda: b"another")
    assert not keys & {key_of(order) for order in orders}
