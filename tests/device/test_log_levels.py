import logging
from collections.abc import Iterator

import pytest

from appliance.device.log_levels import LogLevels, unit_of, units
from appliance.errors import ConfigError


@pytest.fixture
def levels() -> Iterator[LogLevels]:
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.INFO)
    logging.getLogger("appliance.zipper.core")
    logging.getLogger("handler.parts")
    levels = LogLevels("info")
    yield levels
    for unit in ("zipper", "handler", "handler.parts", "all"):
        levels.restore(unit)
    root.setLevel(before)


def effective(logger: str) -> int:
    return logging.getLogger(logger).getEffectiveLevel()


def test_a_unit_has_a_level_of_its_own_until_it_is_restored(levels: LogLevels) -> None:
    levels.change("zipper", "debug")
    levels.change("handler.parts", "error")
    assert effective("appliance.zipper.core") == logging.DEBUG
    assert effective("handler.parts") == logging.ERROR
    assert effective("appliance.mqtt.client") == logging.INFO
    levels.restore("zipper")
    levels.restore("handler.parts")
    levels.restore("mqtt")
    assert effective("appliance.zipper.core") == effective("handler.parts") == logging.INFO


def test_a_new_base_counts_where_nothing_else_is_set(levels: LogLevels) -> None:
    levels.change("zipper", "debug")
    levels.change("all", "error")
    levels.set_base("warning")
    assert effective("appliance.mqtt.client") == logging.ERROR
    levels.restore("all")
    assert effective("appliance.mqtt.client") == logging.WARNING
    assert effective("appliance.zipper.core") == logging.DEBUG
    levels.set_base("info")
    assert effective("appliance.mqtt.client") == logging.INFO


@pytest.mark.parametrize("unit", ["", "root", "nothing", "mqtt.link.paho", "handler.none", "appliance", "zipper."])
def test_strangers_make_no_loggers(levels: LogLevels, unit: str) -> None:
    before = set(logging.root.manager.loggerDict)
    with pytest.raises(ConfigError, match="zipper"):
        levels.change(unit, "debug")
    assert set(logging.root.manager.loggerDict) == before


def test_units_are_what_loggers_belong_to(levels: LogLevels) -> None:
    assert {"all", "zipper", "handler", "handler.parts"} <= set(units())
    assert unit_of("appliance.zipper.core") == "zipper"
    assert unit_of("appliance.publisher") == "publisher"
    assert unit_of("handler.parts") == "handler.parts"
    assert unit_of("asyncio") == "asyncio"
