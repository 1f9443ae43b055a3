"""What the zipper, the zygote and the workers say. Everything a worker sends is hostile until decoded."""

from enum import IntEnum
from typing import Literal

import msgspec

from appliance.inference.messages import Crop, TensorInfo, View
from appliance.ipc.report import Lockdown
from appliance.ipc.ring import FrameRef

MAX_EMITS = 16
"""Frames a handler may emit about one frame."""
MAX_EMIT_BYTES = 1 << 20
LOG_LEVELS = (10, 20, 30, 40)
MAX_LOG_LINE = 512
MAX_LOGS_PER_FRAME = 32
MAX_DOCUMENT_BYTES = 128 << 10
"""Sum of the CBOR and JSON payloads of one frame: the zipper parses them all, between two frames of others."""
MAX_WISHES = 256
"""Inferences and pictures a handler may ask for about one frame."""
MAX_PIXEL_BYTES = 12 << 20
MAX_STATE_KEYS = 64
MAX_STATE_KEY = 64
MAX_STATE_VALUE = 4096
MAX_TRAP_TEXT = 2048

EMIT_FORMATS = frozenset({"jpeg", "cbor", "json", "bytes"})
"""What a handler may emit. Not ``rgb`` and ``gray``: an emitted frame carries no width and height."""


GuestFault = Literal[
    "error",  # handle returned non-zero
    "trap",
    "init",  # init returned non-zero
    "load",  # wasm3 cannot run the module
    "link",  # it imports or exports what its ABI does not have
    "memory",  # it needs more than its limit
    "crash",  # the worker itself failed
]
"""What a worker may call a failure."""


class Errno(IntEnum):
    """Error codes of the native ABI; see ``appliance.h``."""

    EINVAL = -1
    ENOENT = -2
    ETOOBIG = -3
    EDENIED = -4
    EMODEL = -5
    EFRAME = -6


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
    emits: list[int]
    """Tags the handler may emit."""
    models: list[GuestModel]
    settings: dict[str, str]
    state: dict[str, bytes]
    memory_bytes: int
    """Address space the process may use for the guest's linear memory."""
    cpu_seconds: int
    """RLIMIT_CPU over the worker's life: the backstop behind the deadline. It is replaced well before."""


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

    lockdown: Lockdown = Lockdown()
    """As it was before the guest ran. A guest that has broken out in ``init`` can lie about it."""


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

    kind: GuestFault
    message: str
    fatal: bool


ToWorker = Setup | Job | Inferred | PixelData | Refused
FromWorker = Started | WantInference | WantPixels | Done | Log | Trapped


# --- zipper -> zygote --------------------------------------------------------------------------------------


class Spawn(msgspec.Struct, frozen=True, tag="spawn"):
    """Fork a worker. Two descriptors come with it: the worker's end of its socket pair, and the ring."""

    id: int


# --- zygote -> zipper --------------------------------------------------------------------------------------


class Spawned(msgspec.Struct, frozen=True, tag="spawned"):
    """The worker is there; its pidfd comes along."""

    id: int
    pid: int


class SpawnFailed(msgspec.Struct, frozen=True, tag="spawnfailed"):
    id: int
    message: str


class Exited(msgspec.Struct, frozen=True, tag="exited"):
    """A worker has ended. ``status``: its exit code, or minus the signal that killed it."""

    id: int
    status: int


FromZygote = Spawned | SpawnFailed | Exited
