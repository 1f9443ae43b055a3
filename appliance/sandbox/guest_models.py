"""Models that guests bring themselves: kept as files by their digest, so that inference takes them like any other."""

import asyncio
import hashlib
import os
import threading
from pathlib import Path

from appliance.config import InferenceConfig
from appliance.device.durable import write_durably
from appliance.errors import DeviceError, HandlerError, ModelError
from appliance.inference.model import TFLITE_IDENTIFIER, ModelSpec, digest_of
from appliance.sandbox.messages import MAX_GUEST_MODEL_BYTES
from appliance.sandbox.spec import model_spec

MAX_STORED = 32
"""Files of models that no handler has brought since the start, kept for when one does again."""
SUFFIX = ".tflite"


class GuestModelStore:
    """A directory of models, each named by its SHA-256. It is a cache: whatever is lost is written anew."""

    def __init__(self, directory: Path, inference: InferenceConfig) -> None:
        self._directory = directory
        self._inference = inference
        self._in_use: set[str] = set()
        """Digests of those brought since the start: their processes read the files again when they restart."""
        self._writing = threading.Lock()

    async def keep(self, data: bytes, digest: str) -> ModelSpec:
        """The model of these bytes, as a file and as the configuration has it run; DeviceError."""
        self._in_use.add(digest)
        try:
            path = await asyncio.to_thread(self._kept, data, digest)
        except OSError as error:
            raise DeviceError(f"{self._directory}: a guest's model cannot be kept: {error.strerror}") from error
        return model_spec(path, digest, self._inference)

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
            elif path.stem not in self._in_use:
                unused.append((path.stat().st_mtime_ns, path))
        for _, path in sorted(unused)[: max(0, len(unused) - MAX_STORED)]:
            path.unlink()


class BroughtModels:
    """What one handler has brought, over all its workers: at most ``limit`` models, whatever it sends."""

    def __init__(self, limit: int, store: GuestModelStore | None) -> None:
        self._limit = limit if store else 0
        self._store = store
        self._digests: set[str] = set()

    async def load(self, data: bytes) -> ModelSpec:
        """The model of these bytes; HandlerError where it may not be brought, ModelError where it is none."""
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
        return await self._store.keep(data, digest)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _is_whole(path: Path, digest: str) -> bool:
    try:
        return digest_of(path) == digest
    except ModelError:
        return False
