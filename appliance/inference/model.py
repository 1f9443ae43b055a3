"""A model as the configuration names it."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from appliance.device.reading import open_plain
from appliance.errors import DeviceError, ModelError

MAX_MODEL_BYTES = 256 << 20
TFLITE_IDENTIFIER = b"TFL3"
"""At bytes 4 to 8 of every TFLite flatbuffer."""


class UnavailableError(ModelError, DeviceError):
    """The model cannot be had on this device now, whatever it is: neither its fault nor its handler's."""


class BusyError(ModelError):
    """A model's process has all the requests it may hold: the same one, later, may go well."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What a model's process is started with. Two handlers with the same digest share one process."""

    path: Path
    digest: str
    """SHA-256 of the file, hexadecimal: checked again by the process that loads it."""
    runtime: str = "litert"
    threads: int = 1
    delegate: str = ""
    """Shared library of a delegate; empty: CPU."""
    delegate_options: tuple[tuple[str, str], ...] = ()
    twin: Path | None = None
    """The model compiled for the delegate, where that is another file."""
    unit_range: bool = False
    """Feed a float32 input the real range [0, 1] instead of [-1, 1]."""


def digest_of(path: Path) -> str:
    """SHA-256 of a model file, hexadecimal; ModelError where it cannot be read or is over MAX_MODEL_BYTES."""
    try:
        with open_plain(path) as file:
            size = path.stat().st_size
            if size > MAX_MODEL_BYTES:
                raise ModelError(f"{path}: {size} bytes is over the limit of {MAX_MODEL_BYTES}")
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error


def read_model(path: Path, digest: str | None = None) -> bytes:
    """The bytes of a model file, verified before anything interprets them.

    What is returned is what was hashed: a file that is replaced afterwards changes nothing. ModelError where
    the file cannot be read, is over MAX_MODEL_BYTES, is not a TFLite flatbuffer, or has not the SHA-256
    ``digest`` (hexadecimal; None: any).
    """
    try:
        with open_plain(path) as file:
            content = file.read(MAX_MODEL_BYTES + 1)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    if len(content) > MAX_MODEL_BYTES:
        raise ModelError(f"{path}: over the limit of {MAX_MODEL_BYTES} bytes")
    if digest is not None and hashlib.sha256(content).hexdigest() != digest:
        raise ModelError(f"{path}: has changed since it was configured (its SHA-256 is another); deploy it again")
    if content[4:8] != TFLITE_IDENTIFIER:
        raise ModelError(f"{path}: is not a TFLite model")
    return content
