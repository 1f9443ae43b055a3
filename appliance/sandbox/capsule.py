"""A crash capsule: what a handler was given when it failed, so that the failure can be had again elsewhere. Pure.

It is one CBOR item (docs/handlers.md). Whoever replays one got it from somebody else: decoding believes nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import cbor2
import msgspec

from appliance.cbor import decode_strict
from appliance.config import Name, Tag
from appliance.errors import ConfigError
from appliance.frame import FORMATS, MAX_SIDE, Frame
from appliance.sandbox.failure import Failure
from appliance.sandbox.messages import MAX_STATE_KEY, MAX_STATE_KEYS, MAX_STATE_VALUE
from appliance.sandbox.spec import MAX_MODELS, MAX_SETTING_BYTES, MAX_SETTINGS, HandlerSpec

FORMAT_VERSION: Literal[1] = 1
CAPSULE_FRAMES = 4
"""The frame that failed and those before it."""
MAX_PAYLOAD_BYTES = 12 << 20
"""Of all frames of a capsule; where they are more, the oldest are left out."""
MAX_CAPSULE_BYTES = MAX_PAYLOAD_BYTES + (1 << 20)
"""Payloads, and what else there is: settings and state at most, and far less as a rule."""

_Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
_Word = Annotated[str, msgspec.Meta(max_length=128)]
_U64 = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
_Side = Annotated[int, msgspec.Meta(ge=0, le=MAX_SIDE)]
_StateKey = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_STATE_KEY)]
_StateValue = Annotated[bytes, msgspec.Meta(max_length=MAX_STATE_VALUE)]
_Setting = Annotated[str, msgspec.Meta(max_length=MAX_SETTING_BYTES)]


class CapsuleFrame(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A frame as the handler got it."""

    tag: Tag
    source: Name
    seq: _U64
    captured_ns: _U64
    format: _Word
    width: _Side
    height: _Side
    payload: bytes


class CapsuleModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model that the handler may use; the file itself is not in the capsule."""

    name: _Word
    digest: _Digest


class Capsule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything about one failure."""

    capsule: Literal[1] = FORMAT_VERSION
    """Version of this format."""
    handler: Name
    version: _Word
    abi: _Word
    engine: _Word
    module: _Digest
    """SHA-256 of the module."""
    settings: Annotated[dict[str, _Setting], msgspec.Meta(max_length=MAX_SETTINGS)]
    state: Annotated[dict[_StateKey, _StateValue], msgspec.Meta(max_length=MAX_STATE_KEYS)]
    """The guest's keys and values before the first of ``frames``."""
    models: Annotated[tuple[CapsuleModel, ...], msgspec.Meta(max_length=MAX_MODELS)]
    failure: Failure
    frames: Annotated[tuple[CapsuleFrame, ...], msgspec.Meta(min_length=1, max_length=CAPSULE_FRAMES)]
    """In the order in which they were handled; the last is the one that failed."""


@dataclass(frozen=True, slots=True)
class Handled:
    """A frame that was handled, and the guest's state before it: both are there anyway, and are not copied."""

    frame: Frame
    state: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Crash:
    """A failure with the frames around it, as the zipper has them in memory."""

    spec: HandlerSpec
    failure: Failure
    frames: tuple[Handled, ...]
    """The last is the one that failed."""


def capsule_of(crash: Crash, module: str) -> Capsule:
    """The capsule of a crash; ``module`` is the digest of its handler's module. Copies the payloads."""
    spec = crash.spec
    kept = within_bounds(crash.frames)
    return Capsule(
        handler=spec.name,
        version=spec.version,
        abi=spec.abi,
        engine=spec.engine,
        module=module,
        settings=dict(spec.settings),
        state=dict(kept[0].state),
        models=tuple(CapsuleModel(model.name, model.model.digest) for model in spec.models),
        failure=crash.failure,
        frames=tuple(_frame(handled.frame) for handled in kept),
    )


def within_bounds(frames: Sequence[Handled]) -> tuple[Handled, ...]:
    """The newest, as many as a capsule holds. Of one frame the payload always is within the bound, by the wire's."""
    kept: list[Handled] = []
    size = 0
    for handled in reversed(frames[-CAPSULE_FRAMES:]):
        size += len(handled.frame.payload)
        if size > MAX_PAYLOAD_BYTES:
            break
        kept.append(handled)
    return tuple(reversed(kept))


def _frame(frame: Frame) -> CapsuleFrame:
    return CapsuleFrame(
        frame.tag,
        frame.source,
        frame.seq,
        frame.captured_ns,
        frame.format,
        frame.width,
        frame.height,
        bytes(frame.payload),
    )


def encode_capsule(capsule: Capsule) -> bytes:
    return cbor2.dumps(msgspec.to_builtins(capsule, builtin_types=(bytes,)))


def decode_capsule(data: bytes) -> Capsule:
    """ConfigError where the bytes are not a capsule of this format, whatever they are."""
    if len(data) > MAX_CAPSULE_BYTES:
        raise ConfigError(f"not a crash capsule: over the limit of {MAX_CAPSULE_BYTES} bytes")
    try:
        capsule = msgspec.convert(decode_strict(data), Capsule, builtin_types=(bytes,))
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        raise ConfigError(f"not a crash capsule: {error}") from error
    unknown = {frame.format for frame in capsule.frames} - FORMATS
    if unknown:
        raise ConfigError(f"not a crash capsule: frames of format {', '.join(sorted(unknown))!r}")
    return capsule
