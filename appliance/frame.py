"""The frame: the one value that travels from a camera to MQTT.

A camera's picture is a frame, and so is what a handler emits about it; only the tag differs. A frame is
never changed: each stage makes a new one with :meth:`Frame.after` or :meth:`Frame.derive`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

MAX_TAG = 0xFFFF_FFFF
RESERVED_TAGS = range(0xF000, 0x1_0000)
"""Tags of the system itself; no handler, source or remote peer may emit them."""

MAX_NAME = 64
NAME_PATTERN = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,62}[a-z0-9])?")
"""Names of sources, handlers, models and devices: they appear in MQTT topics and file names."""

MAX_META_ENTRIES = 16
MAX_META_TEXT = 256
MAX_STAGES = 16
MAX_MODEL_RUNS = 8
MAX_SIDE = 16_384

PICTURE_FORMATS = frozenset({"jpeg", "rgb", "gray"})
"""``jpeg``: one JFIF image. ``rgb``/``gray``: rows of 8-bit samples, no padding (height x width x 3 or x 1)."""
FORMATS = PICTURE_FORMATS | {"cbor", "json", "bytes"}

MetaValue = str | int | float | bool


def is_name(text: str) -> bool:
    """True for a lower-case name of 1 to 64 letters, digits, ``-`` and ``_`` (not at either end)."""
    return NAME_PATTERN.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class ModelRun:
    """Which model answered, and where it really ran (never where it was wished to run)."""

    model: str
    digest: str
    """SHA-256 of the model file that ran, hexadecimal."""
    runtime: str
    """``litert`` or ``tflite``, with its version, e.g. ``litert 2.3.0``."""
    device: str
    """``cpu`` or the delegate that ran it, e.g. ``edgetpu``."""


@dataclass(frozen=True, slots=True)
class Producer:
    """Who emitted a derived frame."""

    handler: str
    version: str
    models: tuple[ModelRun, ...] = ()


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame. ``payload`` holds the bytes in ``format``; ``width`` and ``height`` are 0 for data."""

    tag: int
    source: str
    """Name of the camera's source; a derived frame keeps that of the frame it came from."""
    seq: int
    """Sequence number the source gave at capture, from 0; derived frames keep it."""
    captured_ns: int
    """Wall-clock time of capture, nanoseconds since 1970 (UTC); derived frames keep it."""
    format: str
    payload: bytes | memoryview
    width: int = 0
    height: int = 0
    meta: Mapping[str, MetaValue] = field(default_factory=dict)
    """What the camera knows of the picture, e.g. ``truth`` of a synthetic one; handlers do not see it."""
    spent: Mapping[str, int] = field(default_factory=dict)
    """Microseconds spent in each stage so far, in order. Their sum is the frame's age since capture, or more where
    stages overlapped."""
    producer: Producer | None = None

    def after(self, stage: str, now_ns: int) -> "Frame":
        """The same frame, charging the time since the stage before to ``stage``."""
        age_us = max(0, (now_ns - self.captured_ns) // 1000)
        elapsed = max(0, age_us - sum(self.spent.values()))
        return replace(self, spent={**self.spent, stage: self.spent.get(stage, 0) + elapsed})

    def derive(self, tag: int, format: str, payload: bytes, producer: Producer | None = None) -> "Frame":
        """A frame emitted about this one: same origin and history, other tag and payload."""
        return replace(self, tag=tag, format=format, payload=payload, width=0, height=0, producer=producer)
