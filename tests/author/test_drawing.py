"""What is drawn of results, whatever is in them."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures_to_try import gray_jpeg
from PIL import Image

from appliance.author.drawing import MAX_BOXES, MAX_LETTERS, MAX_LINES, Mark, annotated, marks

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.sampled_from(["box", "label", "score", "objects", "x"]), inner, max_size=5)
    ),
)


def test_the_shapes_of_the_examples() -> None:
    assert marks({"label": "cat", "score": 0.98765, "top": [{"label": "cat", "score": 0.5}]}) == [
        Mark("cat 0.988"),
        Mark("cat 0.5"),
    ]
    assert marks({"objects": [{"label": "dog", "score": 0.5, "box": [1, 2, 30, 40]}], "n": 1}) == [
        Mark("dog 0.5", (1, 2, 30, 40)),
        Mark("n: 1"),
    ]
    assert marks({"moving": True, "fraction": 0.25, "box": [0, 0, 9, 9]}) == [
        Mark("", (0, 0, 9, 9)),
        Mark("moving: True"),
        Mark("fraction: 0.25"),
    ]
    assert marks({"moving": False, "box": None}) == [Mark("moving: False")]
    assert marks({"counts": {"cat": 2, "dog": 1}}) == [Mark("counts: cat 2, dog 1")]
    assert marks([1, 2.5]) == [Mark("[1, 2.5]")]


@pytest.mark.parametrize("box", [[1, 2, 3], [3, 0, 1, 1], [0, 0, "x", 1], [0, 0, float("nan"), 1], "abcd"])
def test_what_is_no_box_is_none(box: object) -> None:
    assert all(mark.box is None for mark in marks({"label": "cat", "box": box}))


@given(values)
def test_marks_are_bounded_and_printable(value: object) -> None:
    found = marks(value)
    assert len(found) <= MAX_BOXES + MAX_LINES
    for mark in found:
        assert mark.text.isprintable()
        assert len(mark.text) <= 3 * MAX_LETTERS


@settings(max_examples=20, deadline=None)
@given(values)
def test_anything_can_be_drawn(value: object) -> None:
    jpeg = annotated(gray_jpeg(128), [*marks(value), Mark("far", (-1e9, -1e9, 1e9, 1e9))])
    with Image.open(io.BytesIO(jpeg)) as image:
        assert image.size == (64, 48)
        image.load()


def test_a_damaged_picture_is_a_value_error() -> None:
    for damaged in (b"", gray_jpeg(9)[:200], b"GIF89a"):
        with pytest.raises(ValueError, match="cannot be decoded"):
            annotated(damaged, [])


def test_a_box_is_where_it_belongs() -> None:
    with Image.open(io.BytesIO(annotated(gray_jpeg(0, (200, 200)), [Mark("", (50, 60, 150, 160))]))) as image:
        shown = image.convert("L")
    assert shown.getpixel((100, 60)) > 60
    assert shown.getpixel((50, 110)) > 60
    assert shown.getpixel((100, 110)) < 20
    assert shown.getpixel((20, 20)) < 20
