"""Topics of a fleet, there and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.deploy.fleet_topics import FleetTopics
from appliance.errors import ConfigError

TOPICS = FleetTopics("some/prefix", "farm")
DIGEST = "0123456789abcdef" * 4


@pytest.mark.parametrize("file", ["timestamp.json", "1.root.json", "27.acme-labs.json", "3.targets.json"])
def test_a_metadata_file_has_a_topic(file: str) -> None:
    assert TOPICS.metadata(file) == f"some/prefix/farm/meta/{file}"
    assert TOPICS.metadata_of(TOPICS.metadata(file)) == file
    assert TOPICS.chunk_of(TOPICS.metadata(file)) is None


@given(st.integers(0, 999_999))
def test_a_chunk_has_a_topic(index: int) -> None:
    assert TOPICS.chunk_of(TOPICS.chunk(DIGEST, index)) == (DIGEST, index)
    assert TOPICS.metadata_of(TOPICS.chunk(DIGEST, index)) is None


@pytest.mark.parametrize(
    "topic",
    [
        "some/prefix/farm/meta/",
        "some/prefix/farm/meta/../x.json",
        "some/prefix/farm/meta/0.root.json",
        "some/prefix/farm/meta/1.root.json\n",
        "some/prefix/other/meta/1.root.json",
        "1.root.json",
        f"some/prefix/farm/chunk/{DIGEST}/01",
        f"some/prefix/farm/chunk/{DIGEST}/-1",
        f"some/prefix/farm/chunk/{DIGEST}/1000000",
        f"some/prefix/farm/chunk/{DIGEST}/1/2",
        f"some/prefix/farm/chunk/{DIGEST[1:]}/1",
        f"some/prefix/farm/chunk/{DIGEST.upper()}/1",
        f"some/prefix/other/chunk/{DIGEST}/1",
        f"{DIGEST}/1",
        "",
    ],
)
def test_other_topics_are_nothing(topic: str) -> None:
    assert TOPICS.metadata_of(topic) is None
    assert TOPICS.chunk_of(topic) is None


def test_filters_are_of_this_fleet() -> None:
    assert (TOPICS.all_metadata, TOPICS.all_chunks) == ("some/prefix/farm/meta/+", "some/prefix/farm/chunk/+/+")


@pytest.mark.parametrize(("prefix", "fleet"), [("", "farm"), ("a/#", "farm"), ("a", ""), ("a", "b/c"), ("a", "+")])
def test_what_no_topic_can_be_made_of_is_a_fault_of_the_configuration(prefix: str, fleet: str) -> None:
    with pytest.raises(ConfigError, match=r"fleet\.(prefix|name)"):
        FleetTopics(prefix, fleet)
