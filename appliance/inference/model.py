"""A model as the configuration names it."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import ModelError

MAX_MODEL_BYTES = 256 << 20


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


def digest_of(path: Path) -> str:
    """SHA-256 of a model file, hexadecimal; ModelError where it cannot be read or is over MAX_MODEL_BYTES."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            if size > MAX_MODEL_BYTES:
                raise ModelError(f"{path}: {size} bytes is over the limit of {MAX_MODEL_BYTES}")
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
