"""What the zipper, the zygote and the workers say. Everything a worker sends is hostile until decoded."""

from enum import IntEnum
from typing import Annotated, Literal

import msgspec

from appliance.inference.messages import Crop, TensorInfo, Tensors, View
from appliance.ipc.report import Lockdown
from appliance.ipc.ring import FrameRef
from appliance.sandbox.admission.verdict import Admitted

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
MODEL_WISHES = 32
"""As so many of them counts loading a model that the guest brings."""
MAX_PIXEL_BYTES = 12 << 20
MAX_PICTURE_BYTES = 8 << 20
"""A picture, as a file, that a guest has decoded."""
MAX_GUEST_MODEL_BYTES = 16 << 20
"""All models that a guest brings, together: they pass in one message each, and its worker keeps them."""
MAX_STATE_KEYS = 64
MAX_STATE_KEY = 64
MAX_STATE_VALUE = 4096
MAX_TRAP_TEXT = 2048
MAX_BACKTRACE = 8
"""Functions of a guest that are named when it fails, innermost first."""
MAX_BACKTRACE_LINE = 96

EMIT_FORMATS = frozenset({"jpeg", "cbor", "json", "bytes"})
"""What a handler may emit. Not ``rgb`` and ``gray``: an emitted frame carries no width and height."""


GuestFault = Literal[
    "error",  # handle returned non-zero
    "trap",
    "gas",  # it ran more instructions than it may about one frame
    "budget",  # it called the host more often, or emitted more, than its manifest allows
    "output",  # what it returned is not what its ABI says
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


class CommandSpec(msgspec.Struct, frozen=True):
    """How a WASI program is called for a frame."""

    arguments: list[str]
    """Words with ``{frame}``, ``{source}``, ``{seq}`` and ``{tag}`` in them; the first is the program's own name."""
    frame: str
    """Name of the file that holds the frame; its ending says in which format."""


class Setup(msgspec.Struct, frozen=True, tag="setup"):
    """First message to a new worker."""

    handler: str
    module: Admitted
    abi: str
    emits: list[int]
    """Tags the handler may emit, in the manifest's order."""
    models: list[GuestModel]
    settings: dict[str, str]
    state: dict[str, bytes]
    memory_bytes: int
    """Address space the process may use for the guest's linear memory."""
    cpu_seconds: int
    """RLIMIT_CPU over the worker's life: the backstop behind the deadline. It is replaced well before."""
    engine: str = "wasm3"
    deadline_ms: int = 1000
    """Time of the guest's own per frame; the zipper enforces it, the worker makes gas of it."""
    gas: int | None = None
    """Instructions per frame, as ``limits.gas`` says; None: as many as the deadline has room for."""
    host_calls: int = 10_000
    """Calls of host functions per frame."""
    guest_models: int = 0
    """Models that the guest may bring itself."""
    files: dict[str, bytes] = {}
    """What a guest of an ABI with files can open, by name."""
    command: CommandSpec | None = None
    """How a program is called, where the convention is ``command``."""
    observes: list[int] = []
    """Tags of the frames that it is given."""
    measure: bool = False
    """Tell with each frame how large the guest's memory is: looking costs some bytes of the worker's own each time."""


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


class ModelLoaded(msgspec.Struct, frozen=True, tag="modelloaded"):
    """Answer to WantModel: its handle is the next index after the models known so far."""

    model: GuestModel


class PixelData(msgspec.Struct, frozen=True, tag="pixeldata"):
    data: bytes


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """Answer to a wish that failed; ``code`` is an ``errno`` of the native ABI (negative)."""

    code: int
    message: str
    busy: bool = False
    """The same, later, may go well."""


# --- worker -> zipper --------------------------------------------------------------------------------------


class Loaded(msgspec.Struct, frozen=True, tag="loaded"):
    """The process is locked down and the module loaded; now the guest begins: its start function and ``init``."""

    lockdown: Lockdown = Lockdown()


class Started(msgspec.Struct, frozen=True, tag="started"):
    """The guest's ``init`` has returned: jobs may come."""


class WantInference(msgspec.Struct, frozen=True, tag="infer"):
    """Run model number ``model`` on a view of the current frame, or on ``tensors`` where given."""

    model: int
    view: View
    tensors: Tensors | None = None


class WantPixels(msgspec.Struct, frozen=True, tag="pixels"):
    """Samples of (a part of) the current frame, or of the picture in ``data`` where given: JPEG or PNG, all of it."""

    crop: Crop
    format: str
    width: int
    height: int
    data: bytes | None = None


class WantModel(msgspec.Struct, frozen=True, tag="model"):
    """Load a model that the guest brings; ``data`` is the file."""

    data: bytes


class Emit(msgspec.Struct, frozen=True):
    tag: int
    format: str
    payload: bytes


Changes = Annotated[dict[str, bytes], msgspec.Meta(max_length=2 * MAX_STATE_KEYS)]
"""All keys there were, deleted, and as many new ones."""


class Done(msgspec.Struct, frozen=True, tag="done"):
    """The current frame is handled: only now do its emitted frames and state changes take effect."""

    emits: Annotated[list[Emit], msgspec.Meta(max_length=MAX_EMITS)]
    state: Changes
    """Changed keys; an empty value deletes."""
    guest_us: int
    """Time in the guest itself, without waiting for the host."""
    gas: int = 0
    """Instructions of the guest, as far as they were counted."""
    memory_bytes: int = 0
    """Of the guest's memory now, where Setup asked for it."""


class Log(msgspec.Struct, frozen=True, tag="log"):
    level: int
    """10 debug, 20 info, 30 warning, 40 error: as in stdlib logging."""
    text: str


Backtrace = Annotated[
    list[Annotated[str, msgspec.Meta(max_length=MAX_BACKTRACE_LINE)]], msgspec.Meta(max_length=MAX_BACKTRACE)
]
"""Where in its code a guest was, innermost function first: ``0: 0x0000a2 deep``."""


class Trapped(msgspec.Struct, frozen=True, tag="trapped"):
    """The guest failed. ``fatal``: the instance cannot go on and the process exits."""

    kind: GuestFault
    message: str
    fatal: bool
    backtrace: Backtrace = []


ToWorker = Setup | Job | Inferred | ModelLoaded | PixelData | Refused
FromWorker = Loaded | Started | WantInference | WantModel | WantPixels | Done | Log | Trapped


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
