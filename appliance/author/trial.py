"""A handler tried off-device: pictures from any camera, the sandbox of the appliance, one frame after another."""

import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace

import msgspec

from appliance.author.inputs import Named, frames_of
from appliance.author.outcome import NOT_RUNNING, Tried, TriedResult
from appliance.config import CameraConfig, InferenceConfig
from appliance.errors import HandlerError
from appliance.frame import Frame, Producer
from appliance.ipc.ring import ALIGN
from appliance.manifest import MAX_DEADLINE_MS, MAX_GAS_MILLIONS, MAX_MEMORY_MB
from appliance.mqtt.result import encode_result
from appliance.offline import playing
from appliance.sandbox.emits import DOCUMENTS
from appliance.sandbox.messages import Emit
from appliance.sandbox.session import Finished
from appliance.sandbox.spec import HandlerSpec
from appliance.wire import MAX_PAYLOAD_BYTES

RAISE, MAX_RAISES = 4, 8
"""A limit under which a handler cannot be started is multiplied, and how often at most."""
_LIMITS = {
    "gas": ("gas", MAX_GAS_MILLIONS),
    "deadline": ("deadline_ms", MAX_DEADLINE_MS),
    "memory": ("memory_mb", MAX_MEMORY_MB),
}
"""Kind of failure -> the limit that was too low, and what it may be at most."""
_MOST = dict(_LIMITS.values())


async def try_out(
    spec: HandlerSpec,
    inference: InferenceConfig,
    configs: Sequence[CameraConfig],
    on_tried: Callable[[Tried, Frame], Awaitable[None]],
    *,
    measure: bool = False,
) -> None:
    """Give a handler the pictures of cameras; ``on_tried`` gets what came of each. Call it in the main thread.

    Returns when all have ended, or the handler is not run any more: the last frame is then NOT_RUNNING. HandlerError
    where it cannot be started.
    """
    async with (
        playing(spec, inference, MAX_PAYLOAD_BYTES + ALIGN, measure=measure) as player,
        aclosing(frames_of(configs, spec.observes)) as frames,
    ):
        await player.started()
        async for named in frames:
            finished = await player.play(named.frame)
            await on_tried(_tried(named, finished), named.frame)
            if finished.outcome == NOT_RUNNING:
                return


async def fitted(spec: HandlerSpec, inference: InferenceConfig, limits: Mapping[str, int]) -> dict[str, int]:
    """``limits`` that frames suggest, raised where the handler could not even be started under them.

    What it does before its first frame is measured by nobody, so it is tried. Call it in the main thread.
    """
    raised = dict(limits)
    handlers_log = logging.getLogger(f"handler.{spec.name}")
    handlers_log.disabled = True  # what fails here is meant to
    try:
        for _ in range(MAX_RAISES):
            kind = await _cannot_start(replace(spec, limits=msgspec.structs.replace(spec.limits, **raised)), inference)
            key, most = _LIMITS.get(kind, ("", 0))
            if key not in raised:
                break
            raised[key] = min(raised[key] * RAISE, most)
    finally:
        handlers_log.disabled = False
    return {key: value if value == limits[key] else min(2 * value, _MOST[key]) for key, value in raised.items()}


async def _cannot_start(spec: HandlerSpec, inference: InferenceConfig) -> str:
    """The kind of failure; empty where it starts."""
    async with playing(spec, inference, ALIGN) as player:
        try:
            await player.started()
        except HandlerError:
            failure = player.host.status.last_failure
            return failure.kind if failure else ""
    return ""


def _tried(named: Named, finished: Finished) -> Tried:
    return Tried(
        frame=named.name,
        outcome=finished.outcome,
        message=finished.message,
        backtrace=list(finished.backtrace),
        results=[_result(emit, named.frame) for emit in finished.emits],
        guest_us=finished.guest_us,
        decode_us=finished.decode_us,
        invoke_us=finished.invoke_us,
        wait_us=finished.wait_us,
        gas=finished.gas,
        memory_bytes=finished.memory_bytes,
    )


def _result(emit: Emit, about: Frame) -> TriedResult:
    if emit.format not in DOCUMENTS:
        return TriedResult(emit.tag, emit.format, len(emit.payload))
    frame = about.derive(emit.tag, emit.format, emit.payload, Producer("", "", ()))
    try:
        published = json.loads(encode_result(frame, "", frame.captured_ns))
    except HandlerError as error:
        return TriedResult(emit.tag, emit.format, len(emit.payload), refused=str(error))
    return TriedResult(emit.tag, emit.format, len(emit.payload), published["value"])
