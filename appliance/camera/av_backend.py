"""Video files, network cameras and V4L2 devices, all through FFmpeg's libraries (PyAV).

Motion JPEG is passed on as it is where the size fits; everything else is decoded.
"""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import av
import numpy as np
from av.container import InputContainer
from av.error import ArgumentError, ExitError, FFmpegError, InvalidDataError
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from appliance.camera.camera import (
    AV_SCHEMES,
    MAX_PICTURE_SIDE,
    Camera,
    Picture,
    check_size,
    printable,
    target_size,
    wrong_url,
)
from appliance.camera.jpeg import size_of
from appliance.camera.pacing import Decimator, Timeline
from appliance.config import CameraConfig
from appliance.errors import ApplianceError, DeviceError

OPEN_SECONDS = 10.0
"""For a network camera to answer."""
MAX_SOCKET_SECONDS = 2000.0
"""FFmpeg keeps a socket's timeout as microseconds in 31 bits."""
MAX_DAMAGED = 250
"""Damaged packets in a row before the camera counts as gone."""
DEFAULT_RATE = 25.0
"""Pictures per second of a stream that carries neither timestamps nor a rate."""

REMEDIES: dict[type[FFmpegError], str] = {
    ExitError: "no answer in time",  # PyAV's way to say that its own time limit struck
    av.error.FileNotFoundError: "is it plugged in?",
    av.error.PermissionError: "may this user read it (for a device: group `video`)?",
    av.error.HTTPUnauthorizedError: "the user name and password in `url` are wrong or missing",
}

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Input:
    """How FFmpeg is to open a camera."""

    url: str
    live: bool
    format: str | None = None
    """None: found out from the contents."""
    options: dict[str, str] = field(default_factory=dict)


def input_of(config: CameraConfig) -> Input:
    """What a configuration means to FFmpeg; no more protocols are allowed than the URL needs."""
    url = config.url
    if url.startswith("/dev/"):
        options = {"input_format": "mjpeg"}
        if config.width and config.height:
            options["video_size"] = f"{config.width}x{config.height}"
        if config.fps:
            options["framerate"] = f"{config.fps:g}"
        return Input(url, live=True, format="v4l2", options=options)
    scheme = url.partition(":")[0]
    if scheme not in AV_SCHEMES:
        return Input(f"file:{url}", live=False, options={"protocol_whitelist": "file"})
    options = {"timeout": str(round(1e6 * min(config.stall_seconds, MAX_SOCKET_SECONDS)))}  # in microseconds
    if scheme.startswith("rtsp"):
        options |= {"rtsp_transport": "tcp", "protocol_whitelist": "rtsp,rtsps,rtp,tcp,tls"}
    else:
        options |= {"protocol_whitelist": "http,https,tcp,tls"}
    return Input(url, live=True, options=options)


class AvCamera(Camera):
    """One video stream. A damaged packet is skipped; MAX_DAMAGED in a row are a DeviceError."""

    def __init__(self, config: CameraConfig) -> None:
        self._config = config
        self._input = input_of(config)
        self._container, self._stream = self._open()
        on_demand = config.url.startswith("http") and self._container.duration is not None
        self.live = self._input.live and not on_demand
        rate = float(self._stream.average_rate or DEFAULT_RATE)
        self.description = (
            f"{printable(config.url)}: {self._stream.codec_context.name} "
            f"{self._stream.width}x{self._stream.height}, {rate:g} fps"
        )
        self._reformatter = VideoReformatter()
        self._timeline = Timeline(1 / rate)
        self._decimator = Decimator(None if config.lossless and not self.live else config.fps)
        self._pictures = self._play()

    def read(self) -> Picture | None:
        try:
            picture = next(self._pictures, None)
        except FFmpegError as error:
            raise self._gone(_reason(error)) from None  # the cause would carry the URL with its password
        if picture is None and self.live:
            raise self._gone("the stream ended")
        return picture

    def close(self) -> None:
        self._container.close()

    def _gone(self, why: str) -> DeviceError:
        return DeviceError(f"camera {self._config.name}: {printable(self._config.url)}: {why}")

    def _open(self) -> tuple[InputContainer, VideoStream]:
        try:
            container = _open_container(self._input)
        except FFmpegError as error:
            raise self._cannot_open(_reason(error)) from None  # as in read()
        try:
            return container, self._video_of(container)
        except ApplianceError:
            container.close()
            raise

    def _cannot_open(self, why: str) -> ApplianceError:
        """A file that cannot be played now never can; a device or a network camera may come back."""
        return self._gone(why) if self._input.live else wrong_url(self._config, why)

    def _video_of(self, container: InputContainer) -> VideoStream:
        if not container.streams.video or container.streams.video[0].codec_context is None:
            raise self._cannot_open("holds no video that can be decoded")
        stream = container.streams.video[0]
        if max(stream.width, stream.height) > MAX_PICTURE_SIDE:
            raise self._cannot_open(f"{stream.width}x{stream.height} is over the limit of {MAX_PICTURE_SIDE}")
        stream.codec_context.options = {"max_pixels": str(MAX_PICTURE_SIDE**2)}
        if not self._input.live:
            stream.thread_type = "AUTO"  # costs a few frames of delay
        return stream

    def _play(self) -> Iterator[Picture]:
        """All pictures, a file's again and again if it loops."""
        count = 0
        while True:
            before = count
            for picture in self._play_once():
                count += 1
                yield picture
            if count == before and not self.live:
                raise self._gone("holds no picture that can be read")
            if self.live or not self._config.loop:
                return
            self._container.close()
            self._container, self._stream = self._open()  # not every format can seek back
            self._timeline.restart()

    def _play_once(self) -> Iterator[Picture]:
        damaged = 0
        for packet in self._container.demux(self._stream):
            try:
                pictures = list(self._pictures_in(packet))
            except (FFmpegError, ValueError) as error:
                damaged += 1
                log.debug("event=packet_skipped camera=%s error=%s", self._config.name, error)
                if damaged > MAX_DAMAGED:
                    raise self._gone(f"{damaged} damaged packets in a row") from None
                continue
            damaged = 0 if pictures else damaged
            yield from pictures

    def _pictures_in(self, packet: "Packet[VideoStream]") -> Iterator[Picture]:
        if self._stream.codec_context.name == "mjpeg":
            if not packet.size:
                return  # the mark at the end
            jpeg = bytes(packet)
            size = size_of(jpeg)
            if size is not None and target_size(self._config, *size) == size:
                stamp = None if packet.pts is None else float(packet.pts * packet.time_base)
                yield from self._due(stamp, jpeg, *size)
                return
        for frame in packet.decode():
            yield from self._due(frame.time, frame, frame.width, frame.height)

    def _due(self, stamp: float | None, content: bytes | VideoFrame, width: int, height: int) -> Iterator[Picture]:
        """The picture, unless the cap on frames per second leaves it out."""
        pts = self._timeline.at(stamp)
        if not self._decimator.keep(pts):
            return
        now = time.time_ns()
        jpeg, pixels = None, None
        if isinstance(content, bytes):
            jpeg = content
        else:
            check_size(width, height)
            width, height = target_size(self._config, width, height)
            rgb = self._reformatter.reformat(content, width, height, "rgb24", threads=1)
            pixels = np.ascontiguousarray(rgb.to_ndarray(), np.uint8)
        yield Picture(width, height, now, pixels, jpeg, None if self.live else pts)


def _open_container(source: Input) -> InputContainer:
    options = source.options | {"max_pixels": str(MAX_PICTURE_SIDE**2)}
    wait = float(source.options["timeout"]) / 1e6 if "timeout" in source.options else None
    timeout = (OPEN_SECONDS, wait) if wait else None
    try:
        return av.open(source.url, format=source.format, options=options, timeout=timeout, metadata_errors="replace")
    except (ArgumentError, InvalidDataError):
        if "input_format" not in source.options:
            raise
    # a device without Motion JPEG: whatever it has
    plain = {key: value for key, value in source.options.items() if key != "input_format"}
    return _open_container(replace(source, options=plain))


def _reason(error: FFmpegError) -> str:
    what = error.strerror or type(error).__name__
    return next((f"{what}; {remedy}" for kind, remedy in REMEDIES.items() if isinstance(error, kind)), what)


def open_av(config: CameraConfig) -> AvCamera:
    """A file, ``rtsp://…``, ``http://…`` or ``/dev/videoN``.

    ConfigError for a file that is not a video or is over the limits, DeviceError for what may come back.
    """
    return AvCamera(config)
