"""What a handler is, without running it: manifest, module and the verdict on it, models, and its bundle."""

import hashlib
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from appliance.config import InferenceConfig
from appliance.deploy.bundle import MAX_INDEX_BYTES, Bundle, decode_bundle
from appliance.deploy.packing import pack
from appliance.device.reading import open_plain
from appliance.errors import HandlerError, ModelError, PeerError
from appliance.inference.broker import Broker
from appliance.inference.messages import TensorInfo
from appliance.inference.model import digest_of
from appliance.ipc.ring import ALIGN, RingWriter
from appliance.manifest import MAX_MODULE_BYTES, Limits, Manifest, ModelUse, load_manifest, own_file
from appliance.sandbox.admission.admit import Admission, RefusedError
from appliance.sandbox.admission.verdict import Order
from appliance.sandbox.host import RESTORED_ABIS
from appliance.sandbox.spec import model_spec, read_labels
from appliance.text import printable

PAGE_BYTES = 64 << 10
_HIDDEN = "appliance:"
"""Names of exports that admission adds."""


class ModuleView(msgspec.Struct, frozen=True):
    """A module, and whether it may run."""

    file: str
    bytes: int
    digest: str
    admitted: bool
    refused: str = ""
    """The rule and what breaks it; empty where it is admitted."""
    imports: dict[str, list[str]] = {}
    """Import module -> functions."""
    exports: list[str] = []
    memory_bytes: int = 0
    """Of its memory as it starts."""


class ModelView(msgspec.Struct, frozen=True):
    name: str
    file: str | None
    """None: the operator names one; such a handler cannot be a bundle."""
    bytes: int = 0
    digest: str = ""
    labels: int = 0
    inputs: list[str] = []
    outputs: list[str] = []
    wrong: str = ""
    """Why it cannot be loaded."""


class BundleView(msgspec.Struct, frozen=True):
    digest: str
    bundle: Bundle
    bytes: int


class HandlerView(msgspec.Struct, frozen=True):
    """``bundle`` is None where ``not_a_bundle`` says why."""

    manifest: Manifest
    module: ModuleView
    models: list[ModelView]
    bundle: BundleView | None
    not_a_bundle: str = ""


async def judge(directory: Path, manifest: Manifest) -> ModuleView:
    """A handler's module, and what admission says of it."""
    module = own_file(directory, manifest.module)
    if not module.exists():
        raise HandlerError(f"{module}: is not there; `appliance handler build {directory}` makes it")
    return await _judge(module, manifest)


async def inspect_module(path: Path) -> ModuleView:
    """A module alone, judged for wasm3 and the usual limits."""
    return await _judge(path, None)


async def _judge(path: Path, manifest: Manifest | None) -> ModuleView:
    data = _read(path, MAX_MODULE_BYTES)
    digest = hashlib.sha256(data).hexdigest()
    limits = manifest.limits if manifest else Limits()
    restorable = manifest is not None and manifest.abi in RESTORED_ABIS
    order = Order(data, manifest.engine if manifest else "wasm3", limits.memory_mb << 20, restorable)
    with TemporaryDirectory() as directory:
        try:
            admitted = await Admission(Path(directory)).admit(order)
        except RefusedError as error:
            return ModuleView(path.name, len(data), digest, admitted=False, refused=str(error))
    imports = {
        printable(module): [printable(name) for _, name, _ in functions]
        for module, functions in groupby(sorted(admitted.imports), key=lambda each: each[0])
    }
    exports = sorted(printable(name) for name in admitted.functions if not name.startswith(_HIDDEN))
    memory_bytes = admitted.memory_pages * PAGE_BYTES
    return ModuleView(path.name, len(data), digest, True, "", imports, exports, memory_bytes)


async def inspect_handler(directory: Path, inference: InferenceConfig) -> HandlerView:
    """Everything about a handler's directory; its models are loaded for it. HandlerError, ConfigError, DeviceError."""
    manifest = load_manifest(directory)
    module = await judge(directory, manifest)
    models = await _models(directory, manifest.models, inference)
    try:
        packed = pack(directory)
    except HandlerError as error:
        return HandlerView(manifest, module, models, None, str(error))
    return HandlerView(manifest, module, models, BundleView(packed.digest, packed.bundle, packed.bundle.length))


async def _models(directory: Path, uses: Sequence[ModelUse], inference: InferenceConfig) -> list[ModelView]:
    if not uses:
        return []
    with RingWriter(ALIGN) as ring:
        async with Broker(ring.fd, inference.timeout_seconds) as broker:
            return [await _model(directory, use, inference, broker) for use in uses]


async def _model(directory: Path, use: ModelUse, inference: InferenceConfig, broker: Broker) -> ModelView:
    if use.file is None:
        return ModelView(use.name, None)
    path = own_file(directory, use.file)
    try:
        labels = read_labels(own_file(directory, use.labels)) if use.labels else ()
        spec = model_spec(path, digest_of(path), inference, unit_range=use.unit_range)
        broker.hold(spec)
        ready = await broker.ready(spec)
    except (HandlerError, ModelError) as error:
        return ModelView(use.name, use.file, wrong=str(error))
    inputs, outputs = ([_tensor(tensor) for tensor in tensors] for tensors in (ready.inputs, ready.outputs))
    return ModelView(use.name, use.file, path.stat().st_size, spec.digest, len(labels), inputs, outputs)


def _tensor(tensor: TensorInfo) -> str:
    """``image: uint8 1x96x96x3``, and how it is quantised."""
    shape = "x".join(map(str, tensor.shape)) or "scalar"
    quantised = f", {tensor.scale:g} * (stored - {tensor.zero_point})" if tensor.scale else ""
    return printable(f"{tensor.name}: {tensor.dtype} {shape}{quantised}")


def inspect_index(path: Path) -> BundleView:
    """The index of a bundle, as it is signed. HandlerError where the file is none."""
    data = _read(path, MAX_INDEX_BYTES)
    try:
        bundle = decode_bundle(data)
    except PeerError as error:
        raise HandlerError(f"{path}: {error}") from error
    return BundleView(hashlib.sha256(data).hexdigest(), bundle, bundle.length)


def _read(path: Path, limit: int) -> bytes:
    try:
        with open_plain(path) as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise HandlerError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > limit:
        raise HandlerError(f"{path}: larger than {limit} bytes")
    return data


# --- in words ------------------------------------------------------------------------------------------------


def module_in_words(module: ModuleView) -> list[str]:
    """A line or more for people: size, verdict, imports, exports."""
    verdict = "admitted" if module.admitted else module.refused
    lines = [f"module     {module.file}, {module.bytes} bytes, sha256 {module.digest}", f"admission  {verdict}"]
    if module.admitted:
        lines += [f"imports    {name}: {', '.join(functions)}" for name, functions in module.imports.items()]
        lines.append(f"exports    {', '.join(module.exports)}")
        lines.append(f"memory     {module.memory_bytes >> 10} KiB as it starts")
    return lines


def handler_in_words(view: HandlerView) -> list[str]:
    """For people."""
    manifest = view.manifest
    limits = ", ".join(
        f"{key} {value}" for key, value in msgspec.structs.asdict(manifest.limits).items() if value is not None
    )
    lines = [
        f"handler    {manifest.name} {manifest.version}: {printable(manifest.description) or 'no description'}",
        f"called     abi {manifest.abi}, engine {manifest.engine}, for tags {_tags(manifest.observes)}",
        f"emits      {_tags(emit.tag for emit in manifest.emits if emit.publish) or 'nothing that is published'}",
    ]
    unpublished = _tags(emit.tag for emit in manifest.emits if not emit.publish)
    lines += [f"           {unpublished} for other handlers alone"] if unpublished else []
    lines += [f"setting    {printable(f'{key} = {value!r}')}" for key, value in manifest.settings.items()]
    lines += [f"sensor     {sensor.name}: {sensor.path} ({sensor.kind})" for sensor in manifest.sensors]
    lines.append(f"limits     {limits}")
    lines += module_in_words(view.module)
    for model in view.models:
        lines += _model_in_words(model)
    if view.bundle is None:
        return [*lines, f"bundle     none: {view.not_a_bundle}"]
    return [*lines, *bundle_in_words(view.bundle)]


def _tags(tags: Iterable[int]) -> str:
    return ", ".join(f"{tag:#04x}" for tag in tags)


def _model_in_words(model: ModelView) -> list[str]:
    if model.wrong:
        return [f"model      {model.name}: {printable(model.wrong)}"]
    if model.file is None:
        return [f"model      {model.name}: the operator names it"]
    return [
        f"model      {model.name}: {model.file}, {model.bytes} bytes, {model.labels} labels, sha256 {model.digest}",
        *(f"           input  {tensor}" for tensor in model.inputs),
        *(f"           output {tensor}" for tensor in model.outputs),
    ]


def bundle_in_words(view: BundleView) -> list[str]:
    """For people: what would be signed."""
    bundle = view.bundle
    return [
        f"bundle     {bundle.name} {bundle.version}, {view.bytes} bytes, digest {view.digest}",
        *(f"           {file.sha256[:12]}… {file.length:>9} {name}" for name, file in sorted(bundle.files.items())),
    ]
