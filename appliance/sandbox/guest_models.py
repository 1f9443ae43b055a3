"""Models that guests bring themselves: kept as files by their digest, so that inference takes them like any other."""

import asyncio
import hashlib
import os
import threading
from collections import Counter
from pathlib import Path
from time import monotonic
from typing import Protocol

from appliance.config import InferenceConfig
from appliance.device.durable import write_durably
from appliance.errors import DeviceError, HandlerError, ModelError
from appliance.inference.messages import Ready
from appliance.inference.model import TFLITE_IDENTIFIER, ModelSpec, digest_of
from appliance.sandbox.messages import MAX_GUEST_MODEL_BYTES
from appliance.sandbox.spec import model_spec

MAX_STORED = 32
"""Files of models that no handler uses now, kept for when one does again."""
RETRY_SECONDS = 30.0
"""A model that could not be loaded is not tried again sooner, however often its handler brings it."""
SUFFIX = ".tflite"


class GuestModelStore:
    """A directory of models, each named by its SHA-256. It is a cache: whatever is lost is written anew."""

    def __init__(self, directory: Path, inference: InferenceConfig) -> None:
        self._directory = directory
        self._inference = inference
        self._in_use: Counter[str] = Counter()
        """By digest, how many handlers use it: processes read the files again when they restart."""
        self._writing = threading.Lock()

    async def keep(self, data: bytes, digest: str) -> ModelSpec:
        """The model of these bytes, as a file and as the configuration has it run; DeviceError."""
        self._in_use[digest] += 1
        try:
            path = await asyncio.to_thread(self._kept, data, digest)
        except BaseException as error:
            self.forget(digest)
            if isinstance(error, OSError):
                raise DeviceError(f"{self._directory}: a guest's model cannot be kept: {error.strerror}") from error
            raise
        return model_spec(path, digest, self._inference)

    def forget(self, digest: str) -> None:
        """A handler does not use it any more: its file may make room for others."""
        self._in_use[digest] -= 1

    def _kept(self, data: bytes, digest: str) -> Path:
        path = self._directory / f"{digest}{SUFFIX}"
        with self._writing:  # one at a time, also where nobody waits for it any more
            self._directory.mkdir(mode=0o700, exist_ok=True)
            if _is_whole(path, digest):
                os.utime(path)
            else:
                write_durably(path, data)
            self._tidy()
        return path

    def _tidy(self) -> None:
        """Remove the oldest beyond MAX_STORED of those not in use, and what a power cut left half written."""
        unused = []
        for path in self._directory.iterdir():
            if path.suffix != SUFFIX:
                path.unlink()
            elif self._in_use[path.stem] <= 0:
                unused.append((path.stat().st_mtime_ns, path))
        for _, path in sorted(unused)[: max(0, len(unused) - MAX_STORED)]:
            path.unlink()


class Models(Protocol):
    """What runs models: :class:`appliance.sandbox.life.Inference` says more."""

    def hold(self, model: ModelSpec) -> None: ...
    def release(self, model: ModelSpec) -> None: ...
    async def ready(self, model: ModelSpec) -> Ready: ...


class BroughtModels:
    """What one handler has brought, over all its workers: at most ``limit`` models, whatever it sends.

    Those that run are held until :meth:`close`. One that cannot be loaded is not, and is not tried again for a while.
    """

    def __init__(self, limit: int, store: GuestModelStore | None, inference: Models) -> None:
        self._limit = limit if store else 0
        self._store = store
        self._inference = inference
        self._digests: set[str] = set()
        self._held: dict[str, ModelSpec] = {}
        self._failed: dict[str, tuple[float, str]] = {}
        """By digest: until when it is not tried again, and why."""

    async def load(self, data: bytes) -> tuple[ModelSpec, Ready]:
        """The model of these bytes, running.

        HandlerError where it may not be brought, ModelError where it is none or does not run, DeviceError where it
        cannot be kept.
        """
        digest = await self._digest(data)
        until, why = self._failed.get(digest, (0.0, ""))
        if monotonic() < until:
            raise ModelError(why)
        model = self._held.get(digest) or await self._hold(data, digest)
        try:
            return model, await self._inference.ready(model)
        except ModelError as error:
            self._failed[digest] = monotonic() + RETRY_SECONDS, str(error)
            self._let_go(digest)
            raise

    async def _hold(self, data: bytes, digest: str) -> ModelSpec:
        if self._store is None:
            raise AssertionError("without a store no model may be brought")
        model = self._held[digest] = await self._store.keep(data, digest)
        self._inference.hold(model)
        return model

    def close(self) -> None:
        """The handler is gone."""
        for digest in list(self._held):
            self._let_go(digest)

    def _let_go(self, digest: str) -> None:
        self._inference.release(self._held.pop(digest))
        if self._store:
            self._store.forget(digest)

    async def _digest(self, data: bytes) -> str:
        """SHA-256 of a model that may be brought; HandlerError, ModelError."""
        if self._store is None or self._limit == 0:
            raise HandlerError("the handler may not bring models: raise guest_models in its manifest")
        if len(data) > MAX_GUEST_MODEL_BYTES:
            raise HandlerError(f"a model of {len(data)} bytes is over the limit of {MAX_GUEST_MODEL_BYTES}")
        if data[4:8] != TFLITE_IDENTIFIER:
            raise ModelError("what the guest brings is not a TFLite model")
        digest = await asyncio.to_thread(_digest, data)
        if digest not in self._digests and len(self._digests) >= self._limit:
            raise HandlerError(f"the handler has brought {self._limit} models already (guest_models in its manifest)")
        self._digests.add(digest)
        return digest


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _is_whole(path: Path, digest: str) -> bool:
    try:
        return digest_of(path) == digest
    except ModelError:
        return False
