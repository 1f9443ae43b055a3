"""What the host modules provide is what admission lets through."""

from collections.abc import Iterable
from typing import cast

from appliance.ipc.packets import BlockingChannel
from appliance.ipc.ring import RingReader
from appliance.sandbox.abi import bind
from appliance.sandbox.abi.signatures import SIGNATURES
from appliance.sandbox.admission.verdict import Admitted
from appliance.sandbox.engine import Function, HostFunction
from appliance.sandbox.messages import Setup, ToWorker
from appliance.sandbox.services import Services


class Recorder:
    """An instance that only takes note of what it is linked with."""

    def __init__(self) -> None:
        self.functions: list[HostFunction] = []

    def link(self, functions: Iterable[HostFunction]) -> None:
        self.functions = list(functions)

    def find(self, name: str, signature: str = "i()") -> Function | None:
        raise AssertionError

    def memory(self) -> memoryview:
        raise AssertionError

    def allow(self, gas: int) -> None:
        raise AssertionError

    def gas_used(self) -> int:
        raise AssertionError

    def reset(self) -> None:
        raise AssertionError


def provided() -> list[HostFunction]:
    setup = Setup("h", Admitted("", b"", [], {}, [], 0), "native", [], [], {}, {}, 0, 0)
    nobody = object()
    recorder = Recorder()
    services = Services(setup, cast("BlockingChannel[ToWorker]", nobody), cast("RingReader", nobody))
    bind("native", recorder, services)
    return recorder.functions


def test_every_function_a_guest_may_import_is_there_once_with_its_signature() -> None:
    functions = [(each.module, each.name, each.signature) for each in provided()]
    assert len(functions) == len(set(functions))
    modules = {module for module, _, _ in functions}
    assert set(functions) == {
        (module, name, signature) for module in modules for name, signature in SIGNATURES[module].items()
    }
