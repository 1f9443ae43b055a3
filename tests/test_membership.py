import logging
from pathlib import Path
from typing import Any, cast

import pytest
from fleet_double import Fleet

from appliance.config import Config, FleetConfig
from appliance.membership import membership

NOTHING = cast("Any", None)


@pytest.mark.parametrize("failing", ["store", "trust"])
async def test_where_the_disk_fails_nothing_is_deployed_and_the_rest_goes_on(
    tmp_path: Path, failing: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "deploy"
    (tmp_path / "root.json").write_bytes(Fleet().first_root)
    if failing == "store":
        (tmp_path / "state").write_bytes(b"no directory")
        directory = tmp_path / "state" / "deploy"
    else:
        monkeypatch.setattr("appliance.deploy.trust.make_directory", _fails)
    config = Config(fleet=FleetConfig(name="plant", root=str(tmp_path / "root.json")))
    with caplog.at_level(logging.WARNING):
        async with membership(
            config,
            "box",
            directory,
            control=NOTHING,
            serving=NOTHING,
            admission=NOTHING,
            inference=NOTHING,
            report=NOTHING,
            taken=(),
        ) as deployer:
            assert deployer is None
    assert "event=nothing_deployed" in caplog.text


def _fails(_path: Path) -> None:
    raise OSError("input/output error")
