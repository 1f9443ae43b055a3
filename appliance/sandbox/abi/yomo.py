"""YoMo v1's stream functions: the module ``env``, and the convention that goes with it."""

from collections.abc import Iterable

from appliance.sandbox.abi.exports import initialise, required
from appliance.sandbox.abi.guest import Guest, Method
from appliance.sandbox.abi.results import emit_tagged
from appliance.sandbox.abi.wasi_program import ExitError
from appliance.sandbox.engine import Function, GuestFailedError, HostFunction
from appliance.sandbox.messages import MAX_EMIT_BYTES
from appliance.sandbox.services import RefusalError

MODULE = "env"
NAME = "yomo"
WRITTEN, BAD_POINTER, NOT_WRITTEN = 0, 1, 2
"""What ``yomo_write`` returns, as YoMo's own host does."""
MAX_OBSERVED = 64


class Yomo:
    """The host functions."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._services = guest.services
        self.observed: set[int] = set()
        """Tags that the guest has asked for."""

    def functions(self) -> Iterable[HostFunction]:
        methods: dict[str, Method] = {
            "yomo_observe_datatag": self._observe,
            "yomo_write": self._write,
            "yomo_context_tag": lambda: self._services.job().tag,
            "yomo_context_data": self._data,
            "yomo_context_data_size": lambda: len(self._services.payload()),
        }
        return self._guest.provide(MODULE, methods, lambda _refusal: 0)

    def _observe(self, tag: int) -> None:
        if len(self.observed) >= MAX_OBSERVED and tag not in self.observed:
            raise GuestFailedError("link", f"it asks for more than {MAX_OBSERVED} tags")
        self.observed.add(tag)

    def _data(self, out: int, capacity: int) -> int:
        """The payload's length; it is written where all of it fits."""
        payload = self._services.payload()
        if len(payload) <= capacity:
            self._guest.write(out, payload)
        return len(payload)

    def _write(self, tag: int, pointer: int, length: int) -> int:
        try:
            self._guest.view(pointer, length)
        except RefusalError:
            return BAD_POINTER
        if length > MAX_EMIT_BYTES:
            return self._not_written(f"{length} bytes are over the limit of {MAX_EMIT_BYTES}")
        try:
            emit_tagged(self._services, tag, self._guest.read(pointer, length))
        except (RefusalError, GuestFailedError) as refusal:
            return self._not_written(str(refusal))
        return WRITTEN

    def _not_written(self, why: str) -> int:
        """Most guests do not look at what ``yomo_write`` returns: the log says it."""
        self._guest.note(30, f"yomo_write: {why}".encode())
        return NOT_WRITTEN


class YomoAbi:
    """The convention: ``yomo_observe_datatags``, perhaps ``yomo_init``, then ``yomo_handler`` for every frame."""

    def __init__(self, guest: Guest, yomo: Yomo) -> None:
        self._guest = guest
        self._yomo = yomo

    def start(self) -> None:
        instance = self._guest.instance
        observe = required(instance, "yomo_observe_datatags", "v()", NAME)
        self._handle = required(instance, "yomo_handler", "v()", NAME)
        initialise(instance)
        _ended_well(observe)
        missing = self._yomo.observed - set(self._guest.services.setup.observes)
        if missing:
            tags = ", ".join(f"{tag:#x}" for tag in sorted(missing))
            raise GuestFailedError("link", f"it asks for frames with tag {tags}: name it in `observes` of the manifest")
        init = self._found_init()
        status = init() if init else None
        if status:
            raise GuestFailedError("init", f"yomo_init returned {status}; the handler's log may say why")

    def _found_init(self) -> Function | None:
        """``yomo_init`` with a status, or of an older guest without."""
        try:
            return self._guest.instance.find("yomo_init", "i()")
        except GuestFailedError:
            return self._guest.instance.find("yomo_init", "v()")

    def handle(self) -> None:
        _ended_well(self._handle)


def _ended_well(function: Function) -> None:
    """Call; a guest that ends itself with status 0 is done, too, as YoMo has it."""
    try:
        function()
    except ExitError as exit:
        if exit.status:
            raise
