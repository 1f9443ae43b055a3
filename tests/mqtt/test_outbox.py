"""The queue under every order of events: nothing accepted is lost, and nothing overtakes."""

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from appliance.mqtt.outbox import (
    MAX_PENDING_BYTES,
    MAX_PENDING_ROWS,
    READ_AGAIN,
    STORE_AFTER,
    SYNC_AFTER,
    Outbox,
    Page,
    Read,
    Row,
    SpoolState,
    Store,
)

WINDOW = 4
PAGE = 3


@dataclass
class SpoolModel:
    """What a disk does, without one."""

    rows: dict[int, Row] = field(default_factory=dict)

    def state(self) -> SpoolState:
        return SpoolState(len(self.rows), max(self.rows, default=0))

    def store(self, work: Store) -> SpoolState:
        self.rows = {id: row for id, row in self.rows.items() if id > work.delete_through}
        for row in work.rows:
            assert row.id not in self.rows, "stored twice"
            self.rows[row.id] = row
        return self.state()

    def read(self, work: Read) -> Page:
        found = sorted((row for row in self.rows.values() if row.id > work.after), key=lambda row: row.id)
        return Page(tuple(found[:PAGE]), complete=len(found) < PAGE)


class OutboxMachine(RuleBasedStateMachine):
    """Results are numbered by their payload: ids may be used again after a crash."""

    @initialize()
    def start(self) -> None:
        self.spool = SpoolModel()
        self.outbox = Outbox(self.spool.state())
        self.now = 0.0
        self.offered = 0
        self.alive: set[int] = set()  # offered, and neither acknowledged nor lost in a crash
        self.accepted: set[int] = set()
        self.acknowledged_here: set[int] = set()  # since the last crash
        self.delivered: list[int] = []
        self.window: dict[int, int] = {}
        self.online = False
        self.work: Store | Read | None = None

    @rule()
    def offer(self) -> None:
        row = self.outbox.offer("t", str(self.offered).encode(), 0, 0, self.now)
        assert row is not None
        self.alive.add(self.offered)
        self.offered += 1

    @rule(count=st.integers(2, 6))
    def offer_some(self, count: int) -> None:
        for _ in range(count):
            self.offer()
        self.send()

    @precondition(lambda self: not self.online)
    @rule()
    def connect(self) -> None:
        self.online = True
        self.outbox.connected()

    @precondition(lambda self: self.online)
    @rule()
    def disconnect(self) -> None:
        self.online = False
        self.window.clear()
        self.outbox.disconnected()

    @rule()
    def send(self) -> None:
        while len(self.window) < WINDOW and (row := self.outbox.next()) is not None:
            assert self.online
            number = int(row.payload)
            assert number not in self.acknowledged_here, "sent again after it was acknowledged"
            if self.window:
                assert row.id > max(self.window), "overtaken"
            self.window[row.id] = number
            self.delivered.append(number)

    @precondition(lambda self: self.window)
    @rule(data=st.data())
    def acknowledge_any(self, data: st.DataObject) -> None:
        self._acknowledge(data.draw(st.sampled_from(sorted(self.window))))

    @precondition(lambda self: self.window)
    @rule()
    def acknowledge_oldest(self) -> None:
        self._acknowledge(min(self.window))

    def _acknowledge(self, id: int) -> None:
        number = self.window.pop(id)
        row = self.outbox.acknowledged(id)
        assert row is not None
        assert int(row.payload) == number
        assert self.outbox.acknowledged(id) is None
        self.acknowledged_here.add(number)
        self.alive.discard(number)
        self.accepted.discard(number)

    @rule(seconds=st.sampled_from([STORE_AFTER / 2, STORE_AFTER]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.work is None)
    @rule()
    def begin_work(self) -> None:
        self.work = self.outbox.work(self.now)
        if self.work is not None:
            assert self.outbox.work(self.now) is None, "one piece of work at a time"

    @precondition(lambda self: self.work is not None)
    @rule()
    def finish_work(self) -> None:
        work, self.work = self.work, None
        if isinstance(work, Read):
            self.outbox.read(self.spool.read(work))
        elif work is not None:
            self.outbox.stored(self.spool.store(work))
            self.accepted |= {int(row.payload) for row in work.rows} & self.alive

    @precondition(lambda self: self.work is not None)
    @rule()
    def fail_work(self) -> None:
        self.work = None
        self.outbox.failed()

    @precondition(lambda self: self.work is None)
    @rule(finish=st.booleans())
    def work_in_time(self, finish: bool) -> None:
        self.now += STORE_AFTER
        self.begin_work()
        if finish and self.work is not None:
            self.finish_work()

    @precondition(lambda self: self.online)
    @rule()
    def reconnect(self) -> None:
        self.disconnect()
        self.connect()
        self.send()

    @rule(stored=st.booleans())
    def crash(self, stored: bool) -> None:
        """Only the spool is left; work under way may or may not have reached it."""
        if stored and isinstance(self.work, Store):
            self.spool.store(self.work)
        self.work = None
        self.online = False
        self.window.clear()
        self.outbox = Outbox(self.spool.state())
        self.acknowledged_here.clear()
        # what was acknowledged but not deleted yet counts as alive again: it will be sent a second time
        self.alive = {int(row.payload) for row in self.spool.rows.values()}

    @rule()
    def end(self) -> None:
        """An orderly end stores everything."""
        if self.work is not None:
            self.finish_work()
        if self.online:
            self.disconnect()
        self.work = self.outbox.last_work()
        if self.work is not None:
            self.finish_work()
        assert self.alive <= {int(row.payload) for row in self.spool.rows.values()}
        self.crash(stored=False)

    @invariant()
    def counted(self) -> None:
        assert self.outbox.unacknowledged == len(self.alive)

    @invariant()
    def first_deliveries_are_in_order(self) -> None:
        firsts = list(dict.fromkeys(self.delivered))
        assert firsts == sorted(firsts)

    @invariant()
    def memory_is_bounded(self) -> None:
        assert len(self.outbox._ahead) < READ_AGAIN + PAGE
        stored = [row for row in self.outbox._fresh if row.id in self.spool.rows]
        assert not stored, "stored, but kept in memory"

    @invariant()
    def accepted_is_never_forgotten(self) -> None:
        assert self.accepted <= self.alive

    def teardown(self) -> None:
        """With a broker and a disk that work, everything alive is delivered and the spool is empty."""
        if not hasattr(self, "outbox"):
            return
        if not self.online:
            self.connect()
        for _ in range(4 * len(self.alive) + 20):
            self.send()
            while self.window:
                self.acknowledge_oldest()
            self.now += max(STORE_AFTER, SYNC_AFTER)  # a store that failed may leave a sync due, which is harmless
            if self.work is None:
                self.begin_work()
            if self.work is not None:
                self.finish_work()
        assert not self.alive
        assert not self.spool.rows
        assert self.outbox.unacknowledged == 0
        assert self.outbox.wake_at() is None


OutboxMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)
TestOutbox = OutboxMachine.TestCase


def offered(outbox: Outbox, count: int, now: float = 0.0) -> None:
    for number in range(count):
        assert outbox.offer("t", b"%d" % number, 0, 0, now) is not None


def test_a_broker_that_keeps_up_costs_no_write() -> None:
    outbox = Outbox(SpoolState(0, 0))
    outbox.connected()
    for step in range(1000):
        now = step * 0.005
        offered(outbox, 1, now)
        row = outbox.next()
        assert row is not None
        assert outbox.work(now) is None
        outbox.acknowledged(row.id)
    assert outbox.work(100.0) is None
    assert outbox.wake_at() is None


def test_an_absent_broker_costs_no_memory() -> None:
    outbox = Outbox(SpoolState(0, 0))
    spool = SpoolModel()
    for step in range(50):
        offered(outbox, 20, float(step))
        work = outbox.work(step + STORE_AFTER)
        assert isinstance(work, Store)
        assert len(work.rows) == 20
        outbox.stored(spool.store(work))
        assert not outbox._fresh
        assert not outbox._storing
    assert outbox.unacknowledged == 1000


def test_what_the_spool_had_goes_first() -> None:
    spool = SpoolModel({5: Row(5, "t", b"old", 0, 0)})
    outbox = Outbox(spool.state())
    offered(outbox, 1)
    outbox.connected()
    assert outbox.next() is None
    work = outbox.work(0.0)
    assert isinstance(work, Read)
    outbox.read(spool.read(work))
    first, second = outbox.next(), outbox.next()
    assert first is not None
    assert second is not None
    assert (first.payload, second.payload) == (b"old", b"0")


def test_a_disk_that_does_not_keep_up_is_refused_more() -> None:
    outbox = Outbox(SpoolState(0, 0))
    offered(outbox, MAX_PENDING_ROWS)
    assert outbox.offer("t", b"", 0, 0, 0.0) is None
    assert isinstance(outbox.work(1.0), Store)
    assert outbox.offer("t", b"", 0, 0, 0.0) is None, "what is being stored is in memory still"
    outbox.stored(SpoolState(MAX_PENDING_ROWS, MAX_PENDING_ROWS))
    assert outbox.offer("t", b"", 0, 0, 0.0) is not None


def test_large_results_are_bounded_by_bytes() -> None:
    outbox = Outbox(SpoolState(0, 0))
    size = MAX_PENDING_BYTES // 4
    taken = sum(outbox.offer("t", bytes(size), 0, 0, 0.0) is not None for _ in range(10))
    assert taken == 3  # the topics count too
    outbox.connected()
    assert outbox.next() is not None
    assert outbox.offer("t", bytes(size), 0, 0, 0.0) is not None


def test_what_the_cap_took_is_passed_over() -> None:
    outbox = Outbox(SpoolState(0, 0))
    offered(outbox, 10)
    work = outbox.work(1.0)
    assert isinstance(work, Store)
    outbox.stored(SpoolState(rows=0, newest=0, dropped=10))
    assert outbox.unacknowledged == 0
    offered(outbox, 1, 2.0)
    outbox.connected()
    read = outbox.work(2.0)
    assert isinstance(read, Read)
    outbox.read(Page((), complete=True))
    row = outbox.next()
    assert row is not None
    assert row.id == 11


def stored_and_sent(count: int) -> tuple[Outbox, SpoolModel]:
    """``count`` results, in the spool and sent, none acknowledged."""
    outbox, spool = Outbox(SpoolState(0, 0)), SpoolModel()
    offered(outbox, count)
    outbox.connected()
    for _ in range(count):
        assert outbox.next() is not None
    work = outbox.work(1.0)
    assert isinstance(work, Store)
    outbox.stored(spool.store(work))
    return outbox, spool


def sent_now(outbox: Outbox, spool: SpoolModel) -> list[int]:
    """Ids that go out when the spool does what it is asked to."""
    ids = []
    for now in range(10, 20):
        while (row := outbox.next()) is not None:
            ids.append(row.id)
        work = outbox.work(float(now))
        if isinstance(work, Read):
            outbox.read(spool.read(work))
        elif work is not None:
            outbox.stored(spool.store(work))
    return ids


def test_what_was_acknowledged_out_of_turn_is_not_sent_again() -> None:
    outbox, spool = stored_and_sent(5)
    for id in (1, 3, 5):
        outbox.acknowledged(id)
    outbox.disconnected()
    outbox.connected()
    assert sent_now(outbox, spool) == [2, 4]
    outbox.acknowledged(2)
    outbox.acknowledged(4)
    assert sent_now(outbox, spool) == []
    assert not spool.rows
    assert outbox.unacknowledged == 0


def test_rows_read_for_a_connection_that_has_ended_are_not_kept() -> None:
    outbox, spool = stored_and_sent(2)
    outbox.disconnected()
    outbox.connected()
    work = outbox.work(2.0)
    assert isinstance(work, Read)
    outbox.disconnected()
    outbox.read(spool.read(work))
    outbox.connected()
    assert outbox.next() is None
    assert sent_now(outbox, spool) == [1, 2]


def test_nothing_overtakes_what_is_being_stored() -> None:
    outbox, spool = Outbox(SpoolState(0, 0)), SpoolModel()
    offered(outbox, 1)
    work = outbox.work(1.0)
    assert isinstance(work, Store)
    offered(outbox, 1, 1.0)
    outbox.connected()
    assert outbox.next() is None
    outbox.stored(spool.store(work))
    assert sent_now(outbox, spool) == [1, 2]


def test_what_could_not_be_stored_is_sent_in_its_turn() -> None:
    outbox, spool = Outbox(SpoolState(0, 0)), SpoolModel()
    offered(outbox, 2)
    assert isinstance(outbox.work(1.0), Store)
    offered(outbox, 1, 1.0)
    outbox.failed()
    outbox.connected()
    assert sent_now(outbox, spool) == [1, 2, 3]


def test_a_connection_that_ends_while_its_window_is_being_stored() -> None:
    for fails in (False, True):
        outbox, spool = Outbox(SpoolState(0, 0)), SpoolModel()
        offered(outbox, 2)
        outbox.connected()
        assert outbox.next() is not None
        work = outbox.work(1.0)
        assert isinstance(work, Store)
        outbox.disconnected()
        if fails:
            outbox.failed()
        else:
            outbox.stored(spool.store(work))
        assert bool(outbox._fresh) is fails
        outbox.connected()
        assert sent_now(outbox, spool) == [1, 2]


def test_what_stays_in_the_spool_is_synced_once_in_a_while() -> None:
    outbox, spool = Outbox(SpoolState(0, 0)), SpoolModel()
    syncs = []
    for step in range(200):
        now = step * STORE_AFTER
        if step < 100:
            offered(outbox, 1, now)
        work = outbox.work(now)
        if work is not None:
            assert isinstance(work, Store)
            outbox.stored(spool.store(work))
            if work.sync:
                syncs.append(now)
    assert len(spool.rows) == 100
    assert len(syncs) == 2, "the last of them after the last result"
    assert syncs[0] <= STORE_AFTER + SYNC_AFTER + 0.001
    assert syncs[-1] >= 100 * STORE_AFTER
    assert outbox.wake_at() is None


def test_a_sync_that_fails_is_tried_again() -> None:
    outbox, spool = Outbox(SpoolState(0, 0)), SpoolModel()
    offered(outbox, 1)
    work = outbox.work(1.0)
    assert isinstance(work, Store)
    outbox.stored(spool.store(work))
    work = outbox.work(1.0 + SYNC_AFTER)
    assert isinstance(work, Store)
    assert work.sync
    outbox.failed()
    assert outbox.work(1.0 + SYNC_AFTER) == work


def test_what_was_sent_need_not_be_synced() -> None:
    outbox, spool = stored_and_sent(2)
    outbox.acknowledged(1)
    outbox.acknowledged(2)
    work = outbox.work(2.0)
    assert isinstance(work, Store)
    outbox.stored(spool.store(work))
    assert outbox.wake_at() is None
