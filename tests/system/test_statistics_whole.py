"""What the whole appliance says of itself as it runs."""

import pytest
from mosquitto import Mosquitto
from whole import configuration

from appliance import app


@pytest.mark.parametrize("celsius", [48.686, None])
async def test_the_stats_say_how_warm_the_box_is_where_it_knows(
    start, broker: Mosquitto, monkeypatch: pytest.MonkeyPatch, celsius: float | None
) -> None:
    monkeypatch.setattr(app, "cpu_temperature", lambda: celsius)
    async with start(configuration(broker)) as box:
        await box.until(lambda: "memory_kb" in box.state("/stats") and box.state("/stats")["memory_kb"])
        stats = box.state("/stats")
        assert ("temperature_c" in stats, stats.get("temperature_c")) == (celsius is not None, celsius and 48.7)
