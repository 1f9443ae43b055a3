"""What docs/fleet.md says of devices is what they do."""

import json
import re
from pathlib import Path
from typing import get_args

from appliance.deploy import machine, record, watch
from appliance.deploy.report import DeviceReport, HandlerState, decode_device_report, decode_handler_report
from appliance.rollout import rollout

PAGE = (Path(__file__).parents[2] / "docs" / "fleet.md").read_text("utf-8")
SECTION = PAGE.partition("## What happens on the device\n")[2].partition("\n## ")[0]
TEXT = " ".join(SECTION.split())


def example(kind: str) -> bytes:
    (found,) = re.findall(rf"^```json {kind}\n(.*?)^```$", SECTION, re.MULTILINE | re.DOTALL)
    return json.dumps(json.loads(found)).encode()


def test_the_examples_are_reports() -> None:
    assert decode_device_report(example("device")).fleet == "plant"
    report = decode_handler_report(example("handler"))
    assert report.current is not None
    assert report.state == "rolled-back"


def test_every_state_is_there() -> None:
    of_handler, of_device = (
        re.findall(r"^\| `([a-z-]+)` \|", part, re.MULTILINE) for part in SECTION.split("### Clock and metadata")
    )
    assert tuple(of_handler) == get_args(HandlerState)
    assert tuple(of_device) == get_args(DeviceReport.__annotations__["state"])


def test_the_figures_are_those_of_the_code() -> None:
    for said in (
        f"- at {watch.MAX_FAULTS} faults",
        f"over {watch.PACE_SECONDS:.0f} s or more",
        f"does not come up within {watch.START_SECONDS:.0f} s",
        f"nothing but errors for {watch.ENOUGH_OFFERED} frames",
        f"{watch.MAX_FAULTS} faults in a row bring the previous version back",
        f"more than {watch.MAX_FAULT_SHARE:.1%} of its frames".replace("%", " %"),
        f"A device remembers {record.MAX_BAD} for each handler",
        f"another try after {rollout.FIRST_RETRY / 2:.0f} to {rollout.LAST_RETRY:.0f} s",
    ):
        assert said in TEXT
    assert watch.MANY_TIMES_SLOWER == 4
    assert "less than a quarter of the share" in TEXT
    assert machine.TRIAL_BOOTS == 3
    assert "the third start of the device" in TEXT
