"""Guest ABIs: what a guest may import, and how it is called. One module each.

*Host modules* are the functions of one import module; every guest is linked with all of them. A *convention* says
what is called once and what for every frame; the manifest's ``abi`` names it. Both only translate: everything a
function does is done by :class:`appliance.sandbox.services.Services`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

from appliance.sandbox.abi.bindgen import Bindgen
from appliance.sandbox.abi.command import Command
from appliance.sandbox.abi.guest import Guest
from appliance.sandbox.abi.native import Native, NativeAbi
from appliance.sandbox.abi.wasi_snapshot_preview1 import Wasi
from appliance.sandbox.abi.yomo import Yomo, YomoAbi
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
    instance.link(chain(hosts.native.functions(), hosts.wasi.functions(), hosts.yomo.functions()))
    return ABIS[abi](hosts)
