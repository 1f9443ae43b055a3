"""What every ABI shares: the guest's memory within its bounds, and calls that are counted and masked."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from operator import and_

from appliance.sandbox.abi.signatures import SIGNATURES
from appliance.sandbox.engine import HostFunction, Instance
from appliance.sandbox.messages import Errno
from appliance.sandbox.services import RefusalError, Services

_MASKS = {"i": 0xFFFF_FFFF, "I": 0xFFFF_FFFF_FFFF_FFFF}

Method = Callable[..., int | None]
"""What a host function does. Its integers come unsigned; it may raise RefusalError."""


class PointerError(RefusalError):
    """The guest names memory that it has not."""

    def __init__(self) -> None:
        super().__init__(Errno.EINVAL, "a pointer outside the memory")


class Guest:
    """One instance and its services, as the ABI modules see them.

    Pointers are checked against the memory as it is now, because a view of it dangles once the guest has run again.
    """

    def __init__(self, instance: Instance, services: Services) -> None:
        self.instance = instance
        self.services = services
        self._view: memoryview | None = None
        self._forget: list[Callable[[], None]] = []

    def provide(
        self, module: str, methods: Mapping[str, Method], refused: Callable[[RefusalError], int | None]
    ) -> Iterator[HostFunction]:
        """Host functions of an import module; ``refused`` makes what the ABI answers of a refusal."""
        for name, method in methods.items():
            signature = SIGNATURES[module][name]
            yield HostFunction(module, name, signature, self._guarded(signature, method, refused))

    def _guarded(
        self, signature: str, method: Method, refused: Callable[[RefusalError], int | None]
    ) -> Callable[..., int | None]:
        masks = [_MASKS[kind] for kind in signature.partition("(")[2].rstrip(")")]
        count = self.services.count_call

        def call(*arguments: int) -> int | None:
            count()
            try:
                return method(*map(and_, arguments, masks))
            except RefusalError as refusal:
                return refused(refusal)
            finally:
                self._view = None  # it dangles once the guest goes on

        return call

    # --- memory --------------------------------------------------------------------------------------------

    def view(self, pointer: int, length: int) -> memoryview:
        """``length`` bytes of the guest's memory, writable; EINVAL where they do not all lie inside it.

        Never keep it beyond the call: it dangles.
        """
        if self._view is None:
            self._view = self.instance.memory()
        if pointer < 0 or length < 0 or pointer + length > len(self._view):
            raise PointerError
        return self._view[pointer : pointer + length]

    def read(self, pointer: int, length: int) -> bytes:
        return bytes(self.view(pointer, length))

    def u32(self, pointer: int) -> int:
        return int.from_bytes(self.view(pointer, 4), "little")

    def write_u32(self, pointer: int, value: int) -> None:
        self.view(pointer, 4)[:] = value.to_bytes(4, "little")

    def write(self, pointer: int, data: bytes | memoryview) -> int:
        """All of ``data``; how many bytes that were."""
        self.view(pointer, len(data))[:] = data
        return len(data)

    def text(self, pointer: int, length: int, limit: int) -> str:
        """UTF-8 of at most ``limit`` bytes; ETOOBIG, EINVAL."""
        self.view(pointer, length)
        if length > limit:
            raise RefusalError(Errno.ETOOBIG, f"a name over {limit} bytes")
        try:
            return self.read(pointer, length).decode()
        except UnicodeDecodeError as error:
            raise RefusalError(Errno.EINVAL, "a name that is not UTF-8") from error

    def forget_view(self) -> None:
        """The guest has run: call it after every call into it that is made outside a host function."""
        self._view = None

    # --- its life ------------------------------------------------------------------------------------------

    def on_reset(self, forget: Callable[[], None]) -> None:
        """Have ``forget`` called whenever the guest begins anew, and with it has lost every handle it was given."""
        self._forget.append(forget)

    def reset(self) -> None:
        """The guest is as it was when it was linked. What was found of it must be found again."""
        self.instance.reset()
        self.forget_view()
        for forget in self._forget:
            forget()

    def note(self, level: int, text: bytes) -> None:
        """A line in the handler's log about, or of, the guest; dropped where there are too many about one frame."""
        with contextlib.suppress(RefusalError):
            self.services.log(level, text)
