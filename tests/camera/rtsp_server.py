"""The smallest RTSP server that FFmpeg plays from: one client, H.264 over the RTSP connection itself."""

import socket
import threading
from fractions import Fraction
from types import TracebackType
from typing import Self

import av
import numpy as np
from av.video.stream import VideoStream

WIDTH, HEIGHT, FPS = 160, 120, 50
SDP = """v=0
o=- 0 0 IN IP4 127.0.0.1
s=camera
t=0 0
m=video 0 RTP/AVP 96
a=rtpmap:96 H264/90000
a=fmtp:96 packetization-mode=1
a=control:track0
""".replace("\n", "\r\n")


class RtspServer:
    """Serves ``url`` from a thread until left; :meth:`hang` stops the pictures but keeps the connection."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"rtsp://viewer:secret@127.0.0.1:{self._listener.getsockname()[1]}/stream"
        self.transport = ""
        self._stopped = threading.Event()
        self._hanging = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def hang(self) -> None:
        self._hanging.set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _serve(self) -> None:
        while not self._stopped.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                try:
                    if self._converse(connection):
                        self._stream(connection)
                except OSError:
                    continue

    def _converse(self, connection: socket.socket) -> bool:
        """Answer requests up to PLAY."""
        with connection.makefile("rb") as requests:
            while line := requests.readline().decode():
                headers = {}
                while (header := requests.readline().decode().strip()) != "":
                    key, _, value = header.partition(": ")
                    headers[key.lower()] = value
                method = line.split()[0]
                extra, body = "", ""
                if method == "DESCRIBE":
                    body = SDP
                    extra = f"Content-Type: application/sdp\r\nContent-Length: {len(SDP)}\r\n"
                elif method == "SETUP":
                    self.transport = headers["transport"]
                    extra = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n"
                elif method == "OPTIONS":
                    extra = "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n"
                answer = f"RTSP/1.0 200 OK\r\nCSeq: {headers['cseq']}\r\nSession: 1\r\n{extra}\r\n{body}"
                connection.sendall(answer.encode())
                if method == "PLAY":
                    return True
        return False

    def _stream(self, connection: socket.socket) -> None:
        rtp, rtcp = _neighbours()
        port = rtp.getsockname()[1]
        with rtp, rtcp, av.open(f"rtp://127.0.0.1:{port}?pkt_size=1200", "w", format="rtp") as muxer:
            stream = muxer.add_stream("libx264", rate=FPS, options={"preset": "ultrafast", "tune": "zerolatency"})
            assert isinstance(stream, VideoStream)
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            stream.gop_size = 5
            number = 0
            while not self._stopped.wait(1 / FPS):
                if self._hanging.is_set():
                    continue
                picture = np.full((HEIGHT, WIDTH, 3), 16 + number % 200, np.uint8)
                frame = av.VideoFrame.from_ndarray(picture)
                frame.pts, frame.time_base = number, Fraction(1, FPS)
                number += 1
                for packet in stream.encode(frame):
                    muxer.mux(packet)
                _forward(rtp, connection)


def _neighbours() -> tuple[socket.socket, socket.socket]:
    """UDP sockets for RTP and RTCP: on neighbouring ports, as the muxer assumes."""
    for _ in range(50):
        rtp, rtcp = socket.socket(type=socket.SOCK_DGRAM), socket.socket(type=socket.SOCK_DGRAM)
        try:
            rtp.bind(("127.0.0.1", 0))
            rtcp.bind(("127.0.0.1", rtp.getsockname()[1] + 1))
        except (OSError, OverflowError):
            rtp.close()
            rtcp.close()
            continue
        rtp.setblocking(False)
        return rtp, rtcp
    raise OSError("no free ports")


def _forward(rtp: socket.socket, connection: socket.socket) -> None:
    """RTP packets that wait on ``rtp``, interleaved on channel 0 of the RTSP connection."""
    while True:
        try:
            packet = rtp.recv(2048)
        except BlockingIOError:
            return
        connection.sendall(b"$\x00" + len(packet).to_bytes(2, "big") + packet)
