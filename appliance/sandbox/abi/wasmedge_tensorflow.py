"""WasmEdge's TensorFlow, which there is none of here: it resolves, because the crate chooses between it and TensorFlow
Lite only when it runs, and creates no session."""

from collections.abc import Iterable

from appliance.sandbox.abi.guest import Guest
from appliance.sandbox.abi.signatures import WASMEDGE_TENSORFLOW
from appliance.sandbox.engine import HostFunction

MODULE = "wasmedge_tensorflow"


class WasmedgeTensorflow:
    """The host functions of the module ``wasmedge_tensorflow``: 0 where something is returned, a run fails."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest

    def functions(self) -> Iterable[HostFunction]:
        methods = {
            name: _nothing if signature.startswith("v") else _none for name, signature in WASMEDGE_TENSORFLOW.items()
        }
        return self._guest.provide(MODULE, methods | {"wasmedge_tensorflow_run_session": _failed}, lambda _: None)


def _nothing(*_arguments: int) -> None:
    pass


def _none(*_arguments: int) -> int:
    return 0


def _failed(*_arguments: int) -> int:
    return 1
