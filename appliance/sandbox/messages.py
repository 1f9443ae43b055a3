"""What the zipper and a worker say to each other. Everything a worker sends is hostile until decoded."""

import msgspec

from appliance.inference.messages import Crop, TensorInfo, View
from appliance.ipc.ring import FrameRef

MAX_EMITS = 16
"""Frames a handler may emit about one frame."""
MAX_EMIT_BYTES = 1 << 20
MAX_LOG_LINE = 512
MAX_LOGS_PER_FRAME = 32
MAX_STATE_KEYS = 64
MAX_STATE_KEY = 64
MAX_STATE_VALUE = 4096
MAX_TRAP_TEXT = 2048


class GuestModel(msgspec.Struct, frozen=True):
    """A model as a guest sees it; its index in Setup.models is the guest's handle."""

    name: str
    inputs: list[TensorInfo]
    outputs: list[TensorInfo]
    labels: list[str]


class Setup(msgspec.Struct, frozen=True, tag="setup"):
    """First message to a new worker."""

    handler: str
    module: bytes
    abi: str
    models: list[GuestModel]
    settings: dict[str, str]
    state: dict[str, bytes]
    memory_bytes: int
    """Address space the process may use for the guest's linear memory."""
    cpu_seconds: int
    """RLIMIT_CPU: the backstop behind the deadline."""


class Job(msgspec.Struct, frozen=True, tag="job"):
    """One frame to handle."""

    frame: FrameRef
    tag: int
    source: str
    seq: int
    captured_ns: int


class Inferred(msgspec.Struct, frozen=True, tag="inferred"):
    """Answer to WantInference: the raw outputs, in the model's order."""

    tensors: list[bytes]


class PixelData(msgspec.Struct, frozen=True, tag="pixeldata"):
    data: bytes


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """Answer to a wish that failed; ``code`` is an ``errno`` of the native ABI (negative)."""

    code: int
    message: str


# --- worker -> zipper --------------------------------------------------------------------------------------


class Started(msgspec.Struct, frozen=True, tag="started"):
    """The module is loaded and its ``init`` has returned: jobs may come."""


class WantInference(msgspec.Struct, frozen=True, tag="infer"):
    """Run model number ``model`` on a view of the current frame, or on ``tensors`` where given."""

    model: int
    view: View
    tensors: list[bytes] | None = None


class WantPixels(msgspec.Struct, frozen=True, tag="pixels"):
    crop: Crop
    format: str
    width: int
    height: int


class Emit(msgspec.Struct, frozen=True):
    tag: int
    format: str
    payload: bytes


class Done(msgspec.Struct, frozen=True, tag="done"):
    """The current frame is handled: only now do its emitted frames and state changes take effect."""

    emits: list[Emit]
    state: dict[str, bytes]
    """Changed keys; an empty value deletes."""
    guest_us: int
    """Time in the guest itself, without waiting for the host."""


class Log(msgspec.Struct, frozen=True, tag="log"):
    level: int
    """10 debug, 20 info, 30 warning, 40 error: as in stdlib logging."""
    text: str


class Trapped(msgspec.Struct, frozen=True, tag="trapped"):
    """The guest failed. ``fatal``: the instance cannot go on and the process exits."""

    kind: str
    """``trap``, ``error`` (handle returned non-zero), ``load``, ``link``, ``memory`` …"""
    message: str
    fatal: bool


ToWorker = Setup | Job | Inferred | PixelData | Refused
FromWorker = Started | WantInference | WantPixels | Done | Log | Trapped
