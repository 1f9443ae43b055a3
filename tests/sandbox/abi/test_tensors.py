"""How much contexts may hold, and which are closed to make room."""

from typing import cast

import pytest

from appliance.inference.messages import TensorInfo
from appliance.ipc.packets import BlockingChannel
from appliance.ipc.ring import RingReader
from appliance.sandbox.abi import tensors
from appliance.sandbox.abi.tensors import ELEMENT_TYPES, Contexts, check_type
from appliance.sandbox.messages import GuestModel, Setup, ToWorker
from appliance.sandbox.services import RefusalError, Services

INPUT = TensorInfo("input", "uint8", (100,), 100, 0.0, 0)


@pytest.fixture
def contexts(monkeypatch: pytest.MonkeyPatch) -> Contexts:
    monkeypatch.setattr(tensors, "MAX_HELD_BYTES", 250)
    nobody = object()
    setup = Setup("h", b"", "native", [], [GuestModel("m", [INPUT], [], [])], {}, {}, 0, 0)
    channel, ring = cast("BlockingChannel[ToWorker]", nobody), cast("RingReader", nobody)
    return Contexts(Services(setup, channel, ring))


def test_what_is_held_is_bounded_and_the_oldest_makes_room(contexts: Contexts) -> None:
    first, second, third = (contexts.open(0) for _ in "123")
    for handle in (first, second, first, third):
        contexts.set_input(handle, 0, bytes(100))
    contexts.inputs(first)
    contexts.inputs(third)
    with pytest.raises(RefusalError):
        contexts.inputs(second)


def test_setting_an_input_again_holds_no_more(contexts: Contexts) -> None:
    first, second = contexts.open(0), contexts.open(0)
    for _ in range(10):
        contexts.set_input(first, 0, bytes(100))
        contexts.set_input(second, 0, bytes(100))
    contexts.inputs(first)


@pytest.mark.parametrize("number", range(-1, 7))
@pytest.mark.parametrize("dtype", [*ELEMENT_TYPES, "int16"])
def test_a_number_is_a_type_where_a_generation_has_it_so(dtype: str, number: int) -> None:
    older = {0: "float16", 1: "float32", 2: "uint8", 3: "int32"}
    newer = {0: "float16", 1: "float32", 2: "float64", 3: "uint8", 4: "int32", 5: "int64"}
    alike = "uint8" if dtype in ("int8", "bool") else dtype
    tensor = TensorInfo("t", dtype, (1,), 1, 0.0, 0)
    if alike in (older.get(number), newer.get(number)):
        check_type(tensor, number)
    else:
        with pytest.raises(RefusalError):
            check_type(tensor, number)
