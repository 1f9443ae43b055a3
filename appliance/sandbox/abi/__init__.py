"""Guest ABIs: what a guest may import, and how it is called. One module each.

*Host modules* are the functions of one import module; every guest is linked with all of them. A *convention* says
what is called once and what for every frame; the manifest's ``abi`` names it. Both only translate: everything a
function does is done by :class:`appliance.sandbox.services.Services`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

from appliance.sandbox.abi.bindgen import Bindgen
from appliance.sandbox.abi.command import Command
from appliance.sandbox.abi.guest import Guest
from appliance.sandbox.abi.native import Native, NativeAbi
from appliance.sandbox.abi.tensors import Contexts
from appliance.sandbox.abi.wasi_ephemeral_nn import WasiEphemeralNn
from appliance.sandbox.abi.wasi_nn import WasiNn
from appliance.sandbox.abi.wasi_snapshot_preview1 import Wasi
from appliance.sandbox.abi.wasmedge_image import WasmedgeImage
from appliance.sandbox.abi.wasmedge_tensorflow import WasmedgeTensorflow
from appliance.sandbox.abi.wasmedge_tensorflowlite import WasmedgeTensorflowLite
from appliance.sandbox.abi.yomo import Yomo, YomoAbi
from appliance.sandbox.engine import HostFunction, Instance
from appliance.sandbox.services import Services


class Abi(Protocol):
    """A convention, bound to a guest that is linked. Both methods raise GuestFailedError where the guest fails."""

    def start(self) -> None:
        """Find what the guest must export, and let it initialise; kinds ``link``, ``init``, ``trap`` …"""

    def handle(self) -> None:
        """Let the guest handle the current frame; kinds ``error`` (it says that it failed), ``trap`` …"""


class HostModule(Protocol):
    """The functions of one import module."""

    def functions(self) -> Iterable[HostFunction]: ...


@dataclass(frozen=True, slots=True)
class Hosts:
    """The host modules that conventions work with."""

    guest: Guest
    native: Native
    wasi: Wasi
    yomo: Yomo


ABIS: Mapping[str, Callable[[Hosts], Abi]] = {
    "native": lambda hosts: NativeAbi(hosts.guest),
    "command": lambda hosts: Command(hosts.guest, hosts.wasi),
    "bindgen": lambda hosts: Bindgen(hosts.guest),
    "yomo": lambda hosts: YomoAbi(hosts.guest, hosts.yomo),
}


def bind(abi: str, instance: Instance, services: Services) -> Abi:
    """Link a guest with all host modules, for a convention; GuestFailedError ``link``."""
    guest = Guest(instance, services)
    hosts = Hosts(guest, Native(guest), Wasi(guest), Yomo(guest))
    contexts = Contexts(services)
    guest.on_reset(contexts.forget)
    modules: tuple[HostModule, ...] = (
        hosts.native,
        hosts.wasi,
        hosts.yomo,
        WasiEphemeralNn(guest, contexts),
        WasiNn(guest, contexts),
        WasmedgeTensorflowLite(guest, contexts),
        WasmedgeImage(guest),
        WasmedgeTensorflow(guest),
    )
    instance.link(chain.from_iterable(module.functions() for module in modules))
    return ABIS[abi](hosts)
