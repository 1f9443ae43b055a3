"""What the operator's tools sign, the device's own verification takes."""

from pathlib import Path

from signing_desk import Desk, handler

from appliance.deploy.bundle import bundle_target
from appliance.deploy.desired import merged, targets_of
from appliance.deploy.trust import Trust
from appliance.fleet.repository import Fleet


def versions(trust: Trust, fleet: Fleet, device: str, *groups: str) -> dict[str, str]:
    """What a device would run, verified from the root to each bundle's index."""
    verified = trust.refresh(fleet.metadata_files())
    documents = []
    for path in targets_of(device, groups):
        target = verified.target(path)
        if target is not None:
            documents.append(verified.desired(target, fleet.content(target.sha256)))
    found = {}
    for name, assignment in merged(documents).items():
        target = verified.target(bundle_target(name, assignment.version))
        assert target is not None
        bundle = verified.bundle(name, assignment, target, fleet.content(target.sha256)).bundle
        assert {file.sha256 for file in bundle.files.values()} <= fleet.needed_content().keys()
        found[name] = bundle.version
    return found


def test_a_device_follows_deployments_developers_and_rotations(desk: Desk, tmp_path: Path) -> None:
    trust = Trust(tmp_path / "device", (desk.directory / "metadata" / "root.json").read_bytes())
    assert versions(trust, desk.fleet(), "gate") == {}
    desk.run("deploy", handler(tmp_path), "--to", "all", "--no-send")
    desk.run("deploy", handler(tmp_path, version="2.0.0"), "--to", "tills", "--no-send")
    assert versions(trust, desk.fleet(), "gate") == {"motion": "1.0.0"}
    assert versions(trust, desk.fleet(), "gate", "tills") == {"motion": "2.0.0"}
    key = desk.key("acme")
    desk.run("key", "delegate", "acme", "--prefix", "acme-", "--public", key.with_suffix(".pub"), "--no-send")
    desk.run("publish", handler(tmp_path, "acme-count"), "--as", "acme", "--key", key)
    desk.run("deploy", "acme-count", "--to", "device:gate", "--no-send")
    desk.run("undeploy", "motion", "--to", "device:gate", "--no-send")
    assert versions(trust, desk.fleet(), "gate", "tills") == {"acme-count": "1.0.0"}
    for role in ("root", "targets", "snapshot", "timestamp", "root"):
        desk.run("key", "rotate", role, "--no-send")
    assert versions(trust, desk.fleet(), "gate") == {"acme-count": "1.0.0"}
    desk.run("prune")
    desk.run("refresh", "--no-send")
    assert versions(trust, desk.fleet(), "gate", "tills") == {"acme-count": "1.0.0"}
    assert versions(trust, desk.fleet(), "door", "tills") == {"motion": "2.0.0"}
