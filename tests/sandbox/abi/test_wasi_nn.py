"""WAMR's older wasi-nn: structures behind pointers, float32 outside whatever the model stores."""

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nn_bench import BUSY, DENIED, EDGES, FAILED, MEMORY, OUT, Host, tflite
from sandbox_bench import INPUT

from appliance.inference.messages import TensorInfo
from appliance.sandbox.abi.tensors import NnErrno, quantised
from appliance.sandbox.messages import MAX_WISHES, MODEL_WISHES, WantInference, WantModel

OK, ARGUMENT, ENCODING, NO_MEMORY, IS_BUSY, RUNTIME, *_ = NnErrno
TFLITE = 4
F32, U8 = 1, 2
BUILDERS, BUILDER, MODEL, TENSOR, DIMENSIONS, SHAPE, DATA = 0x100, 0x110, 0x200, 0x300, 0x310, 0x320, 0x400
FLOATS = [0.0, 1 / 255, 2.5 / 255, 1.0, 0.5, 2.0, -1.0, 0.999, 10 / 255, 11 / 255, 12 / 255, 13 / 255]


class Nn(Host):
    def nn(self, name: str, *arguments: int) -> int | None:
        return self.call("wasi_nn", name, *arguments)

    def load(self, model: bytes, encoding: int = TFLITE, target: int = 0, count: int = 1) -> int | None:
        self.words(BUILDER, self.put(MODEL, model), len(model))
        return self.nn("load", self.words(BUILDERS, BUILDER, count), encoding, target, OUT)

    def context(self) -> int:
        assert self.load(tflite()) == OK
        assert self.nn("init_execution_context", self.word(), OUT) == OK
        return self.word()

    def tensor(self, data: bytes, type: int = F32, shape: tuple[int, ...] = (1, 2, 2, 3)) -> int:
        self.words(SHAPE, *shape)
        self.words(DIMENSIONS, SHAPE, len(shape))
        return self.words(TENSOR, DIMENSIONS, type, self.put(DATA, data))

    def floats(self, context: int, index: int, room: int) -> tuple[int | None, int, bytes]:
        """Errno, what the size is afterwards, and the buffer."""
        self.words(OUT, room)
        return self.nn("get_output", context, index, OUT + 16, OUT), self.word(), self.read(OUT + 16, 24)


@pytest.fixture
def host() -> Nn:
    return Nn()


def sent(host: Nn) -> bytes:
    """What the model was asked about last."""
    asked = host.zipper.asked[-1]
    assert isinstance(asked, WantInference)
    assert asked.tensors is not None
    return asked.tensors[0]


def test_floats_are_quantised_on_the_way_in_and_dequantised_on_the_way_out(host: Nn) -> None:
    context = host.context()
    assert host.nn("set_input", context, 0, host.tensor(struct.pack("<12f", *FLOATS))) == OK
    assert host.nn("compute", context) == OK
    stored = sent(host)
    assert list(stored) == [min(255, max(0, int(each * 255 + 1e-5))) for each in FLOATS]
    errno, count, buffer = host.floats(context, 0, 4)
    assert (errno, count) == (OK, 4)
    assert struct.unpack_from("<4f", buffer) == tuple(0.5 * (each - 2) for each in stored[:4])
    errno, count, buffer = host.floats(context, 1, 2)
    assert (errno, count) == (OK, 2)
    assert struct.unpack_from("<2f", buffer) == (1, -2), "what is not quantised is given as it is"


@pytest.mark.parametrize("type", [2, 3])
def test_what_the_model_stores_may_be_given_too(host: Nn, type: int) -> None:
    context = host.context()
    assert host.nn("set_input", context, 0, host.tensor(bytes(range(12)), type)) == OK
    assert host.nn("compute", context) == OK
    assert sent(host) == bytes(range(12))


def test_loading_the_same_bytes_for_every_frame_is_one_load(host: Nn) -> None:
    for _ in range(100):
        host.next_frame()
        context = host.context()
        host.nn("set_input", context, 0, host.tensor(bytes(12), U8))
        assert host.nn("compute", context) == OK
    assert sum(isinstance(asked, WantModel) for asked in host.zipper.asked) == 1


def test_the_room_counts_floats(host: Nn) -> None:
    context = host.context()
    host.nn("set_input", context, 0, host.tensor(bytes(12), U8))
    host.nn("compute", context)
    assert host.floats(context, 0, 3) == (NO_MEMORY, 3, bytes(24))
    assert host.floats(context, 1, 1) == (NO_MEMORY, 1, bytes(24))
    assert host.floats(context, 0, 0xFFFF_FFFF)[0] == OK, "only what is written must lie in the memory"
    assert host.floats(context, 2, 100)[0] == ARGUMENT


@pytest.mark.parametrize(
    ("refusal", "errno"), [(FAILED, RUNTIME), (BUSY, IS_BUSY), (DENIED, RUNTIME)], ids=["failed", "busy", "denied"]
)
def test_what_the_zipper_refuses(host: Nn, refusal: object, errno: int) -> None:
    host.zipper.refuse = refusal  # type: ignore[assignment]
    assert host.load(tflite()) == errno
    context = host.context()
    host.nn("set_input", context, 0, host.tensor(bytes(12), U8))
    host.zipper.refuse = refusal  # type: ignore[assignment]
    assert host.nn("compute", context) == errno
    assert host.floats(context, 0, 4)[0] == RUNTIME


def test_what_cannot_be_loaded(host: Nn) -> None:
    assert [host.load(tflite(), encoding) for encoding in (0, 1, 2, 3, 5, 6, 0xFFFF_FFFF)] == [ENCODING] * 7
    assert [host.load(tflite(), target=target) for target in (0, 1, 2, 3)] == [OK, OK, OK, ARGUMENT]
    assert [host.load(data) for data in (b"", b"no model at all")] == [ARGUMENT, ARGUMENT]
    assert [host.load(tflite(), count=count) for count in (0, 2)] == [ARGUMENT, ARGUMENT]
    assert Nn(guest_models=0).load(tflite()) == RUNTIME
    assert [host.load(tflite(bytes([tag]))) for tag in range(2)] == [OK, RUNTIME]


def test_more_than_a_frame_may_ask(host: Nn) -> None:
    context = host.context()
    host.nn("set_input", context, 0, host.tensor(bytes(12), U8))
    results = [host.nn("compute", context) for _ in range(MAX_WISHES - MODEL_WISHES + 1)]
    assert results[-2:] == [OK, NO_MEMORY], "loading the model counted, too"


@pytest.mark.parametrize("handle", [0, 99, 0xFFFF_FFFF])
def test_handles_that_nobody_gave(host: Nn, handle: int) -> None:
    assert host.nn("init_execution_context", handle, OUT) == ARGUMENT
    assert host.nn("set_input", handle, 0, host.tensor(bytes(12), U8)) == ARGUMENT
    assert host.nn("compute", handle) == ARGUMENT
    assert host.floats(handle, 0, 4)[0] == ARGUMENT


@pytest.mark.parametrize(("type", "shape"), [
    (0, (1, 2, 2, 3)), (4, (1, 2, 2, 3)), (F32, (1, 2, 2)), (F32, (13,)), (F32, ()), (F32, (1,) * 9),
])  # fmt: skip
def test_tensors_that_are_not_the_models(host: Nn, type: int, shape: tuple[int, ...]) -> None:
    assert host.nn("set_input", host.context(), 0, host.tensor(bytes(48), type, shape)) == ARGUMENT


@pytest.mark.parametrize("edge", EDGES)
def test_pointers_outside_the_memory(host: Nn, edge: int) -> None:
    context = host.context()
    graph = context - 1
    tensor = host.tensor(bytes(48))
    assert host.nn("set_input", context, 0, tensor) == OK
    assert host.nn("compute", context) == OK
    assert host.nn("load", edge, TFLITE, 0, OUT) == ARGUMENT
    assert host.nn("load", host.words(BUILDERS, edge, 1), TFLITE, 0, OUT) == ARGUMENT
    host.words(BUILDERS, host.words(BUILDER, edge, 8) and BUILDER, 1)
    assert host.nn("load", BUILDERS, TFLITE, 0, OUT) == ARGUMENT
    assert host.nn("load", BUILDERS, TFLITE, 0, edge) == ARGUMENT
    assert host.nn("init_execution_context", graph, edge) == ARGUMENT
    assert host.nn("set_input", context, 0, edge) == ARGUMENT
    for at in (TENSOR, TENSOR + 8, DIMENSIONS):
        host.tensor(bytes(48))
        host.words(at, edge)
        assert host.nn("set_input", context, 0, TENSOR) == ARGUMENT
    assert host.nn("get_output", context, 0, OUT, edge) == ARGUMENT
    host.words(OUT, 4)
    assert host.nn("get_output", context, 0, edge, OUT) == ARGUMENT


def test_a_guest_without_a_memory() -> None:
    assert Nn(memory=0).nn("load", 0, TFLITE, 0, 0) == NO_MEMORY


def test_the_last_bytes_of_the_memory_are_the_guests(host: Nn) -> None:
    context = host.context()
    host.tensor(b"")
    host.words(TENSOR, DIMENSIONS, F32, MEMORY - 48)
    assert host.nn("set_input", context, 0, TENSOR) == OK
    assert host.nn("compute", context) == OK
    host.words(MEMORY - 4, 4)
    assert host.nn("get_output", context, 0, MEMORY - 20, MEMORY - 4) == OK


@given(
    st.lists(st.floats(width=32), max_size=40),
    st.sampled_from(["uint8", "int8", "int16"]),
    st.floats(allow_nan=True).filter(bool),
    st.integers(-(1 << 31), (1 << 31) - 1),
)
def test_any_floats_are_quantised_to_what_the_type_can_hold(
    floats: list[float], dtype: str, scale: float, zero: int
) -> None:
    width = 2 if dtype == "int16" else 1
    tensor = TensorInfo("t", dtype, (len(floats),), width * len(floats), scale, zero)
    data = quantised(memoryview(struct.pack(f"<{len(floats)}f", *floats)), tensor)
    assert len(data) == tensor.nbytes


def test_quantised_is_cut_as_a_cast_in_c_cuts() -> None:
    values = [0.999 / 255, 1.0001 / 255, -3.0, 3.0, math.inf, -math.inf, math.nan]
    assert list(quantised(memoryview(struct.pack("<7f", *values)), INPUT)) == [0, 1, 0, 255, 255, 0, 255]
