"""wasi-nn as guests of the crate up to 0.6 know it: every function, every errno."""

import struct

import pytest
from nn_bench import BUSY, DENIED, EDGES, FAILED, MEMORY, OUT, Host, tflite

from appliance.sandbox.abi.tensors import MAX_CONTEXTS, NnErrno
from appliance.sandbox.messages import MAX_WISHES, MODEL_WISHES, WantInference, WantModel

OK, ARGUMENT, ENCODING, NO_MEMORY, IS_BUSY, RUNTIME, UNSUPPORTED, TOO_LARGE, NOT_FOUND = NnErrno
TFLITE, AUTODETECT = 4, 5
U8_OLD, U8_NEW, I32_OLD, I32_NEW, F16, F32 = 2, 3, 3, 4, 0, 1
BUILDER, MODEL, NAME, TENSOR, SHAPE, DATA = 0x100, 0x200, 0x400, 0x500, 0x540, 0x600
PICTURE = bytes(range(12))


class Nn(Host):
    def nn(self, name: str, *arguments: int) -> int | None:
        return self.call("wasi_ephemeral_nn", name, *arguments)

    def load(self, model: bytes, encoding: int = TFLITE, target: int = 0, out: int = OUT) -> int | None:
        self.words(BUILDER, self.put(MODEL, model), len(model))
        return self.nn("load", BUILDER, 1, encoding, target, out)

    def named(self, name: str = "classifier", out: int = OUT) -> int | None:
        return self.nn("load_by_name", self.put(NAME, name.encode()), len(name), out)

    def context(self, name: str = "classifier") -> int:
        assert self.named(name) == OK
        assert self.nn("init_execution_context", self.word(), OUT) == OK
        return self.word()

    def tensor(self, data: bytes, type: int = U8_OLD, shape: tuple[int, ...] = (1, 2, 2, 3)) -> int:
        self.words(SHAPE, *shape)
        self.put(DATA, data)
        return self.put(TENSOR, struct.pack("<IIB3xII", SHAPE, len(shape), type, DATA, len(data)))

    def answer(self, context: int, index: int = 0, capacity: int = 100) -> bytes:
        assert self.nn("get_output", context, index, OUT + 16, capacity, OUT) == OK
        return self.read(OUT + 16, self.word())


@pytest.fixture
def host() -> Nn:
    return Nn()


def test_from_a_name_to_an_answer(host: Nn) -> None:
    context = host.context()
    assert host.nn("set_input", context, 0, host.tensor(PICTURE)) == OK
    assert host.nn("compute", context) == OK
    assert host.answer(context) == PICTURE[:4]
    assert host.answer(context, 1) == struct.pack("<2f", 1, -2)
    (asked,) = host.zipper.asked
    assert isinstance(asked, WantInference)
    assert (asked.model, asked.tensors) == (0, [PICTURE])


@pytest.mark.parametrize("encoding", [TFLITE, AUTODETECT])
@pytest.mark.parametrize("target", range(4))
def test_a_model_of_the_guests_own_wherever_it_wishes_to_run(host: Nn, encoding: int, target: int) -> None:
    assert host.load(tflite(), encoding, target) == OK
    assert host.nn("init_execution_context", host.word(), OUT) == OK
    context = host.word()
    assert host.nn("set_input", context, 0, host.tensor(PICTURE)) == OK
    assert host.nn("compute", context) == OK
    assert host.answer(context) == PICTURE[:4]
    loaded, inferred = host.zipper.asked
    assert loaded == WantModel(tflite())
    assert isinstance(inferred, WantInference)
    assert inferred.model == 2, "it comes after the two of the manifest"


def test_loading_the_same_bytes_for_every_frame_is_one_load(host: Nn) -> None:
    graphs = set()
    for _ in range(3 * MAX_CONTEXTS):
        host.next_frame()
        assert host.load(tflite()) == OK
        graphs.add(host.word())
        assert host.nn("init_execution_context", host.word(), OUT) == OK
        context = host.word()
        assert host.nn("set_input", context, 0, host.tensor(PICTURE)) == OK
        assert host.nn("compute", context) == OK
    assert len(graphs) == 1
    assert sum(isinstance(asked, WantModel) for asked in host.zipper.asked) == 1


def test_a_context_of_many_ago_is_closed(host: Nn) -> None:
    first, kept = host.context(), host.context()
    for _ in range(MAX_CONTEXTS - 1):
        assert host.nn("set_input", kept, 0, host.tensor(PICTURE)) == OK
        host.context()
    assert host.nn("compute", first) == ARGUMENT
    assert host.nn("compute", kept) == OK, "it was used all the time"


def test_two_models_are_two_graphs(host: Nn) -> None:
    assert host.load(tflite(b"a")) == OK
    first = host.word()
    assert host.load(tflite(b"b")) == OK
    assert host.word() != first


def test_more_models_than_the_manifest_allows(host: Nn) -> None:
    assert [host.load(tflite(bytes([tag]))) for tag in range(3)] == [OK, OK, UNSUPPORTED]
    assert host.load(tflite(b"\0")) == OK, "the first is known"
    assert len(host.zipper.asked) == 2
    (line,) = host.zipper.logs
    assert "guest_models" in line.text


def test_no_model_where_the_manifest_allows_none() -> None:
    host = Nn(guest_models=0)
    assert [host.load(tflite()), host.load(tflite())] == [UNSUPPORTED, UNSUPPORTED]
    assert host.zipper.asked == []
    (line,) = host.zipper.logs
    assert "guest_models" in line.text


@pytest.mark.parametrize(
    ("refusal", "errno"), [(FAILED, RUNTIME), (BUSY, IS_BUSY), (DENIED, UNSUPPORTED)], ids=["failed", "busy", "denied"]
)
def test_what_the_zipper_refuses(host: Nn, refusal: object, errno: int) -> None:
    context = host.context()
    host.nn("set_input", context, 0, host.tensor(PICTURE))
    assert host.nn("compute", context) == OK
    host.zipper.refuse = refusal  # type: ignore[assignment]
    assert host.nn("compute", context) == errno
    assert host.nn("get_output", context, 0, OUT, 100, OUT) == RUNTIME, "not the answer before"
    host.zipper.refuse = refusal  # type: ignore[assignment]
    assert host.load(tflite()) == errno
    assert host.load(tflite()) == OK, "it may be tried again"


def test_models_that_fail_are_tried_few_times_about_a_frame(host: Nn) -> None:
    def failing() -> int | None:
        host.zipper.refuse = FAILED
        return host.load(tflite())

    tries = MAX_WISHES // MODEL_WISHES
    assert [failing() for _ in range(tries + 1)] == [RUNTIME] * tries + [TOO_LARGE]
    assert len(host.zipper.asked) == tries
    host.next_frame()
    assert failing() == RUNTIME


@pytest.mark.parametrize("encoding", [0, 1, 2, 3, 6, 0xFFFF_FFFF])
def test_encodings_that_cannot_be_run(host: Nn, encoding: int) -> None:
    assert host.load(tflite(), encoding) == ENCODING


def test_bytes_that_are_no_tflite_model(host: Nn) -> None:
    for data in (b"", b"TFL3", b"\0asm\1\0\0\0", b"\x1c\0\0\0TFL"):
        assert host.load(data, TFLITE) == ARGUMENT
        assert host.load(data, AUTODETECT) == ENCODING
    assert host.zipper.asked == []


def test_targets_that_there_are_not(host: Nn) -> None:
    assert [host.load(tflite(), target=target) for target in (4, 0xFFFF_FFFF)] == [ARGUMENT, ARGUMENT]


def test_a_model_in_parts(host: Nn) -> None:
    host.words(BUILDER, host.put(MODEL, tflite()), len(tflite()), MODEL, len(tflite()))
    assert [host.nn("load", BUILDER, count, TFLITE, 0, OUT) for count in (0, 2, 0xFFFF_FFFF)] == [ARGUMENT] * 3


def test_names_of_the_manifest_alone(host: Nn) -> None:
    assert host.load(tflite()) == OK
    assert [host.named(name) for name in ("classifier", "adder", "brought", "", "x" * 257)] == [
        OK, OK, NOT_FOUND, NOT_FOUND, TOO_LARGE,
    ]  # fmt: skip
    assert host.nn("load_by_name", host.put(NAME, b"\xff\xfe"), 2, OUT) == ARGUMENT


def test_a_name_with_a_configuration(host: Nn) -> None:
    name = host.put(NAME, b"classifier")
    assert host.nn("load_by_name_with_config", name, 10, host.put(MODEL, b"{}"), 2, OUT) == OK
    graph = host.word()
    assert host.named() == OK
    assert host.word() == graph
    assert host.nn("load_by_name_with_config", name, 10, MEMORY - 1, 2, OUT) == ARGUMENT


@pytest.mark.parametrize("handle", [0, 99, 0x8000_0000, 0xFFFF_FFFF])
def test_handles_that_nobody_gave(host: Nn, handle: int) -> None:
    tensor = host.tensor(PICTURE)
    assert host.nn("init_execution_context", handle, OUT) == ARGUMENT
    assert host.nn("unload", handle) == ARGUMENT
    assert host.nn("finalize_execution_context", handle) == ARGUMENT
    assert host.nn("set_input", handle, 0, tensor) == ARGUMENT
    assert host.nn("compute", handle) == ARGUMENT
    assert host.nn("get_output", handle, 0, OUT, 4, OUT) == ARGUMENT


def test_a_graph_is_no_context_and_the_other_way_round(host: Nn) -> None:
    assert host.named() == OK
    graph = host.word()
    assert host.nn("compute", graph) == ARGUMENT
    assert host.nn("init_execution_context", graph, OUT) == OK
    assert host.nn("init_execution_context", host.word(), OUT) == ARGUMENT


def test_what_is_closed_is_gone(host: Nn) -> None:
    assert host.named() == OK
    graph = host.word()
    assert host.nn("init_execution_context", graph, OUT) == OK
    context = host.word()
    assert [host.nn("unload", graph), host.nn("unload", graph)] == [OK, ARGUMENT]
    assert host.nn("init_execution_context", graph, OUT) == ARGUMENT
    assert host.nn("set_input", context, 0, host.tensor(PICTURE)) == OK, "contexts go on without their graph"
    assert [host.nn("finalize_execution_context", context) for _ in "12"] == [OK, ARGUMENT]


def test_contexts_do_not_share_tensors(host: Nn) -> None:
    first, second = host.context(), host.context()
    host.nn("set_input", first, 0, host.tensor(b"\1" * 12))
    assert host.nn("compute", second) == ARGUMENT
    host.nn("set_input", second, 0, host.tensor(b"\2" * 12))
    assert [host.nn("compute", first), host.nn("compute", second)] == [OK, OK]
    assert (host.answer(first), host.answer(second)) == (b"\1" * 4, b"\2" * 4)


@pytest.mark.parametrize("type", [U8_OLD, U8_NEW])
def test_u8_in_both_numberings(host: Nn, type: int) -> None:
    assert host.nn("set_input", host.context(), 0, host.tensor(PICTURE, type)) == OK


@pytest.mark.parametrize("type", [I32_OLD, I32_NEW])
def test_i32_in_both_numberings(host: Nn, type: int) -> None:
    context = host.context("adder")
    assert host.nn("set_input", context, 0, host.tensor(bytes(8), type, (1, 2))) == OK
    assert host.nn("set_input", context, 1, host.tensor(bytes(4), F32, (1,))) == OK
    assert host.nn("compute", context) == OK
    assert host.answer(context) == bytes(8)


@pytest.mark.parametrize("type", [F16, F32, I32_NEW, 5, 6, 255])
def test_types_that_the_model_has_not(host: Nn, type: int) -> None:
    assert host.nn("set_input", host.context(), 0, host.tensor(PICTURE, type)) == ARGUMENT


@pytest.mark.parametrize(("data", "shape"), [
    (bytes(11), (1, 2, 2, 3)),
    (bytes(13), (1, 2, 2, 3)),
    (b"", (1, 2, 2, 3)),
    (PICTURE, (1, 2, 2, 4)),
    (PICTURE, ()),
    (PICTURE, (1,) * 9),
    (PICTURE, (0,)),
    (PICTURE, (0x10000, 0x10000)),
])  # fmt: skip
def test_sizes_that_are_not_the_inputs(host: Nn, data: bytes, shape: tuple[int, ...]) -> None:
    assert host.nn("set_input", host.context(), 0, host.tensor(data, shape=shape)) == ARGUMENT


def test_dimensions_may_be_written_otherwise(host: Nn) -> None:
    assert host.nn("set_input", host.context(), 0, host.tensor(PICTURE, shape=(12,))) == OK


def test_all_inputs_must_be_set(host: Nn) -> None:
    context = host.context("adder")
    assert host.nn("compute", context) == ARGUMENT
    host.nn("set_input", context, 1, host.tensor(bytes(4), F32, (1,)))
    assert host.nn("compute", context) == ARGUMENT
    assert host.nn("set_input", context, 2, host.tensor(bytes(4), F32, (1,))) == ARGUMENT
    host.nn("set_input", context, 0, host.tensor(bytes(8), I32_OLD, (1, 2)))
    assert host.nn("compute", context) == OK


def test_inputs_stay_and_outputs_end_with_the_frame(host: Nn) -> None:
    context = host.context()
    host.nn("set_input", context, 0, host.tensor(PICTURE))
    assert host.nn("get_output", context, 0, OUT, 100, OUT) == RUNTIME, "nothing was computed"
    host.nn("compute", context)
    host.next_frame()
    assert host.nn("get_output", context, 0, OUT, 100, OUT) == RUNTIME, "another frame's"
    assert host.nn("compute", context) == OK
    assert host.answer(context) == PICTURE[:4]


def test_a_buffer_that_is_too_small(host: Nn) -> None:
    context = host.context()
    host.nn("set_input", context, 0, host.tensor(PICTURE))
    host.nn("compute", context)
    assert host.nn("get_output", context, 0, OUT + 16, 3, OUT) == TOO_LARGE
    assert host.word() == 4, "how much it takes"
    assert host.read(OUT + 16, 4) == bytes(4)
    assert host.answer(context, 0, 4) == PICTURE[:4]
    assert [host.nn("get_output", context, index, OUT, 8, OUT) for index in (2, 0xFFFF_FFFF)] == [ARGUMENT, ARGUMENT]


def test_nothing_can_be_computed_before_there_is_a_frame() -> None:
    host = Nn(frame=None)
    context = host.context()
    assert host.load(tflite()) == OK, "models can be loaded, though"
    assert host.nn("set_input", context, 0, host.tensor(PICTURE)) == OK
    assert host.nn("compute", context) == UNSUPPORTED


def test_word_by_word_is_not_what_tflite_models_do(host: Nn) -> None:
    context = host.context()
    assert host.nn("compute_single", context) == UNSUPPORTED
    assert host.nn("get_output_single", context, 0, OUT, 4, OUT) == UNSUPPORTED
    assert host.nn("fini_single", context) == UNSUPPORTED


@pytest.mark.parametrize("edge", EDGES)
def test_pointers_outside_the_memory(host: Nn, edge: int) -> None:
    context = host.context()
    graph = context - 1
    host.nn("set_input", context, 0, host.tensor(PICTURE))
    host.nn("compute", context)
    host.words(BUILDER, edge, 4)
    assert host.nn("load", BUILDER, 1, TFLITE, 0, OUT) == ARGUMENT
    assert host.nn("load", edge, 1, TFLITE, 0, OUT) == ARGUMENT
    assert host.load(tflite(), out=edge) == ARGUMENT
    assert host.nn("load_by_name", edge, 10, OUT) == ARGUMENT
    assert host.named(out=edge) == ARGUMENT
    assert host.nn("init_execution_context", graph, edge) == ARGUMENT
    assert host.nn("set_input", context, 0, edge) == ARGUMENT
    for at, value in ((0, edge), (12, edge)):
        host.tensor(PICTURE)
        host.words(TENSOR + at, value)
        assert host.nn("set_input", context, 0, TENSOR) == ARGUMENT
    assert host.nn("get_output", context, 0, edge, 4, OUT) == ARGUMENT
    assert host.nn("get_output", context, 0, OUT, 4, edge) == ARGUMENT
    assert host.nn("get_output", context, 0, OUT, 0xFFFF_FFFF, OUT) == ARGUMENT


def test_the_last_bytes_of_the_memory_are_the_guests(host: Nn) -> None:
    context = host.context()
    last = host.put(MEMORY - 12, PICTURE)
    host.words(SHAPE, 12)
    host.put(MEMORY - 40, struct.pack("<IIB3xII", SHAPE, 1, U8_OLD, last, 12))
    assert host.nn("set_input", context, 0, MEMORY - 40) == OK
    assert host.nn("compute", context) == OK
    assert host.nn("get_output", context, 0, MEMORY - 8, 4, MEMORY - 4) == OK
    assert host.read(MEMORY - 8, 8) == PICTURE[:4] + b"\4\0\0\0"
    assert host.named(out=MEMORY - 4) == OK


def test_a_guest_without_a_memory() -> None:
    host = Nn(memory=0)
    assert host.nn("load", 0, 1, TFLITE, 0, 0) == NO_MEMORY
    assert host.nn("load_by_name", 0, 1, 0) == NO_MEMORY
    assert host.nn("compute", 1) == ARGUMENT
