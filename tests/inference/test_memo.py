from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.inference.memo import MAX_ENTRIES, Memo, Question
from appliance.inference.messages import Crop, View

MODEL = ("digest", "litert", "", False)


def question(key: int, x: int = 0) -> Question:
    return MODEL, key, View(Crop(x, 0, 1, 1))


def test_the_same_question_has_the_same_answer() -> None:
    memo: Memo[str] = Memo(100)
    memo.put(question(1), "answer", 10)
    assert memo.get(question(1)) == "answer"
    assert memo.get(question(2)) is None
    assert memo.get(question(1, x=5)) is None
    assert memo.get((("other", "litert", "", False), 1, View(Crop(0, 0, 1, 1)))) is None


def test_a_frame_is_forgotten_with_all_that_was_asked_about_it() -> None:
    memo: Memo[str] = Memo(100)
    for x in range(3):
        memo.put(question(1, x), "one", 10)
    memo.put(question(2), "two", 10)
    memo.forget(1)
    assert len(memo) == 1
    assert memo.get(question(2)) == "two"
    assert memo.size == 10


def test_the_oldest_make_room() -> None:
    memo: Memo[str] = Memo(100)
    for key in range(4):
        memo.put(question(key), str(key), 30)
    assert memo.get(question(0)) is None
    assert memo.get(question(3)) == "3"


def test_what_is_larger_than_all_of_it_is_not_remembered() -> None:
    memo: Memo[str] = Memo(100)
    memo.put(question(1), "small", 10)
    memo.put(question(2), "huge", 101)
    assert memo.get(question(1)) == "small"
    assert memo.get(question(2)) is None


def test_nothing_is_remembered_without_a_limit_to_fill() -> None:
    memo: Memo[str] = Memo(0)
    memo.put(question(1), "an error", 0)
    assert len(memo) == 0


def test_entries_without_size_are_bounded_in_number() -> None:
    memo: Memo[str] = Memo(100)
    for key in range(MAX_ENTRIES + 10):
        memo.put(question(key), "an error", 0)
    assert len(memo) == MAX_ENTRIES


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 2), st.integers(0, 60) | st.none()), max_size=80))
def test_sizes_add_up(steps: list[tuple[int, int, int | None]]) -> None:
    memo: Memo[int] = Memo(100)
    sizes: dict[Question, int] = {}
    for key, x, size in steps:
        if size is None:
            memo.forget(key)
            assert not any(asked in memo for asked in sizes if asked[1] == key)
        else:
            memo.put(question(key, x), size, size)
            sizes[question(key, x)] = size
            assert question(key, x) in memo
        assert memo.size == sum(size for asked, size in sizes.items() if asked in memo) <= 100
