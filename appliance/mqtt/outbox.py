"""The queue of results between handlers and broker: pure, so that every order of events can be tested.

A result goes from memory straight to the broker while the broker keeps up. What is not acknowledged within
STORE_AFTER is stored in the spool, all at once; what is stored and not under way leaves memory and is read
back, in order, when its turn comes. So a healthy box hardly writes, and an absent broker costs no memory.

Results have growing ids. From the oldest to the newest they are: sent and not acknowledged (``_window``),
read back from the spool (``_ahead``), only in the spool, being stored (``_storing``), only in memory
(``_fresh``). The shell carries out one piece of work at a time: the one :meth:`Outbox.work` returned.
"""

import math
from collections import deque
from dataclasses import dataclass

STORE_AFTER = 0.1
"""Seconds a result may stay in memory alone. A power cut or crash before that takes it with it."""
SYNC_AFTER = 5.0
"""Seconds until the disk is made to keep what was stored: each time costs an SD card two flushes."""
MAX_PENDING_BYTES = 8 << 20
MAX_PENDING_ROWS = 4096
"""What may wait for a disk that does not keep up, before results are refused."""
READ_ROWS = 64
READ_BYTES = 4 << 20
READ_AGAIN = 16
"""Fewer rows than this read ahead: read more."""


@dataclass(frozen=True, slots=True)
class Row:
    """One result on its way. Times are wall-clock nanoseconds since 1970."""

    id: int
    topic: str
    payload: bytes
    captured_ns: int
    offered_ns: int

    @property
    def size(self) -> int:
        return len(self.topic) + len(self.payload)


@dataclass(frozen=True, slots=True)
class Store:
    """Write ``rows``, delete what has an id up to ``delete_through``, drop the oldest beyond ``protect`` by the cap."""

    rows: tuple[Row, ...]
    delete_through: int
    protect: int
    sync: bool = False
    """Make the disk keep it all: until then it survives our end, but not a power cut."""


@dataclass(frozen=True, slots=True)
class Read:
    """Read rows after id ``after`` in order, at most READ_ROWS and READ_BYTES (but one at least)."""

    after: int
    through: int
    """The newest id the spool had: where there is nothing up to it, it was dropped."""
    epoch: int


@dataclass(frozen=True, slots=True)
class Page:
    """What a Read found."""

    rows: tuple[Row, ...]
    complete: bool
    """Nothing stored comes after ``rows``."""
    dropped: int = 0
    """Results lost because the spool turned out to be damaged."""


@dataclass(frozen=True, slots=True)
class SpoolState:
    """What the spool holds after some work, and how many results it dropped in doing it."""

    rows: int
    newest: int
    """Id of the newest row, 0 where there is none."""
    dropped: int = 0


@dataclass(slots=True)
class _Entry:
    row: Row
    stored: bool


class Outbox:
    """Ids, order and what is where. ``now`` is monotonic seconds."""

    def __init__(self, spool: SpoolState) -> None:
        self.unacknowledged = spool.rows
        """Results accepted and not yet acknowledged, wherever they are."""
        self._next_id = spool.newest + 1
        self._rows = spool.rows
        self._stored_through = spool.newest
        self._online = False
        self._epoch = 0
        self._window: dict[int, _Entry] = {}
        self._done_early: set[int] = set()  # acknowledged before one with a lower id was
        self._ahead: deque[Row] = deque()
        self._storing: deque[Row] = deque()
        self._fresh: deque[Row] = deque()
        self._pending_bytes = 0
        self._due: deque[tuple[int, float]] = deque()  # ids in memory alone, and when to store them
        self._sent_through = 0
        self._read_through = 0
        self._deleted_through = 0
        self._delete_at = 0.0
        self._sync_at: float | None = None
        self._work: Store | Read | None = None

    # --- results in, results out ---------------------------------------------------------------------------

    def offer(self, topic: str, payload: bytes, captured_ns: int, offered_ns: int, now: float) -> Row | None:
        """Queue a result; None where too much waits for the disk already."""
        waiting = len(self._fresh) + len(self._storing)
        if self._pending_bytes + len(payload) > MAX_PENDING_BYTES or waiting >= MAX_PENDING_ROWS:
            return None
        row = Row(self._next_id, topic, payload, captured_ns, offered_ns)
        self._next_id += 1
        self._fresh.append(row)
        self._pending_bytes += row.size
        self._due.append((row.id, now + STORE_AFTER))
        self.unacknowledged += 1
        return row

    def next(self) -> Row | None:
        """The next result to send: it counts as under way until acknowledged or until :meth:`disconnected`."""
        if not self._online:
            return None
        while self._ahead:
            row = self._ahead.popleft()
            if row.id not in self._done_early:
                return self._send(_Entry(row, stored=True))
            self._sent_through = row.id
        if self._fresh and not self._storing and self._read_through >= self._stored_through:
            row = self._fresh.popleft()
            self._pending_bytes -= row.size
            self._read_through = row.id
            return self._send(_Entry(row, stored=False))
        return None

    def acknowledged(self, id: int) -> Row | None:
        """The broker has it: the row, or None where it was not under way."""
        entry = self._window.pop(id, None)
        if entry is None:
            return None
        self.unacknowledged = max(0, self.unacknowledged - 1)
        if self._window and id > next(iter(self._window)):
            self._done_early.add(id)
        elif self._done_early:
            self._done_early = {early for early in self._done_early if early > self._acknowledged_through}
        return entry.row

    def connected(self) -> None:
        self._online = True

    def disconnected(self) -> None:
        """All that was not acknowledged will be sent again, the oldest first."""
        through = self._acknowledged_through
        unstored = [entry.row for entry in self._window.values() if not entry.stored]
        limit = self._work.rows[-1].id if isinstance(self._work, Store) and self._work.rows else 0
        self._storing.extendleft(row for row in reversed(unstored) if row.id <= limit)
        self._fresh.extendleft(row for row in reversed(unstored) if row.id > limit)
        self._pending_bytes += sum(row.size for row in unstored)
        self._window.clear()
        self._ahead.clear()
        self._sent_through = self._read_through = through
        self._online = False
        self._epoch += 1

    def _send(self, entry: _Entry) -> Row:
        self._window[entry.row.id] = entry
        self._sent_through = entry.row.id
        return entry.row

    @property
    def _acknowledged_through(self) -> int:
        return next(iter(self._window)) - 1 if self._window else self._sent_through

    # --- work for the spool --------------------------------------------------------------------------------

    def wake_at(self) -> float | None:
        """When :meth:`work` will have something to do; None while it waits for an event."""
        if self._work is not None:
            return None
        times = [
            self._store_at(),
            self._sync_at,
            self._delete_at if self._wants_deletion else None,
            0.0 if self._wants_rows else None,
        ]
        return min((time for time in times if time is not None), default=None)

    def work(self, now: float) -> Store | Read | None:
        """The next piece of work, if it is due; answer with :meth:`stored`, :meth:`read` or :meth:`failed`."""
        if self._work is not None:
            return None
        if any(due is not None and due <= now for due in (self._store_at(), self._sync_at)):
            return self._begin_store(now)
        if self._wants_rows:
            self._work = Read(self._read_through, self._stored_through, self._epoch)
            return self._work
        if self._wants_deletion and self._delete_at <= now:
            return self._begin_store(now)
        return None

    def last_work(self) -> Store | None:
        """After :meth:`disconnected`, at the end: store what is in memory alone, delete what is acknowledged."""
        return self._begin_store(math.inf) if self._fresh or self._wants_deletion else None

    def stored(self, state: SpoolState) -> None:
        """The Store is done and durable."""
        work = self._work
        assert isinstance(work, Store)
        self._work = None
        self._pending_bytes -= sum(row.size for row in self._storing)
        self._storing.clear()
        for row in work.rows:
            self._stored_through = row.id
            if row.id in self._window:
                self._window[row.id].stored = True
        self._deleted_through = work.delete_through
        self._rows = state.rows
        if not state.rows:
            self._sync_at = None
        self.unacknowledged = max(0, self.unacknowledged - state.dropped)

    def read(self, page: Page) -> None:
        """The Read is done."""
        work = self._work
        assert isinstance(work, Read)
        self._work = None
        self.unacknowledged = max(0, self.unacknowledged - page.dropped)
        if work.epoch != self._epoch:
            return
        self._ahead.extend(page.rows)
        if page.rows:
            self._read_through = page.rows[-1].id
        if page.complete:
            self._read_through = max(self._read_through, work.through)

    def failed(self) -> None:
        """The work failed: everything is as before, and it will be asked for again."""
        if isinstance(self._work, Store) and self._work.sync:
            self._sync_at = 0.0
        self._work = None
        self._fresh.extendleft(reversed(self._storing))
        self._storing.clear()

    def _begin_store(self, now: float) -> Store:
        self._delete_at = now + STORE_AFTER
        unstored = [entry.row for entry in self._window.values() if not entry.stored]
        rows = (*unstored, *self._fresh)
        sync = self._sync_at is not None and self._sync_at <= now
        if sync:
            self._sync_at = None
        elif rows and self._sync_at is None:
            self._sync_at = now + SYNC_AFTER
        work = Store(rows, self._acknowledged_through, self._read_through, sync)
        self._storing, self._fresh = self._fresh, deque()
        self._work = work
        return work

    def _store_at(self) -> float | None:
        """When the oldest result that is in memory alone must be stored."""
        settled = max(self._acknowledged_through, self._stored_through)
        while self._due and self._due[0][0] <= settled:
            self._due.popleft()
        return self._due[0][1] if self._due else None

    @property
    def _wants_rows(self) -> bool:
        return self._online and len(self._ahead) < READ_AGAIN and self._read_through < self._stored_through

    @property
    def _wants_deletion(self) -> bool:
        return self._rows > 0 and self._deleted_through < self._acknowledged_through
