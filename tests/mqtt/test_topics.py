import pytest

from appliance.errors import ConfigError
from appliance.mqtt.topics import Topics

TOPICS = Topics("factory/line-1", "box-7")


def test_topics_of_a_device() -> None:
    assert TOPICS.status == "factory/line-1/box-7/status"
    assert TOPICS.stats == "factory/line-1/box-7/stats"
    assert TOPICS.result("camera", "parts") == "factory/line-1/box-7/result/camera/parts"
    assert TOPICS.camera("camera") == "factory/line-1/box-7/camera/camera"
    assert TOPICS.handler("parts") == "factory/line-1/box-7/handler/parts"


@pytest.mark.parametrize("prefix", ["", "/", "a/", "/a", "a//b", "a/+", "#", "$SYS", "a b", "a\0", "é", "a" * 129])
def test_a_prefix_that_is_no_topic_is_refused(prefix: str) -> None:
    with pytest.raises(ConfigError, match=r"mqtt\.prefix"):
        Topics(prefix, "box")


@pytest.mark.parametrize("device", ["", "Box", "a/b", "+", "-a"])
def test_a_device_that_is_no_name_is_refused(device: str) -> None:
    with pytest.raises(ConfigError, match=r"device\.name"):
        Topics("appliance", device)


@pytest.mark.parametrize("name", ["", "a/b", "+", "#", "A", "a" * 65])
def test_a_name_that_would_change_the_topic_is_refused(name: str) -> None:
    for topic in (TOPICS.camera, TOPICS.handler, lambda name: TOPICS.result("camera", name)):
        with pytest.raises(ValueError, match="is not a lower-case name"):
            topic(name)
