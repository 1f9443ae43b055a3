"""What a handler is tried on: pictures of any camera, and what another handler found."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path

import cbor2
import msgspec

from appliance.author.outcome import Tried
from appliance.camera.camera import IMAGE_SUFFIXES, Picture, kind_of
from appliance.camera.feed import CameraFeed
from appliance.config import CameraConfig
from appliance.device.reading import open_plain
from appliance.errors import ConfigError
from appliance.frame import Frame
from appliance.sandbox.emits import DOCUMENTS
from appliance.source import encode_jpeg
from appliance.wire import MAX_PAYLOAD_BYTES

CAMERA_TAG = 0x01
RECORD_SUFFIX = ".jsonl"
"""Of a file with what `appliance handler test --json` printed."""
MAX_RECORD_LINE = 4 << 20
"""Bytes, more than a handler may say about one frame. A longer line is cut, and then it is none."""


@dataclass(frozen=True, slots=True)
class Named:
    """A frame to try, and what to call it."""

    name: str
    frame: Frame


def cameras(inputs: Sequence[str], *, frames: int | None = None, loop: bool = False) -> list[CameraConfig]:
    """A lossless camera for each file, directory or URL; ConfigError where that is none.

    Single pictures are all of one source, ``camera``.
    """
    named: list[tuple[str, str]] = []
    for text in inputs:
        single = Path(text).suffix.lower() in IMAGE_SUFFIXES
        others = len([name for name, _ in named if name != "camera"])
        named.append(("camera" if single or not named else f"camera{others + 2}", text))
    configs = [CameraConfig(name=name, url=url, lossless=True, loop=loop, frames=frames) for name, url in named]
    for config in configs:
        kind_of(config)  # now, and not when those before it have been handled
    return configs


async def frames_of(configs: Sequence[CameraConfig], observes: Sequence[int]) -> AsyncGenerator[Named, None]:
    """What one input after another has for a handler that observes these tags. Raises as cameras do."""
    seqs: Counter[str] = Counter()
    for config in configs:
        frames = _recorded(config, observes) if _is_record(config) else _pictures(config, observes)
        async with aclosing(frames):
            taken = 0
            async for named in frames:
                yield replace(named, frame=replace(named.frame, seq=seqs[config.name]))
                seqs[config.name] += 1
                taken += 1
                if taken == config.frames:
                    break


async def _pictures(config: CameraConfig, observes: Sequence[int]) -> AsyncGenerator[Named, None]:
    tag = CAMERA_TAG if CAMERA_TAG in observes else observes[0]
    number = 0
    async with CameraFeed(config, patient=False) as feed:
        async for picture in feed:
            number += 1
            yield Named(_name(config, picture, number), await _frame(config, tag, picture))


def _is_record(config: CameraConfig) -> bool:
    return Path(config.url).suffix == RECORD_SUFFIX


async def _recorded(config: CameraConfig, observes: Sequence[int]) -> AsyncGenerator[Named, None]:
    """The results of another handler's trial, as `test --json` wrote them down."""
    try:
        with open_plain(Path(config.url)) as file:
            number = 0
            while line := await asyncio.to_thread(file.readline, MAX_RECORD_LINE + 1):
                number += 1
                for named in _results(config, observes, number, line):
                    yield named
    except OSError as error:
        raise ConfigError(f"{config.url}: cannot be read: {error.strerror}") from error


def _results(config: CameraConfig, observes: Sequence[int], number: int, line: bytes) -> list[Named]:
    if line.startswith(b'{"summary":'):
        return []
    try:
        tried = msgspec.json.decode(line, type=Tried)
    except ValueError as error:  # msgspec's are, too
        raise ConfigError(f"{config.url}: line {number} is none of `appliance handler test --json`: {error}") from error
    return [
        Named(tried.frame, Frame(result.tag, config.name, 0, 0, "cbor", cbor2.dumps(result.value)))
        for result in tried.results
        if result.tag in observes and result.format in DOCUMENTS
    ]


def _name(config: CameraConfig, picture: Picture, number: int) -> str:
    file = picture.meta.get("file")
    return str(file) if file else f"{Path(config.url).name}#{number}"


async def _frame(config: CameraConfig, tag: int, picture: Picture) -> Frame:
    payload = picture.jpeg
    if payload is None:
        payload = await asyncio.to_thread(encode_jpeg, picture, config.quality)
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise ConfigError(
            f"{config.url}: a picture of {len(payload)} bytes is over the limit of {MAX_PAYLOAD_BYTES}; make it smaller"
        )
    size = picture.width, picture.height
    return Frame(tag, config.name, 0, picture.captured_ns, "jpeg", payload, *size, meta=picture.meta)
