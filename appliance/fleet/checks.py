"""What is refused at the desk, because every device would refuse it: handlers, modules, settings."""

import tempfile
from pathlib import Path

from appliance.config import HandlerConfig, InferenceConfig
from appliance.deploy.desired import Assignment
from appliance.errors import ConfigError
from appliance.fleet.repository import Fleet
from appliance.manifest import MANIFEST_FILE, MAX_MANIFEST_BYTES, Manifest, load_manifest
from appliance.sandbox.admission.admit import Admission
from appliance.sandbox.admission.verdict import Order
from appliance.sandbox.host import RESTORED_ABIS
from appliance.sandbox.spec import load_handler


async def check_module(directory: Path) -> None:
    """HandlerError, ConfigError or ModelError for a handler that no device would run."""
    spec = load_handler(HandlerConfig(path=str(directory)), InferenceConfig())
    order = Order(spec.module, spec.engine, spec.limits.memory_mb << 20, spec.abi in RESTORED_ABIS)
    with tempfile.TemporaryDirectory() as verdicts:
        await Admission(Path(verdicts)).admit(order)


def check_assignment(manifest: Manifest, assignment: Assignment) -> None:
    """ConfigError for what an assignment changes that the handler does not have."""
    known = manifest.settings
    wrong = sorted(assignment.settings.keys() - known.keys())
    if wrong:
        raise ConfigError(
            f"{manifest.name} {manifest.version} has no setting {wrong[0]!r}; "
            f"known: {', '.join(sorted(known)) or 'none'}. --fresh forgets those of an earlier deploy"
        )


def manifest_of(fleet: Fleet, name: str, assignment: Assignment) -> Manifest:
    """The manifest of a bundle that is in the directory."""
    file = fleet.bundle(name, assignment).files[MANIFEST_FILE]
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / MANIFEST_FILE).write_bytes(fleet.read(file.sha256, MAX_MANIFEST_BYTES))
        return load_manifest(Path(directory))
