"""Files put together from pieces: any order, and whatever else arrives."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.deploy.chunks import MAX_WINDOW, WINDOW_BYTES, Assembly, window_of
from appliance.deploy.fleet_topics import MAX_CHUNK_BYTES, MIN_CHUNK_BYTES
from appliance.errors import PeerError

SIZE = MIN_CHUNK_BYTES
WINDOW = window_of(SIZE)


def pieces_of(data: bytes, size: int = SIZE) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def assembled(assembly: Assembly, pieces: list[bytes], shuffle: random.Random) -> bytes:
    taken = b""
    while not assembly.done:
        wanted = sorted(assembly.wanted())
        assert wanted
        assert len(wanted) <= WINDOW
        shuffle.shuffle(wanted)
        for index in wanted[: shuffle.randint(1, len(wanted))]:
            assert assembly.accept(index, pieces[index])
            assert not assembly.accept(index, pieces[index]), "a duplicate"
        taken += assembly.take()
    return taken


@given(st.integers(0, 30 * SIZE), st.integers(0, 31), st.randoms(use_true_random=False))
def test_any_order_gives_the_file_from_wherever_it_had_come_to(length: int, have: int, shuffle: random.Random) -> None:
    data = shuffle.randbytes(length)
    pieces = pieces_of(data)
    there = min(have * SIZE, length)
    assembly = Assembly("d", length, chunk_bytes=SIZE if there else None, received=there)
    assert assembly.taken == there
    assert data[:there] + assembled(assembly, pieces, shuffle) == data
    assert assembly.wanted() == frozenset()


@given(st.lists(st.tuples(st.integers(-2, 1 << 20), st.integers(0, 3 * SIZE), st.booleans()), max_size=200))
def test_memory_is_bounded_by_the_window_whatever_comes(messages: list[tuple[int, int, bool]]) -> None:
    assembly = Assembly("d", 200 * SIZE)
    assembly.accept(0, bytes(SIZE))
    held = SIZE
    taken = 0
    for index, length, take in messages:
        try:
            if assembly.accept(index % (1 << 20) if index % 3 else taken // SIZE + index % 20, bytes(length)):
                held += length
        except PeerError:
            assert length != SIZE
        if take:
            got = len(assembly.take())
            taken, held = taken + got, held - got
        assert held <= WINDOW * SIZE
        assert assembly.taken == taken


def test_nothing_is_asked_for_before_the_first_piece_says_how_long_they_are() -> None:
    assembly = Assembly("d", 200 * SIZE)
    assert assembly.wanted() == {0}
    assert not assembly.accept(1, bytes(SIZE))
    assembly.accept(0, bytes(2 * SIZE))
    assert assembly.chunk_bytes == 2 * SIZE
    assert assembly.wanted() == set(range(1, window_of(2 * SIZE)))
    assembly.take()
    assert assembly.wanted() == set(range(1, window_of(2 * SIZE) + 1))


def test_what_is_not_taken_yet_holds_the_window_where_it_is() -> None:
    assembly = Assembly("d", 200 * SIZE)
    for index in range(WINDOW):
        assert assembly.accept(index, bytes(SIZE))
    assert assembly.wanted() == frozenset()
    assert not assembly.accept(WINDOW, bytes(SIZE))


@pytest.mark.parametrize("length", [MIN_CHUNK_BYTES - 1, MAX_CHUNK_BYTES + 1, 1])
def test_a_first_piece_of_a_length_that_is_not_allowed_is_refused(length: int) -> None:
    with pytest.raises(PeerError, match="chunk 0"):
        Assembly("d", 1 << 20).accept(0, bytes(length))


@pytest.mark.parametrize("length", [1, 499, 501])
def test_a_file_of_one_piece_has_its_own_length(length: int) -> None:
    with pytest.raises(PeerError, match="500 to 500"):
        Assembly("d", 500).accept(0, bytes(length))
    assert Assembly("d", 500).accept(0, bytes(500))


@pytest.mark.parametrize(("index", "length"), [(1, SIZE - 1), (1, SIZE + 1), (2, SIZE), (2, 9), (2, 11)])
def test_a_piece_that_is_cut_otherwise_is_refused(index: int, length: int) -> None:
    assembly = Assembly("abcd", 2 * SIZE + 10)
    assembly.accept(0, bytes(SIZE))
    with pytest.raises(PeerError, match=f"chunk {index} of abcd has {length} bytes"):
        assembly.accept(index, bytes(length))


def test_a_window_is_as_many_bytes_however_the_file_is_cut() -> None:
    for size in (MIN_CHUNK_BYTES, 4 << 10, 32 << 10, MAX_CHUNK_BYTES):
        assert window_of(size) * size <= WINDOW_BYTES
        assert window_of(size) == MAX_WINDOW or (window_of(size) + 1) * size > WINDOW_BYTES


def test_an_empty_message_is_no_piece() -> None:
    assert not Assembly("d", 500).accept(0, b"")


def test_an_empty_file_is_done() -> None:
    assembly = Assembly("d", 0)
    assert assembly.done
    assert assembly.wanted() == frozenset()
