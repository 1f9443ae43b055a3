"""Which file runs on which device: the twin on the delegate where both load, else the CPU model and a note."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import DeviceError, ModelError
from appliance.frame import ModelRun
from appliance.inference.model import ModelSpec, read_model
from appliance.inference.runtime import Model, Runtime

EDGETPU_OP = b"edgetpu-custom-op"
"""The operator that the Edge TPU compiler folds a model into; only its delegate knows it."""
REMEDIES = {"edgetpu": "install libedgetpu and plug the Edge TPU in, or empty inference.delegate"}
OTHER_REMEDY = "install it, or empty inference.delegate"


@dataclass(frozen=True, slots=True)
class Opened:
    """A model that is loaded, and what is to be told about it."""

    model: Model
    run: ModelRun
    note: str


@dataclass(frozen=True, slots=True)
class Contents:
    """The bytes of a model's files: read and verified while the process may still open files."""

    cpu: bytes
    delegated: bytes | ModelError
    """The twin's; the same as ``cpu`` where there is none, or why it cannot be read."""

    @property
    def size(self) -> int:
        """Bytes of both."""
        twin = b"" if isinstance(self.delegated, ModelError) or self.delegated is self.cpu else self.delegated
        return len(self.cpu) + len(twin)


def read_contents(spec: ModelSpec) -> Contents:
    """Read what :func:`open_model` needs; ModelError where the model itself cannot be read, or is another one."""
    cpu = read_model(spec.path, spec.digest)
    if not spec.delegate or spec.twin is None:
        return Contents(cpu, cpu)
    try:
        return Contents(cpu, read_model(spec.twin))
    except ModelError as error:
        return Contents(cpu, error)


def open_model(spec: ModelSpec, runtime: Runtime, contents: Contents) -> Opened:
    """Load what ``spec`` asks for, or the CPU model with a note that says why and what to do.

    ModelError where that cannot be loaded either.
    """
    note = ""
    if spec.delegate:
        try:
            return _on_delegate(spec, runtime, contents.delegated)
        except (DeviceError, ModelError) as error:
            device = device_name(spec.delegate)
            note = f"{spec.path.name} runs on the CPU: {error}; {REMEDIES.get(device, OTHER_REMEDY)}"
    try:
        return _on_cpu(spec, runtime, contents.cpu, note)
    except ModelError as error:
        raise ModelError(f"{error} ({note})" if note else str(error)) from error


def device_name(library: str) -> str:
    """How results name a delegate: ``libedgetpu.so.1`` -> ``edgetpu``."""
    stem = Path(library).name.split(".so")[0]
    return re.sub(r"^lib|[_-]?delegate$", "", stem) or stem


def _on_delegate(spec: ModelSpec, runtime: Runtime, content: bytes | ModelError) -> Opened:
    delegate = runtime.load_delegate(spec.delegate, dict(spec.delegate_options))
    if isinstance(content, ModelError):
        raise content
    model = _load(spec.twin or spec.path, runtime, content, spec.threads, delegate)
    device, note = device_name(spec.delegate), ""
    if not model.delegated:
        note = f"{spec.path.name} runs on the CPU: the delegate {device} is loaded but took no part of the model"
        note += "" if spec.twin else "; name a twin that is compiled for it in inference.twins"
        device = "cpu"
    digest = hashlib.sha256(content).hexdigest()
    return Opened(model, ModelRun((spec.twin or spec.path).name, digest, runtime.label, device), note)


def _on_cpu(spec: ModelSpec, runtime: Runtime, content: bytes, note: str) -> Opened:
    if EDGETPU_OP in content:
        raise ModelError(
            f"{spec.path.name} is compiled for the Edge TPU and cannot run on the CPU: use the model it was compiled "
            "from, or set inference.delegate to libedgetpu.so.1"
        )
    model = _load(spec.path, runtime, content, spec.threads, None)
    return Opened(model, ModelRun(spec.path.name, spec.digest, runtime.label, "cpu"), note)


def _load(path: Path, runtime: Runtime, content: bytes, threads: int, delegate: object | None) -> Model:
    try:
        return runtime.load(content, threads, delegate)
    except ModelError as error:
        raise ModelError(f"{path.name}: {error}") from error
