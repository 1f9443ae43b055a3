"""Whatever a guest calls with whatever numbers: it gets an answer of the function's kind, or its budget ends it."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from nn_bench import BUSY, DENIED, FAILED, JPEG, MEMORY, OUT, Host, tflite

from appliance.sandbox.abi.signatures import SIGNATURES
from appliance.sandbox.engine import GuestFailedError

MODULES = ("wasi_ephemeral_nn", "wasi_nn", "wasmedge_tensorflowlite", "wasmedge_image", "wasmedge_tensorflow")
FUNCTIONS = [(module, name) for module in MODULES for name in SIGNATURES[module]]
PICTURE, MODEL, BUILDER, TENSOR, NAME = 0x100, 0x200, 0x300, 0x340, 0x400
NUMBERS = st.one_of(
    st.integers(0, 40),
    st.sampled_from([OUT, PICTURE, MODEL, BUILDER, TENSOR, NAME, len(JPEG), 0x101, MEMORY - 8, MEMORY]),
    st.sampled_from([0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 1 << 32, (1 << 64) - 1]),
)
CALLS = st.tuples(st.sampled_from(FUNCTIONS), st.lists(NUMBERS, min_size=9, max_size=9))
GREATEST_ERRNO = 8
BUDGET = 50


def prepared(host: Host) -> Host:
    """A memory with things in it that calls can hit upon."""
    host.put(PICTURE, JPEG)
    host.put(MODEL, tflite())
    host.words(BUILDER, MODEL, 8, BUILDER, 1)
    host.words(TENSOR, TENSOR + 24, 1, 2, PICTURE, 12, 0, 12, TENSOR + 24, 1)
    host.put(NAME, b"classifier")
    return host


@settings(deadline=None)
@given(st.lists(CALLS, max_size=60), st.sets(st.integers(0, 60)), st.sampled_from([FAILED, BUSY, DENIED]))
def test_any_calls_are_answered_or_end_by_the_budget(calls: list[Any], refused: set[int], refusal: Any) -> None:
    host = prepared(Host(host_calls=BUDGET))
    for number, ((module, name), numbers) in enumerate(calls):
        if number in refused:
            host.zipper.refuse = refusal
        result, _, parameters = SIGNATURES[module][name].rstrip(")").partition("(")
        try:
            answer = host.call(module, name, *numbers[: len(parameters)])
        except GuestFailedError as failure:
            assert (failure.kind, number) == ("budget", BUDGET)
            return
        if result == "v":
            assert answer is None
        else:
            assert isinstance(answer, int)
            is_errno = not name.endswith(("_tensor", "_len", "create_session")) or not name.startswith("wasmedge")
            assert 0 <= answer <= (GREATEST_ERRNO if is_errno else 1 << 40)
