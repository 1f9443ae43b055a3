"""A store with bundles to put into it."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from appliance.deploy.bundle import Bundle, BundleFile, encode_bundle
from appliance.deploy.fleet_topics import MIN_CHUNK_BYTES
from appliance.deploy.partial_file import PartialFile
from appliance.deploy.store import Store
from appliance.deploy.trust import VerifiedBundle

QUOTA = 64 << 20
MODEL = bytes(range(256)) * 40


@dataclass(frozen=True)
class BundleOnOffer:
    """A bundle with its bytes."""

    verified: VerifiedBundle
    contents: dict[str, bytes]
    index: bytes

    @property
    def digest(self) -> str:
        return self.verified.digest

    @property
    def digests(self) -> set[str]:
        return {self.digest, *(file.sha256 for file in self.verified.bundle.files.values())}


def detector(version: str, model: bytes = MODEL) -> BundleOnOffer:
    """All versions have the same model, unless told otherwise."""
    contents = {
        "handler.toml": f'name = "detector"\nversion = "{version}"\n'.encode(),
        "handler.wasm": b"\x00asm" + version.encode() * 500,
        "model.tflite": model,
    }
    files = {name: BundleFile(hashlib.sha256(data).hexdigest(), len(data)) for name, data in contents.items()}
    bundle = Bundle(name="detector", version=version, files=files)
    index = encode_bundle(bundle)
    return BundleOnOffer(VerifiedBundle(bundle, hashlib.sha256(index).hexdigest(), len(index)), contents, index)


class Scene:
    """A store in a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.restart()

    def restart(self, quota: int = QUOTA) -> None:
        self.store = Store(self.path, quota)

    def download(self, bundle: BundleOnOffer) -> None:
        """Its files and its index."""
        for data in (*bundle.contents.values(), bundle.index):
            if not self.store.has(self.digest(data)):
                with self.partial(data) as file:
                    file.append(data[file.received :], MIN_CHUNK_BYTES)
                    file.finish()

    def keep(self, bundle: BundleOnOffer) -> Path:
        self.download(bundle)
        return self.store.keep(bundle.verified)

    def begin(self, data: bytes, length: int) -> Path:
        """Download this much of a file. Returns where it is."""
        with self.partial(data) as file:
            file.append(data[:length], MIN_CHUNK_BYTES)
        return self.path / "incoming" / f"{self.digest(data)}.{MIN_CHUNK_BYTES}"

    @contextmanager
    def partial(self, data: bytes) -> Iterator[PartialFile]:
        with self.store.incoming(self.digest(data), len(data)) as file:
            file.resume()
            yield file

    @staticmethod
    def digest(data: bytes) -> str:
        return hashlib.sha256(data).hexdigest()
