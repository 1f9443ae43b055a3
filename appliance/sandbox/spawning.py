"""The zipper's hold on the zygote and on the workers it forks."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from types import TracebackType
from typing import Self

from appliance.errors import DeviceError
from appliance.ipc.channel import Assembler, pack, socket_pair
from appliance.ipc.child import kept_environment
from appliance.ipc.packets import PACKET_BYTES
from appliance.sandbox.messages import Exited, FromZygote, Spawn, SpawnFailed

SPAWN_SECONDS = 10.0
"""For a fork, and for the zygote's own start before the first: a Raspberry Pi under load takes a second or two."""
STOP_SECONDS = 2.0


class WorkerProcess:
    """One worker: its pid, the zipper's end of its socket, and its end."""

    def __init__(self, sock: socket.socket, pid: int, pidfd: int) -> None:
        self.sock = sock
        self.pid = pid
        self.exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        """Exit code, or minus the signal that killed it."""
        self._pidfd = pidfd

    def end(self, status: int) -> None:
        """The zygote says that it has ended."""
        if not self.exited.done():
            self.exited.set_result(status)

    def kill(self) -> None:
        """SIGKILL, through the pidfd: never another process that has got the pid since."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def close(self) -> None:
        """Kill it and give back the descriptors."""
        self.kill()
        os.close(self._pidfd)
        self.sock.close()


class _ZygoteProcess:
    """One life of the zygote, from exec to death."""

    def __init__(self, ring_fd: int) -> None:
        self._ring_fd = ring_fd
        self._loop = asyncio.get_running_loop()
        self._next_id = 0
        self._pending: dict[int, tuple[socket.socket, asyncio.Future[WorkerProcess]]] = {}
        self._workers: dict[int, WorkerProcess] = {}
        self._assembler: Assembler[FromZygote] = Assembler(FromZygote)
        self._sock, theirs = socket_pair()
        with theirs:
            self._process = self._execute(theirs.fileno())
        self._sock.setblocking(False)
        self._pidfd = os.pidfd_open(self._process.pid)
        self.pid = self._process.pid
        self.ended: asyncio.Future[int] = self._loop.create_future()
        """Its status, once it has ended and everybody who waits for one of its workers has been told."""
        self._loop.add_reader(self._sock.fileno(), self._readable)
        self._loop.add_reader(self._pidfd, self.bury)

    def _execute(self, fd: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "appliance.sandbox.zygote", str(fd)]
        try:
            # a few ms on the loop, once: in another thread the process would die with that thread
            return subprocess.Popen(
                command,
                pass_fds=(fd,),
                stdin=subprocess.DEVNULL,
                env=kept_environment(),
                start_new_session=True,  # a ^C in the terminal is for us, also before it can ignore that
            )
        except OSError as error:
            self._sock.close()
            raise DeviceError(f"cannot start the zygote: {error}") from error

    def request(self, ours: socket.socket, theirs: socket.socket) -> asyncio.Future[WorkerProcess]:
        """Ask for a worker; takes ``ours`` over. DeviceError, ConnectionError where the zygote does not listen."""
        self._next_id += 1
        try:
            socket.send_fds(self._sock, pack(Spawn(self._next_id)), [theirs.fileno(), self._ring_fd])
        except BlockingIOError as error:
            raise DeviceError("the zygote does not take requests") from error
        future: asyncio.Future[WorkerProcess] = self._loop.create_future()
        self._pending[self._next_id] = ours, future
        return future

    def stop(self) -> None:
        """Ask it to end: it does at the end of its messages."""
        self._sock.shutdown(socket.SHUT_RDWR)

    def kill(self) -> None:
        self._process.kill()

    def bury(self) -> None:
        """It is dead or of no use, and its workers die with it: tell whoever waits for one of them."""
        if self.ended.done():
            return
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_reader(self._pidfd)
        self._process.kill()
        status = self._process.wait()
        self._sock.close()
        os.close(self._pidfd)
        for ours, future in self._pending.values():
            ours.close()
            if not future.done():
                future.set_exception(DeviceError(f"the zygote ended (status {status})"))
        for worker in self._workers.values():
            worker.end(-signal.SIGKILL)
        self.ended.set_result(status)

    def _readable(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self._sock, PACKET_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except ConnectionResetError:
            return  # said once, when it ended without reading all; what it wrote before still follows
        try:
            message = self._assembler.feed(data) if data else None
            if message is None:
                self._loop.remove_reader(self._sock.fileno())
                self.kill()  # without its socket it is of no use; the pidfd will tell
            else:
                self._receive(message, fds)
        finally:
            for fd in fds:
                os.close(fd)

    def _receive(self, message: FromZygote, fds: list[int]) -> None:
        if isinstance(message, Exited):
            worker = self._workers.pop(message.id, None)
            if worker:
                worker.end(message.status)
            return
        ours, future = self._pending.pop(message.id)
        if isinstance(message, SpawnFailed) or future.done():
            ours.close()  # where nobody waits any more, the worker ends because its socket is closed
            if isinstance(message, SpawnFailed) and not future.done():
                future.set_exception(DeviceError(f"the zygote cannot fork a worker: {message.message}"))
            return
        worker = WorkerProcess(ours, message.pid, fds.pop())
        self._workers[message.id] = worker
        future.set_result(worker)


class Zygote:
    """``async with Zygote(ring_fd) as zygote``: starts the zygote's process, and again whenever it has died.

    Workers die with the zygote that forked them. Use it in the main thread: the process is bound to the life of
    the thread that started it.
    """

    def __init__(self, ring_fd: int) -> None:
        self._ring_fd = ring_fd
        self._process: _ZygoteProcess | None = None

    @property
    def pid(self) -> int | None:
        """Of the process; None while it is down."""
        process = self._process
        return process.pid if process and not process.ended.done() else None

    async def __aenter__(self) -> Self:
        self._process = _ZygoteProcess(self._ring_fd)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process, self._process = self._process, None
        if process is None or process.ended.done():
            return
        process.stop()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await asyncio.shield(process.ended)
        except TimeoutError:
            pass  # it is killed below
        finally:
            process.bury()

    async def spawn(self) -> WorkerProcess:
        """A new worker, waiting for its setup; DeviceError where none can be had just now."""
        future = self._request()
        try:
            async with asyncio.timeout(SPAWN_SECONDS):
                return await future
        except TimeoutError as error:
            if self._process:
                self._process.kill()  # it hangs; the next spawn starts another
            raise DeviceError(f"the zygote did not fork a worker within {SPAWN_SECONDS:.0f} s") from error
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and not future.exception():
                future.result().close()  # it came in the same moment
            raise

    def _request(self) -> asyncio.Future[WorkerProcess]:
        if self._process is None:
            raise DeviceError("the zygote is not running")
        ours, theirs = socket_pair()
        with theirs:
            try:
                if self._process.ended.done():
                    self._process = _ZygoteProcess(self._ring_fd)
                try:
                    return self._process.request(ours, theirs)
                except ConnectionError:
                    self._process.bury()  # it has died, and the loop has not told yet
                    self._process = _ZygoteProcess(self._ring_fd)
                    return self._process.request(ours, theirs)
            except BaseException:
                ours.close()
                raise
