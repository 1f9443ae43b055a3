"""Guest ABIs by name: one module each.

An ABI says which functions a guest may import, what is called once and what for every frame; everything a function
does is done by :class:`appliance.sandbox.services.Services`.
"""

from collections.abc import Callable
from typing import Protocol

from appliance.sandbox.abi.native import NativeAbi
from appliance.sandbox.engine import Instance
from appliance.sandbox.services import Services


class Abi(Protocol):
    """A guest, bound to its host. Both methods raise GuestFailedError where the guest fails."""

    host_calls: int
    """Calls of host functions since the start: each leaks a little."""

    def start(self) -> None:
        """Link, find what the guest must export, and let it initialise; kinds ``link``, ``init``, ``trap`` …"""

    def handle(self) -> None:
        """Let the guest handle the current frame; kinds ``error`` (it says that it failed), ``trap`` …"""


ABIS: dict[str, Callable[[Instance, Services], Abi]] = {"native": NativeAbi}
