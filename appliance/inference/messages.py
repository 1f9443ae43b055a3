"""What the zipper and a model's process say to each other, and the values an inference yields."""

from typing import Annotated

import msgspec

from appliance.frame import ModelRun
from appliance.ipc.report import Lockdown
from appliance.ipc.ring import FrameRef

MAX_TENSORS = 16
MAX_RANK = 8
MAX_TENSOR_NAME = 128
MAX_DTYPE = 16
MAX_FLOAT32 = 3.4e38
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


_Size = Annotated[int, msgspec.Meta(ge=0, le=MAX_TENSOR_BYTES)]


class TensorInfo(msgspec.Struct, frozen=True):
    """One input or output of a model, as its file declares it."""

    name: Annotated[str, msgspec.Meta(max_length=MAX_TENSOR_NAME)]
    dtype: Annotated[str, msgspec.Meta(max_length=MAX_DTYPE)]
    """numpy's name: ``uint8``, ``int8``, ``int32``, ``int64``, ``float32`` …"""
    shape: Annotated[tuple[_Size, ...], msgspec.Meta(max_length=MAX_RANK)]
    nbytes: _Size
    scale: Annotated[float, msgspec.Meta(ge=0, le=MAX_FLOAT32)]
    """real = scale * (stored - zero_point); 0.0 where the tensor is not quantised."""
    zero_point: Annotated[int, msgspec.Meta(ge=-(1 << 31), lt=1 << 31)]


TensorInfos = Annotated[list[TensorInfo], msgspec.Meta(max_length=MAX_TENSORS)]
Tensors = Annotated[list[bytes], msgspec.Meta(max_length=MAX_TENSORS)]
"""Raw bytes of each, in the model's order."""
Microseconds = Annotated[int, msgspec.Meta(ge=0, lt=1 << 40)]
"""Twelve days: sums of many are still integers that JSON has."""


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
    inputs: TensorInfos
    outputs: TensorInfos
    note: str = ""
    """Anything the operator should know, e.g. why the CPU twin runs instead of the Edge TPU."""
    lockdown: Lockdown = Lockdown()
    """As it was before the model was interpreted. A model that has broken out can lie about it."""


class Outputs(msgspec.Struct, frozen=True, tag="outputs"):
    """Raw bytes of each output, in the order of Ready.outputs; times in microseconds."""

    id: int
    tensors: Tensors
    decode_us: Microseconds
    invoke_us: Microseconds


class Pixels(msgspec.Struct, frozen=True, tag="pixels"):
    id: int
    data: bytes


LOADING = 0
"""The id of a Failed that stands in for Ready: the model cannot be loaded and the process ends."""


DEVICE = "device"
"""The fault of a Failed that says that this device cannot load it, whatever it is."""


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """One request failed; the process goes on. ``fault`` is ``frame``, ``request``, ``model`` or DEVICE."""

    id: int
    fault: str
    message: str


ToModel = Infer | InferTensors | GetPixels
FromModel = Ready | Outputs | Pixels | Failed
