"""A crash capsule, played to its handler again: on any machine, without broker, camera and zipper."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import msgspec

from appliance.cbor import decode_strict
from appliance.config import HandlerConfig, InferenceConfig
from appliance.errors import ConfigError
from appliance.frame import Frame
from appliance.ipc.ring import ALIGN
from appliance.offline import playing
from appliance.sandbox.capsule import Capsule, CapsuleFrame
from appliance.sandbox.messages import Emit
from appliance.sandbox.session import Finished
from appliance.sandbox.spec import HandlerSpec, load_handler
from appliance.text import printable

MAX_VALUE = 200
"""Letters of an emitted frame that are shown."""


class ReplayedFrame(msgspec.Struct, frozen=True):
    """What came of one frame."""

    seq: int
    tag: int
    outcome: str
    message: str
    backtrace: list[str]
    emits: list[str]
    """One line each."""
    guest_ms: float


class Replayed(msgspec.Struct, frozen=True):
    """What came of a capsule."""

    reproduced: bool
    """The last frame failed in the recorded way."""
    recorded: str
    """Kind of the failure in the capsule."""
    frames: list[ReplayedFrame]
    notes: list[str]
    """What is not as it was when the capsule was written."""


def prepare(
    capsule: Capsule, directory: Path, settings: Mapping[str, str], inference: InferenceConfig, *, any_module: bool
) -> tuple[HandlerSpec, list[str]]:
    """The handler as it was, and in words what is different. Reads whole files: models, too.

    ``settings`` go before those of the capsule. ConfigError where the module is another one, unless ``any_module``.
    """
    spec = load_handler(HandlerConfig(path=str(directory), name=capsule.handler, settings=dict(settings)), inference)
    given = {key: spec.settings[key] for key in settings if key in spec.settings}
    spec = replace(spec, settings={**spec.settings, **capsule.settings, **given})
    notes = []
    digest = hashlib.sha256(spec.module).hexdigest()
    if digest != capsule.module:
        said = f"the module of {directory} is {digest[:12]}…, that of the capsule is {capsule.module[:12]}…"
        if not any_module:
            raise ConfigError(f"{said}; name the right directory with --handler, or try this one with --any-module")
        notes.append(said)
    if spec.version != capsule.version:
        notes.append(f"the handler's version is {spec.version}, that of the capsule is {printable(capsule.version)}")
    recorded = {model.name: model.digest for model in capsule.models}
    for model in spec.models:
        if model.model.digest != recorded.get(model.name):
            there = recorded.get(model.name, "none")
            notes.append(f"model {model.name!r} is {model.model.digest[:12]}…, that of the capsule is {there[:12]}…")
    return spec, notes


async def replay(capsule: Capsule, spec: HandlerSpec, notes: list[str], inference: InferenceConfig) -> Replayed:
    """Give the handler the frames of the capsule, one after another. Call it in the main thread."""
    largest = max(len(frame.payload) for frame in capsule.frames)
    async with playing(spec, inference, largest + ALIGN, state=capsule.state) as player:
        frames = [_told(frame, await player.play(_as_it_was(frame))) for frame in capsule.frames]
    recorded = capsule.failure.kind
    return Replayed(_alike(frames[-1].outcome, recorded), recorded, frames, notes)


def _alike(one: str, other: str) -> bool:
    """Whether two outcomes are of one kind. Which of its two bounds a guest that runs on meets first is chance."""
    return one == other or {one, other} == {"gas", "deadline"}


def in_words(replayed: Replayed) -> str:
    """For people: a line for each frame, and what it comes to."""
    lines = [f"note: {note}" for note in replayed.notes]
    for frame in replayed.frames:
        said = f": {frame.message}" if frame.message else ""
        lines.append(f"frame {frame.seq} tag {frame.tag:#x}: {frame.outcome} ({frame.guest_ms:g} ms){said}")
        lines += [f"    {line}" for line in (*frame.backtrace, *frame.emits)]
    if replayed.reproduced:
        return "\n".join([*lines, f"reproduced: {replayed.recorded}"])
    return "\n".join([*lines, f"not reproduced: it was {replayed.recorded}, and is {replayed.frames[-1].outcome}"])


def _as_it_was(frame: CapsuleFrame) -> Frame:
    return Frame(
        frame.tag,
        frame.source,
        frame.seq,
        frame.captured_ns,
        frame.format,
        frame.payload,
        frame.width,
        frame.height,
    )


def _told(frame: CapsuleFrame, finished: Finished) -> ReplayedFrame:
    return ReplayedFrame(
        frame.seq,
        frame.tag,
        finished.outcome,
        finished.message,
        list(finished.backtrace),
        [_line(emit) for emit in finished.emits],
        round(finished.guest_us / 1000, 3),
    )


def _line(emit: Emit) -> str:
    value = ""
    if emit.format == "cbor":
        value = f": {decode_strict(emit.payload)!r}"
    elif emit.format == "json":
        value = f": {emit.payload[:MAX_VALUE].decode('utf-8', 'replace')}"
    return printable(f"tag {emit.tag:#x}, {len(emit.payload)} bytes of {emit.format}{value}")[:MAX_VALUE]
