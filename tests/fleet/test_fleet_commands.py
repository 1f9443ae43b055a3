"""Every command of ``appliance fleet`` that signs, on real directories, with a TUF client beside."""

import asyncio
import getpass
import json
import re
import stat
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from signing_desk import PASSPHRASE, Desk, Device, handler, new_fleet
from tuf.api.exceptions import RepositoryError

from appliance.cli import fleet_desired, fleet_key
from appliance.deploy.desired import group_target
from appliance.deploy.trust import MAX_ROOT_ROTATIONS
from appliance.errors import ConfigError, HandlerError, PeerError
from appliance.fleet.checks import check_module
from appliance.fleet.draft import MAX_DEVELOPERS
from appliance.fleet.keys import read_public
from appliance.fleet.repository import Fleet
from appliance.fleet.watching import Arrival, Expected, Outcome, Verdict

ALL = ("--to", "all", "--no-send")


def deployed(desk: Desk, name: str = "motion", target: str = "groups/all.json") -> str | None:
    assignment = desk.fleet().desired(target).handlers.get(name)
    return assignment.version if assignment else None


# --- init ----------------------------------------------------------------------------------------------------


def test_init_makes_a_fleet_that_a_device_accepts(tmp_path: Path, quick_keys: None) -> None:
    desk = Desk(tmp_path / "shops")
    said = desk.run("init", desk.directory, "--name", "shops", "--broker", "mqtt://127.0.0.1:1")
    assert 'root = "root.json"' in said
    assert 'url = "mqtt://127.0.0.1:1"' in said
    assert "keys/*.pem" in (desk.directory / ".gitignore").read_text()
    for path in (desk.directory / "keys").glob("*.pem"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert PASSPHRASE not in path.read_text()
    Device.of(desk, tmp_path / "device").accept_all(desk.fleet())


def test_init_leaves_what_is_there_alone(desk: Desk) -> None:
    before = (desk.directory / "keys" / "root.pem").read_bytes()
    assert "is there already" in desk.run("init", desk.directory, "--name", "other", code=2)
    assert (desk.directory / "keys" / "root.pem").read_bytes() == before
    assert desk.fleet().settings.name == "shops"


def test_init_keeps_the_lines_of_a_gitignore(tmp_path: Path, quick_keys: None) -> None:
    (tmp_path / ".gitignore").write_text("mine\n")
    new_fleet(tmp_path)
    assert (tmp_path / ".gitignore").read_text().startswith("mine\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--name", "Shops"], "fleet.name"),
        (["--name", "shops", "--broker", "broker.example"], "mqtt.url"),
        (["--name", "shops", "--passphrase-file", "{empty}"], "shorter than 12"),
    ],
)
def test_init_refuses_what_could_not_work(tmp_path: Path, quick_keys: None, arguments: list[str], said: str) -> None:
    empty = tmp_path / "empty"
    empty.write_text("\n")
    desk = Desk(tmp_path / "shops")
    words = [word.format(empty=empty) for word in arguments]
    assert said in desk.run("init", desk.directory, *words, code=2)
    assert not desk.directory.exists()


def test_a_passphrase_is_asked_for_twice(tmp_path: Path, quick_keys: None) -> None:
    desk, nobody = Desk(tmp_path / "shops"), {"APPLIANCE_FLEET_PASSPHRASE": None}
    typed = f"{PASSPHRASE}\nsomething else!\n{PASSPHRASE}\n{PASSPHRASE}\n"
    desk.run("init", desk.directory, "--name", "shops", env=nobody, input=typed)
    said = desk.run("refresh", "--no-send", env=nobody, input=f"wrong, this one\n{PASSPHRASE}\n")
    assert said.count("Passphrase of") == 2, "the second opens the other key, too"
    assert "no passphrase was given" in desk.run("refresh", "--no-send", code=2, env=nobody)


def test_a_passphrase_is_not_read_where_everybody_could_see_it(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_a_terminal(*_: object, **__: object) -> str:
        warnings.warn("Can not control echo on the terminal.", getpass.GetPassWarning, stacklevel=1)
        return PASSPHRASE

    monkeypatch.setattr("click.prompt", without_a_terminal)
    said = desk.run("refresh", "--no-send", code=2, env={"APPLIANCE_FLEET_PASSPHRASE": None})
    assert "use --passphrase-file" in said


def test_a_wrong_passphrase_names_the_key(desk: Desk) -> None:
    said = desk.run("refresh", "--no-send", code=2, env={"APPLIANCE_FLEET_PASSPHRASE": "not the right one"})
    assert "keys/timestamp.pem: the passphrase does not open this key" in said


def test_a_directory_that_is_no_fleet_says_what_to_do(tmp_path: Path) -> None:
    assert "appliance fleet init" in Desk(tmp_path).run("refresh", code=2)
    assert not (tmp_path / ".lock").exists()


# --- publish and deploy --------------------------------------------------------------------------------------


def test_a_handler_is_published_and_deployed_in_one(desk: Desk, device: Device, tmp_path: Path) -> None:
    said = desk.run("deploy", handler(tmp_path), *ALL, "--set", "threshold=0.2", "--observes", "0x20")
    assert "all: motion  nothing -> 1.0.0" in said
    fleet = desk.fleet()
    assignment = fleet.desired(group_target("all")).handlers["motion"]
    assert assignment is not None
    assert assignment.settings == {"threshold": "0.2"}
    assert assignment.observes == (0x20,)
    device.accept_all(fleet)
    assert len(fleet.needed_content()) == 4, "the desired document, the index, manifest and module"


def test_what_is_published_runs_nowhere_until_it_is_deployed(desk: Desk, device: Device, tmp_path: Path) -> None:
    desk.run("publish", handler(tmp_path))
    assert "is published already" in desk.run("publish", handler(tmp_path))
    assert desk.fleet().needed_content() == {}
    assert device.look(desk.fleet(), "handlers/motion/1.0.0.json") is not None
    desk.run("deploy", "motion", *ALL)
    device.accept_all(desk.fleet())


def test_the_same_version_with_other_content_is_refused(desk: Desk, tmp_path: Path) -> None:
    desk.run("publish", handler(tmp_path))
    said = desk.run("publish", handler(tmp_path, more="# another\n"), code=2)
    assert "a version never changes" in said


def test_the_highest_version_is_deployed_unless_one_is_named(desk: Desk, tmp_path: Path) -> None:
    for version in ("1.9.0", "1.10.0", "1.10.1-rc.1", "1.10.0-rc.2"):
        desk.run("publish", handler(tmp_path, version=version))
    desk.run("deploy", "motion@1.9.0", *ALL)
    desk.run("deploy", "motion", *ALL)
    assert deployed(desk) == "1.10.1-rc.1"
    assert "published versions: 1.10.0," in desk.run("deploy", "motion@3.0.0", *ALL, code=2)
    assert "no version of nobody" in desk.run("deploy", "nobody", *ALL, code=2)


def test_a_downgrade_has_to_be_meant(desk: Desk, tmp_path: Path) -> None:
    desk.run("publish", handler(tmp_path, version="1.0.0"))
    desk.run("deploy", handler(tmp_path, version="2.0.0"), *ALL)
    assert "--downgrade" in desk.run("deploy", "motion@1.0.0", *ALL, code=2)
    assert deployed(desk) == "2.0.0"
    desk.run("deploy", "motion@1.0.0", *ALL, "--downgrade")
    assert deployed(desk) == "1.0.0"


def test_a_dry_run_shows_and_changes_nothing(desk: Desk, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in desk.directory.rglob("*") if path.is_file()}
    said = desk.run("deploy", handler(tmp_path), "--to", "all", "--to", "device:gate", "--dry-run")
    assert "all: motion  nothing -> 1.0.0" in said
    assert "device:gate: motion  nothing -> 1.0.0" in said
    assert {path: path.read_bytes() for path in desk.directory.rglob("*") if path.is_file()} == before


def test_settings_of_an_earlier_deploy_stay_until_they_are_forgotten(desk: Desk, tmp_path: Path) -> None:
    desk.run("deploy", handler(tmp_path), *ALL, "--set", "threshold=0.2")
    said = desk.run("deploy", handler(tmp_path, version="1.1.0"), *ALL)
    assert "-> 1.1.0" in said
    assert "threshold=0.2" in said.partition("->")[2]
    assert "threshold" not in desk.run("deploy", "motion", *ALL, "--fresh").partition("->")[2]
    assert "nothing changes" in desk.run("deploy", "motion", *ALL)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--set", "nonsense=1"), "has no setting 'nonsense'"),
        (("--set", "nonsense"), "is not KEY=VALUE"),
        (("--observes", "many"), "is not a tag"),
        (("--observes", "-1"), "is not a tag"),
        (("--to", "device:Gate"), "--to 'device:Gate'"),
        (("--as", "acme"), "is no developer of this fleet"),
    ],
)
def test_a_deployment_that_no_device_would_take_is_refused(
    desk: Desk, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    assert said in desk.run("deploy", handler(tmp_path), *ALL, *arguments, code=2)
    assert desk.fleet().targets() == ()


def test_a_module_that_no_device_would_run_is_refused_at_the_desk(tmp_path: Path) -> None:
    bad = handler(tmp_path, version="6.6.6")
    asyncio.run(check_module(bad))
    (bad / "handler.wasm").write_bytes(b"\0asm\1\0\0\0nonsense")
    with pytest.raises(HandlerError, match="the module is refused"):
        asyncio.run(check_module(bad))


def test_an_undeployed_handler_is_not_desired_any_more(desk: Desk, device: Device, tmp_path: Path) -> None:
    desk.run("deploy", handler(tmp_path), *ALL)
    desk.run("undeploy", "motion", *ALL)
    assert desk.fleet().targets() == ()
    device.accept_all(desk.fleet())
    assert "is not deployed to anything" in desk.run("undeploy", "motion", *ALL, code=2)


def test_a_device_can_be_without_what_its_groups_have(desk: Desk, tmp_path: Path) -> None:
    desk.run("deploy", handler(tmp_path), *ALL)
    desk.run("undeploy", "motion", "--to", "device:gate", "--no-send")
    assert desk.fleet().desired("devices/gate.json").handlers == {"motion": None}
    assert deployed(desk) == "1.0.0"


def test_an_exception_can_be_ended(desk: Desk, tmp_path: Path) -> None:
    desk.run("deploy", handler(tmp_path), *ALL)
    desk.run("deploy", "motion", "--to", "device:gate", "--set", "threshold=0.5", "--no-send")
    said = desk.run("undeploy", "motion", "--to", "device:gate", "--forget", "--no-send")
    assert "threshold=0.5 -> nothing" in said
    assert desk.fleet().desired("devices/gate.json").handlers == {}


def test_the_command_waits_for_what_others_give_and_a_refusal_makes_the_exit_code(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.run("deploy", handler(tmp_path), *ALL)
    desk.run("deploy", "motion", "--to", "device:gate", "--set", "threshold=0.5")
    desk.run("deploy", "motion", "--to", "device:door", "--set", "threshold=0.5")
    waits: list[Expected] = []
    verdicts: list[Verdict] = ["failed", "waiting"]

    async def wait_for(fleet: Fleet, expected: Expected, display: object, seconds: float) -> Outcome:
        waits.append(expected)
        return Outcome((Arrival("box", verdicts[len(waits) - 1], ""),))

    monkeypatch.setattr("appliance.fleet.operate.wait_for", wait_for)
    monkeypatch.setattr(fleet_desired, "send", lambda directory: True)
    to_both = ("--to", "device:gate", "--to", "device:door", "--to", "all")
    desk.run("undeploy", "motion", *to_both, "--forget", code=1)
    assert [(each.inherited, each.devices) for each in waits] == [(True, {"gate", "door"})]
    waits.clear()
    desk.run("rollback", "motion", *to_both, code=1)
    assert [(each.inherited, each.groups) for each in waits] == [(False, set()), (False, {"all"})]


def test_people_are_warned_of_roots_before_devices_follow_no_more(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fleet_key.MANY_ROOTS <= 3 * MAX_ROOT_ROTATIONS / 4
    monkeypatch.setattr(fleet_key, "MANY_ROOTS", 3)
    assert "warning" not in desk.run("key", "rotate", "timestamp", "--no-send")
    said = desk.run("key", "rotate", "timestamp", "--no-send")
    assert "warning: this is root 3, and a device follows no more than 1024 roots" in said


def test_rollbacks_go_back_step_by_step_with_settings(desk: Desk, device: Device, tmp_path: Path) -> None:
    desk.run("deploy", handler(tmp_path, version="1.0.0"), *ALL, "--set", "threshold=0.1")
    desk.run("deploy", handler(tmp_path, version="2.0.0"), *ALL, "--set", "threshold=0.2")
    desk.run("deploy", handler(tmp_path, version="3.0.0"), *ALL)
    assert len(desk.fleet().needed_content()) == 6, "what a rollback brings back is kept for devices"
    desk.run("rollback", "motion", *ALL)
    assert deployed(desk) == "2.0.0"
    desk.run("rollback", "motion", *ALL)
    assignment = desk.fleet().desired("groups/all.json").handlers["motion"]
    assert assignment is not None
    assert (assignment.version, assignment.settings) == ("1.0.0", {"threshold": "0.1"})
    desk.run("rollback", "motion", *ALL)
    assert deployed(desk) is None
    assert "has never had another motion" in desk.run("rollback", "motion", *ALL, code=2)
    device.accept_all(desk.fleet())


def test_a_rollback_brings_back_what_was_undeployed(desk: Desk, tmp_path: Path) -> None:
    desk.run("deploy", handler(tmp_path), *ALL)
    desk.run("undeploy", "motion", *ALL)
    desk.run("rollback", "motion", *ALL)
    assert deployed(desk) == "1.0.0"


def test_prune_says_where_there_is_nothing_to_drop(desk: Desk, tmp_path: Path) -> None:
    desk.run("deploy", handler(tmp_path), *ALL)
    assert desk.run("prune", "--dry-run") == "no version to drop\n"
    assert desk.run("prune").startswith("no version to drop\n")


def test_prune_drops_what_nothing_desires(desk: Desk, device: Device, tmp_path: Path) -> None:
    for version in ("1.0.0", "2.0.0", "3.0.0"):
        desk.run("deploy", handler(tmp_path, version=version), *ALL)
    desk.run("publish", handler(tmp_path, version="4.0.0"))
    assert {each.version for each in desk.fleet().bundles()} == {"1.0.0", "2.0.0", "3.0.0", "4.0.0"}
    assert desk.run("prune", "--dry-run").split("\n")[:2] == ["motion 1.0.0", "motion 4.0.0"]
    desk.run("prune")
    assert {each.version for each in desk.fleet().bundles()} == {"2.0.0", "3.0.0"}
    names = {path.name for path in (desk.directory / "targets").iterdir()}
    assert desk.fleet().needed_content().keys() <= names
    assert len(names) == 7, "two bundles share their module; the desired document and the history"
    device.accept_all(desk.fleet())
    desk.run("rollback", "motion", *ALL)
    assert "has never had another" in desk.run("rollback", "motion", *ALL, code=2)


def test_metadata_that_fits_no_message_is_refused_with_the_remedy(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.run("publish", handler(tmp_path, version="1.0.0"))
    desk.run("publish", handler(tmp_path, version="2.0.0"))
    before = desk.fleet().metadata_files()
    limit = len(before["3.targets.json"]) + 50
    monkeypatch.setattr("appliance.fleet.signing.MAX_METADATA_BYTES", limit)
    said = desk.run("publish", handler(tmp_path, version="3.0.0"), code=2)
    assert "appliance fleet prune" in said
    assert desk.fleet().metadata_files() == before
    desk.run("prune")
    desk.run("publish", handler(tmp_path, version="3.0.0"))


def test_two_tools_do_not_change_a_fleet_at_once(desk: Desk, tmp_path: Path) -> None:
    from appliance.fleet.journal import locked  # noqa: PLC0415

    with locked(desk.directory):
        assert "in use by another" in desk.run("publish", handler(tmp_path), code=2)


# --- refresh -------------------------------------------------------------------------------------------------


def test_refresh_renews_what_expires_soon(desk: Desk, device: Device) -> None:
    settings = desk.directory / "fleet.toml"
    before = desk.fleet().state
    desk.run("refresh", "--no-send")
    after = desk.fleet().state
    assert after.timestamp.signed.version == before.timestamp.signed.version + 1
    assert after.snapshot.signed.version == before.snapshot.signed.version, "only what is due"
    settings.write_text(re.sub(r"= (1095|365)\b", "= 3650", settings.read_text()))
    desk.run("refresh", "--no-send")
    state = desk.fleet().state
    assert (state.root.signed.version, state.targets.signed.version, state.snapshot.signed.version) == (2, 2, 2)
    device.accept_all(desk.fleet())


def test_refresh_says_which_key_it_lacks(desk: Desk) -> None:
    (desk.directory / "keys" / "root.pem").rename(desk.directory.parent / "root.pem")
    settings = desk.directory / "fleet.toml"
    settings.write_text(settings.read_text().replace("= 1095", "= 3650"))
    assert "root expires soon or waits" in desk.run("refresh", "--no-send")
    assert "root expires" not in desk.run("refresh", "--no-send", "--key", desk.directory.parent / "root.pem")
    (desk.directory / "keys" / "timestamp.pem").unlink()
    assert "timestamp has 0 of 1 signatures" in desk.run("refresh", "--no-send", code=2)


def test_without_a_broker_nothing_is_sent_and_that_is_said(desk: Desk) -> None:
    assert "not sent: fleet.toml has no mqtt.url" in desk.run("refresh")


# --- developers ----------------------------------------------------------------------------------------------


@pytest.fixture
def acme(desk: Desk) -> Path:
    """The key of a developer who may sign acme-*."""
    key = desk.key("acme")
    desk.run("key", "delegate", "acme", "--prefix", "acme-", "--public", key.with_suffix(".pub"), "--no-send")
    return key


def test_a_developer_publishes_in_a_clone_and_the_operator_takes_it_in(
    desk: Desk, device: Device, acme: Path, tmp_path: Path
) -> None:
    clone = desk.clone("clone")
    said = clone.run("publish", handler(tmp_path, "acme-count"), "--as", "acme", "--key", acme, code=3)
    assert "the operator's `appliance fleet refresh` takes them in" in said
    assert "snapshot has 0 of 1 signatures" in said
    clone.run("publish", handler(tmp_path, "acme-count", "1.1.0"), "--as", "acme", "--key", acme, code=3)
    desk = Desk(clone.directory)
    (clone.directory / "keys" / "snapshot.pem").symlink_to(tmp_path / "shops" / "keys" / "snapshot.pem")
    (clone.directory / "keys" / "timestamp.pem").symlink_to(tmp_path / "shops" / "keys" / "timestamp.pem")
    (clone.directory / "keys" / "targets.pem").symlink_to(tmp_path / "shops" / "keys" / "targets.pem")
    assert device.look(desk.fleet(), "handlers/motion/1.0.0.json") is None
    desk.run("refresh", "--no-send")
    assert not list((desk.directory / "metadata" / "pending").iterdir())
    desk.run("deploy", "acme-count@1.0.0", *ALL)
    device.accept_all(desk.fleet())
    assert {each.role for each in desk.fleet().bundles()} == {"acme"}
    assert device.look(desk.fleet(), "handlers/acme-count/1.1.0.json") is not None


def test_only_the_developer_signs_handlers_of_the_prefix(desk: Desk, acme: Path, tmp_path: Path) -> None:
    assert "publish it with --as acme" in desk.run("publish", handler(tmp_path, "acme-count"), code=2)
    said = desk.run("publish", handler(tmp_path, "other"), "--as", "acme", "--key", acme, code=2)
    assert "is not for acme to sign" in said


def test_a_bundle_outside_the_prefix_is_taken_by_nobody(
    desk: Desk, device: Device, acme: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A developer whose tool does not refuse: the operator's does, and a device does."""
    clone = desk.clone("clone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("appliance.fleet.draft.Draft._check_owner", lambda *_: None)
        patch.setattr("appliance.fleet.signing._check_bundles", lambda *_: None)
        clone.run("publish", handler(tmp_path, "other"), "--as", "acme", "--key", acme, code=3)
    pending = desk.directory / "metadata" / "pending"
    pending.mkdir(parents=True, exist_ok=True)
    for path in (clone.directory / "metadata" / "pending").iterdir():
        (pending / path.name).write_bytes(path.read_bytes())
    assert "is not acme's to sign" in desk.run("refresh", "--no-send", code=1)
    monkeypatch.setattr("appliance.fleet.signing._check_bundles", lambda *_: None)
    for path in (clone.directory / "targets").iterdir():
        (desk.directory / "targets").mkdir(exist_ok=True)
        (desk.directory / "targets" / path.name).write_bytes(path.read_bytes())
    desk.run("refresh", "--no-send")
    assert device.look(desk.fleet(), "handlers/other/1.0.0.json") is None
    assert list(desk.fleet().bundles()) == []


def test_a_threshold_of_developers_keys_has_to_be_met(desk: Desk, device: Device, tmp_path: Path) -> None:
    keys = [desk.key(name) for name in ("one", "two", "three")]
    publics = [word for key in keys for word in ("--public", key.with_suffix(".pub"))]
    desk.run("key", "delegate", "acme", "--prefix", "acme-", *publics, "--threshold", "2", "--no-send")
    said = desk.run("publish", handler(tmp_path, "acme-count"), "--as", "acme", "--key", keys[0], code=3)
    assert "acme has 1 of 2 signatures" in said
    assert "acme.json" not in " ".join(desk.fleet().metadata_files())
    assert "waits for signatures" in desk.run(
        "publish", handler(tmp_path, "acme-other"), "--as", "acme", "--key", keys[0], code=2
    )
    assert "1 of 2" in desk.run("sign", "acme", "--yes", "--key", keys[0], code=3), "the same key counts once"
    assert "none of the keys at hand" in desk.run("sign", "acme", "--yes", code=2)
    assert "nothing was signed" in desk.run("sign", "acme", "--key", keys[1], code=2, input="n\n")
    said = desk.run("sign", "acme", "--key", keys[1], input="y\n")
    assert "handlers/acme-count/1.0.0.json: none ->" in said
    assert "signed: acme, snapshot, timestamp" in said
    assert device.look(desk.fleet(), "handlers/acme-count/1.0.0.json") is not None
    assert "nothing of acme waits" in desk.run("sign", "acme", "--yes", code=2)


def test_a_device_refuses_a_threshold_that_is_not_met(desk: Desk, device: Device, tmp_path: Path) -> None:
    keys = [desk.key(name) for name in ("one", "two")]
    publics = [word for key in keys for word in ("--public", key.with_suffix(".pub"))]
    desk.run("key", "delegate", "acme", "--prefix", "acme-", *publics, "--threshold", "2", "--no-send")
    with pytest.MonkeyPatch.context() as patch:  # a tool that does not know of thresholds
        patch.setattr("appliance.fleet.signing._lack", lambda *_: None)
        desk.run("publish", handler(tmp_path, "acme-count"), "--as", "acme", "--key", keys[0])
    fleet = desk.fleet()
    assert list(fleet.state.distrusted) == ["acme"]
    assert list(fleet.bundles()) == []
    with pytest.raises(RepositoryError, match="1/2"):
        device.look(fleet, "handlers/acme-count/1.0.0.json")


def test_a_revoked_developer_is_trusted_no_more(desk: Desk, device: Device, acme: Path, tmp_path: Path) -> None:
    desk.run("publish", handler(tmp_path, "acme-count"), "--as", "acme", "--key", acme)
    device.refresh(desk.fleet())
    desk.run("key", "revoke", "acme", "--no-send")
    assert device.look(desk.fleet(), "handlers/acme-count/1.0.0.json") is None
    assert "is no developer" in desk.run(
        "publish", handler(tmp_path, "acme-count", "2.0.0"), "--as", "acme", "--key", acme, code=2
    )
    assert "is no developer" in desk.run("key", "revoke", "acme", "--no-send", code=2)
    new = desk.key("acme-2")
    desk.run("key", "delegate", "acme", "--prefix", "acme-", "--public", new.with_suffix(".pub"), "--no-send")
    assert list(desk.fleet().bundles()) == [], "the old key's are not trusted under the new one"
    desk.run("sign", "acme", "--yes", "--key", new, code=2)
    desk.run("publish", handler(tmp_path, "acme-count", "2.0.0"), "--as", "acme", "--key", new)
    assert device.look(desk.fleet(), "handlers/acme-count/2.0.0.json") is not None


def test_when_one_of_a_developers_keys_goes_the_others_sign_anew(desk: Desk, device: Device, tmp_path: Path) -> None:
    keys = [desk.key(name) for name in ("one", "two")]
    publics = [word for key in keys for word in ("--public", key.with_suffix(".pub"))]
    desk.run("key", "delegate", "acme", "--prefix", "acme-", *publics, "--no-send")
    desk.run("publish", handler(tmp_path, "acme-count"), "--as", "acme", "--key", keys[0])
    said = desk.run("key", "revoke", "acme", "--old", keys[0].with_suffix(".pub"), "--no-send")
    assert "acme has 0 of 1 signatures" in said
    with pytest.raises(RepositoryError):
        device.look(desk.fleet(), "handlers/acme-count/1.0.0.json")
    desk.run("sign", "acme", "--yes", "--key", keys[1])
    assert device.look(desk.fleet(), "handlers/acme-count/1.0.0.json") is not None


@pytest.mark.parametrize(
    ("developer", "arguments", "said"),
    [
        ("other", ("--prefix", "acme-parts-"), "overlaps with 'acme-', which acme signs"),
        ("other", ("--prefix", "ac"), "overlaps"),
        ("other", ("--prefix", "mot"), "motion is signed by the operator"),
        ("other", ("--prefix", "*"), "is not the beginning of a handler's name"),
        ("other", ("--prefix", "new-", "--threshold", "2"), "a threshold of 2 is not possible with 1 keys"),
        ("targets", ("--prefix", "new-"), "cannot be a developer's name"),
        ("Other", ("--prefix", "new-"), "cannot be a developer's name"),
    ],
)
def test_delegations_that_would_not_be_clear_are_refused(
    desk: Desk, acme: Path, tmp_path: Path, developer: str, arguments: tuple[str, ...], said: str
) -> None:
    desk.run("publish", handler(tmp_path))
    public = acme.with_suffix(".pub")
    assert said in desk.run("key", "delegate", developer, *arguments, "--public", public, "--no-send", code=2)


def test_there_are_no_more_developers_than_a_client_looks_at(
    desk: Desk, acme: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MAX_DEVELOPERS < 32
    monkeypatch.setattr("appliance.fleet.draft.MAX_DEVELOPERS", 1)
    public = acme.with_suffix(".pub")
    assert "1 developers already" in desk.run(
        "key", "delegate", "other", "--prefix", "other-", "--public", public, "--no-send", code=2
    )


# --- keys of the fleet's own roles ---------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["root", "targets", "snapshot", "timestamp"])
def test_after_a_rotation_the_new_key_counts_and_the_old_one_does_not(
    desk: Desk, device: Device, tmp_path: Path, role: str
) -> None:
    desk.run("deploy", handler(tmp_path), *ALL)
    device.accept_all(desk.fleet())
    if role != "root":
        (desk.directory / "keys" / f"{role}.pem").unlink()  # it is lost: that must not matter
    assert f"keys/{role}-2.pem is the new key of {role}" in desk.run("key", "rotate", role, "--no-send")
    (desk.directory / "keys" / f"{role}.pem").unlink(missing_ok=True)
    device.accept_all(desk.fleet())
    desk.run("deploy", handler(tmp_path, version="2.0.0"), *ALL)
    desk.run("key", "rotate", "timestamp", "--no-send")
    device.accept_all(desk.fleet())
    Device.of(desk, tmp_path / "new").accept_all(desk.fleet())


def test_metadata_that_the_old_key_has_signed_is_refused(desk: Desk, device: Device, tmp_path: Path) -> None:
    stolen = desk.clone("stolen")
    for path in (desk.directory / "keys").glob("*.pem"):
        (stolen.directory / "keys" / path.name).write_bytes(path.read_bytes())
    for role in ("targets", "timestamp"):
        desk.run("key", "rotate", role, "--no-send")
    device.refresh(desk.fleet())
    stolen.run("deploy", handler(tmp_path), *ALL)
    for name in ("timestamp.json", "2.snapshot.json", "2.targets.json"):
        (desk.directory / "metadata" / name).write_bytes((stolen.directory / "metadata" / name).read_bytes())
    with pytest.raises(PeerError, match=r"timestamp\.json: does not verify"):
        desk.fleet()
    files = {**stolen.fleet().metadata_files(), **{f"{n}.root.json": _root(desk, n) for n in (1, 2, 3)}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("appliance.fleet.repository.Fleet.metadata_files", lambda _: files)
        with pytest.raises(RepositoryError, match="timestamp was signed by 0/1"):
            device.refresh(stolen.fleet())


def _root(desk: Desk, version: int) -> bytes:
    return (desk.directory / "metadata" / f"{version}.root.json").read_bytes()


def test_two_root_keys_have_to_sign_where_the_threshold_is_two(desk: Desk, device: Device, tmp_path: Path) -> None:
    second = desk.key("root-b")
    said = desk.run("key", "add", "root", second.with_suffix(".pub"), "--threshold", "2", "--no-send", code=3)
    assert "root has 1 of 2 signatures" in said
    assert len(desk.fleet().state.root.signed.roles["root"].keyids) == 1
    assert "a change of root waits" in desk.run("key", "rotate", "targets", "--no-send", code=2)
    said = desk.run("sign", "root", "--yes", "--key", second)
    assert "threshold of root: 1 -> 2" in said
    device.accept_all(desk.fleet())
    desk.run("key", "rotate", "targets", "--no-send", code=3)
    assert desk.fleet().state.root.signed.version == 2
    desk.run("sign", "root", "--yes", "--key", second)
    assert desk.fleet().state.root.signed.version == 3
    desk.run("deploy", handler(tmp_path), *ALL)
    device.accept_all(desk.fleet())
    listed = desk.run("key", "list")
    assert "root  2 keys sign" in listed
    assert "targets-2.pub" in listed
    keyid = next(each for each in desk.fleet().state.root.signed.roles["root"].keyids)
    assert "not possible" in desk.run("key", "revoke", "root", "--old", keyid, "--no-send", code=2)
    desk.run("key", "revoke", "root", "--old", keyid[:8], "--threshold", "1", "--no-send", "--key", second)
    assert len(desk.fleet().state.root.signed.roles["root"].keyids) == 1


def test_two_operators_sign_what_is_desired_where_the_threshold_is_two(
    desk: Desk, device: Device, tmp_path: Path
) -> None:
    second = desk.key("second")
    desk.run("key", "add", "targets", second.with_suffix(".pub"), "--threshold", "2", "--no-send", "--key", second)
    said = desk.run("deploy", handler(tmp_path), *ALL, code=3)
    assert "targets has 1 of 2 signatures" in said
    assert desk.fleet().targets() == ()
    assert "`appliance fleet sign targets --key FILE`" in said
    assert "a change of targets waits for signatures" in desk.run("deploy", handler(tmp_path), *ALL, code=2)
    said = desk.run("sign", "targets", "--yes", "--key", second)
    assert "all: motion  nothing -> 1.0.0" in said, "who signs sees what"
    assert "`appliance fleet refresh` sends it" in said
    assert deployed(desk) == "1.0.0"
    device.accept_all(desk.fleet())


def test_a_pending_change_that_something_overtook_is_refused(desk: Desk, tmp_path: Path) -> None:
    second = desk.key("second")
    desk.run("key", "add", "targets", second.with_suffix(".pub"), "--threshold", "2", "--no-send", "--key", second)
    desk.run("deploy", handler(tmp_path), *ALL, code=3)
    (pending,) = (desk.directory / "metadata" / "pending").iterdir()
    old = pending.read_bytes()
    desk.run("sign", "targets", "--yes", "--key", second)
    pending.write_bytes(old)
    assert "is not version 4 of targets" in desk.run("sign", "targets", "--yes", "--key", second, code=1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("rotate", "acme"), "is not one of root"),
        (("add", "acme", "{public}"), "is not one of root"),
        (("revoke", "root"), "cannot be without a key"),
        (("revoke", "root", "--old", "0123"), "is not one of these keys"),
        (("rotate", "root", "--old", "{public}"), "is not one of these keys"),
        (("export", "nobody"), "is not one of these keys"),
        (("new", "{public}"), "a key's file is NAME.pem"),
        (("new", "{private}"), "there is a key already"),
    ],
)
def test_keys_that_are_not_what_is_said_are_refused(desk: Desk, arguments: tuple[str, ...], said: str) -> None:
    key = desk.key("spare")
    words = [each.format(public=key.with_suffix(".pub"), private=key.with_suffix("")) for each in arguments]
    assert said in desk.run("key", *words, code=2)


def test_several_keys_are_replaced_one_by_one(desk: Desk) -> None:
    key, other = desk.key("second"), desk.key("third")
    desk.run("key", "add", "snapshot", key.with_suffix(".pub"), "--no-send")
    assert "name the one to replace with --old" in desk.run("key", "rotate", "snapshot", "--no-send", code=2)
    public, new = key.with_suffix(".pub"), other.with_suffix(".pub")
    desk.run("key", "rotate", "snapshot", "--old", public, "--new", new, "--no-send")
    exported = desk.run("key", "export", "snapshot")
    assert new.read_text() in exported
    assert public.read_text() not in exported
    keyid = desk.fleet().state.root.signed.roles["root"].keyids[0]
    assert desk.run("key", "export", keyid[:10]) == (desk.directory / "keys" / "root.pub").read_text()


# --- a directory that others can write -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["timestamp.json", "2.snapshot.json", "2.targets.json", "1.root.json"])
def test_nothing_is_built_on_metadata_that_somebody_changed(desk: Desk, tmp_path: Path, name: str) -> None:
    desk.run("deploy", handler(tmp_path), *ALL)
    path = desk.directory / "metadata" / name
    document = json.loads(path.read_text())
    document["signed"]["expires"] = "2099-01-01T00:00:00Z"
    path.write_text(json.dumps(document))
    assert name in desk.run("refresh", "--no-send", code=1)
    path.write_text("nonsense")
    assert "not metadata of a fleet" in desk.run("refresh", "--no-send", code=1)
    path.unlink()
    with pytest.raises(ConfigError, match=name):
        desk.fleet()


def test_content_that_somebody_changed_is_not_believed(desk: Desk, tmp_path: Path) -> None:
    desk.run("deploy", handler(tmp_path), *ALL)
    fleet = desk.fleet()
    assignment = fleet.desired("groups/all.json").handlers["motion"]
    assert assignment is not None
    fleet.content(assignment.digest).write_bytes(b"{}")
    with pytest.raises(PeerError, match="is not what its name says"):
        desk.fleet().needed_content()
    fleet.content(assignment.digest).unlink()
    with pytest.raises(ConfigError, match="is missing"):
        desk.fleet().needed_content()


def waiting_root(desk: Desk, change: Callable[[dict[str, Any]], None]) -> None:
    """A change of root waits for a second signature, and somebody who can write in the repository has changed it."""
    second = desk.key("root-b")
    desk.run("key", "add", "root", second.with_suffix(".pub"), "--threshold", "2", "--no-send", code=3)
    path = desk.directory / "metadata" / "pending" / "2.root.json"
    document = json.loads(path.read_text())
    change(document["signed"])
    path.write_text(json.dumps(document))


def test_nobody_signs_for_a_key_that_has_the_id_of_another(desk: Desk, tmp_path: Path) -> None:
    stranger = read_public(desk.key("stranger")).keyval["public"]

    def exchange(signed: dict[str, Any]) -> None:
        signed["keys"][signed["roles"]["targets"]["keyids"][0]]["keyval"]["public"] = stranger

    waiting_root(desk, exchange)
    said = desk.run("sign", "root", "--yes", "--key", tmp_path / "root-b.pem", code=1)
    assert "another key has the id" in said


def test_nobody_signs_a_root_that_devices_cannot_use(desk: Desk, tmp_path: Path) -> None:
    waiting_root(desk, lambda signed: signed.update(consistent_snapshot=False))
    assert "consistent_snapshot" in desk.run("sign", "root", "--yes", "--key", tmp_path / "root-b.pem", code=1)


def test_what_strangers_have_written_steers_no_terminal(desk: Desk, acme: Path, tmp_path: Path) -> None:
    desk.run("publish", handler(tmp_path, "acme-count"), "--as", "acme", "--key", acme)
    desk.run("key", "revoke", "acme", "--no-send")
    desk.run("key", "delegate", "acme", "--prefix", "acme-", "--public", acme.with_suffix(".pub"), "--no-send")
    desk.clone("clone").run("publish", handler(tmp_path, "acme-b"), "--as", "acme", "--key", acme, code=3)
    source = next((tmp_path / "clone" / "metadata" / "pending").iterdir())
    document = json.loads(source.read_text())
    ((path, file),) = list(document["signed"]["targets"].items())[:1]
    document["signed"]["targets"] = {
        path: file,
        "handlers/\x1b[2J/1.json": file,
        "handlers/acme-x/1.json": {**file, "hashes": {}},
    }
    pending = desk.directory / "metadata" / "pending"
    pending.mkdir(exist_ok=True)
    (pending / source.name).write_text(json.dumps(document))
    result = desk.result("sign", "acme", "--yes", "--key", acme)
    assert result.exit_code == 1
    assert "\x1b" not in result.output
    (pending / "1.a b.json").write_text("{}")
    (pending / source.name).unlink()
    assert "is not the file of a role" in desk.run("sign", "acme", "--yes", "--key", acme, code=1)


def test_the_list_of_keys_shows_developers(desk: Desk, acme: Path, tmp_path: Path) -> None:
    assert "acme  1 key signs  has signed nothing that counts  handlers acme-" in desk.run("key", "list")
    desk.run("publish", handler(tmp_path, "acme-count"), "--as", "acme", "--key", acme)
    assert re.search(r"acme  1 key signs  until \d{4}-\d\d-\d\d  handlers acme-", desk.run("key", "list"))


def test_who_signs_a_delegation_sees_it(desk: Desk, acme: Path) -> None:
    second = desk.key("second")
    desk.run("key", "add", "targets", second.with_suffix(".pub"), "--threshold", "2", "--no-send", "--key", second)
    public = second.with_suffix(".pub")
    desk.run("key", "delegate", "acme", "--prefix", "acme-", "--prefix", "a2-", "--public", public, "--no-send", code=3)
    said = desk.run("sign", "targets", "--yes", "--key", second)
    assert f"developer acme: handlers acme-, a2-, 1 key signs of {read_public(public).keyid[:12]}" in said


def test_a_rollback_to_what_nobody_signs_any_more_is_refused(desk: Desk, acme: Path, tmp_path: Path) -> None:
    for version in ("1.0.0", "2.0.0"):
        desk.run("publish", handler(tmp_path, "acme-count", version), "--as", "acme", "--key", acme)
        desk.run("deploy", "acme-count", *ALL)
    desk.run("key", "revoke", "acme", "--no-send")
    assert "is not signed any more" in desk.run("rollback", "acme-count", *ALL, code=2)
    desk.run("undeploy", "acme-count", *ALL)


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path, quick_keys: None) -> None:
    (tmp_path / "file").touch()
    desk = Desk(tmp_path / "file" / "shops")
    assert "cannot be made" in desk.run("init", desk.directory, "--name", "shops", code=1)


def test_an_index_of_another_handler_is_not_believed(desk: Desk, tmp_path: Path) -> None:
    desk.run("deploy", handler(tmp_path), *ALL)
    fleet = desk.fleet()
    assignment = fleet.desired("groups/all.json").handlers["motion"]
    assert assignment is not None
    with pytest.raises(PeerError, match=r"is the index of motion 1\.0\.0"):
        fleet.bundle("other", assignment)


def test_a_file_that_changes_while_it_is_published_is_noticed(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = handler(tmp_path)

    async def change(_: Path) -> None:
        with (directory / "handler.toml").open("a") as file:
            file.write("# changed\n")

    monkeypatch.setattr("appliance.fleet.checks.check_module", change)
    assert "has changed while it was published" in desk.run("publish", directory, code=2)
    assert list(desk.fleet().bundles()) == []
