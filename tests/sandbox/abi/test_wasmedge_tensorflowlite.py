"""WasmEdge's TensorFlow Lite in both generations of its crate, and the TensorFlow that is not there."""

import struct
from collections.abc import Callable

import pytest
from nn_bench import BUSY, DENIED, EDGES, FAILED, MEMORY, OUT, Host, tflite

from appliance.sandbox.abi.signatures import WASMEDGE_TENSORFLOW
from appliance.sandbox.abi.tensors import MAX_CONTEXTS, NnErrno
from appliance.sandbox.messages import WantInference, WantModel

OK, ARGUMENT, _, NO_MEMORY, IS_BUSY, RUNTIME, *_ = NnErrno
MODEL, NAME, DATA = 0x100, 0x400, 0x500
PICTURE = bytes(range(12))
HANDLES = [0, 99, 1 << 32, 0xFFFF_FFFF, (1 << 64) - 1]


class Lite(Host):
    def old(self, name: str, *arguments: int) -> int:
        """A function of 0.2; where it returns nothing, that is -1."""
        result = self.call("wasmedge_tensorflowlite", f"wasmedge_tensorflowlite_{name}", *arguments)
        return -1 if result is None else result

    def new(self, name: str, *arguments: int) -> int | None:
        """A function of 0.3."""
        return self.call("wasmedge_tensorflowlite", name, *arguments)

    def name(self, name: str) -> tuple[int, int]:
        return self.put(NAME, name.encode()), len(name.encode())

    def old_session(self, model: bytes = tflite()) -> int:
        return self.old("create_session", self.put(MODEL, model), len(model))

    def new_session(self, model: bytes = tflite()) -> int:
        assert self.new("create_session", self.put(MODEL, model), len(model), OUT) == OK
        return self.word()

    def old_input(self, session: int, data: bytes, name: str = "input") -> None:
        assert self.old("append_input", session, *self.name(name), self.put(DATA, data), len(data)) == -1

    def new_input(self, session: int, data: bytes, name: str = "input") -> int | None:
        return self.new("append_input", session, *self.name(name), self.put(DATA, data), len(data))

    def old_output(self, session: int, name: str) -> bytes:
        tensor = self.old("get_output_tensor", session, *self.name(name))
        assert tensor
        self.put(OUT, bytes(64))
        assert self.old("get_tensor_data", tensor, OUT) == -1
        return self.read(OUT, self.old("get_tensor_len", tensor))


@pytest.fixture
def host() -> Lite:
    return Lite()


# --- 0.2 ----------------------------------------------------------------------------------------------------


def test_old_from_a_model_to_an_answer(host: Lite) -> None:
    session = host.old_session()
    assert session > 0
    host.old_input(session, PICTURE)
    assert host.old("run_session", session) == 0
    assert host.old_output(session, "scores") == PICTURE[:4]
    assert host.old_output(session, "boxes") == struct.pack("<2f", 1, -2)
    assert host.old("delete_session", session) == -1
    assert host.old("run_session", session) == 1


def test_old_a_session_for_every_frame_is_one_load(host: Lite) -> None:
    """What the seed does, with and without deleting."""
    for number in range(4 * MAX_CONTEXTS):
        host.next_frame()
        session = host.old_session()
        host.old_input(session, PICTURE)
        assert host.old("run_session", session) == 0
        assert host.old_output(session, "scores") == PICTURE[:4]
        if number % 2:
            host.old("delete_session", session)
    assert sum(isinstance(asked, WantModel) for asked in host.zipper.asked) == 1


def test_old_sessions_do_not_share_tensors(host: Lite) -> None:
    first, second = host.old_session(), host.old_session()
    host.old_input(first, b"\1" * 12)
    host.old_input(second, b"\2" * 12)
    assert [host.old("run_session", first), host.old("run_session", second)] == [0, 0]
    assert (host.old_output(first, "scores"), host.old_output(second, "scores")) == (b"\1" * 4, b"\2" * 4)
    host.old("delete_session", first)
    assert host.old_output(second, "scores") == b"\2" * 4


def test_old_inputs_that_the_model_has_not_are_ignored(host: Lite) -> None:
    session = host.old_session()
    for name, data in (("inputs", PICTURE), ("", PICTURE), ("input", PICTURE[:11]), ("x" * 200, PICTURE)):
        host.old_input(session, data, name)
    assert host.old("run_session", session) == 1, "the one it has is not set"
    host.old_input(session, PICTURE)
    assert host.old("run_session", session) == 0


def test_old_outputs_that_there_are_not(host: Lite) -> None:
    session = host.old_session()
    assert host.old("get_output_tensor", session, *host.name("score")) == 0
    assert host.old("get_output_tensor", session, *host.name("x" * 200)) == 0
    assert host.old("get_output_tensor", session, host.put(NAME, b"\xff"), 1) == 0
    assert [host.old("get_tensor_len", tensor) for tensor in (0, 1, session << 8, session << 8 | 3)] == [0, 0, 0, 0]


def test_old_a_tensor_has_its_length_before_it_has_its_data(host: Lite) -> None:
    session = host.old_session()
    tensor = host.old("get_output_tensor", session, *host.name("scores"))
    assert host.old("get_tensor_len", tensor) == 4
    host.put(OUT, b"mine")
    host.old("get_tensor_data", tensor, OUT)
    assert host.read(OUT, 4) == b"mine"
    host.old_input(session, PICTURE)
    host.old("run_session", session)
    host.old("get_tensor_data", tensor, OUT)
    assert host.read(OUT, 4) == PICTURE[:4]
    host.old("delete_session", session)
    assert host.old("get_tensor_len", tensor) == 0


@pytest.mark.parametrize("handle", HANDLES)
def test_old_handles_that_nobody_gave(host: Lite, handle: int) -> None:
    assert host.old("run_session", handle) == 1
    assert host.old("get_output_tensor", handle, *host.name("scores")) == 0
    assert host.old("get_tensor_len", handle) == 0
    assert host.old("get_tensor_data", handle, OUT) == -1
    assert host.old("delete_session", handle) == -1
    host.old_input(handle, PICTURE)


@pytest.mark.parametrize("refusal", [FAILED, BUSY, DENIED])
def test_old_what_the_zipper_refuses(host: Lite, refusal: object) -> None:
    host.zipper.refuse = refusal  # type: ignore[assignment]
    assert host.old_session() == 0
    session = host.old_session()
    host.old_input(session, PICTURE)
    host.zipper.refuse = refusal  # type: ignore[assignment]
    assert host.old("run_session", session) == 1
    assert host.old("run_session", session) == 0


def test_old_models_that_are_not_loaded(host: Lite) -> None:
    assert [host.old_session(data) for data in (b"", b"no model at all")] == [0, 0]
    assert host.zipper.asked == []
    assert Lite(guest_models=0).old_session() == 0


@pytest.mark.parametrize("edge", EDGES)
def test_old_pointers_outside_the_memory(host: Lite, edge: int) -> None:
    session = host.old_session()
    name, data = host.name("input"), host.put(DATA, PICTURE)
    assert host.old("create_session", edge, 8) == 0
    assert host.old("create_session", MODEL, 0xFFFF_FFFF) == 0
    host.old("append_input", session, edge, 5, data, 12)
    host.old("append_input", session, *name, edge, 12)
    assert host.old("run_session", session) == 1, "nothing was set"
    host.old_input(session, PICTURE)
    assert host.old("run_session", session) == 0
    assert host.old("get_output_tensor", session, edge, 6) == 0
    tensor = host.old("get_output_tensor", session, *host.name("scores"))
    assert host.old("get_tensor_data", tensor, edge) == -1
    host.old("get_tensor_data", tensor, MEMORY - 4)
    assert host.read(MEMORY - 4, 4) == PICTURE[:4]


# --- 0.3 ----------------------------------------------------------------------------------------------------


def test_new_from_a_model_to_an_answer(host: Lite) -> None:
    session = host.new_session()
    assert host.new_input(session, PICTURE) == OK
    assert host.new("run_session", session) == OK
    assert host.new("get_output_tensor", session, *host.name("boxes"), OUT) == OK
    tensor = host.word()
    assert host.new("get_tensor_len", session, tensor, OUT) == OK
    assert host.word() == 8
    assert host.new("get_tensor_data", session, tensor, OUT + 16, 8, OUT) == OK
    assert (host.word(), host.read(OUT + 16, 8)) == (8, struct.pack("<2f", 1, -2))
    assert host.new("delete_session", session) == OK
    assert host.new("run_session", session) == ARGUMENT


def test_new_a_session_for_every_frame_is_one_load(host: Lite) -> None:
    for _ in range(100):
        host.next_frame()
        session = host.new_session()
        assert host.new_input(session, PICTURE) == OK
        assert host.new("run_session", session) == OK
        assert host.new("delete_session", session) == OK
    assert sum(isinstance(asked, WantModel) for asked in host.zipper.asked) == 1


def test_new_deleting_what_is_not_there_is_no_error(host: Lite) -> None:
    assert [host.new("delete_session", handle) for handle in (0, 5, 0xFFFF_FFFF)] == [OK, OK, OK]


def test_new_wrong_arguments(host: Lite) -> None:
    session = host.new_session()
    assert host.new_input(session, PICTURE, "inputs") == ARGUMENT
    assert host.new_input(session, PICTURE[:11]) == ARGUMENT
    assert host.new_input(session, PICTURE + b"\0") == ARGUMENT
    assert host.new("run_session", session) == ARGUMENT, "its input is not set"
    assert host.new_input(session, PICTURE, "x" * 200) == RUNTIME
    assert host.new_input(session, PICTURE) == OK
    assert host.new("get_tensor_data", session, 0, OUT + 16, 4, OUT) == RUNTIME, "it has not run"
    assert host.new("run_session", session) == OK
    assert host.new("get_output_tensor", session, *host.name("score"), OUT) == ARGUMENT
    assert host.new("get_tensor_len", session, 2, OUT) == ARGUMENT
    for length in (3, 5):
        assert host.new("get_tensor_data", session, 0, OUT + 16, length, OUT) == ARGUMENT
    assert host.new("get_tensor_data", session, 2, OUT + 16, 4, OUT) == ARGUMENT
    assert host.new("create_session", host.put(MODEL, b"no model at all"), 15, OUT) == ARGUMENT


@pytest.mark.parametrize("handle", [0, 99, 0xFFFF_FFFF])
def test_new_handles_that_nobody_gave(host: Lite, handle: int) -> None:
    assert host.new("run_session", handle) == ARGUMENT
    assert host.new("get_output_tensor", handle, *host.name("scores"), OUT) == ARGUMENT
    assert host.new("get_tensor_len", handle, 0, OUT) == ARGUMENT
    assert host.new("get_tensor_data", handle, 0, OUT + 16, 4, OUT) == ARGUMENT
    assert host.new_input(handle, PICTURE) == ARGUMENT


@pytest.mark.parametrize(
    ("refusal", "errno"), [(FAILED, RUNTIME), (BUSY, IS_BUSY), (DENIED, RUNTIME)], ids=["failed", "busy", "denied"]
)
def test_new_what_the_zipper_refuses(host: Lite, refusal: object, errno: int) -> None:
    host.zipper.refuse = refusal  # type: ignore[assignment]
    assert host.new("create_session", host.put(MODEL, tflite()), 8, OUT) == errno
    session = host.new_session()
    host.new_input(session, PICTURE)
    host.zipper.refuse = refusal  # type: ignore[assignment]
    assert host.new("run_session", session) == errno


@pytest.mark.parametrize("edge", EDGES)
def test_new_pointers_outside_the_memory(host: Lite, edge: int) -> None:
    session = host.new_session()
    name, data = host.name("input"), host.put(DATA, PICTURE)
    assert host.new("create_session", edge, 8, OUT) == NO_MEMORY
    assert host.new("create_session", MODEL, 8, edge) == NO_MEMORY
    assert host.new("append_input", session, edge, 5, data, 12) == NO_MEMORY
    assert host.new("append_input", session, *name, edge, 12) == NO_MEMORY
    assert host.new("get_output_tensor", session, edge, 6, OUT) == NO_MEMORY
    assert host.new("get_output_tensor", session, *name, edge) == NO_MEMORY
    assert host.new("get_tensor_len", session, 0, edge) == NO_MEMORY
    assert host.new_input(session, PICTURE) == OK
    assert host.new("run_session", session) == OK
    assert host.new("get_tensor_data", session, 0, edge, 4, OUT) == NO_MEMORY
    assert host.new("get_tensor_data", session, 0, OUT, 4, edge) == NO_MEMORY


@pytest.mark.parametrize("make", [Lite.old_session, Lite.new_session], ids=["old", "new"])
def test_models_of_both_generations_are_the_same(host: Lite, make: Callable[[Lite], int]) -> None:
    assert host.old_session() != make(host)
    session = make(host)
    assert host.new_input(session, PICTURE) == OK
    assert host.old("run_session", session) == 0
    loads = [asked for asked in host.zipper.asked if isinstance(asked, WantModel)]
    runs = [asked for asked in host.zipper.asked if isinstance(asked, WantInference)]
    assert (len(loads), len(runs)) == (1, 1)


# --- TensorFlow ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WASMEDGE_TENSORFLOW)
def test_there_is_no_tensorflow(host: Lite, name: str) -> None:
    """It resolves; nothing is created, and what runs fails."""
    signature = WASMEDGE_TENSORFLOW[name]
    arguments = [0xFFFF_FFFF] * (len(signature) - len("i()"))
    expected = None if signature.startswith("v") else int(name.endswith("run_session"))
    assert host.call("wasmedge_tensorflow", name, *arguments) == expected
    assert host.zipper.asked == []
