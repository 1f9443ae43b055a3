import numpy as np
import pytest
import tiny_models

from appliance.errors import ConfigError, DeviceError, ModelError
from appliance.inference import runtime as runtimes
from appliance.inference.messages import MAX_TENSORS, TensorInfo
from appliance.inference.runtime import MAX_REASON, MAX_TENSOR_NAME, Package, Runtime, array_of, check_size, describe


@pytest.mark.parametrize("dtype", ["uint8", "int8", "float32"])
def test_a_model_runs(runtime: str, dtype: str) -> None:
    loaded = Runtime(runtime).load(tiny_models.echo((1, 2, 3, 3), dtype))
    size = 18 * np.dtype(dtype).itemsize
    assert loaded.inputs == [TensorInfo("picture", dtype, (1, 2, 3, 3), size, 0.0, 0)]
    assert loaded.outputs == [TensorInfo("echo", dtype, (1, 18), size, 0.0, 0)]
    tensor = np.arange(18).reshape(1, 2, 3, 3).astype(dtype)
    assert loaded.run([tensor]) == [tensor.tobytes()]
    assert not loaded.delegated
    loaded.close()


def test_results_say_which_version_ran(runtime: str) -> None:
    name, version = Runtime(runtime).label.split()
    assert name == runtime
    assert version[0].isdigit()


def test_a_model_that_fails_goes_on_afterwards(runtime: str) -> None:
    loaded = Runtime(runtime).load(tiny_models.pick())
    with pytest.raises(ModelError, match="gather index out of bounds"):
        loaded.run([np.array([9], np.int32)])
    assert loaded.run([array_of(loaded.inputs[0], b"\x03\0\0\0")]) == [b"\x28\0\0\0"]


def test_an_unknown_operator_is_named(runtime: str) -> None:
    with pytest.raises(ModelError, match="unresolved custom op: my-op"):
        Runtime(runtime).load(tiny_models.custom("my-op"))


def test_an_unknown_runtime_is_a_fault_of_the_configuration() -> None:
    with pytest.raises(ConfigError, match=r"inference\.runtime: no runtime is called 'onnx'; there are litert, tflite"):
        Runtime("onnx")


def test_a_missing_runtime_comes_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "RUNTIMES", {"litert": Package("not_installed", "install ai-edge-litert")})
    with pytest.raises(DeviceError, match=r"cannot be imported.*: install ai-edge-litert"):
        Runtime("litert")


def detail(**changes: object) -> dict[str, object]:
    return {"name": "t", "dtype": np.uint8, "shape": np.array([1, 2]), "quantization": (0.5, 3)} | changes


def test_a_tensor_is_described_in_plain_values() -> None:
    assert describe(detail()) == TensorInfo("t", "uint8", (1, 2), 2, 0.5, 3)
    assert describe(detail(shape=np.array([], np.int32), dtype=np.float32)).nbytes == 4


def test_a_tensor_beyond_the_bounds_is_refused() -> None:
    assert describe(detail(name="n" * 5000)).name == "n" * MAX_TENSOR_NAME
    for beyond in (detail(dtype=np.bytes_), detail(shape=np.ones(9, int)), detail(shape=np.array([-1, 4]))):
        with pytest.raises(ModelError, match="tensor 't'"):
            describe(beyond)


def test_too_many_or_too_large_tensors_are_refused() -> None:
    small, large = TensorInfo("s", "uint8", (1,), 1, 0, 0), TensorInfo("l", "uint8", (9 << 20,), 9 << 20, 0, 0)
    check_size("inputs", [small, large])
    for tensors in ([], [small] * (MAX_TENSORS + 1), [large, large]):
        with pytest.raises(ModelError, match="inputs"):
            check_size("inputs", tensors)


def test_a_reason_is_one_bounded_line() -> None:
    assert runtimes.reason_of(ValueError("two\n  lines")) == "two lines"
    assert runtimes.reason_of(ValueError()) == "ValueError"
    assert len(runtimes.reason_of(ValueError("x" * 10_000))) == MAX_REASON
