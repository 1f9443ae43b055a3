"""What the appliance says of itself: pure, from statuses to the documents that go to MQTT (docs/mqtt.md).

One health model: these documents, the log and the LEDs are all made from the same statuses.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from appliance.inference.host import ModelStatus
from appliance.mqtt.result import rfc3339
from appliance.sandbox.failure import Failure
from appliance.sandbox.host import HandlerStatus
from appliance.zipper.server import SourceStatus

READY, DEGRADED = "ready", "degraded"


def camera_document(status: SourceStatus) -> dict[str, Any]:
    """Of one camera. ``state`` is the camera's own word while its source is connected, else ``lost``."""
    report = status.report
    if status.connected:
        state = report.state if report is not None else "connecting"
    else:
        state = "ended" if report is not None and report.final else "lost"
    document: dict[str, Any] = {"state": state, "connected": status.connected}
    reason = report.detail if status.connected and report is not None else status.closed_reason
    if reason and state not in ("ended", "streaming"):
        document["reason"] = reason
    return document


def handler_document(version: str, status: HandlerStatus) -> dict[str, Any]:
    """Of one handler: state, what went wrong how often, and the last failure."""
    document: dict[str, Any] = {
        "state": status.state,
        "version": version,
        "restarts": status.restarts,
        "faults": dict(status.faults),
    }
    if status.last_failure is not None:
        document["last_failure"] = failure_document(status.last_failure)
    if status.log_dropped:
        document["log_dropped"] = status.log_dropped
    return document


def failure_document(failure: Failure) -> dict[str, Any]:
    """Of one failure; where it was in the code and which file has the frames around it only where that is known."""
    document: dict[str, Any] = {
        "kind": failure.kind,
        "message": failure.message,
        "seq": failure.seq,
        "at": rfc3339(failure.at_ns),
    }
    if failure.backtrace:
        document["backtrace"] = list(failure.backtrace)
    if failure.capsule:
        document["capsule"] = failure.capsule
    return document


def model_document(status: ModelStatus) -> dict[str, Any]:
    """Of one model: what really runs it, and why that is not what was configured where it is not."""
    document: dict[str, Any] = {"state": status.state, "digest": status.digest, "restarts": status.restarts}
    if status.run is not None:
        document |= {"runtime": status.run.runtime, "device": status.run.device}
    if status.note:
        document["note"] = status.note
    if status.last_error:
        document["last_error"] = status.last_error
    if (
        status.lockdown is not None and "seccomp" in status.lockdown.missing
    ):  # the one that denies what others deny, too
        document["not_in_force"] = dict(status.lockdown.missing)
    return document


def overall(
    cameras: Iterable[Mapping[str, Any]], handlers: Iterable[Mapping[str, Any]], models: Iterable[Mapping[str, Any]]
) -> str:
    """``ready`` where everything runs, else ``degraded``."""
    well = (
        all(camera["state"] in ("streaming", "ended") for camera in cameras)
        and all(handler["state"] == "running" for handler in handlers)
        and all(model["state"] == "running" for model in models)
    )
    return READY if well else DEGRADED
