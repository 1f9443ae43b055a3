"""Guest ABIs: what a guest may import, and how it is called. One module each.

*Host modules* are the functions of one import module; every guest is linked with all of them. A *convention* says
what is called once and what for every frame; the manifest's ``abi`` names it. Both only translate: everything a
function does is done by :class:`appliance.sandbox.services.Services`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

from appliance.sandbox.abi.guest import Guest
from appliance.sandbox.abi.native import Native, NativeAbi
from appliance.sandbox.abi.tensors import Contexts
from appliance.sandbox.abi.wasi_ephemeral_nn import WasiEphemeralNn
from appliance.sandbox.abi.wasi_nn import WasiNn
from appliance.sandbox.abi.wasmedge_image import WasmedgeImage
from appliance.sandbox.abi.wasmedge_tensorflow import WasmedgeTensorflow
from appliance.sandbox.abi.wasmedge_tensorflowlite import WasmedgeTensorflowLite
from appliance.sandbox.engine import Instance
from appliance.sandbox.services import Services


class Abi(Protocol):
    """A convention, bound to a guest that is linked. Both methods raise GuestFailedError where the guest fails."""

    def start(self) -> None:
        """Find what the guest must export, and let it initialise; kinds ``link``, ``init``, ``trap`` …"""

    def handle(self) -> None:
        """Let the guest handle the current frame; kinds ``error`` (it says that it failed), ``trap`` …"""


@dataclass(frozen=True, slots=True)
class Hosts:
    """The host modules of one guest."""

    guest: Guest
    native: Native


ABIS: Mapping[str, Callable[[Hosts], Abi]] = {"native": lambda hosts: NativeAbi(hosts.guest)}


def bind(abi: str, instance: Instance, services: Services) -> Abi:
    """Link a guest with all host modules, for a convention; GuestFailedError ``link``."""
    guest = Guest(instance, services)
    hosts = Hosts(guest, Native(guest))
    contexts = Contexts(services)
    instance.link(
        chain(
            hosts.native.functions(),
            WasiEphemeralNn(guest, contexts).functions(),
            WasiNn(guest, contexts).functions(),
            WasmedgeTensorflowLite(guest, contexts).functions(),
            WasmedgeImage(guest).functions(),
            WasmedgeTensorflow(guest).functions(),
        )
    )
    return ABIS[abi](hosts)
