"""A deployed version as a handler that can run: read from its directory, and judged before it is kept."""

import errno
from pathlib import Path
from typing import Protocol

from appliance.config import HandlerConfig, InferenceConfig
from appliance.deploy.record import Slot
from appliance.errors import DeviceError, HandlerError, ModelError
from appliance.inference.messages import Ready
from appliance.inference.model import ModelSpec
from appliance.manifest import load_manifest
from appliance.sandbox.admission.admit import RefusedError
from appliance.sandbox.admission.verdict import Order
from appliance.sandbox.host import MAX_JUDGINGS, RESTORED_ABIS, Admits
from appliance.sandbox.spec import HandlerSpec, load_handler

_OUR_ERRNOS = frozenset({errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE})
"""Of files that cannot be read just now, whoever made them."""


class Models(Protocol):
    """What has models run: :class:`appliance.inference.broker.Broker`."""

    async def ready(self, model: ModelSpec) -> Ready: ...
    def hold(self, model: ModelSpec) -> None: ...
    def release(self, model: ModelSpec) -> None: ...


def load_slot(directory: Path, name: str, slot: Slot, inference: InferenceConfig) -> HandlerSpec:
    """The handler in a directory of a bundle's files, with the operator's changes. Blocking.

    HandlerError where the manifest is not of the bundle it came with, DeviceError where this device cannot read what is
    there, and what ``load_handler`` raises.
    """
    try:
        return _load(directory, name, slot, inference)
    except (HandlerError, ModelError) as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in _OUR_ERRNOS:
            raise DeviceError(str(error)) from error
        raise


def _load(directory: Path, name: str, slot: Slot, inference: InferenceConfig) -> HandlerSpec:
    manifest = load_manifest(directory)
    if (manifest.name, manifest.version) != (name, slot.version):
        raise HandlerError(
            f"the bundle {name} {slot.version} has the manifest of {manifest.name} {manifest.version}; build it again"
        )
    config = HandlerConfig(path=str(directory), name=name, observes=slot.observes, settings=slot.settings)
    return load_handler(config, inference)


async def admit(spec: HandlerSpec, admission: Admits, models: Models) -> None:
    """Have its module judged and its models loaded. HandlerError, ModelError: it may not run; DeviceError: unknown."""
    order = Order(spec.module, spec.engine, spec.limits.memory_mb << 20, spec.abi in RESTORED_ABIS)
    await _judge(order, admission)
    for use in spec.models:
        models.hold(use.model)
        try:
            await models.ready(use.model)
        finally:
            models.release(use.model)


async def _judge(order: Order, admission: Admits) -> None:
    for attempt in range(1, MAX_JUDGINGS + 1):
        try:
            await admission.admit(order)
        except RefusedError as error:
            if error.judged or attempt == MAX_JUDGINGS:
                raise
        else:
            return
