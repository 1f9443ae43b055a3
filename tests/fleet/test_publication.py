"""What is sent to the broker, and in which order."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from appliance.deploy.fleet_topics import MAX_METADATA_BYTES, MIN_CHUNK_BYTES, FleetTopics
from appliance.errors import ConfigError, PeerError
from appliance.fleet import publication
from appliance.fleet.publication import (
    MAX_HELD_FILES,
    ChunkStep,
    Held,
    MetadataStep,
    Needed,
    Plan,
    Step,
    Survey,
    count_of,
    plan,
    version_of,
)

TOPICS = FleetTopics("fleet", "plant")
FILES = {
    hashlib.sha256(data).hexdigest(): data
    for data in (bytes([number]) * size for number, size in enumerate((0, 1, 1024, 1025, 5000, 9000)))
}
CUTS = (MIN_CHUNK_BYTES, 2 * MIN_CHUNK_BYTES, 5 * MIN_CHUNK_BYTES)


def read(digest: str, offset: int, length: int) -> bytes:
    return FILES[digest][offset : offset + length]


def metadata(version: int, roots: int = 1) -> dict[str, bytes]:
    names = [
        *(f"{n}.root" for n in range(1, roots + 1)),
        f"{version}.targets",
        f"{version}.acme",
        f"{version}.snapshot",
    ]
    return {"timestamp.json": f"timestamp {version}".encode(), **{f"{name}.json": name.encode() for name in names}}


def topic_of(step: Step) -> str:
    return TOPICS.metadata(step.file) if isinstance(step, MetadataStep) else TOPICS.chunk(step.digest, step.index)


def payload_of(step: Step) -> bytes:
    return step.payload if isinstance(step, MetadataStep) else read(step.digest, step.offset, step.length)


@dataclass
class Broker:
    """Holds what was sent."""

    retained: dict[str, bytes] = field(default_factory=dict)

    def take(self, step: Step) -> None:
        self.retained.pop(topic_of(step), None)
        if payload := payload_of(step):
            self.retained[topic_of(step)] = payload

    def holds(self, needed: Needed) -> bool:
        """Every file in pieces of one length, the metadata, and nothing else."""
        rest = dict(self.retained)
        for file, payload in needed.metadata.items():
            if rest.pop(TOPICS.metadata(file), None) != payload:
                return False
        return all(self.has_whole(digest, rest) for digest in needed.content) and not rest

    def has_whole(self, digest: str, rest: dict[str, bytes]) -> bool:
        pieces = []
        while (topic := TOPICS.chunk(digest, len(pieces))) in rest:
            pieces.append(rest.pop(topic))
        return b"".join(pieces) == FILES[digest] and len({len(piece) for piece in pieces[:-1]}) <= 1


def run(held: Held, broker: Broker, planned: Plan, steps: int | None = None, unheard: int = 0) -> None:
    """Send ``steps`` of a plan; the last ``unheard`` acknowledgements are lost."""
    done = list(planned)[:steps]
    for number, step in enumerate(done):
        held.sending(step)
        broker.take(step)
        if number < len(done) - unheard:
            held.acknowledged(step)


def surveyed(broker: Broker, content: Mapping[str, int], cut: int) -> Held:
    survey = Survey(TOPICS)
    for topic, payload in broker.retained.items():
        survey.received(topic, payload)
    return survey.held(content, read, cut)


contents = st.sets(st.sampled_from(sorted(FILES))).map(lambda found: {digest: len(FILES[digest]) for digest in found})
needs = st.builds(
    lambda version, roots, content: Needed(metadata(version, roots), content),
    st.integers(1, 4),
    st.integers(1, 3),
    contents,
)
cuts = st.sampled_from(CUTS)
publications = st.tuples(
    st.just("publish"), needs, cuts, st.none() | st.integers(0, 40), st.integers(0, 40)
)  # how many steps of it are sent, and how many acknowledgements are not heard
damages = st.tuples(st.just("damage"), st.integers(0, 100), st.binary(max_size=1100))
forgets = st.tuples(st.just("forget"))


@given(st.lists(publications | damages | forgets, max_size=8), needs, cuts)
@settings(max_examples=300)
def test_after_anything_a_sweep_and_a_publication_leave_what_is_needed(
    events: list[tuple[object, ...]], needed: Needed, cut: int
) -> None:
    broker, held = Broker(), Held()
    for event in events:
        match event:
            case ("publish", Needed() as some, int(size), None | int() as steps, int(unheard)):
                run(held, broker, plan(some, held, size), steps, unheard)
            case ("damage", int(place), bytes(payload)) if broker.retained:
                topic = sorted(broker.retained)[place % len(broker.retained)]
                broker.retained.pop(topic)
                if payload:
                    broker.retained[topic] = payload
            case ("forget",):
                broker.retained.clear()
    held = surveyed(broker, needed.content, cut)
    run(held, broker, plan(needed, held, cut))
    assert broker.holds(needed)
    assert not list(plan(needed, held, cut))


@given(st.lists(publications, max_size=8), needs, cuts)
@settings(max_examples=300)
def test_the_ledger_alone_is_enough_where_the_broker_is_honest(
    events: list[tuple[object, ...]], needed: Needed, cut: int
) -> None:
    """Whatever was interrupted, and whichever acknowledgements were lost."""
    broker, held = Broker(), Held()
    for event in events:
        match event:
            case ("publish", Needed() as some, int(size), None | int() as steps, int(unheard)):
                run(held, broker, plan(some, held, size), steps, unheard)
    run(held, broker, plan(needed, held, cut))
    assert broker.holds(needed)
    assert not list(plan(needed, held, cut))


@given(needs, needs, cuts, cuts)
def test_who_reads_in_order_never_sees_a_timestamp_without_the_rest(
    before: Needed, after: Needed, cut: int, other_cut: int
) -> None:
    """At every moment the broker holds all that the timestamp of that moment speaks of."""
    timestamp = "timestamp.json"
    assume(before.metadata[timestamp] != after.metadata[timestamp])
    broker, held = Broker(), Held()
    run(held, broker, plan(before, held, cut))
    for step in plan(after, held, other_cut):
        broker.take(step)
        now = broker.retained[TOPICS.metadata(timestamp)]
        spoken_of = next(needed for needed in (before, after) if needed.metadata[timestamp] == now)
        rest = dict(broker.retained)
        assert all(rest[TOPICS.metadata(file)] == payload for file, payload in spoken_of.metadata.items())
        assert all(broker.has_whole(digest, rest) for digest in spoken_of.content)
    assert now == after.metadata[timestamp]


def test_the_order_is_content_then_roots_targets_snapshot_and_the_timestamp_last_of_all() -> None:
    digest = next(digest for digest, data in FILES.items() if len(data) == 1025)
    steps = list(plan(Needed(metadata(7, roots=11), {digest: 1025}), Held(), 1024))
    assert [step.index for step in steps[:2] if isinstance(step, ChunkStep)] == [0, 1]
    names = [step.file for step in steps if isinstance(step, MetadataStep)]
    roots = [f"{number}.root.json" for number in range(1, 12)]
    assert names == [*roots, "7.acme.json", "7.targets.json", "7.snapshot.json", "timestamp.json"]


def test_the_timestamp_waits_until_all_before_it_is_acknowledged() -> None:
    digest = next(digest for digest, data in FILES.items() if len(data) == 5000)
    stages = plan(Needed(metadata(1), {digest: 5000}), Held(), 1024).stages
    assert [{type(step) for step in stage} for stage in stages] == [{ChunkStep}, {MetadataStep}, {MetadataStep}]
    assert stages[2] == (MetadataStep("timestamp.json", b"timestamp 1"),)


def test_what_was_sent_is_not_sent_again_in_another_cut_either() -> None:
    broker, held = Broker(), Held()
    content = {digest: len(data) for digest, data in FILES.items()}
    run(held, broker, plan(Needed(metadata(1), content), held, 1024))
    steps = list(plan(Needed(metadata(2), content), held, 4096))
    assert not [step for step in steps if isinstance(step, ChunkStep)]
    assert {step.file for step in steps if isinstance(step, MetadataStep) and step.payload} == {
        "2.targets.json", "2.acme.json", "2.snapshot.json", "timestamp.json",
    }  # fmt: skip


def test_a_file_that_was_begun_goes_on_where_it_was() -> None:
    broker, held = Broker(), Held()
    digest = next(digest for digest, data in FILES.items() if len(data) == 9000)
    needed = Needed(metadata(1), {digest: 9000})
    run(held, broker, plan(needed, held, 1024), steps=6, unheard=2)
    chunks = [step.index for step in plan(needed, held, 1024) if isinstance(step, ChunkStep)]
    assert chunks == [4, 5, 6, 7, 8]


def test_what_is_not_needed_is_cleared_after_everything_else() -> None:
    broker, held = Broker(), Held()
    digest = next(digest for digest, data in FILES.items() if len(data) == 5000)
    run(held, broker, plan(Needed(metadata(1), {digest: 5000}), held, 1024))
    steps = list(plan(Needed(metadata(2), {}), held, 1024))
    first = next(number for number, step in enumerate(steps) if not step.length)
    assert all(not step.length for step in steps[first:])
    assert steps[first - 1] == MetadataStep("timestamp.json", b"timestamp 2")
    assert len([step for step in steps[first:] if isinstance(step, ChunkStep)]) == count_of(5000, 1024)


@pytest.mark.parametrize("size", [0, MAX_METADATA_BYTES + 1])
def test_metadata_that_fits_no_message_is_refused_with_a_remedy(size: int) -> None:
    with pytest.raises(ConfigError, match=r"9\.targets\.json.*undeploy"):
        Needed({"9.targets.json": bytes(size)}, {})


def test_a_broker_that_holds_too_much_is_left_alone() -> None:
    survey = Survey(TOPICS)
    for number in range(MAX_HELD_FILES):
        survey.received(TOPICS.chunk(f"{number:064x}", 0), b"x")
    with pytest.raises(PeerError, match="clear it by hand"):
        survey.received(TOPICS.chunk(f"{MAX_HELD_FILES:064x}", 0), b"x")


def test_pieces_that_are_too_many_are_neither_kept_nor_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publication, "MAX_PIECES", 8)
    survey = Survey(TOPICS)
    for index in range(8):
        survey.received(TOPICS.chunk("0" * 64, index), b"x")
    with pytest.raises(PeerError, match="8 pieces"):
        survey.received(TOPICS.chunk("0" * 64, 8), b"x")
    plan(Needed({}, {"0" * 64: 8 << 10}), Held(), 1 << 10)
    with pytest.raises(ConfigError, match=r"chunk_kb: 9 pieces .* limit of 8: raise it"):
        plan(Needed({}, {"0" * 64: 9 << 10}), Held(), 1 << 10)


@pytest.mark.parametrize("junk", [b"", b"\xff", b"{}", b'{"signed":{"version":"2"}}', b'{"x":' + b"[" * 4000])
def test_what_says_no_version_has_none(junk: bytes) -> None:
    assert version_of(b'{"signed":{"version":2,"x":[]}}') == 2
    assert version_of(junk) == 0


def test_topics_of_others_are_none_of_our_business() -> None:
    survey = Survey(TOPICS)
    for topic in ("fleet/plant2/meta/timestamp.json", "fleet/plant/meta/../x.json", "fleet/plant/chunk/0/0"):
        survey.received(topic, b"x")
    assert survey.held({}, read, 1024) == Held()
