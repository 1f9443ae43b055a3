"""What the commands that sign do at the broker, with that side played."""

import errno
import re
from pathlib import Path
from typing import Any

import click
import pytest
from signing_desk import Desk, handler

from appliance.cli.commands import EXIT_INTERRUPTED
from appliance.errors import PeerError
from appliance.fleet.repository import Fleet
from appliance.fleet.watching import NOT_TRIED_AGAIN, Arrival, Expected, Outcome


class Broker:
    """Stands for the operator's side of the broker: remembers what it was asked."""

    def __init__(self) -> None:
        self.sent: list[tuple[Fleet, bool]] = []
        self.expected: list[Expected] = []
        self.verdicts: dict[str, Any] = {}
        self.away = False

    async def synchronise(self, fleet: Fleet, display: object, *, sweep: bool = False) -> None:
        if self.away:
            raise PeerError("the broker is away")
        self.sent.append((fleet, sweep))

    async def wait_for(self, fleet: Fleet, expected: Expected, display: object, seconds: float) -> Outcome:
        assert seconds == 7
        self.expected.append(expected)
        return Outcome((Arrival("gate", self.verdicts.get(expected.version, "converged"), "active"),))


@pytest.fixture
def broker(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Broker:
    settings = desk.directory / "fleet.toml"
    settings.write_text(settings.read_text().replace('url = ""', 'url = "mqtt://127.0.0.1:1"'))
    played = Broker()
    monkeypatch.setattr("appliance.fleet.operate.synchronise", played.synchronise)
    monkeypatch.setattr("appliance.fleet.operate.wait_for", played.wait_for)
    return played


def test_a_deployment_is_sent_and_waited_for(desk: Desk, broker: Broker, tmp_path: Path) -> None:
    desk.run("deploy", handler(tmp_path), "--to", "all", "--to", "tills", "--to", "device:gate", "--timeout", 7)
    ((fleet, _),) = broker.sent
    assert set(fleet.targets()) == {"groups/all.json", "groups/tills.json", "devices/gate.json"}
    (expected,) = broker.expected
    assert (expected.handler, expected.version) == ("motion", "1.0.0")
    assert expected.groups == {"all", "tills"}
    assert expected.devices == {"gate"}
    desk.run("undeploy", "motion", "--to", "all", "--to", "tills", "--to", "device:gate", "--timeout", 7)
    assert broker.expected[-1].digest is None


def test_the_worst_outcome_is_the_exit_code(desk: Desk, broker: Broker, tmp_path: Path) -> None:
    for number in (1, 2):
        desk.run("deploy", handler(tmp_path, version=f"{number}.0.0"), "--to", "all", "--no-wait")
        desk.run("deploy", f"motion@{number}.0.0", "--to", "tills", "--no-wait")
    desk.run("deploy", handler(tmp_path, version="3.0.0"), "--to", "tills", "--no-wait")
    broker.verdicts = {"2.0.0": "failed"}
    said = desk.run("rollback", "motion", "--to", "all", "--to", "tills", "--timeout", 7, code=1)
    assert said.count(NOT_TRIED_AGAIN) == 1
    assert {(each.version, *each.groups) for each in broker.expected} == {("1.0.0", "all"), ("2.0.0", "tills")}
    broker.verdicts = {"3.0.0": "waiting"}
    assert NOT_TRIED_AGAIN not in desk.run("deploy", "motion", "--to", "all", "--timeout", 7, code=4)


def test_what_is_signed_and_not_sent_is_said(desk: Desk, broker: Broker, tmp_path: Path) -> None:
    broker.away = True
    said = desk.run("deploy", handler(tmp_path), "--to", "all", code=1)
    assert "it is signed, but not sent; `appliance fleet refresh` sends it" in said
    assert "the broker is away" in said
    broker.away = False
    desk.run("refresh", "--sweep")
    ((fleet, sweep),) = broker.sent
    assert sweep
    assert fleet.targets() == ("groups/all.json",)


def test_who_interrupts_between_signing_and_sending_is_told_how_to_go_on(
    desk: Desk, broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Fleet.open

    def interrupted_when_signed(directory: Path) -> Fleet:
        fleet = opened(directory)
        if fleet.targets():
            raise KeyboardInterrupt
        return fleet

    monkeypatch.setattr(Fleet, "open", interrupted_when_signed)
    said = desk.run("deploy", handler(tmp_path), "--to", "all", code=EXIT_INTERRUPTED)
    assert "it is signed, but not sent; `appliance fleet refresh` sends it" in said
    assert broker.sent == []


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(errno.ENOSPC, "No space left on device")])
def test_what_is_signed_is_sent_though_that_cannot_be_said(
    error: OSError, desk: Desk, broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    echo = click.echo

    def closed_when_it_is_signed(text: Any = "", **more: Any) -> None:
        if re.match("signed:|keys/timestamp", str(text)):
            raise error
        echo(text, **more)

    monkeypatch.setattr(click, "echo", closed_when_it_is_signed)
    desk.run("deploy", handler(tmp_path), "--to", "all", "--timeout", 7)
    desk.run("key", "rotate", "timestamp")
    assert [fleet.targets() for fleet, _ in broker.sent] == [("groups/all.json",)] * 2
    assert len(broker.expected) == 1, "devices are waited for, and the exit code is about them"


def test_who_ends_the_waiting_is_told_that_devices_go_on(
    desk: Desk, broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("appliance.fleet.operate.wait_for", interrupted)
    said = desk.run("deploy", handler(tmp_path), "--to", "all", code=4)
    assert "devices go on; `appliance fleet status`" in said
    monkeypatch.setattr("appliance.fleet.operate.synchronise", interrupted)
    assert "`appliance fleet refresh` sends it" in desk.run("undeploy", "motion", "--to", "all", code=130)


def test_revocations_and_rotations_are_sent(desk: Desk, broker: Broker) -> None:
    key = desk.key("acme")
    desk.run("key", "delegate", "acme", "--prefix", "acme-", "--public", key.with_suffix(".pub"))
    desk.run("key", "rotate", "timestamp")
    desk.run("key", "revoke", "acme")
    assert [sorted(fleet.state.delegations()) for fleet, _ in broker.sent] == [["acme"], ["acme"], []]


def test_dry_runs_and_no_send_leave_the_broker_alone(desk: Desk, broker: Broker, tmp_path: Path) -> None:
    desk.run("deploy", handler(tmp_path), "--to", "all", "--dry-run")
    desk.run("deploy", handler(tmp_path), "--to", "all", "--no-send")
    desk.run("publish", handler(tmp_path, version="2.0.0"))
    assert broker.sent == []
