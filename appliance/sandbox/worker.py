"""The process that runs one handler: set up, locked down, then one frame after another.

Forked from the zygote, which has imported all this already. Its standard output leads nowhere and its standard error
to itself (wasm3 prints a backtrace there), so whatever must be known goes through the socket.
"""

import os
import socket
import traceback
from collections.abc import Callable, Sequence
from time import process_time

from appliance.errors import PeerError
from appliance.ipc.packets import BlockingChannel
from appliance.ipc.ring import RingReader
from appliance.sandbox.abi import Abi, bind
from appliance.sandbox.engine import GuestFailedError, Instance, open_engine
from appliance.sandbox.engine.calibration import Allowance, gas_per_ms
from appliance.sandbox.lockdown import CALLS, LOADING, forbid_code, lock_down
from appliance.sandbox.messages import MAX_TRAP_TEXT, GuestFault, Job, Loaded, Setup, Started, ToWorker, Trapped
from appliance.sandbox.services import Services, ZipperGoneError

MAX_HOST_CALLS = 100_000
"""After these a worker is replaced: wasm3's binding leaks 130 to 145 bytes a call, so 14 MB by then."""
MAX_TRAPS = 16
"""After these too: a C guest that is stopped leaves its stack pointer where it was, and loses some stack each time."""
ABANDONED = frozenset({"trap", "gas", "budget"})
"""Failures that stop the guest in the middle of a function."""
CPU_SHARE = 0.5
"""Part of RLIMIT_CPU that is used up before the worker is replaced."""

DONE, FAILED = 0, 1
"""Exit codes: not wanted any more or worn out, and a failure that was told through the socket."""


def run(sock: socket.socket, ring_fd: int) -> int:
    """Serve ``sock`` until it closes or the worker is worn; the exit code."""
    channel: BlockingChannel[ToWorker] = BlockingChannel(sock, ToWorker)
    try:
        ring = RingReader(ring_fd)
        os.close(ring_fd)  # the mapping is all it needs
        return _serve(channel, ring)
    except (ZipperGoneError, ConnectionError):
        return DONE  # the zipper has closed the socket
    except MemoryError:
        _tell(channel, "memory", "the handler's process has no memory left")
    except Exception as error:  # noqa: BLE001 - told to the zipper: nobody reads this process's stderr
        _tell(channel, "crash", _described(error))
    return FAILED


def _described(error: Exception) -> str:
    """A traceback without lines of source: those would have to be read from files."""
    places = [
        f"{frame.f_code.co_filename}:{line} {frame.f_code.co_qualname}"
        for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    return f"{type(error).__name__}: {error}; at {', '.join(places)}"


def _tell(channel: BlockingChannel[ToWorker], kind: GuestFault, message: str, backtrace: Sequence[str] = ()) -> None:
    channel.send(Trapped(kind, message[-MAX_TRAP_TEXT:], fatal=True, backtrace=list(backtrace)))


def _serve(channel: BlockingChannel[ToWorker], ring: RingReader) -> int:
    setup = channel.receive()
    if setup is None:
        return DONE
    if not isinstance(setup, Setup):
        raise PeerError("the first message must be the setup")
    engine = open_engine(setup.engine)
    engine.prepare(setup.memory_bytes)
    services = Services(setup, channel, ring)
    lockdown = lock_down(setup.memory_bytes, setup.cpu_seconds, LOADING if engine.LOADS_CODE else CALLS)
    try:
        instance = engine.load(setup.module, setup.memory_bytes)
        if engine.LOADS_CODE:
            forbid_code()
        channel.send(Loaded(lockdown))
        guest = _Guest(instance, Allowance(setup.gas, setup.deadline_ms, gas_per_ms(setup.engine)))
        abi = bind(setup.abi, instance, services)
        guest.run(abi.start)
    except GuestFailedError as error:
        _tell(channel, error.kind, str(error), error.backtrace)
        return FAILED
    channel.send(Started())
    traps = 0
    while not _worn(services, traps, setup.cpu_seconds):
        job = services.next()
        if job is None:
            return DONE
        if not isinstance(job, Job):
            raise PeerError(f"a {type(job).__name__} between two frames")
        services.begin(job)
        traps += not _handle(channel, services, guest, abi)
    return DONE


class _Guest:
    """An instance that is called with gas for one frame at a time."""

    def __init__(self, instance: Instance, allowance: Allowance) -> None:
        self._instance = instance
        self._allowance = allowance

    def run(self, call: Callable[[], None]) -> int:
        """Call into the guest; the gas that took. GuestFailedError."""
        self._instance.allow(self._allowance.gas)
        started = process_time()
        try:
            call()
        except GuestFailedError as error:
            if error.kind == "gas":
                raise GuestFailedError("gas", self._allowance.explain(), error.backtrace) from error
            raise
        finally:
            gas = self._instance.gas_used()
            self._allowance.learn(gas, process_time() - started)
        return gas

    def memory_bytes(self) -> int:
        return len(self._instance.memory())


def _worn(services: Services, traps: int, cpu_seconds: int) -> bool:
    return services.host_calls > MAX_HOST_CALLS or traps >= MAX_TRAPS or process_time() > cpu_seconds * CPU_SHARE


def _handle(channel: BlockingChannel[ToWorker], services: Services, guest: _Guest, abi: Abi) -> bool:
    """Handle the current frame and answer for it; False where the guest trapped."""
    try:
        gas = guest.run(abi.handle)
        channel.send(services.finish(gas, guest.memory_bytes() if services.setup.measure else 0))
    except GuestFailedError as error:
        message = str(error)[:MAX_TRAP_TEXT]
        channel.send(Trapped(error.kind, message, fatal=False, backtrace=list(error.backtrace)))
        return error.kind not in ABANDONED
    return True
