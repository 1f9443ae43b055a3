"""What a device reports of itself."""

from datetime import UTC, datetime

import pytest

from appliance.config import FleetConfig
from appliance.deploy.desired import Assignment
from appliance.deploy.report import DeviceReport, HandlerReport
from appliance.standing import Account

Said = list[tuple[str | None, HandlerReport | DeviceReport | None]]


@pytest.fixture
def said() -> Said:
    return []


@pytest.fixture
def account(said: Said) -> Account:
    return Account(FleetConfig(name="f"), lambda *report: said.append(report), wall=lambda: 0.0)


def test_what_has_not_changed_is_not_said_again(account: Account, said: Said) -> None:
    account.stand("current")
    account.stand("current")
    account.stand("stale", "expired\nyesterday")
    assert [(each.state, each.reason) for _, each in said if isinstance(each, DeviceReport)] == [
        ("current", ""),
        ("stale", "expired yesterday"),
    ]


def test_what_was_verified_is_in_every_report_after_it(account: Account, said: Said) -> None:
    account.verified({"root": 3}, datetime(2027, 1, 1, tzinfo=UTC))
    account.stand("current")
    for _, report in said:
        assert isinstance(report, DeviceReport)
        assert report.metadata == {"root": 3}
        assert report.expires.startswith("2027-01-01T00:00:00")


def test_a_name_that_is_taken_is_said_once_and_taken_back(account: Account, said: Said) -> None:
    wanted = {"parts": Assignment(version="1.0.0", digest="a" * 64)}
    account.say_not_ours(wanted)
    account.say_not_ours(wanted)
    account.say_not_ours({})
    assert [(name, report.state if isinstance(report, HandlerReport) else report) for name, report in said] == [
        ("parts", "refused"),
        ("parts", None),
    ]
