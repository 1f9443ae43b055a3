"""What the zipper and a model's process say to each other, and the values an inference yields."""

import msgspec

from appliance.frame import ModelRun
from appliance.ipc.report import Lockdown
from appliance.ipc.ring import FrameRef

MAX_TENSORS = 16
MAX_RANK = 8
MAX_TENSOR_NAME = 128
MAX_TENSOR_BYTES = 12 << 20
MAX_BEGUN = 4
"""Requests of a process that were begun before they were asked: enough to keep it busy, and few to wait behind."""
MAX_REQUESTS = 64 + MAX_BEGUN
"""Requests a process holds; the zipper sends no more. As many as handlers there can be, and what was begun."""

PIXEL_BYTES = {"rgb": 3, "gray": 1, "bgr": 3, "rgb32f": 12, "bgr32f": 12}
"""Bytes of a pixel, by format; the ``32f`` are three float32 from 0 to 1."""

STRETCH, LETTERBOX = "stretch", "letterbox"


class Crop(msgspec.Struct, frozen=True, array_like=True):
    """A part of a picture in its own pixels; width 0 means the whole picture."""

    x: int = 0
    y: int = 0
    width: int = 0
    height: int = 0


class TensorInfo(msgspec.Struct, frozen=True):
    """One input or output of a model, as its file declares it."""

    name: str
    dtype: str
    """numpy's name: ``uint8``, ``int8``, ``int32``, ``int64``, ``float32`` …"""
    shape: tuple[int, ...]
    nbytes: int
    scale: float
    """real = scale * (stored - zero_point); 0.0 where the tensor is not quantised."""
    zero_point: int


class View(msgspec.Struct, frozen=True):
    """How a picture becomes the model's input: what results are memoised by, with model and frame."""

    crop: Crop = Crop()
    fit: str = STRETCH


# --- zipper -> process -------------------------------------------------------------------------------------


class Infer(msgspec.Struct, frozen=True, tag="infer"):
    """Run the model on a view of a frame in the ring."""

    id: int
    frame: FrameRef
    view: View


class InferTensors(msgspec.Struct, frozen=True, tag="tensors"):
    """Run the model on tensors the guest made: raw bytes for each input, in the model's order."""

    id: int
    inputs: list[bytes]


class GetPixels(msgspec.Struct, frozen=True, tag="pixels"):
    """Decode and resize only: raw samples for a guest that looks at them itself."""

    id: int
    frame: FrameRef
    crop: Crop
    format: str
    """One of PIXEL_BYTES."""
    width: int
    height: int
    data: bytes | None = None
    """Instead of the frame: a picture as a file, JPEG or PNG."""


# --- process -> zipper -------------------------------------------------------------------------------------


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The model is loaded (run is None in the process that only decodes pixels)."""

    run: ModelRun | None
    inputs: list[TensorInfo]
    outputs: list[TensorInfo]
    note: str = ""
    """Anything the operator should know, e.g. why the CPU twin runs instead of the Edge TPU."""
    lockdown: Lockdown = Lockdown()
    """As it was before the model was interpreted. A model that has broken out can lie about it."""


class Outputs(msgspec.Struct, frozen=True, tag="outputs"):
    """Raw bytes of each output, in the order of Ready.outputs; times in microseconds."""

    id: int
    tensors: list[bytes]
    decode_us: int
    invoke_us: int


class Pixels(msgspec.Struct, frozen=True, tag="pixels"):
    id: int
    data: bytes


LOADING = 0
"""The id of a Failed that stands in for Ready: the model cannot be loaded and the process ends."""


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """One request failed; the process goes on. ``fault`` is ``frame``, ``request`` or ``model``."""

    id: int
    fault: str
    message: str


ToModel = Infer | InferTensors | GetPixels
FromModel = Ready | Outputs | Pixels | Failed
