from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.deploy.versions import Precedence, is_lower

RISING = [
    "0.9.9",
    "1.0.0-alpha",
    "1.0.0-alpha.1",
    "1.0.0-alpha.beta",
    "1.0.0-beta",
    "1.0.0-beta.2",
    "1.0.0-beta.11",
    "1.0.0-rc.1",
    "1.0.0",
    "1.2.0",
    "1.10.0",
    "2.0.0",
]
"""The example of https://semver.org/#spec-item-11, and what surrounds it."""

versions = st.from_regex(r"[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}([-+][0-9A-Za-z.-]{1,20})?", fullmatch=True)


@pytest.mark.parametrize(("lower", "higher"), list(pairwise(RISING)))
def test_versions_rise_as_semver_says(lower: str, higher: str) -> None:
    assert is_lower(lower, higher)
    assert not is_lower(higher, lower)


def test_what_follows_a_plus_does_not_count() -> None:
    assert Precedence("1.0.0+linux") == Precedence("1.0.0")
    assert hash(Precedence("1.0.0+linux")) == hash(Precedence("1.0.0"))
    assert not is_lower("1.0.0+a", "1.0.0+b")


@given(versions, versions, versions)
def test_any_versions_have_an_order(a: str, b: str, c: str) -> None:
    x, y, z = map(Precedence, (a, b, c))
    assert (x < y) + (x == y) + (y < x) == 1
    if x < y and y < z:
        assert x < z


def test_no_number_is_too_long_to_compare() -> None:
    assert is_lower("9" * 4000 + ".0.0", "1" + "0" * 5000 + ".0.0")
    assert Precedence("001.0.0") == Precedence("1.0.0")
