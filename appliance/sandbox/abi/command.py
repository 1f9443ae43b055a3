"""WASI programs as handlers: a fresh instance for each frame, which finds it in a file and prints its result."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import PurePosixPath

from appliance.inference.messages import Crop
from appliance.sandbox.abi.guest import Guest
from appliance.sandbox.abi.pictures import MAKERS
from appliance.sandbox.abi.results import emit_text
from appliance.sandbox.abi.wasi_files import File, FileSystem
from appliance.sandbox.abi.wasi_program import ExitError, LineLog, Program
from appliance.sandbox.abi.wasi_snapshot_preview1 import Wasi
from appliance.sandbox.abi.wasi_types import WasiErrno, WasiError
from appliance.sandbox.engine import Function, GuestFailedError
from appliance.sandbox.messages import MAX_EMIT_BYTES, CommandSpec, Job
from appliance.sandbox.services import RefusalError, Services

START = "_start"
JPEG_ENDINGS = frozenset({"jpg", "jpeg"})
_WORD = re.compile(r"\{(frame|source|seq|tag)\}")
FIRST_INODE = 2
"""1 is the directory's."""


class Output:
    """Standard output: the result, as far as a frame may be long."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes) -> None:
        """GuestFailedError ``output`` where it becomes too long: it is no use to go on."""
        if len(self.data) + len(data) > MAX_EMIT_BYTES:
            raise GuestFailedError("output", f"it printed more than {MAX_EMIT_BYTES} bytes about one frame")
        self.data += data


class Command:
    """The convention."""

    def __init__(self, guest: Guest, wasi: Wasi) -> None:
        self._guest = guest
        self._services = guest.services
        self._wasi = wasi
        self._command = guest.services.setup.command or CommandSpec(["handler", "{frame}"], "frame.jpg")
        bundle = guest.services.setup.files.items()
        self._files = {
            name: File(name, inode, partial(bytes, content))
            for inode, (name, content) in enumerate(bundle, FIRST_INODE + 1)
        }
        self._fresh = True

    def start(self) -> None:
        self._find()

    def _find(self) -> Function:
        start = self._guest.instance.find(START, "v()")
        if start is None:
            raise GuestFailedError("link", f"it does not export {START}: compile it as a program, not as a library")
        return start

    def handle(self) -> None:
        job = self._services.job()
        if not self._fresh:
            self._guest.reset()
        self._fresh = False
        output, errors = Output(), LineLog(lambda line: self._guest.note(30, line))
        files = {**self._files, self._command.frame: self._frame(job)}
        self._wasi.program = Program(
            FileSystem(files, output, errors, interactive=False), arguments(self._command, job)
        )
        try:
            status = _run(self._find())
        except GuestFailedError as failure:
            raise GuestFailedError(failure.kind, _last_words(str(failure), errors), failure.backtrace) from failure
        if status:
            raise GuestFailedError("error", _last_words(f"exit status {status}", errors))
        errors.flush()
        emit_text(self._services, bytes(output.data))

    def _frame(self, job: Job) -> File:
        """The current frame's file; it is made when the program opens it."""
        name = self._command.frame
        return File(name, FIRST_INODE, self._maker(job, name), job.captured_ns)

    def _maker(self, job: Job, name: str) -> Callable[[], bytes]:
        def make() -> bytes:
            try:
                return picture(self._services, job, PurePosixPath(name).suffix.lstrip(".").lower())
            except RefusalError as refusal:
                self._guest.note(30, f"{name} cannot be made: {refusal}".encode())
                raise WasiError(WasiErrno.IO) from refusal

        return make


def _last_words(failure: str, errors: LineLog) -> str:
    """A failure, and the last line on standard error: it mostly says why."""
    errors.flush()
    said = errors.last.decode("utf-8", "replace")
    return f"{failure}: {said}" if said else failure


def _run(start: Function) -> int:
    """Run a program to its end; its exit status."""
    try:
        start()
    except ExitError as exit:
        return exit.status
    return 0


def arguments(command: CommandSpec, job: Job) -> tuple[bytes, ...]:
    """``argv`` for a frame. What is not one of the four words in braces stays as it is."""
    words = {
        "frame": f"/{command.frame}",
        "source": job.source,
        "seq": str(job.seq),
        "tag": str(job.tag),
    }
    # in one pass: what a source is called is not looked at for words in braces
    return tuple(
        _WORD.sub(lambda match: words[match[1]], argument).replace("\0", "").encode() for argument in command.arguments
    )


def picture(services: Services, job: Job, ending: str) -> bytes:
    """The frame as a file of that ending; RefusalError where it cannot be."""
    frame = job.frame
    if ending in MAKERS:
        rgb = services.pixels(Crop(), "rgb", frame.width, frame.height)
        return MAKERS[ending](rgb, frame.width, frame.height)
    if ending in JPEG_ENDINGS and frame.format != "jpeg":
        raise RefusalError(0, f"the frame is {frame.format}, not jpeg")
    return bytes(services.payload())
