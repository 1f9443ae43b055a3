import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.sandbox.admission.binary import (
    MAX_NAME_BYTES,
    BrokenRuleError,
    Reader,
    encode_name,
    encode_section,
    encode_signed,
    encode_u32,
    encode_vector,
)


@given(st.integers(0, (1 << 32) - 1))
def test_unsigned_numbers_are_read_as_they_were_written(value: int) -> None:
    reader = Reader(encode_u32(value))
    assert reader.u32() == value
    assert reader.left() == 0


@given(st.integers(-(1 << 63), (1 << 63) - 1))
def test_signed_numbers_are_read_as_they_were_written(value: int) -> None:
    reader = Reader(encode_signed(value))
    assert reader.signed(64) == value
    assert reader.left() == 0


@pytest.mark.parametrize(
    ("data", "value"),
    [(b"\x80\0", 0), (b"\x80\x80\x80\x80\0", 0), (b"\xff\xff\xff\xff\x0f", 0xFFFF_FFFF), (b"\xe5\x8e\x26", 624_485)],
)
def test_numbers_may_be_written_longer_than_they_need(data: bytes, value: int) -> None:
    assert Reader(data).u32() == value


@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff\x1f", b"\x80\x80\x80\x80\x80\0", b"\x80" * 40])
def test_numbers_over_32_bits(data: bytes) -> None:
    with pytest.raises(BrokenRuleError, match="longer than 32 bits"):
        Reader(data).u32()


@pytest.mark.parametrize("bits", [32, 33, 64])
def test_signed_numbers_end(bits: int) -> None:
    with pytest.raises(BrokenRuleError, match=f"longer than {bits} bits"):
        Reader(b"\x80" * 40).signed(bits)


def test_a_part_does_not_reach_beyond_its_end() -> None:
    reader = Reader(b"\0abcdef", 1)
    part = reader.part(3)
    assert part.take(2) == b"ab"
    with pytest.raises(BrokenRuleError, match="ends too early: 2 bytes are missing at offset 3") as failure:
        part.take(2)
    assert failure.value.offset == 3
    assert reader.take(3) == b"def"


def test_a_count_is_checked_before_anything_is_made_of_it() -> None:
    with pytest.raises(BrokenRuleError, match="1000 things are over the limit of 999") as failure:
        Reader(encode_u32(1000)).count(999, "things", "things")
    assert failure.value.rule == "things"
    with pytest.raises(BrokenRuleError, match="1000 things do not fit in 3 bytes"):
        Reader(encode_u32(1000) + b"abc").count(1000, "things", "things")


@given(st.text(max_size=MAX_NAME_BYTES // 4).filter(lambda name: "\0" not in name))
def test_names(name: str) -> None:
    assert Reader(encode_name(name)).name() == name


def test_vectors_and_sections_say_how_long_they_are() -> None:
    assert encode_vector([b"a", b"bc"]) == b"\2abc"
    assert encode_section(7, b"x" * 200) == b"\7\xc8\1" + b"x" * 200


@given(
    st.binary(max_size=64), st.lists(st.sampled_from(["u32", "signed", "name", "byte", "part", "count"]), max_size=9)
)
def test_nothing_but_a_broken_rule_comes_out_of_any_bytes(data: bytes, steps: list[str]) -> None:
    reader = Reader(data)
    try:
        for step in steps:
            if step == "signed":
                reader.signed(33)
            elif step == "part":
                reader = reader.part(reader.u32())
            elif step == "count":
                assert reader.count(5, "things", "things") <= 5
            else:
                getattr(reader, step)()
    except BrokenRuleError as error:
        assert error.rule in ("damaged", "things", "name")
        assert error.offset is not None
        assert 0 <= error.offset <= len(data)
    assert 0 <= reader.at <= reader.end <= len(data)
