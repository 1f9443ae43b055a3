"""Verdicts on disk, so that a module is judged once.

The directory is the appliance's own: whoever can write there can have any code run in a worker. What is checked is
damage: a torn or spoilt file counts as none.
"""

import hashlib
import platform
from functools import cache
from importlib.metadata import version
from pathlib import Path

import msgspec

from appliance.device.durable import write_durably
from appliance.sandbox.admission.verdict import ADMISSION_VERSION, Order, Verdict

MAX_FILES = 64
MAX_BYTES = 256 << 20
"""Of all files. The oldest go first."""
MAX_FILE_BYTES = 64 << 20
"""Of one verdict: compiled code is about ten times as long as the module."""
_SUFFIX = ".verdict"
_DIGEST_BYTES = hashlib.sha256().digest_size
_DECODER: msgspec.msgpack.Decoder[Verdict] = msgspec.msgpack.Decoder(Verdict)
_CPU_FEATURES = (b"flags", b"Features")
"""Lines of /proc/cpuinfo on x86-64 and on ARM."""


def key_of(order: Order) -> str:
    """What a verdict depends on: the order, this code, the engines and, for compiled code, the processor."""
    parts = (ADMISSION_VERSION, version("wasmtime"), version("pywasm3"), _processor(), order)
    return hashlib.sha256(msgspec.msgpack.encode(parts)).hexdigest()


@cache
def _processor() -> bytes:
    """Compiled code may use all that the processor has, so a card that is put into another box is no use there."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        lines = []
    features = next((line for line in lines if line.startswith(_CPU_FEATURES)), b"")
    return platform.machine().encode() + hashlib.sha256(features).digest()


class VerdictCache:
    """Bounded, on disk. Its methods block; one at a time may store."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def load(self, key: str) -> Verdict | None:
        """None where it is not known, or damaged."""
        try:
            with (self._directory / f"{key}{_SUFFIX}").open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except OSError:
            return None
        digest, content = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
        if len(data) > MAX_FILE_BYTES or hashlib.sha256(content).digest() != digest:
            return None
        try:
            return _DECODER.decode(content)
        except msgspec.MsgspecError:  # written by another version of this code that forgot to raise its own
            return None

    def store(self, key: str, verdict: Verdict) -> None:
        """Keep a verdict, and remove what is too old for that. OSError where the disk fails."""
        content = msgspec.msgpack.encode(verdict)
        if len(content) + _DIGEST_BYTES > MAX_FILE_BYTES:
            return
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_durably(self._directory / f"{key}{_SUFFIX}", hashlib.sha256(content).digest() + content, mode=0o600)
        self._prune()

    def _prune(self) -> None:
        """Keep the newest within the bounds; what a power cut left half-written goes, too."""
        verdicts = []
        for path in self._directory.iterdir():
            if path.name.endswith(_SUFFIX):
                status = path.stat()
                verdicts.append((status.st_mtime_ns, status.st_size, path))
            elif path.name.startswith(".") and _SUFFIX in path.name:
                path.unlink()
        total = 0
        for place, (_, size, path) in enumerate(sorted(verdicts, reverse=True)):
            total += size
            if place >= MAX_FILES or total > MAX_BYTES:
                path.unlink()
