"""The spool: results the broker has not acknowledged, in an SQLite file. Blocking: used from a thread of its own.

What is stored survives the death of the process at once, and a power cut once it is synced. The file is bounded:
beyond the cap the oldest results go, and are counted. A damaged file is set aside, never repaired.
"""

import logging
import sqlite3
from pathlib import Path

from appliance.errors import DeviceError
from appliance.mqtt.outbox import READ_BYTES, READ_ROWS, Page, Read, Row, SpoolState, Store

log = logging.getLogger(__name__)

LOCK_SECONDS = 2.0
"""How long to wait for the process before us to let go of the file."""
ROW_OVERHEAD = 64
"""Bytes that a row costs beyond topic and payload."""
DAMAGED_SUFFIX = ".damaged"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS results (
    id INTEGER PRIMARY KEY, size INTEGER NOT NULL, topic TEXT NOT NULL, payload BLOB NOT NULL,
    captured_ns INTEGER NOT NULL, offered_ns INTEGER NOT NULL
) STRICT
"""
_PRAGMAS = (
    "locking_mode = EXCLUSIVE",  # two appliances must not publish from one spool
    "journal_mode = WAL",
    "synchronous = NORMAL",
    "journal_size_limit = 4194304",
)
_COUNT = "SELECT count(*), coalesce(sum(size), 0) FROM results WHERE id > ? AND id <= ?"
_DELETE = "DELETE FROM results WHERE id > ? AND id <= ?"
_INSERT = "INSERT INTO results VALUES (?, ?, ?, ?, ?, ?)"
_READ = "SELECT id, topic, payload, captured_ns, offered_ns FROM results WHERE id > ? ORDER BY id LIMIT ?"
_SIZES = "SELECT id, size FROM results WHERE id > ? ORDER BY id"
_MAX_ID = (1 << 63) - 1


class _DamagedError(sqlite3.DatabaseError):
    """The check at the start found the file damaged."""


class Spool:
    """The file at ``path``, holding at most ``cap_bytes`` of results. DeviceError where the disk fails."""

    def __init__(self, path: Path, cap_bytes: int) -> None:
        self._path = path
        self._cap = cap_bytes
        self._db: sqlite3.Connection | None = None
        self._rows = 0
        self._bytes = 0

    def open(self) -> SpoolState:
        """Open or create the file; a damaged one is set aside first."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._connect()
            except sqlite3.DatabaseError as error:
                self._set_aside(error)
            newest = self._connection.execute("SELECT coalesce(max(id), 0) FROM results").fetchone()[0]
        except (OSError, sqlite3.Error) as error:
            self.close()
            raise self._failure(error) from error
        return SpoolState(self._rows, newest)

    def store(self, work: Store) -> SpoolState:
        """Do all that ``work`` says, or nothing of it."""
        lost = 0
        try:
            try:
                dropped = self._transact(work)
            except sqlite3.DatabaseError as error:
                lost = self._set_aside(error)
                dropped = self._transact(work)
            if work.sync:
                self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()  # which flushes the log first
        except (OSError, sqlite3.Error) as error:
            raise self._failure(error) from error
        return SpoolState(self._rows, work.rows[-1].id if work.rows else 0, lost + dropped)

    def read(self, work: Read) -> Page:
        """The next rows in order."""
        rows: list[Row] = []
        size = 0
        try:
            for values in self._connection.execute(_READ, (work.after, READ_ROWS)):
                row = Row(*values)
                size += row.size
                if rows and size > READ_BYTES:
                    return Page(tuple(rows), complete=False)
                rows.append(row)
        except sqlite3.DatabaseError as error:
            try:
                return Page((), complete=True, dropped=self._set_aside(error))
            except (OSError, sqlite3.Error) as failure:
                raise self._failure(failure) from failure
        return Page(tuple(rows), complete=len(rows) < READ_ROWS)

    def close(self) -> None:
        """Close the file; may be called twice."""
        if self._db is not None:
            self._db.close()
            self._db = None

    # --- inside --------------------------------------------------------------------------------------------

    @property
    def _connection(self) -> sqlite3.Connection:
        if self._db is None:
            self._connect()
        assert self._db is not None
        return self._db

    def _connect(self) -> None:
        self._db = db = sqlite3.connect(self._path, timeout=LOCK_SECONDS, isolation_level=None)
        for pragma in _PRAGMAS:
            db.execute(f"PRAGMA {pragma}")
        report = db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if report != "ok":
            raise _DamagedError(report)
        db.execute(_SCHEMA)
        self._rows, self._bytes = db.execute(_COUNT, (0, _MAX_ID)).fetchone()

    def _transact(self, work: Store) -> int:
        """The whole of a Store in one transaction; how many results the cap cost."""
        db = self._connection
        rows, size = self._rows, self._bytes
        db.execute("BEGIN IMMEDIATE")
        try:
            gone, freed = self._delete(0, work.delete_through)
            db.executemany(_INSERT, map(_values, work.rows))
            rows += len(work.rows) - gone
            size += sum(row.size + ROW_OVERHEAD for row in work.rows) - freed
            dropped, freed = self._delete(work.protect, self._last_over(work.protect, size - self._cap))
            db.execute("COMMIT")
        except sqlite3.Error:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        self._rows, self._bytes = rows - dropped, size - freed
        return dropped

    def _delete(self, after: int, through: int) -> tuple[int, int]:
        """Delete ids in (after, through]; (rows, bytes) that went."""
        rows, size = self._connection.execute(_COUNT, (after, through)).fetchone()
        self._connection.execute(_DELETE, (after, through))
        return rows, size

    def _last_over(self, after: int, excess: int) -> int:
        """Id up to which rows after ``after`` must go to free ``excess`` bytes; 0 for none."""
        last = 0
        if excess > 0:
            rows = self._connection.execute(_SIZES, (after,))
            for id, size in rows:
                last = id
                excess -= size
                if excess <= 0:
                    break
            rows.close()
        return last

    def _set_aside(self, error: sqlite3.DatabaseError) -> int:
        """Begin a new file where ``error`` means that this one is damaged, or raise it; how many rows are lost."""
        if not _is_damage(error):
            raise error
        lost = self._rows
        self.close()
        aside = self._path.with_name(self._path.name + DAMAGED_SUFFIX)
        self._path.replace(aside)
        for suffix in ("-wal", "-shm", "-journal"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        log.error("event=spool_damaged file=%s moved_to=%s error=%s", self._path, aside.name, error)
        self._connect()
        return lost

    def _failure(self, error: Exception) -> DeviceError:
        busy = isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
        remedy = "another appliance uses it: stop that one" if busy else "check the disk's space and permissions"
        return DeviceError(f"the spool {self._path} fails: {error}; {remedy}")


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    if isinstance(error, _DamagedError):
        return True
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # our module raises some without a code
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _values(row: Row) -> tuple[int, int, str, bytes, int, int]:
    return row.id, row.size + ROW_OVERHEAD, row.topic, row.payload, row.captured_ns, row.offered_ns
