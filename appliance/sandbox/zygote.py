"""The process that workers are forked from: ``python -m appliance.sandbox.zygote FD``.

It has imported what a worker needs, and nothing that a worker must not have: no asyncio, no numpy, no TFLite, no
network library. It runs no guest but an endless loop of its own, to see how fast that is. It has one thread, so that
forking is safe, and ends with its parent.
"""

import gc
import os
import select
import signal
import socket
import sys
from itertools import pairwise

import msgspec

from appliance.ipc.child import die_with_parent
from appliance.ipc.packets import PACKET_BYTES, Assembler, pack
from appliance.sandbox import worker
from appliance.sandbox.engine import wasm3_engine  # noqa: F401 - the engine of almost every worker: loaded once, for all
from appliance.sandbox.engine.calibration import gas_per_ms
from appliance.sandbox.lockdown import prepare
from appliance.sandbox.messages import Exited, Spawn, Spawned, SpawnFailed, ToWorker

MAX_WORKERS = 256
_FDS_PER_SPAWN = 2


class Zygote:
    """Forks on request, tells the pid, reaps, tells the exit status."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._pid = os.getpid()
        self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self._children: dict[int, tuple[int, int]] = {}  # pidfd -> (id, pid)
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def serve(self) -> None:
        """Until the parent closes the socket."""
        while True:
            for fd, _ in self._poll.poll():
                if fd != self._sock.fileno():
                    self._reap(fd)
                elif not self._request():
                    return

    def _request(self) -> bool:
        """Take one message; False at the end of them."""
        data, fds, _, _ = socket.recv_fds(self._sock, PACKET_BYTES, _FDS_PER_SPAWN, socket.MSG_CMSG_CLOEXEC)
        if not data:
            return False
        try:
            self._spawn(msgspec.msgpack.decode(data[1:], type=Spawn), fds)
        finally:
            for fd in fds:
                os.close(fd)
        return True

    def _spawn(self, request: Spawn, fds: list[int]) -> None:
        if len(fds) != _FDS_PER_SPAWN or len(self._children) >= MAX_WORKERS:
            self._send(SpawnFailed(request.id, f"{len(fds)} descriptors came, {len(self._children)} workers run"))
            return
        try:
            pid = os.fork()
        except OSError as error:
            self._send(SpawnFailed(request.id, f"cannot fork: {error.strerror}"))
            return
        if pid == 0:
            self._become_worker(*fds)
        pidfd = os.pidfd_open(pid)
        self._children[pidfd] = request.id, pid
        self._poll.register(pidfd, select.POLLIN)
        socket.send_fds(self._sock, pack(Spawned(request.id, pid)), [pidfd])

    def _become_worker(self, sock_fd: int, ring_fd: int) -> None:
        """In the child: keep the two descriptors, run, and never return."""
        code = worker.FAILED
        try:
            die_with_parent(self._pid)
            for standard in range(3):
                os.dup2(self._null, standard)
            _close_all_but(0, 1, 2, sock_fd, ring_fd)
            sock = socket.socket(fileno=sock_fd)  # kept to the end: freeing one that is open makes forbidden calls
            code = worker.run(sock, ring_fd)
        finally:
            os._exit(code)  # not through the zygote's stack, nor its clean-up

    def _reap(self, pidfd: int) -> None:
        id, pid = self._children.pop(pidfd)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
        self._send(Exited(id, os.waitstatus_to_exitcode(status)))

    def _send(self, message: SpawnFailed | Exited) -> None:
        for packet in pack(message):
            self._sock.send(packet)


def _close_all_but(*kept: int) -> None:
    edges = sorted(kept)
    for low, high in pairwise(edges):
        os.closerange(low + 1, high)
    os.closerange(edges[-1] + 1, os.sysconf("SC_OPEN_MAX"))


def main() -> None:
    die_with_parent(os.getppid())
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to the whole group or unit: the parent says when to end
        signal.signal(number, signal.SIG_IGN)
    sock = socket.socket(fileno=int(sys.argv[1]))
    Assembler[ToWorker](ToWorker)  # msgspec works a message's types out at its first decoder: once, for all workers
    prepare()  # the filter of system calls: a worker can open no library
    gas_per_ms("wasm3")  # measured once, for all workers
    gc.collect()
    gc.freeze()  # so that the workers' collections do not copy the pages they share
    try:
        Zygote(sock).serve()
    except OSError:
        return  # the parent is gone


if __name__ == "__main__":
    main()
